"""The three objectives of pre-training as functions of tensors (Li et al. 2022, section 3.2; Li et al. 2021 for ITC).

Shapes: B pairs, Q queue entries, C candidates, E embedding width, P predicted tokens, V words.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# the ITM loss of a model without skill: one label in three is a match, so it predicts 1/3
ITM_NO_SKILL = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3  # 0.6365

IGNORED = -100  # a target that does not count


def contrast(similarity: Tensor, momentum_similarity: Tensor, positives: Tensor, *, alpha: float) -> Tensor:
    """Image-text contrast in one direction: cross-entropy against softened targets.

    Args:
        similarity: (B, B+Q), features of this batch against all candidates, divided by the temperature.
        momentum_similarity: (B, B+Q), the same from features of the momentum twin on both sides.
        positives: (B, B+Q) boolean; a row's positives share its target equally. Each row has at least one.
        alpha: weight of the momentum targets, 0 to 1.
    """
    with torch.no_grad():
        hard = positives.float() / positives.sum(dim=1, keepdim=True)
        targets = alpha * momentum_similarity.float().softmax(dim=1) + (1 - alpha) * hard
    return -(similarity.float().log_softmax(dim=1) * targets).sum(dim=1).mean()


def smoothed_contrast(similarity: Tensor, positives: Tensor, smoothing: float = 0.1) -> Tensor:
    """Image-text contrast in one direction without a momentum twin: cross-entropy against smoothed targets (BLIP-2).

    Args:
        similarity: (B, C), features of this batch against all candidates, divided by the temperature.
        positives: (B, C) boolean; a row's positives share 1 - `smoothing` of its target equally.
        smoothing: the share of the target that all candidates have equally.
    """
    with torch.no_grad():
        targets = (1 - smoothing) * positives.float() / positives.sum(dim=1, keepdim=True)
        targets += smoothing / positives.shape[1]
    return -(similarity.float().log_softmax(dim=1) * targets).sum(dim=1).mean()


def negative_weights(similarity: Tensor, positives: Tensor, floor: float = 0.0) -> Tensor:
    """Sampling weights of hard negatives: softmax(similarity) + floor, zero for positives; all (B, C).

    In the published code pre-training has a floor of 1e-4, retrieval has none.
    """
    return (similarity.detach().float().softmax(dim=1) + floor).masked_fill(positives, 0.0)


def draw_negatives(weights: Tensor) -> tuple[Tensor, Tensor]:
    """One candidate of each row, drawn in proportion to `weights` (B, C) -> (index (B,), exists (B,) boolean).

    A row of zeros has no negative, every candidate is a positive: `exists` is False there and the index has no meaning.
    """
    exists = weights.sum(dim=1) > 0
    weights = torch.where(exists[:, None], weights, torch.ones_like(weights))
    return weights.multinomial(1).squeeze(1), exists


def match(logits: Tensor, is_match: Tensor, counts: Tensor | None = None) -> Tensor:
    """Image-text matching: cross-entropy of logits (R, 2), class 1 = match; rows not in `counts` are ignored."""
    labels = is_match.long()
    if counts is not None:
        labels = labels.masked_fill(~counts, IGNORED)
    return F.cross_entropy(logits.float(), labels)


def language_model(logits: Tensor, targets: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """Next-token cross-entropy, the mean over tokens: logits (P, V), targets (P,), `IGNORED` does not count."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def language_model_each(logits: Tensor, targets: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """As `language_model`, for each token (P,); 0 at `IGNORED`."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing, reduction="none")


def alpha_ramp(step: int, ramp_steps: int, alpha: float) -> float:
    """The weight of soft targets, growing linearly from 0 to `alpha` over the first `ramp_steps` optimizer steps."""
    return alpha * min(1.0, step / max(1, ramp_steps))
