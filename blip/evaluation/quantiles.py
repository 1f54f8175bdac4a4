"""Quantiles of the normal distribution and of Student's t, without a statistics package."""

import functools
import math
from statistics import NormalDist

NORMAL = NormalDist()


@functools.lru_cache
def student_quantile(level: float, freedom: int) -> float:
    """The q with probability `level` between -q and q, for `freedom` degrees of freedom, 1 or more.

    To six digits for levels up to 0.999.
    """
    if freedom > 300:  # the first terms of its expansion in 1 / freedom
        z = NORMAL.inv_cdf((1 + level) / 2)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, 1.0
    while student_within(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, freedom) < level else (low, middle)
    return high


def student_within(q: float, freedom: int) -> float:
    """The probability between -q and q: the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7)."""
    angle = math.atan(q / math.sqrt(freedom))
    odd = freedom % 2 == 1
    total, term = 0.0, math.cos(angle) if odd else 1.0
    for factor in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * factor / (factor + 1)
    series = math.sin(angle) * total
    return (angle + series) * 2 / math.pi if odd else series
