"""Images with the texts proposed for them, read from annotation files and from the shards of CapFilt's steps.

What a text is about is an image, or an item of several pictures: its paths stand under `image`, or under `images`.
"""

import hashlib
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from blip.data.compact import Labels, TextLists, Texts
from blip.data.jsonl_shards import is_shards, read_lines
from blip.data.pairs import read_pairs

WEB, SYNTHETIC, HUMAN = "web", "synthetic", "human"
MAX_ROUND = (1 << 16) - 1


class _Line(TypedDict):
    """The entries of a line of CapFilt's shards; see `steps.py`. Others are kept as they are."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)  # type: ignore[misc]

    image: NotRequired[str]
    images: NotRequired[Annotated[list[str], Field(min_length=1)]]
    text: NotRequired[str]
    source: NotRequired[str]
    round: NotRequired[Annotated[int, Field(ge=0, le=MAX_ROUND)]]
    problem: NotRequired[str]


def _named(line: Any) -> Any:
    if ("image" in line) == ("images" in line):
        raise ValueError("a line needs image, or images of an item of several")
    return line


def _captioned(line: Any) -> Any:
    if "text" in line and not {"source", "round"} <= line.keys():
        raise ValueError("a text needs its source and round")
    return line


def _scored(line: Any) -> Any:
    if "problem" not in line and not {"text", "source", "round"} <= line.keys():
        raise ValueError("a scored line needs text, source and round, or a problem")
    return line


CaptionedLine = Annotated[_Line, AfterValidator(_named), AfterValidator(_captioned)]  # of `caption` and `filter`
ScoredLine = Annotated[_Line, AfterValidator(_named), AfterValidator(_scored)]  # of `filter`


def paths_of(line: Any) -> list[str]:
    """The paths of the pictures that a line is about, one or several."""
    return line["images"] if "images" in line else [line["image"]]


def named(paths: Sequence[str]) -> dict[str, Any]:
    """The entry of a line, or of a record, that names these pictures."""
    return {"image": paths[0]} if len(paths) == 1 else {"images": list(paths)}


@dataclass
class Candidate:
    """A text for an image, and where it comes from; `round` 0 is that of texts from before CapFilt."""

    text: str
    source: str
    round: int


class Candidates:
    """N images, or items of several pictures, in the order in which they first occur, each with its texts, in flat
    arrays. `read_candidates` makes it. `candidates[i]` are the texts of image i.
    """

    def __init__(self) -> None:
        self._paths = TextLists()  # of each image, or of the pictures of each item
        self._numbers: dict[bytes, int] = {}  # digest of the paths -> number of the image
        self._texts, self._sources = Texts(), Labels()
        self._rounds, self._image = array("H"), array("q")  # of each text

    def add(self, paths: Sequence[str], text: str, source: str, *, round_: int) -> None:
        """Adds a text, and its image where that is new."""
        number = self.add_image(paths)
        self._texts.append(text)
        self._sources.append(source)
        self._rounds.append(round_)
        self._image.append(number)

    def add_image(self, paths: Sequence[str]) -> int:
        """Adds an image, or an item of several pictures, unless it is there -> its number."""
        paths = [os.path.normpath(path) for path in paths]
        key = hashlib.blake2b("\0".join(paths).encode("utf-8", "surrogateescape"), digest_size=8).digest()
        number = self._numbers.setdefault(key, len(self._paths))
        if number == len(self._paths):
            self._paths.append(paths)
        return number

    def finish(self) -> "Candidates":
        """Groups the texts by image; to be called once, after the last `add`."""
        order = sorted(range(len(self._image)), key=self._image.__getitem__)  # stable: an image's texts stay in order
        self._rows = array("q", order)
        self._ends = array("q", [0]) * len(self._paths)
        for image in self._image:
            self._ends[image] += 1
        total = 0
        for number, count in enumerate(self._ends):
            total += count
            self._ends[number] = total
        self._numbers.clear()
        return self

    def __len__(self) -> int:
        """N, the images."""
        return len(self._paths)

    @property
    def texts(self) -> int:
        """The number of texts, of all images."""
        return len(self._texts)

    def image_paths(self, index: int) -> list[str]:
        """The path of image `index`, or those of the pictures of an item of several."""
        return self._paths[index]

    def __getitem__(self, index: int) -> list[Candidate]:
        start = self._ends[index - 1] if index else 0
        rows = self._rows[start : self._ends[index]]
        return [Candidate(self._texts[i], self._sources[i], self._rounds[i]) for i in rows]


def read_candidates(data: Sequence[str], image_root: str = "") -> Candidates:
    """Annotation files (texts from the web) and shard folders of CapFilt (their lines name the source), in that order.

    Raises:
        AnnotationError, ShardError: a file or folder that cannot be read, and why.
    """
    candidates = Candidates()
    for place in data:
        if is_shards(place):
            for line in read_lines(Path(place), CaptionedLine):  # type: ignore[arg-type]
                if "text" in line:
                    candidates.add(paths_of(line), line["text"], line["source"], round_=line["round"])
                elif "problem" not in line:
                    candidates.add_image(paths_of(line))
            continue
        pairs = read_pairs([place], image_root)
        for i in range(len(pairs)):
            paths = [os.path.abspath(path) for path in pairs.image_paths(i)]
            for text in pairs.captions(i):
                candidates.add(paths, text, WEB, round_=0)
    return candidates.finish()
