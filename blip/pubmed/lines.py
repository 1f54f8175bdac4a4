"""The lines that the steps of `blip pubmed` write and read: what each must have. Other entries are kept as they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from blip.files import parse_json, raw_lines

Line = dict[str, Any]
Counts = dict[str, Annotated[int, Field(ge=0)]]
_KEPT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Figure(TypedDict):
    """Of `extract`: a figure with its caption; an empty `image` where its file is missing."""

    __pydantic_config__ = _KEPT  # type: ignore[misc]

    image: str | None
    caption: str
    article: NotRequired[str | None]
    figure: NotRequired[str | None]
    files: NotRequired[list[str] | None]


class Pair(TypedDict):
    """Of `extract` or `split`: an image with its caption. `rules.py` judges the caption, the licence and the like."""

    __pydantic_config__ = _KEPT  # type: ignore[misc]

    image: str | None
    caption: Any
    article: str
    figure: NotRequired[str | None]
    label: NotRequired[str | None]
    panel: NotRequired[list[str] | None]
    panels: NotRequired[list[Any] | None]
    how: NotRequired[str | None]
    whole_image: NotRequired[str | None]


class Panel(TypedDict):
    """Of `split`: a part of a figure, as the report shows it."""

    __pydantic_config__ = _KEPT  # type: ignore[misc]

    caption: str
    article: str
    label: NotRequired[str | None]
    panel: list[str]
    how: str
    confidence: Annotated[int | float, Field(ge=0, le=1)]
    whole_image: str


class _Part(TypedDict):
    labels: list[str]
    text: str


class SplitCaption(TypedDict):
    """A caption that was split elsewhere."""

    __pydantic_config__ = _KEPT  # type: ignore[misc]

    article: NotRequired[str]
    figure: NotRequired[str]
    lead: NotRequired[str]
    parts: list[_Part]
    tail: NotRequired[str]
    confidence: NotRequired[Annotated[int | float, Field(ge=0, le=1)]]
    caption: NotRequired[str]


class Record(TypedDict):
    """Of a data set: a list of these is an annotation file."""

    __pydantic_config__ = _KEPT  # type: ignore[misc]

    image: str


class Example(Record):
    """A record as the report shows it."""

    caption: str
    how: NotRequired[str]
    confidence: NotRequired[Annotated[int | float, Field(ge=0, le=1)]]


class BuildFile(TypedDict):
    """The entries of `build.json` that the report shows."""

    __pydantic_config__ = _KEPT  # type: ignore[misc]

    pairs_file: str
    read: int
    pairs: Counts
    articles: Counts
    out: Counts
    licenses: Counts
    years: Counts
    words: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], int]
    how: Counts
    problems: list[str]


class SplitFile(TypedDict):
    """The same of the `.summary.json` of `split`."""

    __pydantic_config__ = _KEPT  # type: ignore[misc]

    how: Counts
    why_whole: Counts
    unreadable: int
    left_out: NotRequired[int]  # this and the next one: not of earlier versions
    no_file: NotRequired[int]
    problems: list[str]
    made_from: NotRequired[str]


class ExtractFile(TypedDict):
    """The same of the `.summary.json` of `extract`."""

    __pydantic_config__ = _KEPT  # type: ignore[misc]

    articles: int
    figures: int
    files: int
    no_file: int
    no_caption: int
    unreadable: int
    other_graphics: Counts
    problems: list[str]


def read(path: Path, kind: Any) -> Iterator[tuple[int, Line]]:
    """(its number from 0, the line) of each that is not blank; ReadError where one is damaged or of another kind."""
    for number, raw, _ in raw_lines(path):
        if raw.strip():
            yield number - 1, parse_json(raw, kind, path, place=f"line {number}")
