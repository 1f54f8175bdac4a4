"""Captions that were split elsewhere, by a language model or by hand: `blip pubmed split --split_captions FILE`."""

from pathlib import Path

from blip.errors import BlipError
from blip.files import ReadError
from blip.pubmed.lines import Line, SplitCaption, read
from blip.pubmed.panels.caption_parts import Part, Split


class GivenError(BlipError):
    """A file of split captions that cannot be used."""


def key(line: Line) -> str:
    """The name of a figure: its article, and its id in the article."""
    return f"{line.get('article', '')}/{line.get('figure', '')}"


def read_splits(path: Path) -> dict[str, Split]:
    """Captions that were split by a learned splitter, a language model or by hand, one a line, by `key`.

    `{"article": "PMC1", "figure": "F1", "lead": "...", "parts": [{"labels": ["A"], "text": "..."}], "tail": "...",
    "confidence": 0.9}`; all but `parts` may be absent.

    Raises:
        GivenError: a line has another form.
    """
    found = {}
    try:
        for _, line in read(path, SplitCaption):
            parts = [Part(part["labels"], part["text"]) for part in line["parts"]]
            certainty, lead, tail = float(line.get("confidence", 1.0)), str(line.get("lead", "")), line.get("tail", "")
            found[key(line)] = Split(lead, parts, "given", certainty, str(line.get("caption", lead)), tail)
    except ReadError as error:
        raise GivenError(f"{error.path}, {error.place}: not a split caption ({error.problem})") from None
    return found
