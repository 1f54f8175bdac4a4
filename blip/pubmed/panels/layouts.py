"""Where the panels of a generated figure are, in the order of their letters.

The layouts are those of articles: grids, rows or columns with different numbers of panels, a cell that is divided once
more, a rectangle that is cut repeatedly, and strips, each of many small pictures under one letter.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from blip.pubmed.panels.order import by_columns, by_cuts, by_rows
from blip.pubmed.panels.singles import Box

SMALLEST = 24  # pixels of a side of a cell
ORDERS = ((by_cuts, 0.7), (by_rows, 0.2), (by_columns, 0.1))  # of letters, and how often each is drawn


@dataclass(frozen=True)
class Cell:
    """The place of a panel; how many rows and columns of small pictures it has, 0 where its content decides."""

    box: Box
    rows: int = 0
    columns: int = 0


def cells(rng: np.random.Generator, area: Box, gap: int, *, lettered: bool) -> list[Cell]:
    """The cells of a figure in the order of their letters.

    Args:
        area: of the panels in pixels.
        gap: pixels between panels.
        lettered: whether panels have letters; strips need them, as nothing else tells where a panel ends.
    """
    kind = rng.random()
    if kind < 0.13:
        return [Cell(area)]
    if lettered and kind < 0.22:
        return _strips(rng, area, gap)
    if kind < 0.45:
        boxes = _grid(rng, area, gap)
    elif kind < 0.6:
        boxes = _uneven(rng, area, gap)
    elif kind < 0.68:  # columns with different numbers of panels
        left, top, right, bottom = area
        turned = _uneven(rng, (top, left, bottom, right), gap)
        boxes = [(box[1], box[0], box[3], box[2]) for box in turned]
    else:
        boxes = _cut(rng, area, gap)
    if rng.random() < 0.12:
        boxes = _divided(rng, boxes, gap)
    order = ORDERS[rng.choice(len(ORDERS), p=[share for _, share in ORDERS])][0]
    return [Cell(boxes[at]) for at in order(boxes)]


def rows_of(area: Box, heights: np.ndarray, shares: list[np.ndarray], gap: int) -> list[Box]:
    """Cells in rows, from the top; `shares` has the widths of each row. Cells that are too small are left out."""
    left, top, right, bottom = area
    found = []
    ends = top + np.cumsum([0, *heights / heights.sum()]) * (bottom - top + gap)
    for (low, high), row in zip(pairwise(ends), shares, strict=True):
        across = left + np.cumsum([0, *row / row.sum()]) * (right - left + gap)
        found += [(int(a), int(low), int(b) - gap, int(high) - gap) for a, b in pairwise(across)]
    return [c for c in found if c[2] - c[0] > SMALLEST and c[3] - c[1] > SMALLEST] or [area]


def _grid(rng: np.random.Generator, area: Box, gap: int) -> list[Box]:
    rows, columns = int(rng.choice([1, 1, 2, 2, 3, 4])), int(rng.choice([1, 1, 2, 2, 3, 3, 4, 5]))
    shares = [rng.uniform(0.6, 1.4, columns) if rng.random() < 0.3 else np.ones(columns)] * rows
    return rows_of(area, rng.uniform(0.7, 1.3, rows) if rng.random() < 0.4 else np.ones(rows), shares, gap)


def _uneven(rng: np.random.Generator, area: Box, gap: int) -> list[Box]:
    """Rows with different numbers of cells."""
    rows = int(rng.integers(2, 5))
    shares = [rng.uniform(0.6, 1.4, rng.integers(1, 6)) for _ in range(rows)]
    return rows_of(area, rng.uniform(0.6, 1.4, rows), shares, gap)


def _divided(rng: np.random.Generator, boxes: list[Box], gap: int) -> list[Box]:
    """One of the larger cells becomes a small grid of its own."""
    at = int(np.argmax([min(b[2] - b[0], b[3] - b[1]) * rng.uniform(0.6, 1) for b in boxes]))
    box, (rows, columns) = boxes[at], [(1, 2), (2, 1), (2, 2), (2, 2), (2, 3), (3, 2)][rng.integers(6)]
    if min((box[2] - box[0]) / columns, (box[3] - box[1]) / rows) < 70:
        return boxes
    return [*boxes[:at], *rows_of(box, np.ones(rows), [np.ones(columns)] * rows, gap), *boxes[at + 1 :]]


def _cut(rng: np.random.Generator, area: Box, gap: int) -> list[Box]:
    """A rectangle that is cut repeatedly, in one direction or the other."""
    most = int(rng.integers(2, 14))
    found, smallest = [area], 0.11 * max(area[2] - area[0], area[3] - area[1])
    for _ in range(30):
        if len(found) >= most:
            break
        sizes = [(c[2] - c[0]) * (c[3] - c[1]) for c in found]
        at = int(rng.choice(len(found), p=np.array(sizes) / sum(sizes)))
        left, top, right, bottom = found[at]
        share = rng.choice([1 / 2, 1 / 3, 2 / 3, rng.uniform(0.3, 0.7)])
        upright = (right - left) * rng.uniform(0.6, 1.6) > bottom - top
        cut = int((left + share * (right - left)) if upright else (top + share * (bottom - top)))
        end, begin = cut - gap // 2, cut + (gap + 1) // 2
        if upright:
            halves = [(left, top, end, bottom), (begin, top, right, bottom)]
        else:
            halves = [(left, top, right, end), (left, begin, right, bottom)]
        if min(min(c[2] - c[0], c[3] - c[1]) for c in halves) > smallest:
            found[at : at + 1] = halves
    return found


def _strips(rng: np.random.Generator, area: Box, gap: int) -> list[Cell]:
    """Columns (or rows) of many small pictures, a letter for each column (or row); sometimes other panels below."""
    left, top, right, bottom = area
    upright, count, along = rng.random() < 0.7, int(rng.integers(2, 6)), int(rng.integers(3, 9))
    across = int(rng.choice([1, 1, 1, 2, 3]))
    under: list[Box] = []
    if rng.random() < 0.5 and bottom - top > 300:
        middle = int(top + rng.uniform(0.5, 0.75) * (bottom - top))
        under = rows_of((left, middle + gap, right, bottom), np.ones(1), [np.ones(int(rng.integers(1, 5)))], gap)
        bottom = middle
    area = (left, top, right, bottom)
    if upright:
        boxes = rows_of(area, np.ones(1), [rng.choice([0.7, 1.0, 1.0, 1.4], count)], gap // 2)
        return [*(Cell(box, along, across) for box in boxes), *map(Cell, under)]
    boxes = rows_of(area, np.ones(count), [np.ones(1)] * count, gap)
    return [*(Cell(box, across, along) for box in boxes), *map(Cell, under)]
