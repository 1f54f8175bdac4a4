"""The evaluation of pre-training: retrieval by contrast alone, and the accuracy of matching.

Shapes: B pairs of a batch, M pairs of the whole set, E embedding width.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.errors import InputError
from blip.evaluation.ranking import recall_at
from blip.models.matching import match_logits
from blip.models.momentum import unit_features
from blip.models.pretrain import PretrainModel
from blip.network.packing import Rows, with_first


def balanced_match_accuracy(
    model: PretrainModel, states: Tensor, ids: Tensor, *, lengths: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    """Two (B,): whether a pair is classified as a match, and whether its image with text `other` (B,) is not."""
    # each image's two texts side by side would be quicker; this way the rows stay in reading order
    images = torch.arange(len(ids), device=ids.device).repeat(2)
    keys = model.text_encoder.image_keys(states).with_extra(images)
    texts = with_first(torch.cat([ids, ids[other]]), model.specials.enc)
    lengths = torch.cat([lengths, lengths[other.cpu()]])
    logits = match_logits(model.text_encoder, model.itm_head, texts, lengths=lengths, keys=keys)
    matches = logits.argmax(dim=1) == 1
    return matches[: len(ids)], ~matches[len(ids) :]


@torch.no_grad()
def evaluate_pretraining(model: PretrainModel, batches: Iterable[Any], device: torch.device) -> dict[str, float]:
    """Retrieval by ITC over the whole set and match accuracy on pairs and on shifted pairs.

    Each process evaluates its share of the set; all return the same numbers. Pairs with equal captions or images are
    right answers for one another. Chance is the expected R@1 of a random order. The wrong text of a pair is that of its
    neighbour in the batch, so `val_itm_unmatched` depends slightly on the batch size.
    """
    training = model.training
    model.eval()
    parts: list[list[Tensor]] = []
    for batch in batches:
        batch = batch.to(device)
        states = model.image_encoder(batch.images)
        rows = Rows(batch.lengths, batch.ids.shape[1], device)
        images = unit_features(model.image_proj, states[:, 0])
        texts = unit_features(model.text_proj, model.text_encoder.text(batch.ids, rows, first_only=True))
        other = torch.arange(len(batch.ids), device=device).roll(1)
        right, wrong = balanced_match_accuracy(model, states, batch.ids, lengths=batch.lengths, other=other)
        # a shifted text that equals its own is no wrong pair
        different = (batch.caption_ids != batch.caption_ids[other]) & (batch.image_ids != batch.image_ids[other])
        parts.append([t.cpu() for t in (images, texts, batch.caption_ids, batch.image_ids, right, wrong, different)])
    model.train(training)
    columns = [torch.cat(c) for c in zip(*parts, strict=True)] if parts else None
    gathered = [c for c in distributed.gather_objects(columns) if c is not None]
    if not gathered:
        raise InputError("there is nothing to evaluate: no image of the validation file could be read")
    images, texts, captions, image_ids, right, wrong, different = (torch.cat(c) for c in zip(*gathered, strict=True))
    positives = (captions[:, None] == captions) | (image_ids[:, None] == image_ids)
    similarity = images @ texts.T
    metrics = {"val_pairs": float(len(images)), "val_chance": positives.float().mean().item()}
    metrics |= {f"val_i2t_r{k}": v for k, v in recall_at(similarity, positives).items()}
    metrics |= {f"val_t2i_r{k}": v for k, v in recall_at(similarity.T, positives).items()}
    metrics["val_itm_matched"] = right.float().mean().item()
    if different.any():
        metrics["val_itm_unmatched"] = wrong[different].float().mean().item()
    return metrics
