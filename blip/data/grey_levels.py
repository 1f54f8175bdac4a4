"""Images of 16 bits, 32 bits and floats to 8 bits, strip by strip: memory grows by the 8 bits alone.

H, W: height and width of an image in pixels.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

HIGH_DEPTH = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16 bits, 32 bits and floats
WINDOW = (0.5, 99.5)  # percentiles that become black and white
STRIP = 1 << 21  # pixels of a strip


class Strips:
    """The rows of an image, or of an array (H, W), in flat strips that are made whenever they are iterated.

    Attributes:
        shape: H, W.
        spans: first row of each strip, and the row behind its last.
        kind: type of the numbers, in the machine's byte order.
    """

    def __init__(self, source: Image.Image | np.ndarray):
        self.source = source
        width, height = source.size if isinstance(source, Image.Image) else source.shape[::-1]
        self.shape = (height, width)
        rows = max(1, STRIP // max(1, width))
        self.spans = [(top, min(height, top + rows)) for top in range(0, height, rows)]
        self._only = self._strip(*self.spans[0]) if len(self.spans) == 1 else None
        self.kind = next(iter(self)).dtype

    def __iter__(self) -> Iterator[np.ndarray]:
        for top, end in self.spans:
            yield self._strip(top, end) if self._only is None else self._only

    def _strip(self, top: int, end: int) -> np.ndarray:
        if isinstance(self.source, Image.Image):
            whole = (top, end) == (0, self.shape[0])
            values = np.asarray(self.source if whole else self.source.crop((0, top, self.shape[1], end)))
        else:
            values = self.source[top:end]
        kind = values.dtype.newbyteorder("=")
        return values.astype(np.int16 if kind in (np.int8, np.bool_) else kind, copy=False).ravel()


def window(source: Image.Image | np.ndarray) -> np.ndarray:
    """(H, W) of any number type -> (H, W) uint8: the 0.5th percentile becomes 0, the 99.5th 255, linear between.

    Where these two are equal (a small object on an even ground) the minimum and maximum take their place; a constant
    image becomes black. NaN and infinities become the nearest end (NaN: black) and do not count in the percentiles.
    """
    strips = Strips(source)
    out = np.zeros(strips.shape, np.uint8)
    low, high = _percentiles(strips, WINDOW)
    if low == high:
        low, high = _extremes(strips, finite=True)
    if not low < high:
        return out
    for (top, end), values in zip(strips.spans, strips, strict=True):
        values = np.nan_to_num(values.astype(np.float64), copy=False, nan=low, posinf=high, neginf=low)
        scaled = (values.clip(low, high, out=values) - low) / (high - low)
        out[top:end] = np.round(scaled * 255).reshape(end - top, -1)
    return out


def whole_range(source: Image.Image | np.ndarray) -> np.ndarray:
    """(H, W) of any number type -> (H, W) uint8: the minimum becomes 0, the maximum 255; NaN and infinities 0."""
    strips = Strips(source)
    out = np.zeros(strips.shape, np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = _extremes(strips, finite=False)
        for (top, end), values in zip(strips.spans, strips, strict=True):
            scaled = (values.astype(np.float64) - low) * 255 / max(1e-9, high - low)
            out[top:end] = np.nan_to_num(scaled, copy=False, posinf=0, neginf=0).reshape(end - top, -1)
    return out


def _extremes(strips: Strips, *, finite: bool) -> tuple[float, float]:
    """The least and the greatest value but NaN and, where `finite`, infinities; NaN where there is none."""
    parts = (values[np.isfinite(values)] if finite else values for values in strips)
    ends = [(np.fmin.reduce(part), np.fmax.reduce(part)) for part in parts if part.size]
    lows, highs = zip(*ends, strict=True) if ends else ((np.nan,), (np.nan,))
    return float(np.fmin.reduce(lows)), float(np.fmax.reduce(highs))


# ---- percentiles without a sorted copy -------------------------------------------------------------------------------


def _percentiles(strips: Strips, shares: Sequence[float]) -> list[float]:
    """What `np.percentile` gives for the finite values in float64, bit for bit; NaN where there are none."""
    count = sum(int(np.count_nonzero(np.isfinite(values))) for values in strips)
    if not count:
        return [np.nan] * len(shares)
    places = [(count - 1) * (share / 100) for share in shares]
    ranks = [rank for place in places for rank in (int(place), min(int(place) + 1, count - 1))]
    found = _of_ranks(strips, ranks)
    return [_between(*found[2 * i : 2 * i + 2], share=place - int(place)) for i, place in enumerate(places)]


def _between(low: float, high: float, *, share: float) -> float:
    # the same rounding as in NumPy
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def _of_ranks(strips: Strips, ranks: Sequence[int]) -> list[float]:
    """The finite values that would have these places (from 0) among all in order.

    A strip alone is partly sorted; of several strips the values are selected by 16 bits of their keys at a time.
    """
    if len(strips.spans) == 1 and strips.kind.itemsize > 2:
        values = next(iter(strips))
        return np.partition(values[np.isfinite(values)], sorted(set(ranks)))[list(ranks)].astype(np.float64).tolist()
    found = [(0, rank) for rank in ranks]  # the first bits of the key, and the rank among the keys that begin with them
    bits = 8 * max(2, strips.kind.itemsize)
    for shift in range(bits - 16, -1, -16):
        counts = {start: np.zeros(1 << 16, np.int64) for start, _ in found}
        for values in strips:
            keys = _keys(values)
            for start, count in counts.items():
                part = keys if shift == bits - 16 else keys[keys >> (shift + 16) == start]
                count += np.bincount(((part >> shift) & 0xFFFF).astype(np.intp), minlength=1 << 16)
        for at, (start, rank) in enumerate(found):
            ends = np.cumsum(counts[start])
            digit = int(np.searchsorted(ends, rank, side="right"))
            found[at] = (start << 16 | digit, rank - (int(ends[digit - 1]) if digit else 0))
    keys = np.array([key for key, _ in found], np.uint64)
    return [float(value) for value in _values(keys, strips.kind)]


def _keys(values: np.ndarray) -> np.ndarray:
    """Unsigned numbers, 16 to 64 bits wide, in the order of the finite values."""
    kind = values.dtype
    if kind.itemsize == 1 or kind.kind == "u":
        return values.astype(f"u{max(2, kind.itemsize)}")
    top = np.array(1 << (8 * kind.itemsize - 1), f"u{kind.itemsize}")
    if kind.kind == "i":
        return values.view(top.dtype) ^ top
    raw = values[np.isfinite(values)].view(top.dtype)
    return np.where(raw & top, ~raw, raw | top)  # of negative floats, greater bits are smaller numbers


def _values(keys: np.ndarray, kind: np.dtype) -> np.ndarray:
    """The inverse of `_keys`, for keys as uint64."""
    if kind.itemsize == 1 or kind.kind == "u":
        return keys
    keys = keys.astype(f"u{kind.itemsize}")
    top = np.array(1 << (8 * kind.itemsize - 1), keys.dtype)
    if kind.kind == "i":
        return (keys ^ top).view(kind)
    return np.where(keys & top, keys & ~top, ~keys).view(kind)
