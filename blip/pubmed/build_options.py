"""Options of `blip pubmed split` and `build` that take several lines, and lists between commas."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from blip.errors import BlipError

Shares = Annotated[
    tuple[float, float, float], typer.Option("--split_shares", "--splits", help="shares of train, val, test")
]
KeepWhole = Annotated[
    bool, typer.Option("--keep_whole/--no_keep_whole", " /--no_whole", help="compound figures that were not divided")
]
MinConfidence = Annotated[float, typer.Option("--min_confidence", "--confidence", min=0, max=1, help="of a sub-figure")]
MaxAspect = Annotated[float, typer.Option("--max_aspect", min=1, help="longer side divided by the shorter one")]
SplitCaptions = Annotated[
    Path | None, typer.Option("--split_captions", "--splits", help="captions that were split elsewhere: .jsonl")
]
Captions = Annotated[
    Literal["learned", "rules"],
    typer.Option("--captions", help="how captions are divided: by learned readings, or by rules alone"),
]
SharedWords = Annotated[
    Literal["all", "own"],
    typer.Option("--shared", help="words of a sub-figure: all, with those that panels share, or own"),
]
NotWords = Annotated[str, typer.Option("--not_words", help="a caption has none of these, such as flowchart,diagram")]


def words_of(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def licences_of(text: str) -> list[str]:
    """The licences between commas. BlipError where a text names none: no licence at all would select every article."""
    names = words_of(text)
    if text and not names:
        raise BlipError(f"--licenses {text!r} names no licence; leave the option out to select all")
    return names
