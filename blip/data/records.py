"""What the texts and the image paths of a record may hold, whatever the format of their file; and the error of one."""

import os
import re
from collections.abc import Iterator
from typing import Any

from blip.files import ReadError

Records = Iterator[tuple[str, Any]]  # place, such as "line 3", and record

MAX_TEXT = 100_000  # characters of one text; the longest captions of articles have some 10,000
# control characters other than blanks, and halves of characters, which are no text: tokenizers refuse or drop them
UNUSABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class AnnotationError(ReadError):
    """A broken annotation file: `path` names it, `place` the record ("" for the whole file), `problem` the fault."""


def text_problem(text: str) -> str:
    """What makes a text unusable, as the end of a sentence about it, or ""."""
    if len(text) > MAX_TEXT:
        return f"has {len(text):,} characters; at most {MAX_TEXT:,} are read"
    if text.isprintable() or not (found := UNUSABLE.search(text)):
        return ""
    if found[0] >= "\ud800":
        return f"holds half a character (U+{ord(found[0]):04X}): it was not written as UTF-8"
    name = "NUL" if found[0] == "\0" else "control"
    return f"holds a {name} character (U+{ord(found[0]):04X})"


def path_problem(path: str) -> str:
    """As `text_problem`, for the path of an image; a name of a file may hold any bytes but NUL.

    Bytes that are not UTF-8 are lone surrogates, as in `os.fsdecode`, which JSON holds as escapes.
    """
    if not path.strip():
        return "is empty"
    if "\0" in path:
        return "holds a NUL character"
    if ADDRESS.match(path):
        return f"is an address, {path:.80}, and nothing is downloaded: give the path of a file"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return "holds half a character and is no name of a file: it was not written as UTF-8"
    return ""
