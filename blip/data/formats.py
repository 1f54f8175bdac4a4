"""Annotation files: JSON, JSON lines, CSV, TSV, parquet, arrow and text, read record by record.

The records of each data set are read in `data/sets/`. The generic record of captions, read by `parse_record`, has
`image` (a path), `caption` (text or a list of texts) and optionally `image_id`; other keys are ignored.
"""

import csv
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blip.data.records import path_problem, text_problem
from blip.data.text_lines import iter_lines, not_utf8, whole_lines
from blip.errors import InputError
from blip.files import JSON_DECODER, JSON_ERRORS, ReadError, json_problem, open_regular, read_text

BLANK = re.compile(r"\s*")
NEEDS_PYARROW = "reading parquet and arrow files needs pyarrow: pip install -e '.[parquet]'"

Records = Iterator[tuple[str, Any]]  # place, such as "line 3", and record


class AnnotationError(ReadError):
    """A broken annotation file: `path` names it, `place` the record ("" for the whole file), `problem` the fault."""


def iter_records(
    path: str | Path, needed: tuple[str, ...] = ("image", "caption"), also: tuple[str, ...] = ("image_id",)
) -> Records:
    """(place, record) of each record of an annotation file; the place names it in messages, such as "line 3".

    An image inside a parquet or arrow file becomes the reference FILE#ROW, which `read_image` resolves.

    Args:
        path: .json (a list of records), .jsonl, .csv, .tsv, .parquet, or .arrow as the `datasets` library saves it.
        needed: columns that a table has to have. Records of other formats are not checked here.
        also: further columns of parquet and arrow files, read where they exist.

    Raises:
        AnnotationError: the file itself is broken. Its records are not checked: `parse_record` does that.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], Records]] = {
        ".json": _json,
        ".jsonl": iter_json_lines,
        ".csv": lambda path: _table(path, needed),
        ".tsv": lambda path: _table(path, needed),
        ".parquet": lambda path: _columns(path, needed, also),
        ".arrow": lambda path: _columns(path, needed, also),
    }
    if path.suffix.lower() not in readers:
        raise AnnotationError(path, "", f"annotation files end in {', '.join(readers)}; rename or convert it")
    yield from checked(path, readers[path.suffix.lower()])


def checked(path: Path, read: Callable[[Path], Records]) -> Records:
    """What `read` yields for the file; AnnotationError where it is absent, not UTF-8 or holds no records."""
    if not path.exists():
        raise AnnotationError(path, "", "no such file")
    place = ""
    try:
        with open_regular(path):
            pass
        for place, record in read(path):
            yield place, record
    except ReadError as error:
        raise AnnotationError(path, error.place, error.problem) from None
    except UnicodeDecodeError:
        found = not_utf8(path)
        raise AnnotationError(path, found.place, found.problem) from None
    except OSError as error:  # such as too many open files
        raise AnnotationError(path, place and f"after {place}", error.strerror or str(error)) from None
    if not place:
        raise AnnotationError(path, "", "holds no records")


# ---- text ------------------------------------------------------------------------------------------------------------


def is_object(path: Path) -> bool:
    """Whether the file is JSON with an object instead of a list at its root, or one record a line."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with open_regular(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def _json(path: Path) -> Records:
    text = read_text(path)
    position = _after_blanks(text, 0)
    if position == len(text):
        return
    if text[position] != "[":
        raise AnnotationError(path, "", f"is not a list of records: it starts with {text[position]!r} instead of '['")
    for place, record, end in _items(path, text, position, "record"):
        position = end
        if place:
            yield place, record
    if _after_blanks(text, position) != len(text):
        raise AnnotationError(path, "", "has text after the closing ']'; one record a line is .jsonl")


def iter_json_object(path: Path) -> Records:
    """(key, item) of a JSON object: each item of its lists, such as ("images", {...}), and each other value."""
    text = read_text(path)
    decode = JSON_DECODER.raw_decode
    position = _after_blanks(text, 0)
    if text[position : position + 1] != "{":
        raise AnnotationError(path, "", f"is no JSON object: it starts with {text[position : position + 1]!r}")
    position = _after_blanks(text, position + 1)
    while text[position : position + 1] != "}":
        try:
            key, position = decode(text, position)
            position = _after_blanks(text, position)
            if not isinstance(key, str) or text[position : position + 1] != ":":
                raise AnnotationError(path, "", f"not valid JSON: no ':' after {key!r}")
            position = _after_blanks(text, position + 1)
            if text[position : position + 1] == "[":
                for place, item, end in _items(path, text, position, key):
                    position = end
                    if place:
                        yield key, item
            else:
                value, position = decode(text, position)
                yield key, value
        except JSON_ERRORS as error:
            raise AnnotationError(path, "", json_problem(error)) from None
        position = _after_blanks(text, position)
        mark = text[position : position + 1]
        if mark not in (",", "}"):
            raise AnnotationError(path, "", f"after {key!r}: expected ',' or '}}'; is it cut off?")
        position = _after_blanks(text, position + 1) if mark == "," else position


def _items(path: Path, text: str, position: int, name: str) -> Iterator[tuple[str, Any, int]]:
    """(place, item, position behind it) of the JSON list at `position`, and ("", None, position behind it) at its end.

    Decoded item by item: a million dicts at once would take over 600 MB.
    """
    decode = JSON_DECODER.raw_decode
    position, number = _after_blanks(text, position + 1), 0
    mark = text[position : position + 1]
    while mark != "]":
        number += 1
        try:
            record, position = decode(text, position)
        except JSON_ERRORS as error:
            cut = "; is it cut off?" if position == len(text) else ""
            raise AnnotationError(path, f"{name} {number}", json_problem(error) + cut) from None
        yield f"{name} {number}", record, position
        position = _after_blanks(text, position)
        mark = text[position : position + 1]
        if mark not in (",", "]"):
            instead = f"{mark!r}" if mark else "the file ends"
            raise AnnotationError(path, f"after {name} {number}", f"expected ',' or ']' but {instead}; is it cut off?")
        position = _after_blanks(text, position + 1) if mark == "," else position
    yield "", None, position + 1


