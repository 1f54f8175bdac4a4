"""Which panel has which letter: several orders, judged by the layout and by the letters that the detector saw.

An order is a hypothesis. Its probability before letters are looked at is how often articles use it; each letter in the
picture then speaks for the orders that give its panel that letter. Orders that lead to the same panels add up, so that
a single row is certain, and a grid is less so.
"""

from collections.abc import Callable, Sequence

import numpy as np

from blip.pubmed.panels.detector import ALPHABET
from blip.pubmed.panels.order import Box, by_blocks, by_columns, by_cuts, by_rows

Order = Callable[[Sequence[Box]], list[int]]
ORDERS: tuple[tuple[Order, float], ...] = ((by_blocks, 0.3), (by_cuts, 0.2), (by_rows, 0.2), (by_columns, 0.1))
"""Orders and the probability of each before letters are looked at: assumptions, not counted in articles."""
OTHER = 0.2  # probability of an order that is none of these
MOVED = 0.5  # factor of the probability of another order for each panel that the nearest order has elsewhere
MISREAD = 0.1  # probability that what the detector takes for a letter is another one, or none
READ = 0.97  # probability of a letter that a reader of letters named
CORNER = 0.35  # share of a panel that is its upper left corner
SIZE = 0.05  # half of a letter, as a share of the widest panel
NEAR = 0.03  # of the longer side of all panels: how far outside of its panel a letter may stand


def letters_of(boxes: Sequence[Box], places: np.ndarray) -> list[int]:
    """The letter of each panel, -1 for none: the one nearest to its upper left corner, within it or close to it.

    Args:
        places: (letters, 2): x and y. A letter belongs to one panel at most.
    """
    if not len(boxes) or not len(places):
        return [-1] * len(boxes)
    box = np.array(boxes, float)
    slack = NEAR * max(box[:, 2].max() - box[:, 0].min(), box[:, 3].max() - box[:, 1].min())
    far = np.abs(box[:, None, :2] - places[None]).sum(-1)  # (boxes, letters)
    low, high = box[:, None, :2] - slack, box[:, None, 2:] + slack
    far[((places[None] < low) | (places[None] > high)).any(-1)] = np.inf
    found = [-1] * len(boxes)
    while np.isfinite(far).any():
        at, letter = np.unravel_index(far.argmin(), far.shape)
        found[at] = int(letter)
        far[at], far[:, letter] = np.inf, np.inf
    return found


def begun(boxes: Sequence[Box], places: np.ndarray) -> list[Box]:
    """Boxes that begin at their letters where these stand in the upper left corner, more exactly than the box does."""
    found = []
    size = SIZE * max(right - left for left, _, right, _ in boxes)
    for box, letter in zip(boxes, letters_of(boxes, places), strict=True):
        left, top, right, bottom = box
        if letter >= 0:
            x, y = places[letter]
            if x < left + CORNER * (right - left) and y < top + CORNER * (bottom - top):
                left, top = max(left, int(x - size)), max(top, int(y - size))
        found.append((left, top, right, bottom))
    return found


def arranged(names: list[str], boxes: Sequence[Box], places: np.ndarray, seen: np.ndarray) -> tuple[list[int], float]:
    """The panel of each name, in the order of the names, and the probability that all of it is right.

    Args:
        names: labels of the caption, as many as boxes.
        places, seen: (letters, 2) and (letters, 26), of the detector; `seen` may have no rows.
    """
    likely = _likely(names, boxes, places, seen)
    orders: dict[tuple[int, ...], float] = {}
    from_letters = begun(boxes, places)
    for order, share in ORDERS:
        found = tuple(order(from_letters))
        orders[found] = orders.get(found, 0.0) + share
    free = _by_letters(likely)
    moved = min(sum(a != b for a, b in zip(free, order, strict=True)) for order in orders)
    orders[free] = orders.get(free, 0.0) + OTHER / 2 * MOVED**moved
    weights = {order: share * float(np.prod(likely[range(len(names)), list(order)])) for order, share in orders.items()}
    other = OTHER * float(np.prod(likely.mean(0)))
    best = max(weights, key=lambda order: weights[order])
    return list(best), weights[best] / (sum(weights.values()) + other)


