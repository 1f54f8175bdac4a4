"""Captioning: an image encoder and a text decoder (Li et al. 2022, section 5.2).

Shapes: B pairs, N image tokens, T text tokens, P tokens in memory.
"""

import torch
from torch import Tensor, nn

from blip.models import losses
from blip.models.decoding import Decoding, Generated
from blip.models.generation import generate
from blip.network.embeddings import TextConfig
from blip.network.med import DecoderStep, TextDecoder
from blip.network.packing import Rows, with_first
from blip.network.pictures import Pictures, States, encode
from blip.network.vit import ViT, ViTConfig
from blip.tokenizer import Specials


class CaptionModel(nn.Module):
    """Generates a caption of an image that continues a prompt."""

    def __init__(self, vit: ViTConfig, text: TextConfig, specials: Specials, *, label_smoothing: float = 0.1):
        super().__init__()
        self.specials, self.label_smoothing = specials, label_smoothing
        self.image_encoder = ViT(vit)
        self.text_decoder = TextDecoder(text)

    def forward(self, images: Tensor | Pictures, ids: Tensor, lengths: Tensor, *, prompt_length: int = 1) -> Tensor:
        """One batch to its language modelling loss, the mean over the tokens after the prompt.

        Args:
            images: (B, 3, height, width), normalised; or items of several pictures, see `network.pictures`.
            ids: (B, T), each text `[CLS] prompt caption [SEP]` and padding after it.
            lengths: (B,) tokens of each text, on the CPU.
            prompt_length: tokens of `[CLS] prompt`, which do not count.
        """
        states = encode(self.image_encoder, images)
        logits, targets = self.predictions(states, ids, lengths, prompt_length=prompt_length)
        return losses.language_model(logits, targets, self.label_smoothing)

    def predictions(
        self, image_states: States, ids: Tensor, lengths: Tensor, *, prompt_length: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Logits (P, V) of the next token after each one, and that token (P,), `losses.IGNORED` where it does not
        count; `image_states` (B, N, D), the rest as in `forward`."""
        keys = self.text_decoder.image_keys(image_states)
        rows = Rows(lengths, ids.shape[1], ids.device)
        ids = with_first(ids, self.specials.dec)
        learned = ids.clone()
        learned[:, :prompt_length] = losses.IGNORED
        states = self.text_decoder(ids, rows, keys)  # (P, D)
        return self.text_decoder.head(states), rows.next_tokens(learned)

    @torch.no_grad()
    def write(
        self,
        images: Tensor | Pictures,
        prompt: Tensor,
        decoding: Decoding,
        *,
        end_id: int,
        uniforms: Tensor | None = None,
    ) -> Generated:
        """Captions of images (B, 3, height, width) that continue `prompt` (B, T), whose first token is `[DEC]`.

        `uniforms` draw samples, see `generate`.
        """
        return self.write_about(encode(self.image_encoder, images), prompt, decoding, end_id=end_id, uniforms=uniforms)

    @torch.no_grad()
    def write_about(
        self,
        image_states: States,
        prompt: Tensor,
        decoding: Decoding,
        *,
        end_id: int,
        uniforms: Tensor | None = None,
    ) -> Generated:
        """`write` from the states (B, N, D) of encoded images."""
        tokens = decoding.texts * (prompt.shape[1] + decoding.max_new_tokens)
        keys = self.text_decoder.keys_or_states(image_states, tokens)
        step = DecoderStep(self.text_decoder, keys)
        return generate(step, prompt, decoding, end_id=end_id, pad_id=self.specials.pad, uniforms=uniforms)
