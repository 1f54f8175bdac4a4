"""Image-text contrast with a momentum twin and a queue of its features (He et al. 2020; Li et al. 2021).

Shapes: B pairs, Q queue entries, C = B + Q candidates, E embedding width.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip.distributed import gather_last
from blip.hardware.precision import computing
from blip.models import losses
from blip.network.med import TextEncoder
from blip.network.packing import Rows
from blip.network.pictures import Pictures, encode, item_features
from blip.network.vit import ViT
from blip.tokenizer import Specials

NO_ID = -1  # of a queue entry that no pair has filled yet: equal to nothing
TEMPERATURE_RANGE = (0.001, 0.5)


class Entries(NamedTuple):
    """Momentum features of B pairs, and the ids by which equal captions and images are recognised."""

    images: Tensor  # (B, E)
    texts: Tensor  # (B, E)
    caption_ids: Tensor  # (B,)
    image_ids: Tensor  # (B,)


@torch.no_grad()
def update_twin(twin: Iterable[Tensor], model: Iterable[Tensor], momentum: float) -> None:
    """twin = momentum * twin + (1 - momentum) * model, in place, for two equally ordered lists of parameters."""
    torch._foreach_lerp_(list(twin), list(model), 1 - momentum)


def joined(batches: Sequence[Entries]) -> Entries:
    """The entries of several batches, in their order."""
    return Entries(*(torch.cat(columns) for columns in zip(*batches, strict=True)))


class Queue(nn.Module):
    """The last Q momentum features with the ids of their captions and images; the oldest are overwritten.

    Any batch fits, larger than the queue or not dividing its size: the pointer wraps. Entries start as random unit
    vectors, as published, and are negatives of everything until they are filled.
    """

    images: Tensor  # (E, Q); columns are entries, as in the released checkpoints
    texts: Tensor  # (E, Q)
    caption_ids: Tensor  # (Q,)
    image_ids: Tensor  # (Q,)
    pointer: Tensor  # (), the next entry to overwrite

    def __init__(self, size: int, embed_dim: int):
        super().__init__()
        self.size = size
        self.register_buffer("images", F.normalize(torch.randn(embed_dim, size), dim=0))
        self.register_buffer("texts", F.normalize(torch.randn(embed_dim, size), dim=0))
        self.register_buffer("caption_ids", torch.full((size,), NO_ID))
        self.register_buffer("image_ids", torch.full((size,), NO_ID))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, entries: Entries) -> None:
        """Adds the entries of the batches of all processes, in the order of their ranks; the last Q where these have
        more."""
        if self.size == 0:
            return
        new = Entries(*gather_last(entries, self.size))
        count = len(new.images)
        places = (self.pointer + torch.arange(count, device=new.images.device)) % self.size
        self.images[:, places] = new.images.T.to(self.images.dtype)
        self.texts[:, places] = new.texts.T.to(self.texts.dtype)
        self.caption_ids[places] = new.caption_ids
        self.image_ids[places] = new.image_ids
        self.pointer.copy_((self.pointer + count) % self.size)


@dataclass
class Candidates:
    """What the pairs of a batch are contrasted with: momentum features of this batch first, then of the queue."""

    images: Tensor  # (E, C)
    texts: Tensor  # (E, C)
    positives: Tensor  # (B, C) boolean


def candidates(batch: Entries, queue: Queue, *, equal_captions: bool = True, equal_images: bool = True) -> Candidates:
    """The entries of a batch, and those of the queue as it was before this batch.

    Pairs with the same caption are positives of one another with `equal_captions` (medical captions repeat), pairs with
    the same image with `equal_images`. As published, pre-training has neither and retrieval the latter.
    """
    own = batch.caption_ids, batch.image_ids
    everyone = torch.cat([own[0], queue.caption_ids]), torch.cat([own[1], queue.image_ids])
    positives = same_pairs(own, everyone, by_caption=equal_captions, by_image=equal_images)
    positives.fill_diagonal_(True)
    images, texts = torch.cat([batch.images.T, queue.images], dim=1), torch.cat([batch.texts.T, queue.texts], dim=1)
    return Candidates(images, texts, positives)


def same_pairs(
    pairs: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], *, by_caption: bool, by_image: bool
) -> Tensor:
    """Which of C other pairs are positives of B pairs: (B, C) boolean.

    Both are ids of captions and ids of images, (B,) each and (C,) each.
    """
    (captions, images), (other_captions, other_images) = pairs, others
    same = torch.zeros(len(captions), len(other_captions), dtype=torch.bool, device=captions.device)
    if by_caption:
        same |= captions[:, None] == other_captions
    if by_image:
        same |= images[:, None] == other_images
    return same


def unit_features(linear: nn.Linear, states: Tensor) -> Tensor:
    """States (B, D) -> features of unit length (B, E), in float32."""
    return F.normalize(linear(states).float(), dim=-1)


def cosines(queries: Tensor, candidates: Tensor) -> Tensor:
    """Cosines (Q, C) of features of unit length (Q, E) and (C, E), in exact float32 whatever else is computed in: in a
    smaller format many candidates would be equally similar.

    Either side may have several features each, (Q, n, E) or (C, n, E), as images of BLIP-2 have: the nearest counts.
    """
    with computing(queries.device, "fp32"):
        products = queries.float().flatten(0, -2) @ candidates.float().flatten(0, -2).T
        if queries.dim() == candidates.dim() == 2:
            return products
        each = products.view(len(queries), -1, len(candidates), products.shape[1] // len(candidates))
        return each.amax(dim=(1, 3))


def contrast_with_candidates(
    image_features: Tensor, text_features: Tensor, candidates: Candidates, *, temperature: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The ITC loss, and the similarities (B, C) over the temperature of images to texts and of texts to images.

    Features (B, E), of unit length; `alpha` is the weight of the momentum targets.
    """
    count = len(image_features)
    with torch.autocast(image_features.device.type, enabled=False):
        # the value is clamped, the gradient is not: at a bound it would be zero, and the temperature would stay there
        temperature = temperature.detach().clamp(*TEMPERATURE_RANGE) + (temperature - temperature.detach())
        image_to_text = image_features @ candidates.texts / temperature
        text_to_image = text_features @ candidates.images / temperature
        with torch.no_grad():
            twin_image_to_text = candidates.images[:, :count].T @ candidates.texts / temperature
            twin_text_to_image = candidates.texts[:, :count].T @ candidates.images / temperature
        itc_images = losses.contrast(image_to_text, twin_image_to_text, candidates.positives, alpha=alpha)
        itc_texts = losses.contrast(text_to_image, twin_text_to_image, candidates.positives, alpha=alpha)
    return (itc_images + itc_texts) / 2, image_to_text, text_to_image


class Contrastive(Protocol):
    """A model with the parts that contrast needs."""

    image_encoder: ViT
    text_encoder: TextEncoder
    image_proj: nn.Linear
    text_proj: nn.Linear


class Matcher(Contrastive, Protocol):
    """A model that contrasts and matches."""

    itm_head: nn.Linear
    temperature: nn.Parameter
    specials: Specials


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
    def forward(self, images: Tensor | Pictures, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """One batch -> image and text features, (B, E) each. It runs in training mode, dropout on, as published."""
        rows = Rows(lengths, ids.shape[1], ids.device)
        image_features = item_features(self.image_proj, encode(self.image_encoder, images, cls_only=True))
        text_features = unit_features(self.text_proj, self.text_encoder.text(ids, rows, first_only=True))
        return image_features, text_features

    def pairs_with(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The twin's parameters and the model's of the same names, in one order, for `update_twin`."""
        theirs = dict(model.named_parameters())
        own = dict(self.named_parameters())
        return list(own.values()), [theirs[name] for name in own]