def told(places: np.ndarray, seen: np.ndarray, read: dict[str, tuple[float, float]]) -> np.ndarray:
    """Letters as the detector saw them, (letters, 26), with those that a reader of letters named made certain.

    Args:
        read: letter -> its place, one of `places`.
    """
    if not read:
        return seen
    seen = seen.copy() if len(seen) else np.full((len(places), ALPHABET), 1 / ALPHABET)
    for name, place in read.items():
        letter = _number(name)
        if letter >= 0 and len(places):
            row = seen[int(np.abs(places - np.array(place)).sum(1).argmin())]
            row[:], row[letter] = (1 - READ) / (ALPHABET - 1), READ
    return seen


def _number(name: str) -> int:
    """0 for A or a, 1 for B; -1 for labels that are no letter."""
    return ord(name.lower()) - ord("a") if len(name) == 1 and name.isascii() and name.isalpha() else -1


def _likely(names: list[str], boxes: Sequence[Box], places: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(names, boxes): how much likelier than by chance what was seen at a panel is if the panel has that name."""
    likely = np.ones((len(names), len(boxes)))
    letters = [_number(name) for name in names]
    if not len(seen) or min(letters) < 0 or len(set(letters)) < len(letters):
        return likely
    for at, letter in enumerate(letters_of(boxes, places)):
        if letter >= 0:
            share = seen[letter][letters]  # of the names of this figure alone
            share = MISREAD / len(names) + (1 - MISREAD) * share / max(share.sum(), 1e-6)
            likely[:, at] = share * len(names)
    return likely


def _by_letters(likely: np.ndarray) -> tuple[int, ...]:
    """The panels by letters alone: the likeliest pair first, then the likeliest of the rest."""
    left, found = np.log(likely), {}
    for _ in range(len(left)):
        name, at = np.unravel_index(left.argmax(), left.shape)
        found[int(name)] = int(at)
        left[name], left[:, at] = -np.inf, -np.inf
    return tuple(found[name] for name in range(len(found)))


def joined(boxes: list[Box], scores: list[float], places: np.ndarray,
           expected: int) -> tuple[list[Box], list[float]] | None:  # fmt: skip
    """Boxes without a letter joined to the panel on their left or above them, if then as many as expected remain.

    Two plots under one letter are often found as two panels. None where letters do not explain the number of boxes.

    Args:
        places: (letters, 2): x and y, the surest first; as many as expected are used.
        expected: number of panels that the caption names.
    """
    letters = letters_of(boxes, places[:expected])
    own = {at: boxes[at] for at, letter in enumerate(letters) if letter >= 0}
    score = {at: scores[at] for at in own}
    if len(own) != expected:
        return None
    for at in sorted(set(range(len(boxes))) - set(own), key=lambda at: (boxes[at][0], boxes[at][1])):
        near = [(gap, other) for other in own if (gap := _before(own[other], boxes[at])) is not None]
        if not near:
            return None
        _, other = min(near)
        a, b = own[other], boxes[at]
        own[other] = min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])
        score[other] = min(score[other], scores[at])
    return list(own.values()), list(score.values())


def _before(first: Box, second: Box) -> float | None:
    """Pixels from a panel to a box on its right or below; None where that box is elsewhere.

    Below counts more, since what lies beside a panel is more often its second picture.
    """
    for axis, cost in ((0, 1.0), (1, 2.0)):
        side = 1 - axis
        shared = min(first[side + 2], second[side + 2]) - max(first[side], second[side])
        smaller = min(first[side + 2] - first[side], second[side + 2] - second[side])
        if shared > 0.5 * smaller and second[axis] > first[axis]:
            return cost * max(0.0, second[axis] - first[axis + 2])
    return None
