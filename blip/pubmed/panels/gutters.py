"""Cuts a figure along the bands that run straight through it: white, black, or any even or finely textured colour.

This is reliable for images in rows and columns. Plots are cut too often, because there is also a band between an axis
and its name; `filled` of a piece shows whether it is an image.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 480  # pixels of the longer side at which a figure is cut
EVEN = 14  # grey levels by which pixels of a band may differ
SMALLEST = 0.06  # shortest side of a piece, as a share of the longer side of the figure
BAND = 0.006  # smallest width of a band, as the same share

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass
class Piece:
    """A part of a figure without a band through it, in the figure's own pixels."""

    box: Box
    filled: float  # share that differs from the ground


def cut(image: Image.Image) -> list[Piece]:
    """The pieces of a figure in reading order; a single one where no band runs through it."""
    scale = min(1.0, SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX, reducing_gap=2.0)).astype(np.int16)
    boxes: list[Box] = []
    _cut(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), max(pixels.shape), pieces=boxes)
    pieces = []
    for left, top, right, bottom in boxes:
        part = pixels[top:bottom, left:right]
        ground = float(np.median(np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])))
        filled = float((np.abs(part - ground) > EVEN).mean()) if ground > 127 else 1.0  # images are black at the edge
        box = (left / scale, top / scale, right / scale, bottom / scale)
        pieces.append(Piece((round(box[0]), round(box[1]), round(box[2]), round(box[3])), filled))
    return pieces


def _cut(pixels: np.ndarray, box: Box, longer: int, *, pieces: list[Box]) -> None:
    """Removes the margins, cuts at the widest bands of either direction, and continues in the pieces."""
    left, top, right, bottom = box
    part = pixels[top:bottom, left:right]
    rows, columns = _bands(part), _bands(part.T)
    (above, below), (before, behind) = _inner(rows), _inner(columns)
    if min(below - above, behind - before) < SMALLEST * longer:
        return
    if (above, below, before, behind) != (0, len(rows), 0, len(columns)):
        _cut(pixels, (left + before, top + above, left + behind, top + below), longer, pieces=pieces)
        return
    across, down = _runs(rows, longer), _runs(columns, longer)
    if not across and not down:
        pieces.append(box)
        return
    widest = [max((end - start for start, end in runs), default=0) for runs in (across, down)]
    if widest[0] >= widest[1]:
        edges = [0, *(edge for run in across for edge in run), bottom - top]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            _cut(pixels, (left, top + start, right, top + end), longer, pieces=pieces)
    else:
        edges = [0, *(edge for run in down for edge in run), right - left]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            _cut(pixels, (left + start, top, left + end, bottom), longer, pieces=pieces)


def _bands(pixels: np.ndarray) -> np.ndarray:
    """Which rows are even: at most one pixel in fifty differs from the median of its row."""
    middle = np.median(pixels, axis=1, keepdims=True)
    even: np.ndarray = (np.abs(pixels - middle) > EVEN).mean(axis=1) < 0.02
    return even


def _inner(even: np.ndarray) -> tuple[int, int]:
    """First row and end without the even rows at both ends."""
    ink = np.flatnonzero(~even)
    return (int(ink[0]), int(ink[-1]) + 1) if len(ink) else (0, 0)


def _runs(even: np.ndarray, longer: int) -> list[tuple[int, int]]:
    """Runs of even rows that are wide enough for a band, and at least half as wide as the widest one."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], even.astype(np.int8), [0]])))
    runs = [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a >= max(2, BAND * longer)]
    widest = max((b - a for a, b in runs), default=0)
    return [(a, b) for a, b in runs if 2 * (b - a) >= widest]
