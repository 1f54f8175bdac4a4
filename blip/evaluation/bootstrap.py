"""Bootstrap intervals of scores, by image or by any other group.

N values, G groups, R repeats, K summed columns.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip.errors import BlipError

Floats = NDArray[np.float64]


class MetricError(BlipError):
    """Nothing to score, or lists that do not fit together."""


@dataclass(frozen=True)
class Interval:
    """A score over `count` values, and the bounds of its bootstrap interval."""

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
) -> Interval:
    """The mean of N values and its percentile bootstrap interval.

    Args:
        values: (N,) numbers.
        groups: (N,) the image, patient or article of each value. Whole groups are drawn, since values that share an
            image are not independent; each value is its own group unless given. One group has no spread.
        repeats: number of resampled means.
        seed: equal seeds and groups draw the same groups, so that two models can be compared repeat by repeat.
        level: the share of resampled means between the bounds.

    Raises:
        MetricError: no values, values that are not finite numbers, `groups` of another length.
    """
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise MetricError(f"values form a list of numbers, not an array of shape {column.shape}")
    columns = np.stack([column, np.ones_like(column)], axis=1)
    return bootstrap_sums(columns, mean_of_sums, groups, repeats=repeats, seed=seed, level=level)


def mean_of_sums(sums: Floats) -> Floats:
    """Sums and counts (R, 2) -> means (R,)."""
    return sums[:, 0] / sums[:, 1]


def bootstrap_sums(
    columns: Floats,
    statistic: Callable[[Floats], Floats],
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
    np.add.at(per_group, [code[name] for name in names], columns)  # (G, K)
    generator, size = np.random.default_rng(seed), len(per_group)
    # one repeat at a time: a table of all draws would need R·G numbers
    draws = (np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(repeats))
    scores = statistic(np.stack([times @ per_group for times in draws]))  # (R, K) -> (R,)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(columns.sum(axis=0, keepdims=True))[0]), float(low), float(high), len(columns))


def as_json(scores: Any) -> Any:
    """The same with plain dictionaries, lists and numbers in place of dataclasses and arrays."""
    if dataclasses.is_dataclass(scores) and not isinstance(scores, type):
        return as_json(dataclasses.asdict(scores))
    if isinstance(scores, dict):
        return {str(name): as_json(value) for name, value in scores.items()}
    if isinstance(scores, list | tuple):
        return [as_json(value) for value in scores]
    return scores.tolist() if isinstance(scores, np.ndarray | np.generic) else scores
