"""Intervals of scores, by image or by any other group.

A mean of shares (0 to 1, such as right answers, R@k or F1) has Wilson's interval, with the number of values that groups
leave. Any other score has a bootstrap interval: of resampled groups, corrected for their number and for skewness.
`benchmarks/intervals.py` measures how often both cover the true score, docs/results.md has the result.

N values, G groups, R repeats, K summed columns.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip.errors import BlipError
from blip.evaluation.quantiles import NORMAL, student_quantile

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # sums (R, K) -> scores (R,)

# PRIOR and LEAST_EFFECT were chosen by measured coverage. The weight, in right answers (or wrong ones, where these are
# fewer), of the assumption that all answers of a group agree: with none, nothing else is known of them.
PRIOR = 0.2
ROUNDING = 1e-12  # of equal values: what they vary beside right and wrong answers of their mean
LEAST_EFFECT = 0.7  # of groups on a mean: estimates from few groups are often too low


class MetricError(BlipError):
    """Nothing to score, or lists that do not fit together."""


@dataclass(frozen=True)
class Interval:
    """A score over `count` values, and the bounds of its interval."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(
    values: Sequence[float] | Floats,
    groups: Sequence[Hashable] | None = None,
    repeats: int = 1000,
    *,
    seed: int = 0,
    level: float = 0.95,
    shares: bool | None = None,
) -> Interval:
    """The mean of N values and its interval.

    Args:
        values: (N,) numbers.
        groups: (N,) the image, patient or article of each value. Values that share an image are not independent: whole
            groups are drawn, or counted. Each value is its own group unless given. One group has no spread.
        repeats: number of resampled means, where the values are not shares.
        seed: equal seeds and groups draw the same groups, so that two models can be compared repeat by repeat.
        level: how often the bounds enclose the true mean.
        shares: whether the values lie between 0 and 1 by their nature; None: if all of them do.

    Raises:
        MetricError: no values, values that are not finite numbers, `groups` of another length.
    """
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise MetricError(f"values form a list of numbers, not an array of shape {column.shape}")
    columns = np.stack([column, np.ones_like(column)], axis=1)
    per_group = _summed(columns, groups, repeats=repeats, level=level)
    if shares is None:
        shares = bool(((column >= 0) & (column <= 1)).all())
    if not shares:
        return _resampled(columns, mean_of_sums, per_group, repeats=repeats, seed=seed, level=level)
    mean = float(mean_of_sums(columns.sum(axis=0, keepdims=True))[0])
    return Interval(mean, *share_bounds(per_group, mean, float(column.var()), level=level), len(column))


def mean_of_sums(sums: Floats) -> Floats:
    """Sums and counts (R, 2) -> means (R,)."""
    return sums[:, 0] / sums[:, 1]


