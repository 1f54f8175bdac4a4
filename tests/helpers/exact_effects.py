"""What tests of causes share: a model in float64, a metric that does not round, and the edit of a single place."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import blip
from blip.inference.inputs import OneImage
from blip.inference.predictor import Predictor
from blip.interpret.causes.metrics import OneText
from blip.interpret.hooks import Edit
from blip.models.scorers import scorer_of
from helpers.tiny import add_noise

LEFT, RIGHT = "a small bright left lesion", "a large dark right lesion"


def exact_model(checkpoint: Path) -> Predictor:
    """In float64, with large weights, so that no effect is near zero."""
    m = blip.load(checkpoint)
    add_noise(m.model, 0.3)
    m.model.double()
    return m


def odds(m: Predictor, images: Sequence[OneImage], texts: Sequence[OneText]) -> Tensor:
    """The metric `match` without rounding to float32."""
    scorer = scorer_of(m.model)
    with torch.set_grad_enabled(m.differentiable):
        logits = scorer.match_logits(*m.ids([str(text) for text in texts]), scorer.image_keys(m.states(images)))
    return logits[:, 1] - logits[:, 0]


def single_edit(head: int | None, token: int | None, value: Callable[[Tensor], Tensor]) -> Edit:
    """The obvious form: one place of one tensor is replaced."""
    heads, tokens = slice(None) if head is None else head, slice(None) if token is None else token

    def edit(x: Tensor) -> Tensor:
        where = (slice(None), heads, tokens) if x.dim() == 4 else (slice(None), tokens)
        x[where] = value(x)[where]
        return x

    return edit
