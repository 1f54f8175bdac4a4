"""Pre-training: one batch of images and captions in, the three losses out (Li et al. 2022, section 3.2).

Shapes: B pairs, N image tokens, T text tokens, P tokens in memory, E embedding width, C candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blip.models import losses
from blip.models.matching import Draw, draw_hard_negatives, match_loss, match_with_negatives
from blip.models.momentum import Candidates, contrast_with_candidates, unit_features
from blip.network.embeddings import TextConfig, TiedLookUp
from blip.network.med import TextDecoder, TextEncoder
from blip.network.packing import Rows, with_first
from blip.network.pictures import Pictures, encode, item_features
from blip.network.vit import ViT, ViTConfig
from blip.tokenizer import Specials


@dataclass
class Output:
    """The three losses and the match logits (3B, 2) of the rows: matched, (text, hard image), (hard text, image)."""

    itc: Tensor
    itm: Tensor
    lm: Tensor
    match_logits: Tensor


class PretrainModel(nn.Module):
    """Image encoder, text encoder and decoder, two projections and the match head.

    `forward` changes no state: the training step clamps the temperature, updates the twin and pushes into the queue.
    """

    def __init__(
        self,
        vit: ViTConfig,
        text: TextConfig,
        specials: Specials,
        *,
        embed_dim: int = 256,
        temperature: float = 0.07,
        label_smoothing: float = 0.1,
    ):
        super().__init__()
        self.specials, self.label_smoothing = specials, label_smoothing
        self.image_encoder = ViT(vit)
        self.text_encoder = TextEncoder(text)
        self.text_decoder = TextDecoder(text, self.text_encoder)
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
        draw: Draw = losses.draw_negatives,
    ) -> Output:
        """One batch to its losses.

        Args:
            images: (B, 3, height, width), normalised; or items of several pictures, see `network.pictures`.
            ids: (B, T), each text `[CLS] ... [SEP]` and padding after it.
            lengths: (B,) tokens of each text, on the CPU.
            candidates: momentum features of this batch and the queue, and which of them are positives.
            alpha: weight of the momentum targets in the contrastive loss.
            draw: picks hard negatives from weights (B, B); tests give the arg-max.
        """
        encoder, states = self.text_encoder, encode(self.image_encoder, images)  # states (B, N, D)
        rows = Rows(lengths, ids.shape[1], ids.device)
        # three passes read the same words but for the first: they are looked up once, and passes read `places` of them
        specials = [ids.new_full((1,), token) for token in (self.specials.enc, self.specials.dec)]
        vocabulary = encoder.embeddings.words.weight
        words, matrix = TiedLookUp.apply(vocabulary, torch.cat([ids.flatten(), *specials]))  # (B*T+2, D), (V, D)
        places = torch.arange(ids.numel(), device=ids.device).view_as(ids)
        enc_ids, dec_ids = with_first(places, ids.numel()), with_first(places, ids.numel() + 1)

        # contrast: the text alone
        first = encoder.text(places, rows, first_only=True, words=words)  # (B, D)
        image_features = item_features(self.image_proj, states)  # (B, E)
        text_features = unit_features(self.text_proj, first)
        itc, image_to_text, text_to_image = contrast_with_candidates(
            image_features, text_features, candidates, temperature=self.temperature, alpha=alpha
        )

        # hard negatives of this batch
        batch = slice(len(ids))  # of the candidates
        negatives = draw_hard_negatives(
            image_to_text[:, batch], text_to_image[:, batch], candidates.positives[:, batch], floor=1e-4, draw=draw
        )
        keys = encoder.image_keys(states)  # once, for both passes below

        def match() -> Tensor:
            """Matching: logits (3B, 2) of each pair, and of each half of it with a hard negative."""
            return match_with_negatives(
                encoder, self.itm_head, enc_ids, lengths=lengths, keys=keys, negatives=negatives, words=words
            )

        def predict() -> Tensor:
            """Language modelling: the decoder predicts the text from the image."""
            logits = self.text_decoder.head(self.text_decoder(dec_ids, rows, keys, words=words), matrix)  # (P, V)
            return losses.language_model(logits, rows.next_tokens(ids), self.label_smoothing)

        if ids.is_cuda:  # the GPU decodes while the CPU waits for the negatives
            lm, logits = predict(), match()
        else:  # the order of earlier versions, in which dropout draws
            logits, lm = match(), predict()
        return Output(itc, match_loss(logits, negatives), lm, logits)
