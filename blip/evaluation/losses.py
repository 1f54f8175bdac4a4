"""Validation losses: the objectives of training on data that are not trained on, without anything random.

Contrast and its histogram are those of the whole set, so that they depend neither on the batch size nor on the number
of processes. They are on another scale than in training, where batch and queue are the candidates.

Shapes: Q queries, C candidates, E embedding width, R rows of matching.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from blip import distributed
from blip.evaluation.ranking import own_rows
from blip.models.momentum import cosines

BINS = 100  # of the histogram of cosines, from -1 to 1


class LossSums:
    """Sums of losses, and the numbers that they are means of, over batches and processes."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}  # (2,): a sum, a number

    def add(self, name: str, each: Tensor, counts: Tensor | int | None = None) -> None:
        """Adds losses `each`, which may be their sum; `counts`: how many there are, or which of them count."""
        if isinstance(counts, Tensor) and counts.dtype == torch.bool:
            each, counts = each[counts], None
        total = each.detach().double().sum()
        count = torch.as_tensor(each.numel() if counts is None else counts, device=total.device).double()
        self._sums.setdefault(name, []).append(torch.stack([total, count]))

    def means(self) -> dict[str, float]:
        """The mean of each, over all processes; those without any are left out. Every process calls this."""
        own = {name: torch.stack(parts).sum(dim=0).tolist() for name, parts in self._sums.items()}
        everyone = distributed.gather_objects(own)
        names = dict.fromkeys(name for part in everyone for name in part)
        pairs = {name: [part[name] for part in everyone if name in part] for name in names}
        sums = {name: [sum(column) for column in zip(*several, strict=True)] for name, several in pairs.items()}
        return {name: total / count for name, (total, count) in sums.items() if count}


def with_total(objectives: dict[str, float], split: str) -> dict[str, float]:
    """Losses by objective -> the same under names with the split before them, and their sum, `loss`; {} for none."""
    if not objectives:
        return {}
    return {f"{split}_loss": sum(objectives.values()), **{f"{split}_{name}": x for name, x in objectives.items()}}


# ---- matching --------------------------------------------------------------------------------------------------------


def match_losses(logits: Tensor, is_match: bool) -> Tensor:
    """The ITM loss (R,) of each of the rows' logits (R, 2), all of them matches or none of them."""
    labels = torch.full((len(logits),), int(is_match), device=logits.device)
    return F.cross_entropy(logits.float(), labels, reduction="none")


def matching_loss(matched: float, unmatched: float | None) -> float:
    """The ITM loss of the means of matches and others, with one match in three as in training: a model without skill
    is at 0.6365 in both."""
    return matched if unmatched is None else (matched + 2 * unmatched) / 3


# ---- contrast --------------------------------------------------------------------------------------------------------


@dataclass
class SetContrast:
    """Contrast over a whole set: `loss`, the mean of both directions, and counts of cosines by `edges`."""

    loss: float
    matched: list[int] = field(default_factory=list)  # (BINS,)
    unmatched: list[int] = field(default_factory=list)

    @property
    def histogram(self) -> dict[str, list]:
        """A line of `similarities.jsonl`: BINS + 1 edges, and the numbers of pairs between them."""
        edges = [round(-1 + 2 * i / BINS, 4) for i in range(BINS + 1)]
        return {"edges": edges, "matched": self.matched, "unmatched": self.unmatched}


@dataclass
class _Sums:
    """What contrast over a set needs of some of its images; those of several processes are combined."""

    matched: Tensor  # (BINS,) float64, on the CPU as everything here
    unmatched: Tensor
    of_images: Tensor  # (images that have positives,) the loss of each
    normaliser: Tensor  # (C,) log of a sum over images, of each text
    positive: Tensor  # (C,) the sum of the scores of its positives
    count: Tensor  # (C,) positives of each text


@torch.no_grad()
def contrast_of_set(
    images: Tensor, texts: Tensor, positives: Callable[[slice], Tensor], temperature: float
) -> SetContrast:
    """ITC with every pair of the set as a candidate: cross-entropy of similarities over the temperature with targets
    that a query's positives share equally. Queries without positives do not count.

    Each process takes a share of the images, a few at a time, on the device of the features. Every process has to call
    this, with the features of all.

    Args:
        images, texts: features of unit length (Q, E) and (C, E).
        positives: rows of images -> which texts belong to them, (rows, C) boolean, on any device.
        temperature: of the model.
    """
    everyone = distributed.gather_objects(_sums(images, texts, positives, temperature=temperature))
    whole = everyone[0]
    for part in everyone[1:]:
        whole.of_images = torch.cat([whole.of_images, part.of_images])
        whole.normaliser = torch.logaddexp(whole.normaliser, part.normaliser)
        for name in ("matched", "unmatched", "positive", "count"):
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
    of_texts = (whole.normaliser - whole.positive / whole.count.clamp(min=1))[whole.count > 0]
    loss = float((whole.of_images.mean() + of_texts.mean()) / 2)
    return SetContrast(loss, whole.matched.long().tolist(), whole.unmatched.long().tolist())


def _sums(images: Tensor, texts: Tensor, positives: Callable[[slice], Tensor], *, temperature: float) -> _Sums:
    device, double = images.device, torch.float64
    matched, unmatched = torch.zeros(2, BINS, dtype=double, device=device)
    of_images = [torch.zeros(0, dtype=double, device=device)]
    normaliser = torch.full((len(texts),), float("-inf"), dtype=double, device=device)
    positive, count = torch.zeros(2, len(texts), dtype=double, device=device)
    for rows in own_rows(len(images), device):
        similarity, right = cosines(images[rows], texts), positives(rows).to(device)
        for counts, which in ((matched, right), (unmatched, ~right)):
            counts += torch.histc(similarity[which].clamp(-1, 1), BINS, -1, 1)
        scores = (similarity / temperature).double()
        shared = right.sum(dim=1)
        log_p = scores - scores.logsumexp(dim=1, keepdim=True)
        of_images.append((-(log_p * right).sum(dim=1) / shared.clamp(min=1))[shared > 0])
        normaliser = torch.logaddexp(normaliser, scores.logsumexp(dim=0))
        positive += (scores * right).sum(dim=0)
        count += right.sum(dim=0)
    return _Sums(*(x.cpu() for x in (matched, unmatched, torch.cat(of_images), normaliser, positive, count)))
