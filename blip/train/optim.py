"""Optimizer and learning rate."""

import math
from typing import Any

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, lr: float, weight_decay: float, decay_norms_and_biases: bool = True
) -> torch.optim.AdamW:
    """AdamW in its fused form over all trainable parameters.

    As published, every parameter decays; without `decay_norms_and_biases` those of fewer than two dimensions do not.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if decay_norms_and_biases:
        groups: list[dict[str, Any]] = [{"params": trainable}]
    else:
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2]},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


def scaled_lr(lr: float, global_batch: int, reference_batch: int | None) -> float:
    """The learning rate for this global batch, in proportion to the one that `lr` was chosen for, if that is given."""
    return lr if reference_batch is None else lr * global_batch / reference_batch


def lr_at(
    step: int,
    total_steps: int,
    lr: float,
    min_lr: float = 0.0,
    warmup_steps: int = 0,
    schedule: str = "cosine",
    decay: float = 0.9,
    steps_per_epoch: float = 1.0,
) -> float:
    """The learning rate of optimizer step `step` (from 0): linear warm-up, then cosine or a factor `decay` an epoch.

    Warm-up counts optimizer steps of the whole run, so that it ends even when epochs are short, and takes at most half.
    """
    warmup_steps = min(warmup_steps, total_steps // 2)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return max(min_lr, lr * decay ** math.floor(step / steps_per_epoch))
