"""What scores an image against a text, in pre-training, retrieval and inference: features, contrast, match logits.

Shapes: B images, R texts, T text tokens, N image tokens, D width, E embedding width, C candidates.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip import losses
from blip.momentum import Candidates
from blip.network.med import TextEncoder
from blip.network.packing import ImageKeys, Rows
from blip.network.vit import ViT

TEMPERATURE_RANGE = (0.001, 0.5)
Draw = Callable[[Tensor], tuple[Tensor, Tensor]]  # weights (B, C) -> index (B,), exists (B,); see losses.draw_negatives


def project(linear: nn.Linear, states: Tensor) -> Tensor:
    """States (B, D) -> features of unit length (B, E), in float32."""
    return F.normalize(linear(states).float(), dim=-1)


def contrast(
    image_features: Tensor, text_features: Tensor, candidates: Candidates, temperature: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (B, E) -> the ITC loss and both similarities (B, C) over the temperature, image to text and back."""
    count = len(image_features)
    with torch.autocast(image_features.device.type, enabled=False):
        temperature = temperature.clamp(*TEMPERATURE_RANGE)
        image_to_text = image_features @ candidates.texts / temperature
        text_to_image = text_features @ candidates.images / temperature
        with torch.no_grad():
            twin_image_to_text = candidates.images[:, :count].T @ candidates.texts / temperature
            twin_text_to_image = candidates.texts[:, :count].T @ candidates.images / temperature
        itc_images = losses.contrast(image_to_text, twin_image_to_text, candidates.positives, alpha)
        itc_texts = losses.contrast(text_to_image, twin_text_to_image, candidates.positives, alpha)
    return (itc_images + itc_texts) / 2, image_to_text, text_to_image


def match_logits(
    encoder: TextEncoder,
    head: nn.Linear,
    ids: Tensor,
    lengths: Tensor,
    keys: ImageKeys,
    packed: bool = True,
    words: Tensor | None = None,
) -> Tensor:
    """Logits (R, 2) of texts that look at images as `keys` says; ids (R, T), the first one `[ENC]`; class 1 = match.

    lengths (R,), on the CPU when `packed`; `words` as in `med.Embeddings`.
    """
    rows = Rows(lengths, ids.shape[1], ids.device, packed)
    return head(encoder.multimodal(ids, rows, keys, first_only=True, words=words))


def match_with_negatives(
    encoder: TextEncoder,
    head: nn.Linear,
    ids: Tensor,
    lengths: Tensor,
    keys: ImageKeys,
    hard_text: Tensor,
    hard_image: Tensor,
    packed: bool,
    words: Tensor | None = None,
) -> Tensor:
    """Logits (3B, 2) of the rows: matched, (text, hard image), (hard text, image), in one pass.

    ids (B, T), the first one `[ENC]`; with `words`, rows of it (`med.Embeddings`). `hard_text` and `hard_image` (B,)
    number pairs of this batch.
    """
    count = len(ids)
    # texts of one image side by side: its own and the hard one; then each text with its hard image
    ids = torch.cat([torch.stack([ids, ids[hard_text]], dim=1).flatten(0, 1), ids])  # (3B, T)
    hard_lengths = lengths[hard_text.to(lengths.device)]
    lengths = torch.cat([torch.stack([lengths, hard_lengths], dim=1).flatten(), lengths])
    keys = ImageKeys(keys.layers, extra=hard_image)
    logits = match_logits(encoder, head, ids, lengths, keys, packed, words)
    own, extra = logits.split([2 * count, count])
    matched, with_hard_text = own.unflatten(0, (count, 2)).unbind(dim=1)
    return torch.cat([matched, extra, with_hard_text])


class Contrastive(Protocol):
    """A model with what contrast needs."""

    image_encoder: ViT
    text_encoder: TextEncoder
    image_proj: nn.Linear
    text_proj: nn.Linear


class Twin(nn.Module):
    """The encoders and projections that contrast needs, as a slowly moving average of the model's."""

    def __init__(self, model: Contrastive):
        super().__init__()
        self.image_encoder = deepcopy(model.image_encoder)
        self.text_encoder = deepcopy(model.text_encoder)
        self.image_proj = deepcopy(model.image_proj)
        self.text_proj = deepcopy(model.text_proj)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor, ids: Tensor, lengths: Tensor, packed: bool = True) -> tuple[Tensor, Tensor]:
        """One batch -> image and text features, each (B, E). It runs in training mode, dropout on, as published."""
        rows = Rows(lengths, ids.shape[1], ids.device, packed)
        image_features = project(self.image_proj, self.image_encoder(images, cls_only=True)[:, 0])
        text_features = project(self.text_proj, self.text_encoder.text(ids, rows, first_only=True))
        return image_features, text_features

    def pairs_with(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The twin's parameters and the model's of the same names, in one order, for `momentum.update_twin`."""
        theirs = dict(model.named_parameters())
        own = dict(self.named_parameters())
        return list(own.values()), [theirs[name] for name in own]
