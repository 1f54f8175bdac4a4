"""The evaluation of pre-training: retrieval by contrast alone, the accuracy of matching, and the three losses.

Shapes: B pairs of a batch, M pairs of the whole set, E embedding width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.errors import InputError
from blip.evaluation.losses import LossSums, contrast_of_set, match_losses, matching_loss, with_total
from blip.evaluation.ranking import own_rows, recall_of_set
from blip.models import losses
from blip.models.blip2 import Blip2Model
from blip.models.pretrain import PretrainModel
from blip.models.scorers import Scorer, SeenImages, scorer_of
from blip.network.cross_attention import ProjectedKeys
from blip.network.packing import Rows
from blip.network.pictures import encode


@dataclass
class Pretrained:
    """Scores, whose names begin with `val_`, and a histogram of similarities, see `SetContrast.histogram`."""

    metrics: dict[str, float]
    similarities: dict[str, list]


def match_each_and_shifted(
    scorer: Scorer, keys: ProjectedKeys, ids: Tensor, *, lengths: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    """Match logits (B, 2) of the pairs, and of each image of `keys` with text `other` (B,), on the CPU as `lengths`."""
    # each image's two texts side by side would be quicker; this way the rows stay in reading order
    images = torch.arange(len(ids), device=ids.device).repeat(2)
    there = other.to(ids.device, non_blocking=True)
    lengths = torch.cat([lengths, lengths[other]])
    logits = scorer.match_logits(torch.cat([ids, ids[there]]), lengths, keys.with_extra(images))
    return logits[: len(ids)], logits[len(ids) :]


def add_language_model(
    scorer: Scorer, images: SeenImages, ids: Tensor, *, rows: Rows, smoothing: float, sums: LossSums
) -> None:
    """Adds the LM losses of the texts (B, T) of the images, one a token."""
    targets = rows.next_tokens(ids)
    each = losses.language_model_each(scorer.next_tokens(ids, rows, images), targets, smoothing)
    sums.add("lm", each, targets != losses.IGNORED)


@torch.no_grad()
def evaluate_pretraining(
    model: PretrainModel | Blip2Model, batches: Iterable[Any], device: torch.device, *, val_loss: bool = True
) -> Pretrained:
    """Retrieval by ITC over the whole set, match accuracy on pairs and on shifted pairs and, with `val_loss`, losses.

    Each process evaluates its share of the set; all return the same numbers. Pairs with equal captions or images are
    right answers for one another. Chance is the expected R@1 of a random order. The wrong text of a pair is that of its
    neighbour in the batch, so `val_itm_unmatched` and `val_itm` depend slightly on the batch size.
    """
    training, scorer = model.training, scorer_of(model)
    model.eval()
    parts: list[list[Tensor]] = []
    sums = LossSums()
    for batch in batches:
        batch = batch.to(device, non_blocking=True)
        seen = scorer.see(encode(model.image_encoder, batch.images))
        rows = Rows(batch.lengths, batch.ids.shape[1], device)
        texts = scorer.text_features(batch.ids, rows)
        other = torch.arange(len(batch.ids)).roll(1)
        matched, shifted = match_each_and_shifted(scorer, seen.keys, batch.ids, lengths=batch.lengths, other=other)
        right, wrong = matched.argmax(dim=1) == 1, shifted.argmax(dim=1) != 1
        # a shifted text that equals its own is no wrong pair
        different = (batch.caption_ids != batch.caption_ids.roll(1)) & (batch.image_ids != batch.image_ids.roll(1))
        parts.append([seen.features, texts, batch.caption_ids, batch.image_ids, right, wrong, different])
        if val_loss:
            sums.add("matched", match_losses(matched, True))
            sums.add("unmatched", match_losses(shifted, False), different)
            smoothing = model.label_smoothing
            add_language_model(scorer, seen, batch.ids, rows=rows, smoothing=smoothing, sums=sums)
    model.train(training)
    # features of all processes, which each ranks and compares a share of
    columns = [torch.cat(c).cpu() for c in zip(*parts, strict=True)] if parts else None
    gathered = [c for c in distributed.gather_objects(columns) if c is not None]
    if not gathered:
        raise InputError("there is nothing to evaluate: no image of the validation file could be read")
    whole = [torch.cat(c) for c in zip(*gathered, strict=True)]
    images, texts, captions, image_ids, right, wrong, different = (column.to(device) for column in whole)

    def positives(rows: slice) -> Tensor:
        return (captions[rows, None] == captions) | (image_ids[rows, None] == image_ids)

    count = sum(int(positives(rows).sum()) for rows in own_rows(len(images), device))
    chance = sum(distributed.gather_objects(count)) / len(images) ** 2
    metrics = {"val_pairs": float(len(images)), "val_chance": chance}
    metrics |= {f"val_i2t_r{k}": v for k, v in recall_of_set(images, texts, positives).items()}
    metrics |= {f"val_t2i_r{k}": v for k, v in recall_of_set(texts, images, positives).items()}
    metrics["val_itm_matched"] = right.float().mean().item()
    if different.any():
        metrics["val_itm_unmatched"] = wrong[different].float().mean().item()
    contrast = contrast_of_set(images, texts, positives, temperature=float(model.temperature))
    means = sums.means()
    if val_loss:
        itm = matching_loss(means["matched"], means.get("unmatched"))
        metrics |= with_total({"itc": contrast.loss, "itm": itm, "lm": means["lm"]}, "val")
    return Pretrained(metrics, contrast.histogram)
