"""The evaluation of pre-training: retrieval by contrast alone, the accuracy of matching, and the three losses.

What a batch gives is computed in `score_batch` for BLIP, in `blip2.py` for BLIP-2; the scores of a set are the same.

Shapes: B pairs of a batch, M pairs of the whole set, E embedding width, Q queries.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.errors import InputError
from blip.evaluation.losses import LossSums, contrast_of_set, match_losses, matching_loss, with_total
from blip.evaluation.ranking import own_rows, recall_of_set
from blip.models import losses
from blip.models.matching import match_logits
from blip.models.momentum import unit_features
from blip.models.pretrain import PretrainModel
from blip.network.cross_attention import ProjectedKeys
from blip.network.packing import Rows, with_first


@dataclass
class Pretrained:
    """Scores, whose names begin with `val_`, and a histogram of similarities, see `SetContrast.histogram`."""

    metrics: dict[str, float]
    similarities: dict[str, list]


@dataclass
class BatchScores:
    """What a model makes of B pairs."""

    images: Tensor  # (B, E) of unit length, or (B, Q, E), of which the most similar counts
    texts: Tensor  # (B, E)
    matched: Tensor  # (B, 2) match logits of the pairs
    shifted: Tensor  # (B, 2) and of each image with the text of another
    lm: Tensor | None = None  # the loss of each predicted token
    predicted: Tensor | None = None  # which of them count


# a model, a batch, the pair (B,), on the CPU, whose text each image is shown with, whether to compute LM losses
ScoreBatch = Callable[[Any, Any, Tensor, bool], BatchScores]


def match_each_and_shifted(
    model: PretrainModel, keys: ProjectedKeys, ids: Tensor, *, lengths: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    """Match logits (B, 2) of the pairs, and of each image of `keys` with text `other` (B,), on the CPU as `lengths`."""
    # each image's two texts side by side would be quicker; this way the rows stay in reading order
    images = torch.arange(len(ids), device=ids.device).repeat(2)
    there = other.to(ids.device, non_blocking=True)
    texts = with_first(torch.cat([ids, ids[there]]), model.specials.enc)
    lengths = torch.cat([lengths, lengths[other]])
    logits = match_logits(model.text_encoder, model.itm_head, texts, lengths=lengths, keys=keys.with_extra(images))
    return logits[: len(ids)], logits[len(ids) :]


def score_batch(model: PretrainModel, batch: Any, other: Tensor, with_lm: bool) -> BatchScores:
    """What BLIP makes of a batch, see `ScoreBatch`."""
    states = model.image_encoder(batch.images)
    rows = Rows(batch.lengths, batch.ids.shape[1], batch.ids.device)
    images = unit_features(model.image_proj, states[:, 0])
    texts = unit_features(model.text_proj, model.text_encoder.text(batch.ids, rows, first_only=True))
    keys = model.text_encoder.image_keys(states)
    matched, shifted = match_each_and_shifted(model, keys, batch.ids, lengths=batch.lengths, other=other)
    if not with_lm:
        return BatchScores(images, texts, matched, shifted)
    decoded = model.text_decoder(with_first(batch.ids, model.specials.dec), rows, keys)
    targets = rows.next_tokens(batch.ids)
    each = losses.language_model_each(model.text_decoder.head(decoded), targets, model.label_smoothing)
    return BatchScores(images, texts, matched, shifted, each, targets != losses.IGNORED)


@torch.no_grad()
def evaluate_pretraining(
    model: Any,
    batches: Iterable[Any],
    device: torch.device,
    *,
    val_loss: bool = True,
    score: ScoreBatch = score_batch,
) -> Pretrained:
    """Retrieval by ITC over the whole set, match accuracy on pairs and on shifted pairs and, with `val_loss`, losses.

    Each process evaluates its share of the set; all return the same numbers. Pairs with equal captions or images are
    right answers for one another. Chance is the expected R@1 of a random order. The wrong text of a pair is that of its
    neighbour in the batch, so `val_itm_unmatched` and `val_itm` depend slightly on the batch size.
    """
    training = model.training
    model.eval()
    parts: list[list[Tensor]] = []
    sums = LossSums()
    for batch in batches:
        batch = batch.to(device, non_blocking=True)
        found = score(model, batch, torch.arange(len(batch.ids)).roll(1), val_loss)
        right, wrong = found.matched.argmax(dim=1) == 1, found.shifted.argmax(dim=1) != 1
        # a shifted text that equals its own is no wrong pair
        different = (batch.caption_ids != batch.caption_ids.roll(1)) & (batch.image_ids != batch.image_ids.roll(1))
        parts.append([found.images, found.texts, batch.caption_ids, batch.image_ids, right, wrong, different])
        if val_loss and found.lm is not None:
            sums.add("matched", match_losses(found.matched, True))
            sums.add("unmatched", match_losses(found.shifted, False), different)
            sums.add("lm", found.lm, found.predicted)
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
