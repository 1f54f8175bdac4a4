"""Cuts a figure along the bands that run straight through it: white, black or of any even or finely textured colour.

Sure for images that stand in rows and columns. Plots it cuts too often (between an axis and its name there is a band
too), so `filled` tells whether the pieces are images, of which nothing is left to be said.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 480  # pixels that a figure is looked at
EVEN = 14  # grey levels that pixels of a band may differ
SMALLEST = 0.06  # a piece's side, as a share of the figure's longer one
BAND = 0.006  # a band's width, likewise


@dataclass
class Piece:
    """A part of a figure without a band through it, in the figure's own pixels."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    filled: float  # share of it that is not ground


def cut(image: Image.Image) -> list[Piece]:
    """The pieces of a figure in reading order; one where no band runs through it."""
    scale = min(1.0, SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX, reducing_gap=2.0)).astype(np.int16)
    found: list[tuple[int, int, int, int]] = []
    _cut(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), max(pixels.shape), found)
    pieces = []
    for left, top, right, bottom in found:
        part = pixels[top:bottom, left:right]
        ground = float(np.median(np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])))
        filled = float((np.abs(part - ground) > EVEN).mean()) if ground > 127 else 1.0  # black belongs to images
        box = (left / scale, top / scale, right / scale, bottom / scale)
        pieces.append(Piece((round(box[0]), round(box[1]), round(box[2]), round(box[3])), filled))
    return pieces


def _cut(pixels: np.ndarray, box: tuple[int, int, int, int], longer: int,
         found: list[tuple[int, int, int, int]]) -> None:  # fmt: skip
    """Takes the margins off, cuts at the widest bands of either direction, and goes on in the pieces."""
    left, top, right, bottom = box
    part = pixels[top:bottom, left:right]
    rows, columns = _bands(part), _bands(part.T)
    (above, below), (before, behind) = _inner(rows), _inner(columns)
    if min(below - above, behind - before) < SMALLEST * longer:
        return
    if (above, below, before, behind) != (0, len(rows), 0, len(columns)):
        _cut(pixels, (left + before, top + above, left + behind, top + below), longer, found)
        return
    across, down = _runs(rows, longer), _runs(columns, longer)
    if not across and not down:
        found.append(box)
        return
    widest = [max((end - start for start, end in runs), default=0) for runs in (across, down)]
    if widest[0] >= widest[1]:
        edges = [0, *(edge for run in across for edge in run), bottom - top]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            _cut(pixels, (left, top + start, right, top + end), longer, found)
    else:
        edges = [0, *(edge for run in down for edge in run), right - left]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            _cut(pixels, (left + start, top, left + end, bottom), longer, found)


def _bands(pixels: np.ndarray) -> np.ndarray:
    """Which rows are even: all but a fiftieth of a row's pixels near to its median."""
    middle = np.median(pixels, axis=1, keepdims=True)
    even: np.ndarray = (np.abs(pixels - middle) > EVEN).mean(axis=1) < 0.02
    return even


def _inner(even: np.ndarray) -> tuple[int, int]:
    """What is left without even rows at both ends."""
    ink = np.flatnonzero(~even)
    return (int(ink[0]), int(ink[-1]) + 1) if len(ink) else (0, 0)


def _runs(even: np.ndarray, longer: int) -> list[tuple[int, int]]:
    """Even rows that are wide enough for a band, those at half of the widest's width and more."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], even.astype(np.int8), [0]])))
    runs = [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a >= max(2, BAND * longer)]
    widest = max((b - a for a, b in runs), default=0)
    return [(a, b) for a, b in runs if 2 * (b - a) >= widest]
