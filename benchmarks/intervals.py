"""How often intervals of scores enclose the true score, where 95 of 100 should.

    python benchmarks/intervals.py [--sets 1000]

Rates: 60 right or wrong answers, alone or in 15 groups of 4 whose answers agree more than chance, by the intraclass
correlation of the beta-binomial distribution. Their coverage is exact, a sum over all outcomes. Other scores, of random
sets with a correlation of 0.3: means of skewed values, and a ratio of sums in the manner of BLEU. Beside each stands
the percentile bootstrap. The last line is one JSON object.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from blip.evaluation.bootstrap import Floats, bootstrap, bootstrap_sums

RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.98)
CORRELATIONS = (0.0, 0.1, 0.3, 0.5)
PERCENTILE_REPEATS = 1000

# ---- rates, exactly --------------------------------------------------------------------------------------------------


def outcomes(groups: int, size: int) -> Iterator[tuple[int, ...]]:
    """How many of the groups have 0, 1 ... `size` right answers: every possibility."""
    for bars in itertools.combinations(range(groups + size), size):
        ends = (-1, *bars, groups + size)
        yield tuple(b - a - 1 for a, b in itertools.pairwise(ends))


def group_probabilities(rate: float, correlation: float, size: int) -> list[float]:
    """Of 0, 1 ... `size` right answers in a group: the beta-binomial distribution, the binomial without correlation."""
    ways = [math.comb(size, k) for k in range(size + 1)]
    if correlation == 0:
        return [w * rate**k * (1 - rate) ** (size - k) for k, w in enumerate(ways)]
    a, b = (share * (1 - correlation) / correlation for share in (rate, 1 - rate))

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return [w * math.exp(log_beta(k + a, size - k + b) - log_beta(a, b)) for k, w in enumerate(ways)]


class Rates:
    """The intervals of all outcomes of `groups` of `size` answers, from which coverage at any rate follows."""

    def __init__(self, groups: int, size: int, *, percentile: bool = False):
        self.size, self.numbers = size, np.array(list(outcomes(groups, size)))
        names = [name for name in range(groups) for _ in range(size)]
        self.bounds = np.empty((len(self.numbers), 2))
        for row, numbers in enumerate(self.numbers.tolist()):
            right = [right for right, count in enumerate(numbers) for _ in range(count)]  # of each group
            if percentile:
                self.bounds[row] = percentile_bounds(np.array(right) / size)
            else:
                found = bootstrap([float(i < k) for k in right for i in range(size)], names)
                self.bounds[row] = found.low, found.high
        everything = math.lgamma(groups + 1)
        self.log_ways = np.array([everything - sum(math.lgamma(n + 1) for n in row) for row in self.numbers.tolist()])

    def coverage(self, rate: float, correlation: float = 0.0) -> float:
        logs = np.log(group_probabilities(rate, correlation, self.size))
        probabilities = np.exp(self.log_ways + self.numbers @ logs)
        inside = (self.bounds[:, 0] <= rate) & (rate <= self.bounds[:, 1])
        return float(probabilities[inside].sum() / probabilities.sum())


def percentile_bounds(values: Floats) -> Floats:
    """The percentile bootstrap of values of equal groups."""
    generator = np.random.default_rng(0)
    draws = generator.integers(len(values), size=(PERCENTILE_REPEATS, len(values)))
    return np.quantile(values[draws].mean(axis=1), [0.025, 0.975])


# ---- other scores, from random sets ----------------------------------------------------------------------------------


def correlated(generator: np.random.Generator, groups: int, size: int) -> Floats:
    """Standard normal numbers (groups * size,) with a correlation of 0.3 within groups."""
    shared = generator.normal(size=(groups, 1)).repeat(size, axis=1)
    return (0.3**0.5 * shared + 0.7**0.5 * generator.normal(size=(groups, size))).ravel()


def columns_of(kind: str, generator: np.random.Generator, groups: int, size: int) -> Floats:
    """The sums of a random set (groups * size, K): of values, or of matches, words and words of the reference."""
    u = correlated(generator, groups, size)
    if kind == "ratio":
        words = generator.poisson(8, len(u)) + 3
        shares = np.array([NormalDist().cdf(-0.8 + 0.7 * x) for x in u.tolist()])
        return np.stack([generator.binomial(words, shares), words, generator.poisson(10, len(u)) + 3], axis=1) * 1.0
    values = {"normal": u, "mostly zero": np.where(u > 0.5, generator.gamma(2, size=len(u)), 0.0),
              "heavy tail": np.exp(u)}[kind]  # fmt: skip
    return np.stack([values, np.ones_like(values)], axis=1)


def statistic_of(kind: str, sums: Floats) -> Floats:
    """The mean; of a ratio, the precision times the penalty for being shorter."""
    scores = sums[:, 0] / sums[:, 1]
    return scores * np.exp(np.minimum(0.0, 1 - sums[:, 2] / sums[:, 1])) if kind == "ratio" else scores


def sampled_coverage(kind: str, groups: int, size: int, *, sets: int, repeats: int = 1000) -> tuple[float, float]:
    """Coverage of the interval, and of the percentile bootstrap, over random sets."""
    generator = np.random.default_rng(5)
    whole = columns_of(kind, generator, 200_000, size).sum(axis=0, keepdims=True)
    true = float(statistic_of(kind, whole)[0])
    names = [name for name in range(groups) for _ in range(size)]
    hits = np.zeros(2)
    for number in range(sets):
        columns = columns_of(kind, generator, groups, size)
        found = bootstrap_sums(columns, lambda sums: statistic_of(kind, sums), names, repeats=repeats, seed=number)
        hits[0] += found.low <= true <= found.high
        times = generator.multinomial(groups, [1 / groups] * groups, size=repeats)
        scores = statistic_of(kind, times @ columns.reshape(groups, size, -1).sum(axis=1))
        low, high = np.quantile(scores, [0.025, 0.975])
        hits[1] += low <= true <= high
    return float(hits[0] / sets), float(hits[1] / sets)


# ----------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="random sets for each of the other scores")
    sets = parser.parse_args().sets
    result: dict[str, tuple[float, float]] = {}
    for groups, size, correlations in ((60, 1, (0.0,)), (15, 4, CORRELATIONS)):
        both = [Rates(groups, size, percentile=percentile) for percentile in (False, True)]
        for correlation, rate in itertools.product(correlations, RATES):
            found = [one.coverage(rate, correlation) for one in both]
            result[f"rate {rate}, {groups} groups of {size}, correlation {correlation}"] = found[0], found[1]
    for kind, (groups, size) in itertools.product(
        ("normal", "mostly zero", "heavy tail", "ratio"), ((60, 1), (15, 4), (100, 4))
    ):
        result[f"{kind}, {groups} groups of {size}"] = sampled_coverage(kind, groups, size, sets=sets)
    print(f"{'coverage of a nominal 95 %':52}interval  percentile bootstrap")
    for name, (ours, percentile) in result.items():
        print(f"{name:52}{ours:8.1%}{percentile:12.1%}")
    print(json.dumps({"name": "intervals", "sets": sets, "coverage": result}))


if __name__ == "__main__":
    main()
