"""Scores of ranked answers in dialogues, as VisDial's challenge computes them.

A options of a question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from blip.evaluation.bootstrap import Interval, MetricError, bootstrap

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class RankedRound:
    """The options of a question in a dialogue as a model ranks them."""

    group: str  # the image, whose questions are not independent
    ranks: list[int]  # (A,) the place of each option, from 1
    right: int = -1  # the number of the right option, from 0; -1: not known
    relevance: list[float] = field(default_factory=list)  # (A,) of each option, where people have judged them


def ranks_of(scores: Sequence[float]) -> list[int]:
    """The place of each of A options, from 1, by falling score; of equal scores the first option comes first."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks.tolist()


def ndcg(ranks: Sequence[int], relevance: Sequence[float]) -> float:
    """Normalised discounted cumulative gain of A options over the first k places, k being the relevant options.

    A relevance at place r counts 1 / log2(1 + r), relative to the best order. MetricError where nothing is relevant.
    """
    gains, places = np.asarray(relevance, dtype=np.float64), np.asarray(ranks)
    k = int((gains > 0).sum())
    if len(gains) != len(places) or not k:
        raise MetricError(f"{len(places)} ranks and {len(gains)} relevances, {k} of them above 0: give one each")
    found = gains[places <= k] / np.log2(1 + places[places <= k])
    best = np.sort(gains)[::-1][:k] / np.log2(np.arange(2, k + 2))
    return float(found.sum() / best.sum())


def score_rounds(rounds: Sequence[RankedRound], seed: int = 0) -> dict[str, Interval]:
    """`mrr`, `r1`, `r5`, `r10` and `mean_rank` of questions whose right answer is known, `ndcg` of those with relevant
    options; each with a 95 % interval by image. What no question has is left out."""
    known = [one for one in rounds if one.right >= 0]
    scores = {}
    if known:
        ranks = np.array([one.ranks[one.right] for one in known])
        groups = [one.group for one in known]
        scores["mrr"] = bootstrap(1 / ranks, groups, seed=seed, shares=True)
        for k in RECALL_AT:
            scores[f"r{k}"] = bootstrap((ranks <= k).astype(float), groups, seed=seed, shares=True)
        scores["mean_rank"] = bootstrap(ranks, groups, seed=seed, shares=False)
    judged = [one for one in rounds if any(one.relevance)]
    if judged:
        gains = [ndcg(one.ranks, one.relevance) for one in judged]
        scores["ndcg"] = bootstrap(gains, [one.group for one in judged], seed=seed, shares=True)
    return scores
