"""What retrieval is evaluated on, and its result: texts, batches of images, rankings, and those by contrast.

Shapes: M texts, T text tokens, N image tokens, D width, B images of a batch, E embedding width, Q queries, C candidates
to choose from, k chosen ones.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.errors import InputError
from blip.evaluation.ranking import own_rows
from blip.models.momentum import cosines

# Batches of image numbers -> their tensors, batch by batch: pixels (B, 3, height, width), or states (B, N, D); or
# those of items of several pictures.
Batches = Callable[[Sequence[Sequence[int]]], Iterable[Any]]


@dataclass
class Texts:
    """The captions of a set, on the CPU. An image may have several, and a caption may describe several images."""

    ids: Tensor  # (M, T) `[CLS] ... [SEP]` and padding
    lengths: Tensor  # (M,)
    images: Sequence[Sequence[int]]  # M lists: the numbers of the images that each describes

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.lengths) == len(self.images):
            raise InputError(
                f"{len(self.ids)} texts, {len(self.lengths)} lengths and {len(self.images)} lists of images: "
                "each text needs one of each"
            )
        if len(self.ids) == 0:
            raise InputError("there are no texts to retrieve")


@dataclass
class Ranking:
    """The candidates of each query, the best first."""

    candidates: Tensor  # (Q, k) numbers of texts or images
    scores: Tensor  # (Q, k)

    def lists(self) -> list[dict[str, list]]:
        """One dictionary a query, for JSON."""
        rows = zip(self.candidates.tolist(), self.scores.tolist(), strict=True)
        return [{"candidates": candidates, "scores": [round(s, 6) for s in scores]} for candidates, scores in rows]


@dataclass
class Retrieval:
    """The result of `evaluate_retrieval`; `metrics` are shares, and ranks counted from 1."""

    metrics: dict[str, float]
    image_to_text: Ranking
    text_to_image: Ranking
    text_ranks: Tensor  # (I,) after matching, of the best own text of each image among all texts, from 0
    similarities: dict[str, list]  # see `SetContrast.histogram`

    def as_json(self) -> dict:
        return {
            "metrics": self.metrics,
            "image_to_text": self.image_to_text.lists(),
            "text_to_image": self.text_to_image.lists(),
        }


def by_contrast(
    queries: Tensor, candidates: Tensor, k: int, *, answers: Sequence[Sequence[int]]
) -> tuple[Ranking, Tensor]:
    """The k candidates most similar to each query, and the rank (Q,) of its best right answer among all candidates.

    Ranks count from 0; a query without right answers has C. Equal similarities keep the order of the candidates. Each
    process sorts an equal share, on the device of the features, for a few queries at a time; the result is on the CPU.
    Every process has to call this.

    Args:
        queries, candidates: features (Q, E) and (C, E), of all processes.
        answers: Q lists of right candidates.
    """
    device = queries.device
    chosen, scores, ranks = [], [], []
    for rows in own_rows(len(queries), device):
        similarity, order = cosines(queries[rows], candidates).sort(descending=True, stable=True)
        chosen.append(order[:, :k].clone())
        scores.append(similarity[:, :k].clone())
        places = torch.empty_like(order)
        places.scatter_(1, order, torch.arange(order.shape[1], device=device).expand_as(order))
        query, right = (x.to(device) for x in _pairs(answers[rows]))
        best = places.new_full((len(places),), len(candidates))
        ranks.append(best.scatter_reduce_(0, query, places[query, right], "amin"))
    own = [torch.cat(parts).cpu() for parts in (chosen, scores, ranks)] if ranks else None
    columns = zip(*(part for part in distributed.gather_objects(own) if part), strict=True)
    found, values, places = (torch.cat(column) for column in columns)
    return Ranking(found, values), places


def ranks_after(ranking: Ranking, before: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
    """The place (Q,) of the best right answer of each query in a new order of its candidates.

    It is that of `before` where no right answer is among the candidates.
    """
    query, right = _pairs(answers)
    several = 1 + int(max(ranking.candidates.max(), right.max() if len(right) else 0))
    numbers = torch.arange(len(ranking.candidates))[:, None] * several + ranking.candidates
    hits = torch.isin(numbers, query * several + right)  # (Q, k)
    return hits.byte().argmax(dim=1).where(hits.any(dim=1), before)  # the first one of equal values


def _pairs(answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Lists of right answers -> the number of the query (n,) and the answer (n,) of each."""
    queries = [number for number, several in enumerate(answers) for _ in several]
    return torch.tensor(queries, dtype=torch.long), torch.tensor([a for several in answers for a in several]).long()
