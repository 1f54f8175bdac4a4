"""Image-text retrieval: contrast and matching, without a decoder (Li et al. 2022, section 5.1).

Pairs of the same image are positives of one another, in the batch and in the queue.

Shapes: B pairs, W processes, N image tokens, T text tokens, E embedding width, C candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blip import distributed
from blip.models import losses
from blip.models.matching import (
    Draw,
    HardNegatives,
    draw_hard_negatives,
    fetch_negatives,
    match_logits,
    match_loss,
    match_with_negatives,
)
from blip.models.momentum import Candidates, contrast_with_candidates, unit_features
from blip.network.embeddings import TextConfig
from blip.network.med import TextEncoder
from blip.network.packing import Rows, with_first
from blip.network.pictures import Pictures, States, encode, item_features
from blip.network.vit import ViT, ViTConfig
from blip.tokenizer import Specials


@dataclass
class Output:
    """Both losses and the match logits (3B, 2) of the rows: matched, (text, hard image), (hard text, image)."""

    itc: Tensor
    itm: Tensor
    match_logits: Tensor


class RetrievalModel(nn.Module):
    """Image encoder, text encoder, two projections and the match head, with the names that pre-training gives them.

    `forward` changes no state: the training step clamps the temperature, updates the twin and pushes into the queue.
    """

    def __init__(
        self, vit: ViTConfig, text: TextConfig, specials: Specials, *, embed_dim: int = 256, temperature: float = 0.07
    ):
        super().__init__()
        self.specials = specials
        self.image_encoder = ViT(vit)
        self.text_encoder = TextEncoder(text)
        self.image_proj = nn.Linear(vit.width, embed_dim)
        self.text_proj = nn.Linear(text.width, embed_dim)
        self.itm_head = nn.Linear(text.width, 2)
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(
        self,
        images: Tensor | Pictures,
        ids: Tensor,
        lengths: Tensor,
        candidates: Candidates,
        alpha: float,
        *,
        others: Tensor | None = None,
        draw: Draw = losses.draw_negatives,
    ) -> Output:
        """One batch to its losses.

        Args:
            images: (B, 3, height, width), normalised; or items of several pictures, see `network.pictures`.
            ids: (B, T), each text `[CLS] ... [SEP]` and padding after it.
            lengths: (B,) tokens of each text, on the CPU.
            candidates: momentum features of this batch and the queue, and which of them are positives.
            alpha: weight of the momentum targets in the contrastive loss.
            others: (B, W*B) boolean, the positives among the batches of all processes, in the order of their ranks:
                hard negatives are then drawn from all of them. Without it, from this process's batch.
            draw: picks hard negatives from weights (B, B) or (B, W*B); tests give the arg-max.
        """
        states = encode(self.image_encoder, images)  # (B, N, D)

        # contrast: the text alone
        rows = Rows(lengths, ids.shape[1], ids.device)
        image_features = item_features(self.image_proj, states)  # (B, E)
        text_features = unit_features(self.text_proj, self.text_encoder.text(ids, rows, first_only=True))
        itc, _, _ = contrast_with_candidates(
            image_features, text_features, candidates, temperature=self.temperature, alpha=alpha
        )

        # matching: each pair, and each half of it with a hard negative
        positives = candidates.positives[:, : len(ids)] if others is None else others
        with torch.no_grad():  # negatives are drawn from online features, unlike those of pre-training
            all_images, all_texts = image_features, text_features
            if others is not None:
                all_images, all_texts = distributed.all_gather(all_images), distributed.all_gather(all_texts)
            image_to_text = image_features @ all_texts.T / self.temperature
            text_to_image = text_features @ all_images.T / self.temperature
        negatives = draw_hard_negatives(image_to_text, text_to_image, positives, draw=draw)
        ids = with_first(ids, self.specials.enc)
        if others is None:
            logits = match_with_negatives(
                self.text_encoder,
                self.itm_head,
                ids,
                lengths=lengths,
                keys=self.text_encoder.image_keys(states),
                negatives=negatives,
            )
        else:
            logits = self._match_over_processes(states, ids, lengths, negatives)
        return Output(itc, match_loss(logits, negatives), logits)

    def _match_over_processes(self, states: States, ids: Tensor, lengths: Tensor, negatives: HardNegatives) -> Tensor:
        """As `matching.match_with_negatives`, where `negatives` number the pairs of all processes."""
        fetched = fetch_negatives(states, ids, lengths=lengths, negatives=negatives, pad=self.specials.pad)
        ids, own_lengths = fetched.beside_own(lengths)  # an image's own text and its hard one
        keys, hard_keys = self.text_encoder.image_keys(states), self.text_encoder.image_keys(fetched.hard_states)
        head = self.itm_head
        own = match_logits(self.text_encoder, head, ids, lengths=own_lengths, keys=keys)
        matched, with_hard_text = own.unflatten(0, (len(lengths), 2)).unbind(dim=1)
        with_hard_image = match_logits(self.text_encoder, head, fetched.ids, lengths=lengths, keys=hard_keys)
        return torch.cat([matched, with_hard_image, with_hard_text])
