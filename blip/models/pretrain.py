"""Pre-training: one batch of images and captions in, the three losses out (Li et al. 2022, section 3.2).

Shapes: B pairs, N image tokens, T text tokens, P tokens in memory, E embedding width, C candidates.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip import losses
from blip.med import TextConfig, TextDecoder, TextEncoder, TiedLookUp
from blip.momentum import Candidates
from blip.rows import ImageKeys, Rows
from blip.vit import ViT, ViTConfig

TEMPERATURE_RANGE = (0.001, 0.5)


@dataclass
class Specials:
    """Ids of the tokens that the model itself puts in place."""

    pad: int
    enc: int
    dec: int


@dataclass
class Output:
    """The three losses and the match logits (3B, 2) of the rows: matched, (text, hard image), (hard text, image)."""

    itc: Tensor
    itm: Tensor
    lm: Tensor
    match_logits: Tensor


Draw = Callable[[Tensor], tuple[Tensor, Tensor]]


class PretrainModel(nn.Module):
    """Image encoder, text encoder and decoder, two projections and the match head.

    `forward` changes no state: the training step clamps the temperature, moves the twin and pushes the queue.
    """

    def __init__(
        self,
        vit: ViTConfig,
        text: TextConfig,
        specials: Specials,
        embed_dim: int = 256,
        temperature: float = 0.07,
        label_smoothing: float = 0.1,
    ):
        super().__init__()
        self.specials, self.label_smoothing = specials, label_smoothing
        self.image_encoder = ViT(vit)
        self.text_encoder = TextEncoder(text)
        self.text_decoder = TextDecoder(self.text_encoder)
        self.image_proj = nn.Linear(vit.width, embed_dim)
        self.text_proj = nn.Linear(text.width, embed_dim)
        self.itm_head = nn.Linear(text.width, 2)
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        lengths: Tensor,
        candidates: Candidates,
        alpha: float,
        draw: Draw = losses.draw_negatives,
        packed: bool = True,
    ) -> Output:
        """One batch to its losses.

        Args:
            images: (B, 3, height, width), normalised.
            ids: (B, T), each text `[CLS] ... [SEP]` and padding after it.
            lengths: (B,) tokens of each text, on the CPU when `packed`.
            candidates: momentum features of this batch and the queue, and who is whose positive.
            alpha: weight of the twin's opinion in the contrastive targets.
            draw: picks hard negatives from weights (B, B); tests give the arg-max.
            packed: leave padding out of memory. Without it every shape is static, which compilation wants.
        """
        states = self.image_encoder(images)  # (B, N, D)
        rows = Rows(lengths, ids.shape[1], ids.device, packed)
        # three passes read the same words but for the first: they are looked up once, and `places` says where
        specials = ids.new_tensor([self.specials.enc, self.specials.dec])
        vocabulary = self.text_encoder.embeddings.words.weight
        words, matrix = TiedLookUp.apply(vocabulary, torch.cat([ids.flatten(), specials]))  # (B*T+2, D), (V, D)
        places = torch.arange(ids.numel(), device=ids.device).view_as(ids)
        first = self.text_encoder.text(places, rows, first_only=True, words=words)  # (B, D)
        image_features = project(self.image_proj, states[:, 0])  # (B, E)
        text_features = project(self.text_proj, first)

        itc, image_to_text, text_to_image = self.contrast(image_features, text_features, candidates, alpha)

        keys = self.text_encoder.project(states)  # once, for every pass below
        batch = candidates.positives[:, : len(ids)]
        hard_text, has_text = draw(losses.negative_weights(image_to_text[:, : len(ids)], batch, floor=1e-4))
        hard_image, has_image = draw(losses.negative_weights(text_to_image[:, : len(ids)], batch, floor=1e-4))
        match_ids = with_first(places, ids.numel())
        match_logits = self.match_logits(match_ids, lengths, keys, hard_text, hard_image, packed, words)  # (3B, 2)
        is_match = torch.arange(3 * len(ids), device=ids.device) < len(ids)
        counts = torch.cat([torch.ones_like(has_text), has_image, has_text])
        itm = losses.match(match_logits, is_match, counts)

        decoded = self.text_decoder(with_first(places, ids.numel() + 1), rows, keys, words)  # (P, D)
        lm = losses.language_model(self.text_decoder.head(decoded, matrix), rows.next_tokens(ids), self.label_smoothing)
        return Output(itc, itm, lm, match_logits)

    def contrast(
        self, image_features: Tensor, text_features: Tensor, candidates: Candidates, alpha: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, E) -> the ITC loss and both similarities (B, C) over the temperature, image to text and back."""
        count = len(image_features)
        with torch.autocast(image_features.device.type, enabled=False):
            temperature = self.temperature.clamp(*TEMPERATURE_RANGE)
            image_to_text = image_features @ candidates.texts / temperature
            text_to_image = text_features @ candidates.images / temperature
            with torch.no_grad():
                twin_image_to_text = candidates.images[:, :count].T @ candidates.texts / temperature
                twin_text_to_image = candidates.texts[:, :count].T @ candidates.images / temperature
            itc_images = losses.contrast(image_to_text, twin_image_to_text, candidates.positives, alpha)
            itc_texts = losses.contrast(text_to_image, twin_text_to_image, candidates.positives, alpha)
        return (itc_images + itc_texts) / 2, image_to_text, text_to_image

    def match_logits(
        self,
        ids: Tensor,
        lengths: Tensor,
        keys: ImageKeys,
        hard_text: Tensor,
        hard_image: Tensor,
        packed: bool,
        words: Tensor | None = None,
    ) -> Tensor:
        """Logits (3B, 2) of the rows: matched, (text, hard image), (hard text, image), in one pass.

        ids (B, T), the first one `[ENC]`; with `words`, rows of it (`med.Embeddings`).
        """
        count = len(ids)
        # texts of one image side by side: its own and the hard one; then each text with its hard image
        ids = torch.cat([torch.stack([ids, ids[hard_text]], dim=1).flatten(0, 1), ids])  # (3B, T)
        hard_lengths = lengths[hard_text.to(lengths.device)]
        lengths = torch.cat([torch.stack([lengths, hard_lengths], dim=1).flatten(), lengths])
        rows = Rows(lengths, ids.shape[1], ids.device, packed)
        keys = ImageKeys(keys.layers, extra=hard_image)
        logits = self.itm_head(self.text_encoder.multimodal(ids, rows, keys, first_only=True, words=words))
        own, extra = logits.split([2 * count, count])
        matched, with_hard_text = own.unflatten(0, (count, 2)).unbind(dim=1)
        return torch.cat([matched, extra, with_hard_text])


class Twin(nn.Module):
    """The encoders and projections that contrast needs, as a slowly moving average of the model's."""

    def __init__(self, model: PretrainModel):
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

    def pairs_with(self, model: PretrainModel) -> tuple[list[Tensor], list[Tensor]]:
        """The twin's parameters and the model's of the same names, in one order, for `momentum.update_twin`."""
        theirs = dict(model.named_parameters())
        own = dict(self.named_parameters())
        return list(own.values()), [theirs[name] for name in own]


def project(linear: nn.Linear, states: Tensor) -> Tensor:
    """States (B, D) -> features of unit length (B, E), in float32."""
    return F.normalize(linear(states).float(), dim=-1)


def with_first(ids: Tensor, token: int) -> Tensor:
    """A copy of ids (R, T) whose first token is `token`."""
    ids = ids.clone()
    ids[:, 0] = token
    return ids
