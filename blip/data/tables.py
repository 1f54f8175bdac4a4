"""Tables of records: CSV and TSV, parquet and arrow. The bytes of images inside them are not read here."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip.data.columns import columns_of
from blip.data.records import AnnotationError, Records
from blip.data.text_lines import whole_lines

NEEDS_PYARROW = "reading parquet and arrow files needs pyarrow: pip install -e '.[parquet]'"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def text_table(path: Path, needed: tuple[str, ...], also: tuple[str, ...], columns: Mapping[str, str]) -> Records:
    """(line, record) of each row of a .csv or, with tabs, .tsv file with a header; arguments as in `iter_records`."""
    # strict: a quotation mark that is never closed is an error instead of swallowing the records behind it
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.DictReader(whole_lines(path, newline=""), delimiter=separator, strict=True)
    try:
        names = rows.fieldnames = [name.strip() for name in rows.fieldnames or []]
        theirs: dict[str, str] = {}
        if names:
            _check_separator(path, names, separator)
            theirs = columns_of(names, (*needed, *also), columns, path=path, place="line 1")
            _require(path, "line 1", names, needed, found=theirs)
        for row in rows:
            if None in row or None in row.values():
                given = sum(value is not None for key, value in row.items() if key) + len(row.get(None, ()))
                problem = f"{given} fields under {len(names)} columns; put quotes round text with a separator"
                raise AnnotationError(path, f"line {rows.line_num}", problem)
            yield f"line {rows.line_num}", {**row, **{name: row[column] for name, column in theirs.items()}}
    except csv.Error as error:
        raise AnnotationError(path, f"line {rows.reader.line_num}", f"not a valid table ({error})") from None


def _check_separator(path: Path, names: list[str], separator: str) -> None:
    """AnnotationError where the header is one column that holds another separator of columns."""
    if "\0" in names[0]:  # ASCII letters in UTF-16 are letters with NUL between them
        raise AnnotationError(path, "line 1", "not UTF-8 text (it has NUL characters)")
    other = next((one for one in SEPARATORS if one != separator and names[0].count(one)), "")
    if len(names) > 1 or not other:
        return
    if other == "\t":
        raise AnnotationError(path, "line 1", f"its columns are separated by tabs: rename it to {path.stem}.tsv")
    wanted = "tabs" if separator == "\t" else "commas"
    cure = f"pandas.read_csv({path.name!r}, sep={other!r}).to_csv('{path.stem}_commas.csv', index=False)"
    problem = f"its columns are separated by {SEPARATORS[other]}, not {wanted}: export it with commas, or convert it"
    raise AnnotationError(path, "line 1", f"{problem} (Python: import pandas; {cure})")


# ---- parquet and arrow -----------------------------------------------------------------------------------------------


def binary_table(path: Path, needed: tuple[str, ...], also: tuple[str, ...], columns: Mapping[str, str]) -> Records:
    """(record number, record) of each row of a parquet or arrow file; arguments as in `iter_records`.

    A record has the reference FILE#ROW, or FILE#ROW:COLUMN where the column is not called image, in place of an image's
    bytes. Numbers of labels whose names the `datasets` library keeps in the file become these names.
    """
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise AnnotationError(path, "", NEEDS_PYARROW) from None
    kind = path.suffix.lower().removeprefix(".")
    # absolute, since the reference is later joined to the folder of images
    place = os.path.abspath(path)
    try:
        with pyarrow.memory_map(str(path)) as source:
            file = parquet.ParquetFile(source) if kind == "parquet" else ipc.open_stream(source)
            schema = file.schema_arrow if kind == "parquet" else file.schema
            theirs = columns_of(schema.names, (*needed, *also), columns, path=path)
            if "images" in theirs and not _is_paths(schema, theirs["images"]):
                del theirs["images"]
            _require(path, "", schema.names, needed, found=theirs)
            inside = [name for name, column in theirs.items() if name == "image" and not _is_text(schema, column)]
            labels = label_names(schema.metadata)
            wanted = list(dict.fromkeys(column for name, column in theirs.items() if name not in inside))
            batches = (
                file.iter_batches(batch_size=4096, columns=wanted)
                if kind == "parquet"
                else (pyarrow.Table.from_batches([batch]).select(wanted) for batch in file)
            )
            number = 0
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    record = {name: _value(row[column], labels.get(column)) for name, column in theirs.items()
                              if name not in inside}  # fmt: skip
                    for name in inside:
                        column = "" if theirs[name] == "image" else f":{theirs[name]}"
                        record[name] = f"{place}#{number - 1}{column}"
                    yield f"record {number}", record
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(path, "", f"not a readable {kind} file ({error})") from None


def label_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column -> the names of its labels, from what the `datasets` library writes beside a schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {
            column: feature["names"] for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }  # fmt: skip
        return {column: names for column, names in found.items() if all(isinstance(name, str) for name in names)}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}


def _value(value: Any, names: list[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _is_text(schema: Any, column: str) -> bool:
    kind = str(schema.field(column).type)
    return kind in ("string", "large_string", "string_view") or kind.startswith("dictionary<values=string")


def _is_paths(schema: Any, column: str) -> bool:
    """Whether a column holds lists of texts, or texts."""
    return _is_text(schema, column) or str(schema.field(column).type) in ("list<element: string>", "list<item: string>")


def _require(path: Path, place: str, names: list[str], needed: tuple[str, ...], *, found: Mapping[str, str]) -> None:
    """AnnotationError for a column that occurs twice, or that is needed and not `found`."""
    if twice := [name for name in found.values() if names.count(name) > 1]:
        raise AnnotationError(path, place, f"has {names.count(twice[0])} columns called {twice[0]}: rename all but one")
    if missing := [name for name in needed if name not in found and not (name == "image" and "images" in found)]:
        last = f"{', '.join(needed[:-1])} and {needed[-1]}" if len(needed) > 1 else needed[0]
        other = next((name for name in names if name not in found.values()), "NAME")
        advice = f"columns={{{missing[0]}: {other}}} would name another" if names else ""
        raise AnnotationError(
            path, place, f"needs the columns {last}; found: {', '.join(names)}{f' ({advice})' if advice else ''}"
        )
