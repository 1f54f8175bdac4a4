"""Scores of rankings: recall at k, median rank, and their chance levels."""

import statistics
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip import distributed
from blip.evaluation.bootstrap import MetricError
from blip.hardware.profile import profile_of
from blip.models.momentum import cosines

NEVER = sys.maxsize  # the rank of a query without right answer


def own_rows(count: int, device: torch.device) -> list[slice]:
    """This process's share of `count` queries, in slices of as many as the device takes at a time."""
    size = profile_of(device).rows_at_once
    slices = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    return slices[slice(*distributed.share(len(slices)))]


def recall_at(similarity: Tensor, positives: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of rows whose best k columns hold a positive: similarity and positives (R, C). k may exceed C."""
    return recall(_first_right(similarity, positives).tolist(), ks)


def recall_of_set(
    queries: Tensor, candidates: Tensor, positives: Callable[[slice], Tensor], ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """`recall_at` of queries (Q, E) among candidates (C, E), features of all processes, by their products.

    `positives`: rows of queries -> (rows, C) boolean. Each process sorts a share of the queries, a few at a time, on
    the device of the features. Every process has to call this.
    """
    ranks = [
        _first_right(cosines(queries[rows], candidates), positives(rows))
        for rows in own_rows(len(queries), queries.device)
    ]
    own = torch.cat(ranks).tolist() if ranks else []
    return recall([rank for part in distributed.gather_objects(own) for rank in part], ks)


def _first_right(similarity: Tensor, positives: Tensor) -> Tensor:
    """The rank (R,), from 0, of the first positive of each row, NEVER without one; equal values keep their order."""
    order = similarity.argsort(dim=1, descending=True, stable=True)
    hits = positives.gather(1, order)
    first = hits.byte().argmax(dim=1)  # the first one of equal values
    return first.masked_fill(~hits.any(dim=1), NEVER)


def recall(ranks: Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """R@k: the share of queries whose best right answer has a rank, counted from 0, below k."""
    return {k: sum(rank < k for rank in ranks) / len(ranks) for k in ks}


def ranking_scores(
    ranks: Sequence[int] | NDArray[np.integer],
    candidates: int,
    ks: Sequence[int] = (1, 5, 10),
    *,
    positives: Sequence[int] | None = None,
) -> dict[str, float]:
    """R@k ("r1" ...), median rank counted from 1, number of candidates and chance of R@1, for one direction.

    Shares are floats and counts ints, so that they can be printed differently; a median between two ranks is a float.

    Args:
        ranks: (N,) place of each query's best right answer among the candidates, counted from 0.
        candidates: how many there are; k may exceed it.
        positives: (N,) right answers of each query, for the chance level; one each unless given.
    """
    places = [int(rank) for rank in ranks]
    if not places:
        raise MetricError("there are no queries to score")
    if wrong := [rank for rank in places if not 0 <= rank < candidates]:
        raise MetricError(f"rank {wrong[0]} does not exist among {candidates} candidates, counted from 0")
    if positives is not None and len(positives) != len(places):
        raise MetricError(f"{len(places)} ranks but {len(positives)} numbers of right answers")
    scores = {f"r{k}": share for k, share in recall(places, ks).items()}
    right = 1.0 if positives is None else sum(positives) / len(positives)
    median = statistics.median(places) + 1
    median = int(median) if median == int(median) else median
    return scores | {"median_rank": median, "candidates": candidates, "chance_r1": right / candidates}
