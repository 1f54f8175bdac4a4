"""Annotation files as they lie on disk: JSON, JSON lines, CSV, TSV and parquet, read record by record.

A record has `image` (a path), `caption` (text or a list of texts) and perhaps `image_id`; other keys are ignored.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blip.errors import BlipError

BLANK = re.compile(r"\s*")


class AnnotationError(BlipError):
    """A broken annotation file: `path` names it, `place` the record ("" for the whole file), `problem` the fault."""

    def __init__(self, path: str | Path, place: str, problem: str):
        super().__init__(f"{path}{', ' if place else ''}{place}: {problem}")
        self.path, self.place, self.problem = str(path), place, problem


def iter_records(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of each record of an annotation file; the place is what messages call it, such as "line 3".

    Raises AnnotationError where the file itself is broken. The records are as found: `parse_record` checks them.
    """
    path = Path(path)
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _table, ".tsv": _table, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise AnnotationError(path, "", f"annotation files end in {', '.join(readers)}; rename or convert it")
    if not path.is_file():
        raise AnnotationError(path, "", "no such file")
    place = ""
    try:
        for place, record in readers[path.suffix.lower()](path):
            yield place, record
    except UnicodeDecodeError as error:
        raise AnnotationError(path, place and f"after {place}", f"not UTF-8 text ({error}); save it as UTF-8") from None
    if not place:
        raise AnnotationError(path, "", "holds no records")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    # decoded record by record: a million dicts at once would take over 600 MB
    text = path.read_text(encoding="utf-8-sig")
    decode = json.JSONDecoder().raw_decode

    def after_blanks(position: int) -> int:
        return BLANK.match(text, position).end()  # type: ignore[union-attr]

    position = after_blanks(0)
    if position == len(text):
        return
    if text[position] != "[":
        raise AnnotationError(path, "", f"is not a list of records: it starts with {text[position]!r} instead of '['")
    position, number = after_blanks(position + 1), 0
    mark = text[position : position + 1]
    while mark != "]":
        number += 1
        try:
            record, position = decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            raise AnnotationError(path, f"record {number}", f"not valid JSON ({error})") from None
        yield f"record {number}", record
        position = after_blanks(position)
        mark = text[position : position + 1]
        if mark not in (",", "]"):
            found = f"{mark!r}" if mark else "the file ends"
            raise AnnotationError(path, f"after record {number}", f"expected ',' or ']' but {found}; is it cut off?")
        position = after_blanks(position + 1) if mark == "," else position
    if after_blanks(position + 1) != len(text):
        raise AnnotationError(path, "", "has text after the closing ']'; one record a line is .jsonl")


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    problem = f"not valid JSON ({error.msg}, column {error.colno})"
                    raise AnnotationError(path, f"line {number}", problem) from None
                except RecursionError:
                    raise AnnotationError(path, f"line {number}", "not a record: nested too deeply") from None
                yield f"line {number}", record


def _table(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        # strict: a quotation mark that is never closed is an error instead of swallowing the records behind it
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            names = rows.fieldnames or []
            if names and not {"image", "caption"} <= set(names):
                raise AnnotationError(path, "line 1", f"needs the columns image and caption; found: {', '.join(names)}")
            for row in rows:
                if None in row or None in row.values():
                    given = sum(value is not None for key, value in row.items() if key) + len(row.get(None, ()))
                    problem = f"{given} fields under {len(names)} columns; put quotes round text with a separator"
                    raise AnnotationError(path, f"line {rows.line_num}", problem)
                yield f"line {rows.line_num}", row
        except csv.Error as error:
            raise AnnotationError(path, f"line {rows.line_num}", f"not a valid table ({error})") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise AnnotationError(path, "", "reading parquet needs pyarrow: pip install 'blip[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if name in ("image", "caption", "image_id")]
            if not {"image", "caption"} <= set(wanted):
                names = ", ".join(file.schema_arrow.names)
                raise AnnotationError(path, "", f"needs the columns image and caption; found: {names}")
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=wanted):
                for record in batch.to_pylist():
                    number += 1
                    yield f"record {number}", record
    except (ArrowException, OSError) as error:
        raise AnnotationError(path, "", f"not a readable parquet file ({error})") from None


def parse_record(record: Any) -> tuple[str, list[str], str | None]:
    """(image, captions, image id or None) of a record; ValueError says what is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError(f"a record is an object with image and caption, not {_kind(record)}")
    for key in ("image", "caption"):
        if key not in record:
            raise ValueError(f"has no {key!r}; its keys: {', '.join(map(str, record)) or 'none'}")
    image, caption = record["image"], record["caption"]
    if not isinstance(image, str):
        raise ValueError(f"its image is {_kind(image)}, not the path of a file")
    if not image.strip() or "\0" in image:
        raise ValueError("its image is empty" if not image.strip() else "its image holds a NUL character")
    captions = caption if isinstance(caption, list) else [caption]
    if not captions:
        raise ValueError("its list of captions is empty")
    for text in captions:
        if not isinstance(text, str):
            raise ValueError(f"its caption is {_kind(text)}, not text")
        if not text.strip():
            raise ValueError("its caption is empty")
    image_id = record.get("image_id")
    if image_id is not None and (not isinstance(image_id, (str, int)) or isinstance(image_id, bool)):
        raise ValueError(f"its image_id is {_kind(image_id)}, not a whole number or text")
    return image, captions, None if image_id is None or image_id == "" else str(image_id)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"a number ({value})" if isinstance(value, (int, float)) else type(value).__name__)


def file_entry(entry: str | Path | Mapping[str, Any]) -> tuple[str, float]:
    """(path, weight) of an entry in a list of annotation files."""
    if not isinstance(entry, Mapping):
        return str(entry), 1.0
    if "path" not in entry or not set(entry) <= {"path", "weight"}:
        raise ValueError(f"an annotation file is a path or has the keys path and weight; found: {dict(entry)}")
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ValueError(f"{entry['path']}: weight is {weight!r}; it needs to be a number above 0")
    return str(entry["path"]), float(weight)
