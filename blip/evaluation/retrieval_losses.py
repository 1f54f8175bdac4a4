"""The losses of retrieval over a whole set, mostly from pairs that the ranking scores anyway.

Shapes: I images, M texts, P pairs, Q queries, k candidates of a query.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip.evaluation.losses import match_losses, matching_loss
from blip.evaluation.retrieval_set import Ranking, Texts


@dataclass
class Scored:
    """Match logits (P, 2) of pairs; the `number` (P,) of a pair, in ascending order, is image * M + text."""

    numbers: Tensor
    logits: Tensor

    def of(self, numbers: Tensor) -> Tensor:
        """The logits (..., 2) of pairs that are among them."""
        return self.logits[torch.searchsorted(self.numbers, numbers)]


def positives_of(answers: Sequence[Sequence[int]], candidates: int) -> Callable[[slice], Tensor]:
    """Lists of right answers of each query -> what `contrast_of_set` asks: rows -> (rows, candidates) boolean."""

    def positives(rows: slice) -> Tensor:
        lists = answers[rows]
        right = torch.zeros(len(lists), candidates, dtype=torch.bool)
        for row, several in zip(right, lists, strict=True):
            row[list(several)] = True
        return right

    return positives


def matching_of_set(
    scored: Scored,
    texts: Texts,
    *,
    image_to_text: Ranking,
    text_to_image: Ranking,
    answers: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    score: Callable[[Tensor], Tensor],
) -> float:
    """The ITM loss of each text with its first image and, as hard negatives, of each image with the wrong text that
    contrast ranks first and of each text with such an image. Nothing is drawn.

    Args:
        scored: the pairs that the ranking scored.
        image_to_text, text_to_image: candidates by contrast.
        answers: the right texts of each image, and the right images of each text.
        score: match logits (P, 2) of further pairs (P, 2), sorted: those of texts whose image is no candidate.
    """
    count = len(texts.ids)
    own = torch.tensor([images[0] * count + text for text, images in enumerate(answers[1]) if images])
    missing = own[~torch.isin(own, scored.numbers)].unique()
    matched = [match_losses(scored.of(own[torch.isin(own, scored.numbers)]), True)]
    if len(missing):
        matched.append(match_losses(score(torch.stack([missing // count, missing % count], dim=1)), True))
    wrong = [
        torch.tensor([image * count + text for image, text in first_wrong(image_to_text, answers[0])]),
        torch.tensor([image * count + text for text, image in first_wrong(text_to_image, answers[1])]),
    ]
    means = [float(match_losses(scored.of(pairs), False).mean()) for pairs in wrong if len(pairs)]
    return matching_loss(float(torch.cat(matched).mean()), sum(means) / len(means) if means else None)


def first_wrong(ranking: Ranking, answers: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(query, its best candidate that is no right answer); queries without right answers, or without wrong ones among
    their candidates, are left out."""
    pairs = []
    for query, (candidates, right) in enumerate(zip(ranking.candidates.tolist(), answers, strict=True)):
        wrong = next((one for one in candidates if one not in set(right)), None) if right else None
        if wrong is not None:
            pairs.append((query, wrong))
    return pairs
