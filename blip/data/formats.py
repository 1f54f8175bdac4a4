"""Annotation files: JSON, JSON lines, CSV, TSV, parquet, arrow and text, read record by record.

The records of each data set are read in `data/sets/`. The generic record of captions, read by `parse_record`, has
`image` (a path) or `images` (several, see `several_paths`), `caption` (text or a list of texts) and optionally
`image_id`; other keys are ignored.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blip.data import hints
from blip.data.columns import renamed
from blip.data.records import AnnotationError, Records, path_problem, text_problem
from blip.data.tables import binary_table, text_table
from blip.data.text_lines import iter_lines, not_utf8
from blip.errors import InputError
from blip.files import JSON_DECODER, JSON_ERRORS, ReadError, json_problem, open_regular, read_text

BLANK = re.compile(r"\s*")


def iter_records(
    path: str | Path,
    needed: tuple[str, ...] = ("image", "caption"),
    also: tuple[str, ...] = ("image_id",),
    *,
    columns: Mapping[str, str] | None = None,
) -> Records:
    """(place, record) of each record of an annotation file; the place names it in messages, such as "line 3".

    An image inside a parquet or arrow file becomes the reference FILE#ROW, which `read_image` resolves.

    Args:
        path: .json (a list of records), .jsonl, .csv, .tsv, .parquet, or .arrow as the `datasets` library saves it.
        needed: columns that a table has to have; `images` can stand in place of `image`. Records of other formats are
            not checked here.
        also: further columns of parquet and arrow files, read where they exist.
        columns: name of the package -> name in the file, where they differ in more than their case; see `columns_of`.

    Raises:
        AnnotationError: the file itself is broken. Its records are not checked: `parse_record` does that.
    """
    path, given = Path(path), dict(columns or {})
    also = (*also, "images") if "image" in needed else also
    readers: dict[str, Callable[[Path], Records]] = {
        ".json": lambda path: renamed(_json(path), needed, also, given, path=path),
        ".jsonl": lambda path: renamed(iter_json_lines(path), needed, also, given, path=path),
        ".csv": lambda path: text_table(path, needed, also, given),
        ".tsv": lambda path: text_table(path, needed, also, given),
        ".parquet": lambda path: binary_table(path, needed, also, given),
        ".arrow": lambda path: binary_table(path, needed, also, given),
    }
    if path.suffix.lower() not in readers:
        kinds = f"annotation files end in {', '.join(readers)}; rename or convert it"
        raise AnnotationError(path, "", kinds if os.path.lexists(path) else hints.missing(path))
    yield from checked(path, readers[path.suffix.lower()])


def checked(path: Path, read: Callable[[Path], Records]) -> Records:
    """What `read` yields for the file; AnnotationError where it is absent, not UTF-8 or holds no records."""
    if not path.exists():
        raise AnnotationError(path, "", hints.missing(path))
    place = ""
    try:
        with open_regular(path):
            pass
        for place, record in read(path):
            yield place, record
    except ReadError as error:
        raise AnnotationError(path, error.place, _with_cure(error.problem, path)) from None
    except UnicodeDecodeError:
        found = not_utf8(path)
        raise AnnotationError(path, found.place, _with_cure(found.problem, path)) from None
    except OSError as error:  # such as too many open files
        raise AnnotationError(path, place and f"after {place}", error.strerror or str(error)) from None
    if not place:
        raise AnnotationError(path, "", "holds no records")


def _with_cure(problem: str, path: Path) -> str:
    """A message about a text that is not UTF-8 with the command that mends it; any other as it is."""
    cure = hints.encoding(path) if problem.startswith("not UTF-8 text") else ""
    return f"{problem}; {cure}" if cure else problem


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


def iter_json_object(path: Path, inside: str = "") -> Records:
    """(key, item) of a JSON object: each item of its lists, such as ("images", {...}), and each other value.

    `inside` is the key of an object whose entries are read in the same way, as if they were those of the whole.
    """
    text = read_text(path)
    position = _after_blanks(text, 0)
    if text[position : position + 1] != "{":
        raise AnnotationError(path, "", f"is no JSON object: it starts with {text[position : position + 1]!r}")
    for key, item, _ in _entries(path, text, position, inside):
        if key is not None:
            yield key, item


def _entries(path: Path, text: str, position: int, inside: str) -> Iterator[tuple[str | None, Any, int]]:
    """(key, item, position behind it) of the JSON object at `position`; at its end the key is None."""
    decode = JSON_DECODER.raw_decode
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
                        yield key, item, end
            elif inside and key == inside and text[position : position + 1] == "{":
                for name, item, end in _entries(path, text, position, ""):
                    position = end
                    if name is not None:
                        yield name, item, end
            else:
                value, position = decode(text, position)
                yield key, value, position
        except JSON_ERRORS as error:
            raise AnnotationError(path, "", json_problem(error)) from None
        position = _after_blanks(text, position)
        mark = text[position : position + 1]
        if mark not in (",", "}"):
            raise AnnotationError(path, "", f"after {key!r}: expected ',' or '}}'; is it cut off?")
        position = _after_blanks(text, position + 1) if mark == "," else position
    yield None, None, position + 1


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


# ---- records ---------------------------------------------------------------------------------------------------------


def several_paths(record: Any) -> list[str]:
    """The paths under `images`, a list, or text with bars between them; [] where a record has none, but `image`.

    Raises:
        InputError: no paths, or `image` beside them.
    """
    given = record.get("images") if isinstance(record, dict) else None
    if given is None or given == "":
        return []
    if record.get("image") not in (None, ""):
        raise InputError("has both image and images: one path is an image, several of one item are images")
    paths = [part.strip() for part in given.split("|")] if isinstance(given, str) else given
    if not isinstance(paths, list) or not paths:
        raise InputError(f"its images are {kind_of(given) if paths != [] else 'an empty list'}, not a list of paths")
    for path in paths:
        if not isinstance(path, str):
            raise InputError(f"one of its images is {kind_of(path)}, not the path of a file")
        if problem := path_problem(path):
            raise InputError(f"one of its images {problem}")
    return paths


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
