"""The names of columns and keys: those that a set of one's own gives to `image`, `caption`, `question` and so on.

`columns: {question: Question, image: img}` names the columns that hold what the package calls question and image. A
name that is not given is found whatever its case.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip.data.records import AnnotationError, Records
from blip.errors import InputError

Columns = Mapping[str, str]  # name of the package -> name in the file


def columns_of(
    names: Sequence[str], wanted: Iterable[str], given: Mapping[str, str], *, path: str | Path, place: str = ""
) -> dict[str, str]:
    """Name of the package -> name of the column, for each of `wanted`, and each `given`, that a file has.

    A column is its own name, or the given one; failing that, the one that differs from it in its case alone.

    Example:
        >>> columns_of(["img", "Question"], ["image", "question"], {"image": "IMG"}, path="a.csv")
        {'image': 'img', 'question': 'Question'}

    Raises:
        AnnotationError: a column that was given does not exist, or two differ in their case alone; `path` and `place`
            name it.
    """
    found: dict[str, str] = {}
    for ours in dict.fromkeys((*wanted, *given)):
        asked = given.get(ours, ours)
        near = [name for name in names if name.casefold() == asked.casefold()]
        if asked in names:
            found[ours] = asked
        elif len(near) > 1 and (ours in given or ours not in names):
            raise AnnotationError(path, place, f"has several columns called {asked}: {', '.join(near)}")
        elif near:
            found[ours] = near[0]
        elif ours in given:
            raise AnnotationError(path, place, no_column(asked, ours, names))
    return found


def parse_columns(texts: Iterable[str]) -> dict[str, str]:
    """The columns that a command line names: `question=Frage,image=img`, or `{question: Frage, image: img}`.

    Raises:
        InputError: a text has another form.
    """
    given: dict[str, str] = {}
    for text in texts:
        for part in text.strip().removeprefix("{").removesuffix("}").split(","):
            match = re.fullmatch(r"\s*([^=:]+?)\s*[=:]\s*(.+?)\s*", part)
            if not match:
                raise InputError(f"--columns {text}: expected NAME=COLUMN, such as question=Frage,image=img")
            given[match[1]] = match[2]
    return given


def no_column(asked: str, ours: str, names: Iterable[str]) -> str:
    """The message for a column that was given and does not exist."""
    names = list(map(str, names))
    near = difflib.get_close_matches(asked, names, n=3, cutoff=0.5) or names[:10]
    return f"has no column {asked!r}, which columns names for {ours}; the nearest are {', '.join(near) or 'none'}"


def without_columns(path: str | Path, given: Columns) -> None:
    """AnnotationError where columns are given for a file that has none."""
    if given:
        raise AnnotationError(path, "", f"its form has no columns with names: leave out columns={dict(given)}")


def renamed(
    records: Records, needed: Sequence[str], also: Sequence[str], given: Mapping[str, str], *, path: Path
) -> Iterator[tuple[str, Any]]:
    """Records of objects whose keys have the names of the package; their other keys stay.

    Raises:
        AnnotationError: no record has a key that was given.
    """
    known: dict[tuple[str, ...], dict[str, str]] = {}  # keys of a record -> the names in them
    missing = dict(given)
    keys: tuple[str, ...] = ()
    for place, record in records:
        if isinstance(record, dict) and (given or not all(name in record for name in needed)):
            keys = tuple(map(str, record))
            if keys not in known:
                present = {ours: theirs for ours, theirs in given.items() if _has(keys, theirs)}
                known[keys] = columns_of(keys, (*needed, *also), present, path=path, place=place)
                if len(known) > 1000:  # keys that differ in every record
                    known.pop(next(iter(known)))
            names = known[keys]
            for ours in [ours for ours in missing if ours in names]:
                del missing[ours]
            if absent := next((name for name in missing if name in needed), ""):  # in no record so far
                raise AnnotationError(path, place, no_column(missing[absent], absent, keys))
            record = {**record, **{ours: record[theirs] for ours, theirs in names.items()}}
        yield place, record
    for ours, theirs in missing.items():
        raise AnnotationError(path, "", no_column(theirs, ours, keys))


def _has(keys: Sequence[str], name: str) -> bool:
    return any(key.casefold() == name.casefold() for key in keys)
