"""Scores of ranked answers against their formulas, and NDCG against scikit-learn's."""

import math
import random

import numpy as np
import pytest

from blip.evaluation.bootstrap import MetricError
from blip.evaluation.dialogues import RankedRound, ndcg, ranks_of, score_rounds


def test_ranks_count_from_one_and_equal_scores_keep_their_order() -> None:
    assert ranks_of([0.1, 0.9, 0.5]) == [3, 1, 2]
    assert ranks_of([1.0, 2.0, 1.0, 2.0]) == [3, 1, 4, 2]


def test_scores_are_their_formulas() -> None:
    draw = random.Random(0)
    rounds = []
    for number in range(60):
        ranks = draw.sample(range(1, 101), 100)
        rounds.append(RankedRound(f"image {number // 10}", ranks, draw.randrange(100) if number % 7 else -1))
    found = score_rounds(rounds)
    places = [one.ranks[one.right] for one in rounds if one.right >= 0]
    assert found["mrr"].mean == pytest.approx(sum(1 / place for place in places) / len(places), abs=1e-12)
    assert found["mean_rank"].mean == pytest.approx(sum(places) / len(places), abs=1e-12)
    for k in (1, 5, 10):
        assert found[f"r{k}"].mean == pytest.approx(sum(place <= k for place in places) / len(places), abs=1e-12)
    assert "ndcg" not in found and found["mrr"].count == len(places) == 51
    for interval in found.values():
        assert interval.low <= interval.mean <= interval.high
    assert score_rounds([RankedRound("a", [1, 2])]) == {}


def test_ndcg_by_hand() -> None:
    """Two relevant options of four: the better one third, the other first."""
    dcg = 0.5 / math.log2(2)
    best = 1.0 / math.log2(2) + 0.5 / math.log2(3)
    assert ndcg([3, 1, 2, 4], [1.0, 0.5, 0, 0]) == pytest.approx(dcg / best, abs=1e-12)
    assert ndcg([1, 2, 3, 4], [1.0, 0.5, 0, 0]) == 1


def test_ndcg_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    rounds = []
    for _ in range(50):
        scores, relevance = draw.normal(size=100), draw.choice([0, 0, 0, 0.2, 0.4, 1], size=100)
        expected = metrics.ndcg_score([relevance], [scores], k=int((relevance > 0).sum()))
        ranks = ranks_of(scores.tolist())
        assert ndcg(ranks, relevance.tolist()) == pytest.approx(expected, abs=1e-12)
        rounds.append((expected, RankedRound(str(len(rounds)), ranks, relevance=relevance.tolist())))
    found = score_rounds([one for _, one in rounds])
    assert found["ndcg"].mean == pytest.approx(sum(value for value, _ in rounds) / 50, abs=1e-12)
    assert set(found) == {"ndcg"}


def test_what_has_no_ndcg() -> None:
    for ranks, relevance in (([1, 2], [0.0, 0.0]), ([1, 2], [1.0])):
        with pytest.raises(MetricError):
            ndcg(ranks, relevance)
