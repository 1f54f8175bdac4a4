"""The optimizer, with a learning rate of its own for each layer if `layer_decay` is below 1."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from blip.train.parallel import OptionError

ENCODER = r"(image_encoder|text_encoder|text_decoder|qformer)"
LAYER = re.compile(ENCODER + r"\.(?:blocks|layers)\.(\d+)\.")
BELOW = re.compile(ENCODER + r"\.(?:patch_embed|cls_token|positions|embeddings|queries)\b")  # before the first layer


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    decay_norms_and_biases: bool = True,
    layer_decay: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    own: Callable[[nn.Parameter], nn.Parameter] | None = None,
) -> torch.optim.AdamW:
    """AdamW in its fused form over all trainable parameters; a shared parameter counts once.

    As published, every parameter decays; without `decay_norms_and_biases` those of fewer than two dimensions do not.
    `own` gives what this process has of a parameter, where parameters are divided among processes.
    With `layer_decay` below 1 each group holds its factor on the learning rate, as `lr_scale` (see `layer_scales`).

    Raises:
        OptionError: the model has no layers that `layer_decay` can apply to, or no trainable parameter.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise OptionError("every parameter is frozen: nothing is left to train; take something out of freeze")
    scales = layer_scales(model, layer_decay) if layer_decay != 1.0 else dict.fromkeys(named, 1.0)
    of_process = {name: own(p) if own else p for name, p in named.items()}
    groups: list[dict[str, Any]] = []
    for scale in sorted({scales[name] for name in named}, reverse=True):
        trainable = [p for name, p in of_process.items() if scales[name] == scale]
        options: dict[str, Any] = {} if layer_decay == 1.0 else {"lr": lr * scale, "lr_scale": scale}
        if decay_norms_and_biases:
            groups.append({"params": trainable, **options})
        else:
            groups.append({"params": [p for p in trainable if p.ndim >= 2], **options})
            groups.append({"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0, **options})
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """The factor on the learning rate of each parameter, by name (Clark et al. 2020; Bao et al. 2022).

    Of an encoder or decoder with L layers, layer n (from 0) gets `layer_decay ** (L - n)`; embeddings, those of patches
    included, `layer_decay ** (L + 1)`; norms after the last layer, heads, projections and everything else 1. A shared
    parameter belongs to the first part that has it: cross-attention to the text encoder, and the word embeddings to
    its embeddings although they are the decoder's head as well.

    Raises:
        OptionError: the model has no layers.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    depth: dict[str, int] = {}
    for match in filter(None, map(LAYER.match, names)):
        depth[match[1]] = max(depth.get(match[1], 0), int(match[2]) + 1)
    if not depth:
        raise OptionError(
            "layer_decay: this model has no image_encoder.blocks, text_encoder.layers, text_decoder.layers or "
            "qformer.layers; set layer_decay: 1"
        )
    scales = {}
    for name, _ in model.named_parameters():
        if layer := LAYER.match(name):
            scales[name] = layer_decay ** (depth[layer[1]] - int(layer[2]))
        elif below := BELOW.match(name):
            scales[name] = layer_decay ** (depth[below[1]] + 1)
        else:
            scales[name] = 1.0
    return scales


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer can be told on the device to change nothing, as fused ones can."""
    return bool(optimizer.defaults.get("fused"))


def skip_where(bad: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's next step changes nothing where `bad` () is 1, on its device; see `can_skip`."""
    optimizer.found_inf = bad  # type: ignore[attr-defined]  # by which torch.amp.GradScaler skips steps
