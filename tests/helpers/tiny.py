"""The one set of small sizes: the options of a run, the configurations of encoders and a random model of each task.

A test that needs another size names it: `tiny_vit(depth=3)`.
"""

from dataclasses import asdict, replace
from functools import partialmethod
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from blip.models.blip2 import Blip2Model
from blip.models.factory import model_of, spec_of
from blip.network.embeddings import TextConfig
from blip.network.packing import Rows
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig
from blip.tokenizer import Specials

# ---- a run -----------------------------------------------------------------------------------------------------------

MODEL_SIZES: dict[str, object] = {  # a model that trains a step in milliseconds
    "vit": "custom",
    "vit_width": 32,
    "vit_depth": 2,
    "vit_heads": 2,
    "vit_patch": 16,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
    "text_hidden": 64,
    "max_positions": 48,
    "embed_dim": 16,
}
TINY: dict[str, object] = {
    "image_size": 32,
    "crop_scale": "[0.5, 1.0]",
    "randaugment": "null",
    "max_text_tokens": 32,
    **MODEL_SIZES,
    "queue_size": 20,
    "batch_size": 8,
    "warmup_steps": 4,
    "device": "cpu",
    "precision": "fp32",
    "num_workers": 0,
    "log_every_steps": 1,
}

# ---- memory ----------------------------------------------------------------------------------------------------------


def keep_padding(patch: pytest.MonkeyPatch) -> None:
    """Models keep padding in memory: the slow, obvious twin of packing."""
    patch.setattr(Rows, "__init__", partialmethod(Rows.__init__, packed=False))


# ---- a model ---------------------------------------------------------------------------------------------------------


def tiny_vit(**changes: Any) -> ViTConfig:
    """Images of 32 pixels in 16 patches."""
    return replace(ViTConfig(image_size=32, patch=8, width=24, depth=2, heads=3), **changes)


def tiny_qformer(**changes: Any) -> QFormerConfig:
    """49 words, the last one [DEC], three queries, images of `tiny_vit`; no dropout, as in `tiny_text`."""
    sizes = {"vocab_size": 49, "width": 36, "layers": 4, "heads": 3, "hidden": 40, "max_positions": 16}
    return QFormerConfig(**{**sizes, "image_width": 24, "dropout": 0.0, "queries": 3, **changes})


def tiny_text(**changes: Any) -> TextConfig:
    """50 words, images of `tiny_vit`; no dropout, so that two ways to compute one thing can be compared."""
    sizes = {"vocab_size": 50, "width": 36, "layers": 2, "heads": 3, "hidden": 40, "max_positions": 16}
    return TextConfig(**{**sizes, "image_width": 24, "dropout": 0.0, **changes})


def specials_of(text: TextConfig) -> Specials:
    """Padding is the first id, [ENC] the last, [DEC] the one before."""
    return Specials(pad=0, enc=text.vocab_size - 1, dec=text.vocab_size - 2)


def tiny_model(task: str, vit: ViTConfig | None = None, text: TextConfig | None = None) -> Any:
    """A model of the task as it is initialised."""
    vit, text = vit or tiny_vit(), replace(text or tiny_text(), images=spec_of(task).images)
    return model_of(task, vit, text, specials=specials_of(text), embed_dim=8)


def tiny_blip2(vit: ViTConfig | None = None, qformer: QFormerConfig | None = None) -> Blip2Model:
    """A random model of BLIP-2's first stage, which has no [ENC]."""
    qformer = qformer or tiny_qformer()
    specials = Specials(pad=0, enc=-1, dec=qformer.vocab_size - 1)
    return Blip2Model(vit or tiny_vit(), qformer, specials, embed_dim=8)


def spread(module: nn.Module, std: float) -> nn.Module:
    """Draws every weight but the temperature anew; biases and norms too, whose zeros and ones would hide errors."""
    for name, parameter in module.named_parameters():
        if name != "temperature":
            nn.init.normal_(parameter, std=std)
    return module


# ---- a checkpoint ----------------------------------------------------------------------------------------------------

# the widths of image and text differ, so that one taken for the other is an error
STORED_VIT = ViTConfig(image_size=32, patch=8, width=32, depth=2, heads=2, mlp_ratio=2)
STORED_TEXT = TextConfig(vocab_size=60, width=48, layers=2, heads=3, hidden=64, max_positions=40, image_width=32)
STORED_EMBED = 24


def stored_info(task: str, text: TextConfig = STORED_TEXT) -> dict[str, Any]:
    """What `model.json` tells of a checkpoint of these sizes with one text encoder."""
    encoders = {"image_encoder": asdict(STORED_VIT), "text_encoder": asdict(text)}
    return {"task": task, **encoders, "embed_dim": STORED_EMBED}


def add_noise(module: nn.Module, std: float, seed: int = 0) -> nn.Module:
    """Noise in place of every matrix, and on every vector: answers differ, and no bias is 0 and no norm 1.

    It is NumPy's, which draws the same numbers in every version; torch does not.
    """
    noise = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            start = parameter if parameter.dim() < 2 else torch.zeros_like(parameter)
            parameter.copy_(start + torch.from_numpy(noise.normal(0, std, tuple(parameter.shape))))
    return module
