"""What BLIP-2 makes of a batch of validation pairs; `pretraining.py` has the scores of the whole set.

Shapes: B pairs, N image tokens, Q queries, E embedding width.
"""

from typing import Any

import torch
from torch import Tensor

from blip.evaluation.pretraining import BatchScores
from blip.models import losses
from blip.models.blip2 import Blip2Model
from blip.models.momentum import unit_features
from blip.network.packing import Rows, with_first


def score_batch(model: Blip2Model, batch: Any, other: Tensor, with_lm: bool) -> BatchScores:
    """See `ScoreBatch`: features (B, Q, E) of images and (B, E) of texts, match logits, losses of tokens."""
    ids, lengths = batch.ids, batch.lengths
    keys = model.qformer.image_keys(model.image_encoder(batch.images))
    read = model.qformer.look(keys)
    images = unit_features(model.image_proj, read.states)
    there = other.to(ids.device, non_blocking=True)
    rows_of = torch.arange(len(ids), device=ids.device).repeat(2)  # the image of each row: pairs, then shifted pairs
    texts = torch.cat([ids, ids[there]]), torch.cat([lengths, lengths[other]])
    matched, shifted = model.match_logits(*texts, keys.with_extra(rows_of)).chunk(2)
    scores = BatchScores(images, model.encode_text(ids, lengths), matched, shifted)
    if with_lm:
        rows = Rows(lengths, ids.shape[1], ids.device)
        written = model.qformer.write(with_first(ids, model.specials.dec), rows, read.cache())
        targets = rows.next_tokens(ids)
        scores.lm = losses.language_model_each(model.qformer.head(written), targets, model.label_smoothing)
        scores.predicted = targets != losses.IGNORED
    return scores