def bootstrap_sums(
    columns: Floats,
    statistic: Statistic,
    groups: Sequence[Hashable] | None = None,
    *,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The same for a score that is a function of sums over the set, as corpus BLEU is of n-gram counts.

    Args:
        columns: (N, K) numbers to sum over the set.
        statistic: from sums (R, K) to scores (R,). `Interval.mean` is the score of the whole set.
        groups, repeats, seed, level: as in `bootstrap`.
    """
    per_group = _summed(columns, groups, repeats=repeats, level=level)
    return _resampled(columns, statistic, per_group, repeats=repeats, seed=seed, level=level)


def _summed(columns: Floats, groups: Sequence[Hashable] | None, *, repeats: int, level: float) -> Floats:
    """The columns (N, K) summed by group (G, K), in the order in which the groups appear; MetricError as above."""
    if len(columns) == 0:
        raise MetricError("there are no values to average")
    if groups is not None and len(groups) != len(columns):
        raise MetricError(f"{len(columns)} values but {len(groups)} groups: each value needs the name of its group")
    if not np.isfinite(columns).all():
        raise MetricError(f"value {int(np.argmin(np.isfinite(columns).all(axis=1)))} is not a finite number")
    if repeats < 1 or not 0 < level < 1:
        raise MetricError(f"repeats ({repeats}) are at least 1 and level ({level}) lies between 0 and 1")
    names = range(len(columns)) if groups is None else groups
    code = {name: i for i, name in enumerate(dict.fromkeys(names))}
    per_group = np.zeros((len(code), columns.shape[1]))
    np.add.at(per_group, [code[name] for name in names], columns)
    return per_group


# ---- shares ----------------------------------------------------------------------------------------------------------


def share_bounds(per_group: Floats, mean: float, variance: float, *, level: float) -> tuple[float, float]:
    """Bounds of a mean of shares: Wilson's interval with an effective number of values (Korn and Graubard 1998).

    The number is that of independent right or wrong answers whose mean would vary as much. It follows from the design
    effect: how much more the mean varies, by the sums of groups, than with independent values. What exceeds 1 is
    multiplied by the ratio of Student's quantile to the normal one, since few groups show it imprecisely. Without
    groups the interval is Wilson's.

    Equal values show no variance to estimate; they count as right answers do that are all right: each group is about
    one observation. The interval of three values of .5 is that of 1.5 right answers of 3.

    Args:
        per_group: (G, 2) sum and number of the values of each group.
        mean, variance: of the N values.
        level: how often the bounds enclose the true mean.
    """
    count, size = float(per_group[:, 1].sum()), len(per_group)
    if size == 1:
        return mean, mean
    if variance <= ROUNDING * mean * (1 - mean):
        variance = 0.0
    alike = float((per_group[:, 1] ** 2).sum()) / count  # the design effect of groups whose answers all agree
    effect, steadier = alike, 1.0
    if variance > 0 and size < count:
        residuals = per_group[:, 0] - mean * per_group[:, 1]
        between = float((residuals**2).sum()) / count**2 * size / (size - 1)  # variance of the mean
        hits = count * min(mean, 1 - mean)
        effect = (PRIOR * alike + hits * max(LEAST_EFFECT, between * count / variance)) / (PRIOR + hits)
    if variance > 0:
        steadier = mean * (1 - mean) / variance  # 1 for right and wrong, more for values between them
    z = NORMAL.inv_cdf((1 + level) / 2)
    effect += max(0.0, effect - 1) * (student_quantile(level, size - 1) / z - 1)
    effective = count * steadier / effect
    centre = (mean + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z * np.sqrt(mean * (1 - mean) / effective + z**2 / (4 * effective**2)) / (1 + z**2 / effective)
    # the mean lies within them, whatever rounding did
    return float(max(0.0, min(mean, centre - half))), float(min(1.0, max(mean, centre + half)))


# ---- any other score -------------------------------------------------------------------------------------------------


def _resampled(
    columns: Floats, statistic: Statistic, per_group: Floats, *, repeats: int, seed: int, level: float
) -> Interval:
    """The score of the whole set, with the wider of two intervals on either side.

    One takes quantiles of the resampled scores, further out the fewer groups there are (Hesterberg 2015); the other is
    studentised, which follows skewness. Neither leaves the range of the resampled scores.
    """
    score = float(statistic(columns.sum(axis=0, keepdims=True))[0])
    size = len(per_group)
    if size == 1:
        return Interval(score, score, score, len(columns))
    # a group's influence: what the score changes with it (the jackknife); means are linear, and need no evaluation
    influence = score - statistic(per_group.sum(axis=0) - per_group)  # (G,)
    influence = (influence - influence.mean()) * (size - 1)
    table = np.column_stack([per_group, influence, influence**2])
    generator = np.random.default_rng(seed)
    # one repeat at a time: a table of all draws would need R·G numbers
    draws = (np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(repeats))
    sums = np.stack([times @ table for times in draws])  # (R, K+2)
    scores = statistic(sums[:, :-2])
    tail = NORMAL.cdf(-student_quantile(level, size - 1) * np.sqrt(size / (size - 1)))
    low, high = np.quantile(scores, [tail, 1 - tail])
    first, second = sums[:, -2] / size, sums[:, -1] / size
    errors = np.sqrt(np.maximum(0.0, second - first**2))  # (R,) standard errors, but for a factor that cancels
    error = np.sqrt((influence**2).mean())
    varied = errors > 1e-9 * error
    if varied.any():
        student = (scores[varied] - score) / errors[varied]
        below, above = np.quantile(student, [(1 - level) / 2, (1 + level) / 2])
        low, high = min(low, score - above * error), max(high, score - below * error)
    return Interval(score, float(max(low, scores.min())), float(min(high, scores.max())), len(columns))


def as_json(scores: Any) -> Any:
    """The same with plain dictionaries, lists and numbers in place of dataclasses and arrays."""
    if dataclasses.is_dataclass(scores) and not isinstance(scores, type):
        return as_json(dataclasses.asdict(scores))
    if isinstance(scores, dict):
        return {str(name): as_json(value) for name, value in scores.items()}
    if isinstance(scores, list | tuple):
        return [as_json(value) for value in scores]
    return scores.tolist() if isinstance(scores, np.ndarray | np.generic) else scores
