"""Which part of a caption belongs to which panel: by letter, position or reading order; in doubt the whole figure.

A wrong pair is worse than a coarse one: where numbers or letters contradict one another, the figure is not split.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from blip.pubmed.panels.arrange import arranged, joined, told
from blip.pubmed.panels.caption_parts import Shared, Split
from blip.pubmed.panels.detector import ALPHABET, Panels
from blip.pubmed.panels.gutters import Piece
from blip.pubmed.panels.order import Box, by_cuts

How = Literal["letter", "place", "order", "whole"]
FILLED = 0.55  # share that differs from the ground above which a piece between gutters is an image
CERTAIN = 0.35  # score of a panel
SCORES, RIGHT = (0.0, 0.2, 0.5, 0.6, 0.7, 0.8, 1.0), (0.28, 0.28, 0.37, 0.72, 0.91, 0.98, 0.99)
"""Scores of panels of the detector, and the share of such panels in generated figures that are right (IoU 0.5)."""
POSSIBLE = 0.15  # score of a panel if the caption confirms the number of panels


@dataclass
class Pair:
    """A part of a figure with its text."""

    labels: list[str]
    box: Box | None  # None: the whole figure
    text: str
    how: How
    confidence: float  # 0 to 1


@dataclass
class Layout:
    """The panels of a figure."""

    boxes: list[Box] = field(default_factory=list)  # in reading order
    scores: list[float] = field(default_factory=list)
    way: str = "none"  # "gutters", "detector" or "none"
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # of letters: x and y
    seen: np.ndarray = field(default_factory=lambda: np.zeros((0, ALPHABET)))  # which letters these are, by likelihood


def layout(pieces: list[Piece], panels: Panels, expected: int) -> Layout:
    """The panels of a figure: by its gutters where these are reliable, else by the detector.

    Args:
        pieces: from `gutters.cut`.
        panels: from the detector.
        expected: number of panels that the caption names, 0 for none.
    """
    images = len(pieces) > 1 and min(piece.filled for piece in pieces) > FILLED
    if images and expected in (0, len(pieces)):
        return _ordered([piece.box for piece in pieces], [0.95] * len(pieces), "gutters", panels)
    boxes, scores = panels.boxes, panels.scores
    count = int((scores >= CERTAIN).sum())
    certain = [_whole_pixels(box) for box in boxes[:count]]
    if count > expected > 1 and (whole := joined(certain, scores[:count].tolist(), panels.letters, expected)):
        return _ordered(*whole, "detector", panels)
    if expected > 1 and count != expected and len(scores) >= expected and scores[expected - 1] >= POSSIBLE:
        count = expected
    if count > 1:
        return _ordered([_whole_pixels(box) for box in boxes[:count]], scores[:count].tolist(), "detector", panels)
    if images:
        return _ordered([piece.box for piece in pieces], [0.8] * len(pieces), "gutters", panels)
    return Layout()


def _whole_pixels(box: np.ndarray) -> Box:
    left, top, right, bottom = (round(float(value)) for value in box)
    return left, top, right, bottom


def _ordered(boxes: list[Box], scores: list[float], way: str, panels: Panels) -> Layout:
    order = by_cuts(boxes)
    return Layout([boxes[at] for at in order], [float(scores[at]) for at in order], way, panels.letters,
                  panels.letter_names)  # fmt: skip


def match(split: Split, found: Layout, read: dict[str, tuple[float, float]] | None = None, *,
          shared: Shared = "all") -> list[Pair]:  # fmt: skip
    """The pairs of a figure; a single pair, of the whole, if the caption has no parts or anything is in doubt.

    Args:
        split: the caption.
        found: the panels.
        read: label -> its position in the figure (x, y), if letters were read.
        shared: whether a text has the words that all panels share, or its own alone.
    """
    names = split.labels
    whole = [Pair([], None, split.whole, "whole", 1.0)]
    if len(names) < 2 or len(found.boxes) < 2:
        return whole
    places: dict[str, int] | None
    how: How = "letter"
    places, certainty = (_by_letter(names, found.boxes, read), 1.0) if read else (None, 0.0)
    if places is None and split.style == "Left:":
        places, how, certainty = _by_place(names, found.boxes), "place", 0.9
    elif places is None and len(names) == len(found.boxes):
        order, certainty = arranged(names, found.boxes, found.places, told(found.places, found.seen, read or {}))
        places, how = dict(zip(names, order, strict=True)), "order"
        if _contradicts(places, found.boxes, read or {}):
            return whole
    if places is None:
        return whole
    pairs = []
    for name in names:
        at = places[name]
        score = found.scores[at]
        right = float(np.interp(score, SCORES, RIGHT)) if found.way == "detector" else score
        confidence = split.confidence * right * certainty
        pairs.append(Pair([name], found.boxes[at], split.sentence(name, shared), how, round(confidence, 3)))
    return pairs


def _by_letter(names: list[str], boxes: list[Box], read: dict[str, tuple[float, float]]) -> dict[str, int] | None:
    """The panel of each letter: the smallest one around it, else the nearest; None where that is not clear.

    A single remaining letter and a single remaining panel belong together.
    """
    places: dict[str, int] = {}
    for name, (x, y) in read.items():
        around = [at for at, b in enumerate(boxes) if b[0] <= x <= b[2] and b[1] <= y <= b[3]]
        sizes = {at: (boxes[at][2] - boxes[at][0]) * (boxes[at][3] - boxes[at][1]) for at in around}
        corner = {at: abs(b[0] - x) + abs(b[1] - y) for at, b in enumerate(boxes)}
        places[name] = min(sizes, key=sizes.__getitem__) if sizes else min(corner, key=corner.__getitem__)
    if len(set(places.values())) < len(places):
        return None  # two letters in one panel
    names_left = [name for name in names if name not in places]
    boxes_left = [at for at in range(len(boxes)) if at not in places.values()]
    if len(names_left) == len(boxes_left) == 1:
        places[names_left[0]] = boxes_left[0]
        names_left, boxes_left = [], []
    return None if names_left or boxes_left else places  # a panel without a letter may be the second one of a letter


def _contradicts(places: dict[str, int], boxes: list[Box], read: dict[str, tuple[float, float]]) -> bool:
    """Whether a letter that was read is outside the panel that it was given."""
    for name, (x, y) in read.items():
        b = boxes[places[name]]
        if not (b[0] <= x <= b[2] and b[1] <= y <= b[3]):
            return True
    return False


def _by_place(names: list[str], boxes: list[Box]) -> dict[str, int] | None:
    """Panels of `left` and `right`, or of `upper`, `middle` and `lower`; None where they do not stand in one line."""
    across, down = ("left", "middle", "center", "centre", "central", "right"), ("upper", "top", "above", "middle",
                    "center", "centre", "central", "lower", "bottom", "below")  # fmt: skip
    if len(names) != len(boxes):
        return None
    for words, axis in ((across, 0), (down, 1)):
        if set(names) <= set(words):
            order = sorted(range(len(boxes)), key=lambda at: boxes[at][axis])
            ends = [(boxes[at][axis], boxes[at][axis + 2]) for at in order]
            if any(first[1] > second[0] + 0.3 * (second[1] - second[0]) for first, second in pairwise(ends)):
                return None  # not in one line
            return dict(zip(sorted(names, key=words.index), order, strict=True))
    return None