def _after_blanks(text: str, position: int) -> int:
    return BLANK.match(text, position).end()  # type: ignore[union-attr]


def iter_json_lines(path: Path) -> Records:
    """One JSON record a line, whatever the file's suffix."""
    for place, line in iter_lines(path):
        try:
            record = JSON_DECODER.decode(line)
        except JSON_ERRORS as error:
            raise AnnotationError(path, place, json_problem(error)) from None
        yield place, record


# ---- tables ----------------------------------------------------------------------------------------------------------


def _table(path: Path, needed: tuple[str, ...]) -> Records:
    # strict: a quotation mark that is never closed is an error instead of swallowing the records behind it
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.DictReader(whole_lines(path, newline=""), delimiter=separator, strict=True)
    try:
        names = rows.fieldnames = [name.strip() for name in rows.fieldnames or []]
        if names:
            _require(path, "line 1", names, needed)
        for row in rows:
            if None in row or None in row.values():
                given = sum(value is not None for key, value in row.items() if key) + len(row.get(None, ()))
                problem = f"{given} fields under {len(names)} columns; put quotes round text with a separator"
                raise AnnotationError(path, f"line {rows.line_num}", problem)
            yield f"line {rows.line_num}", row
    except csv.Error as error:
        raise AnnotationError(path, f"line {rows.reader.line_num}", f"not a valid table ({error})") from None


def _columns(path: Path, needed: tuple[str, ...], also: tuple[str, ...]) -> Records:
    """Parquet or arrow. The bytes of images are not read: a record has a reference in their place."""
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
            _require(path, "", schema.names, needed, also=also)
            inside = "image" in schema.names and not _is_text(schema.field("image").type)
            wanted = [name for name in dict.fromkeys(needed + also) if name in schema.names]
            wanted = [name for name in wanted if name != "image" or not inside]
            batches = (
                file.iter_batches(batch_size=4096, columns=wanted)
                if kind == "parquet"
                else (pyarrow.Table.from_batches([batch]).select(wanted) for batch in file)
            )
            number = 0
            for batch in batches:
                for record in batch.to_pylist():
                    number += 1
                    yield f"record {number}", {**record, "image": f"{place}#{number - 1}"} if inside else record
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        raise AnnotationError(path, "", f"not a readable {kind} file ({error})") from None


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view") or str(kind).startswith("dictionary<values=string")


def _require(path: Path, place: str, names: list[str], needed: tuple[str, ...], *, also: tuple[str, ...] = ()) -> None:
    if twice := [name for name in needed + also if names.count(name) > 1]:
        raise AnnotationError(path, place, f"has {names.count(twice[0])} columns called {twice[0]}: rename all but one")
    if not set(needed) <= set(names):
        last = f"{', '.join(needed[:-1])} and {needed[-1]}" if len(needed) > 1 else needed[0]
        raise AnnotationError(path, place, f"needs the columns {last}; found: {', '.join(names)}")


# ---- records ---------------------------------------------------------------------------------------------------------


def parse_record(record: Any) -> tuple[str, list[str], str | None]:
    """(image, captions, image id or None) of a record; ValueError with what is wrong with it."""
    if not isinstance(record, dict):
        raise InputError(f"a record is an object with image and caption, not {kind_of(record)}")
    for key in ("image", "caption"):
        if key not in record:
            raise InputError(f"has no {key!r}; its keys: {', '.join(map(str, record)) or 'none'}")
    image, caption = record["image"], record["caption"]
    if not isinstance(image, str):
        raise InputError(f"its image is {kind_of(image)}, not the path of a file")
    if problem := path_problem(image):
        raise InputError(f"its image {problem}")
    captions = caption if isinstance(caption, list) else [caption]
    if not captions:
        raise InputError("its list of captions is empty")
    for text in captions:
        if not isinstance(text, str):
            raise InputError(f"its caption is {kind_of(text)}, not text")
        if not text.strip():
            raise InputError("its caption is empty")
        if problem := text_problem(text):
            raise InputError(f"its caption {problem}")
    image_id = record.get("image_id")
    if image_id is not None and (not isinstance(image_id, (str, int)) or isinstance(image_id, bool)):
        raise InputError(f"its image_id is {kind_of(image_id)}, not a whole number or text")
    return image, captions, None if image_id is None or image_id == "" else str(image_id)


def kind_of(value: Any) -> str:
    """The name of a value's JSON type, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"a number ({value})" if isinstance(value, (int, float)) else type(value).__name__)


def file_entry(entry: str | Path | Mapping[str, Any]) -> tuple[str, float]:
    """(path, weight) of an entry in a list of annotation files; ValueError for other keys or a weight of 0 or less."""
    if not isinstance(entry, Mapping):
        return str(entry), 1.0
    if "path" not in entry or not set(entry) <= {"path", "weight"}:
        raise InputError(f"an annotation file is a path or has the keys path and weight; found: {dict(entry)}")
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise InputError(f"{entry['path']}: weight is {weight!r}; it needs to be a number above 0")
    return str(entry["path"]), float(weight)
