"""Which grey levels of a scan are shown: windows by name, as LEVEL/WIDTH, and those that a file itself names.

A window of level L and width W makes L - W/2 black and L + W/2 white. Levels are in the units that a scan's slope and
intercept give, which are Hounsfield units (HU) for CT.

H, W: height and width of a picture in pixels.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from blip.errors import InputError

# level and width in HU, as radiologists' textbooks have them
NAMED: dict[str, tuple[float, float]] = {
    "lung": (-600, 1600),
    "soft": (50, 350),
    "brain": (30, 70),
    "bone": (500, 2000),
    "abdomen": (40, 400),
    "liver": (60, 160),
    "mediastinum": (50, 500),
}
PERCENTILES = (0.5, 99.5)  # what becomes black and white where nothing names a window, as for images of 16 bits
GIVEN = re.compile(r"\s*(-?[0-9.]+)\s*/\s*([0-9.]+)\s*")
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True)
class Window:
    """A window: `function` as in DICOM PS3.3 C.11.2.1.2. LINEAR counts whole levels: W - 1 steps for W levels."""

    level: float
    width: float  # above 0; of LINEAR at least 1
    function: Function = "LINEAR_EXACT"

    def shares(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape, float -> shares of white, 0 to 1, float64; NaN stays NaN."""
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):  # of exp: the share is 0
                return 1 / (1 + np.exp(-4 * (values - self.level) / self.width))
        steps = self.width - 1 if self.function == "LINEAR" else self.width
        low = self.level - self.width / 2
        if steps <= 0:  # LINEAR of width 1: black up to the level, white above
            return (values > self.level - 0.5).astype(np.float64)
        return ((values - low) / steps).clip(0, 1)


def parse_window(text: str) -> Window:
    """A window from its name in NAMED, or from LEVEL/WIDTH such as 40/400. InputError for anything else."""
    if text in NAMED:
        return Window(*NAMED[text])
    given = GIVEN.fullmatch(text)
    try:
        level, width = (float(number) for number in given.groups()) if given else (math.nan, math.nan)
    except ValueError:  # such as 1.2.3
        level = width = math.nan
    if not (math.isfinite(level) and width > 0):
        raise InputError(
            f"the window {text[:40]!r} is none of {', '.join(NAMED)}; another is given as LEVEL/WIDTH, such as 40/400"
        )
    return Window(level, width)


def check_view(window: str, channels: Sequence[str]) -> None:
    """InputError unless `window` is "" or a window, and `channels` are none or three windows."""
    if window:
        parse_window(window)
    if channels and len(channels) != 3:
        raise InputError(
            f"channels are {', '.join(channels)}: three windows make red, green and blue, such as lung, soft, bone"
        )
    for channel in channels:
        parse_window(channel)
    if window and channels:
        raise InputError(f"window {window} and channels {', '.join(channels)} exclude each other: set one of them")


def between(low: float, high: float) -> Window:
    """The window in which `low` is black and `high`, which is greater, white."""
    return Window(low / 2 + high / 2, high - low)


def usual_range(values: np.ndarray, counts: np.ndarray | None = None, *, inverted: bool = False) -> Window:
    """The window from the 0.5th to the 99.5th percentile of the finite values, each of which occurs `counts` times.

    Where these two are equal the least and the greatest value take their place; without differences all is black, also
    where what the window shows is `inverted`.
    """
    finite = np.isfinite(values)
    if counts is not None:
        finite &= counts > 0
        counts = counts[finite]
    values = values[finite]
    if not values.size:
        return between(0, 1)
    if counts is None:
        low, high = (float(one) for one in np.percentile(values, PERCENTILES))
    else:
        low, high = _percentiles(values, counts)
    if low == high:
        low, high = float(values.min()), float(values.max())
    if low < high:
        return between(low, high)
    return between(low - 2, low - 1) if inverted else between(low + 1, low + 2)


def _percentiles(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """What `np.percentile` gives for values that are repeated."""
    order = np.argsort(values)
    values, ends = values[order], np.cumsum(counts[order])
    found = []
    for share in PERCENTILES:
        place = (int(ends[-1]) - 1) * share / 100
        low, high = (values[np.searchsorted(ends, rank, side="right")] for rank in (int(place), math.ceil(place)))
        found.append(float(low + (high - low) * (place - int(place))))
    return found[0], found[1]


def eight_bits(shares: np.ndarray) -> np.ndarray:
    """Shares of white, 0 to 1 -> uint8 of the same shape; NaN becomes black."""
    if np.isnan(shares).any():
        shares = np.nan_to_num(shares, nan=0.0)
    return np.rint(shares * 255).astype(np.uint8)
