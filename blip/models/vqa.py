"""Visual question answering: a question encoder that looks at the image, an answer decoder that looks at the question
(Li et al. 2022, section 5.3). The two share nothing.

Shapes: B images with a question each, A answers of the batch, N image tokens, T tokens of a question.
"""

import torch
from torch import Tensor, nn

from blip.models import losses
from blip.models.decoding import Decoding, Generated
from blip.models.generation import generate
from blip.network.embeddings import TextConfig
from blip.network.med import DecoderStep, TextDecoder, TextEncoder
from blip.network.packing import ImageKeys, Rows, with_first
from blip.network.vit import ViT, ViTConfig
from blip.tokenizer import Specials


class VqaModel(nn.Module):
    """Image encoder, question encoder, answer decoder."""

    def __init__(
        self,
        vit: ViTConfig,
        text: TextConfig,
        specials: Specials,
        answer: TextConfig | None = None,
        label_smoothing: float = 0.1,
    ):
        """`answer`: sizes of the decoder where they are not the question encoder's; it looks at states of its width."""
        super().__init__()
        self.specials, self.label_smoothing = specials, label_smoothing
        self.image_encoder = ViT(vit)
        self.text_encoder = TextEncoder(text)
        self.text_decoder = TextDecoder(answer or answer_sizes(text))

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        lengths: Tensor,
        answer_ids: Tensor,
        answer_lengths: Tensor,
        owner: Tensor,
        weights: Tensor,
        packed: bool = True,
    ) -> Tensor:
        """One batch to its loss: each answer's sum over tokens, times its weight, divided by the number of images.

        Args:
            images: (B, 3, height, width), normalised.
            ids: (B, T) questions `[CLS] ... [SEP]`; lengths (B,) of them, on the CPU when `packed`.
            answer_ids: (A, Ta) answers `[CLS] ... [SEP]`; answer_lengths (A,) as `lengths`.
            owner: (A,) the question in the batch that each answer belongs to.
            weights: (A,) how much each answer counts.
            packed: leave padding out of memory.
        """
        keys = self.question_keys(images, ids, lengths, packed)
        rows = Rows(answer_lengths, answer_ids.shape[1], ids.device, packed)
        answer_ids = with_first(answer_ids, self.specials.dec)
        # answers a question differ in number, so each row names its question
        states = self.text_decoder(answer_ids, rows, ImageKeys(keys.layers, extra=owner, mask=keys.mask))
        each = losses.language_model_each(
            self.text_decoder.head(states), rows.next_tokens(answer_ids), self.label_smoothing
        )
        return (weights * rows.unpack(each).sum(dim=1)).sum() / len(images)

    def question_keys(self, images: Tensor, ids: Tensor, lengths: Tensor, packed: bool = True) -> ImageKeys:
        """Images and their questions -> keys of the question's states, which the answer decoder looks at.

        Padding of a question is masked, so that it never changes an answer.
        """
        return self.keys_of_questions(self.image_encoder(images), ids, lengths, packed)

    def keys_of_questions(self, image_states: Tensor, ids: Tensor, lengths: Tensor, packed: bool = True) -> ImageKeys:
        """`question_keys` from the states (B, N, D) of encoded images."""
        seen = self.text_encoder.project(image_states, tokens=ids.shape[1])
        states = self.question_states(seen, ids, lengths, packed)
        return self.answer_keys(states, lengths)

    def answer_keys(self, states: Tensor, lengths: Tensor) -> ImageKeys:
        """States (B, T, D) of questions of `lengths` (B,) tokens -> the keys of those that are not padding."""
        longest = states.shape[1]
        mask = None if bool((lengths == longest).all()) else torch.arange(longest) < lengths.cpu()[:, None]
        return self.text_decoder.project(states, None if mask is None else mask.to(states.device))

    def question_states(self, keys: ImageKeys, ids: Tensor, lengths: Tensor, packed: bool = True) -> Tensor:
        """Questions ids (B, T) that look at images as `keys` says -> states (B, T, D), zeros at padding."""
        rows = Rows(lengths, ids.shape[1], ids.device, packed)
        return rows.unpack(self.text_encoder.multimodal(with_first(ids, self.specials.enc), rows, keys))

    @torch.no_grad()
    def answer(
        self, keys: ImageKeys, how: Decoding, end_id: int, generator: torch.Generator | None = None
    ) -> Generated:
        """Answers in the decoder's own words to the questions of `keys` (see `question_keys`)."""
        count, device = len(keys), keys.device
        first = torch.full((count, 1), self.specials.dec, device=device)
        return generate(DecoderStep(self.text_decoder, keys), first, how, end_id, self.specials.pad, generator)


def answer_sizes(question: TextConfig) -> TextConfig:
    """The decoder's sizes: those of the question encoder, whose states it looks at instead of the image's."""
    return TextConfig(**{**question.__dict__, "image_width": question.width})
