"""Visual question answering (Li et al. 2022, section 5.3).

The question encoder attends to the image, the answer decoder to the states of the question. They share no weights.

Shapes: B images with a question each, A answers of the batch, N image tokens, T tokens of a question.
"""

import torch
from torch import Tensor, nn

from blip.hardware.transfers import sent
from blip.models import losses
from blip.models.decoding import Decoding, Generated
from blip.models.generation import generate
from blip.network.cross_attention import ImageKeys, ProjectedKeys
from blip.network.embeddings import TextConfig
from blip.network.med import DecoderStep, TextDecoder, TextEncoder
from blip.network.packing import Rows, with_first
from blip.network.pictures import Pictures, States, encode
from blip.network.vit import ViT, ViTConfig
from blip.tokenizer import Specials


class VqaModel(nn.Module):
    """Image encoder, question encoder, answer decoder."""

    def __init__(
        self,
        vit: ViTConfig,
        text: TextConfig,
        specials: Specials,
        *,
        answer: TextConfig | None = None,
        label_smoothing: float = 0.1,
    ):
        """`answer`: sizes of the decoder, with the question encoder's width as `image_width`; see `answer_sizes`."""
        super().__init__()
        self.specials, self.label_smoothing = specials, label_smoothing
        self.image_encoder = ViT(vit)
        self.text_encoder = TextEncoder(text)
        self.text_decoder = TextDecoder(answer or answer_sizes(text))

    def forward(
        self,
        images: Tensor | Pictures,
        ids: Tensor,
        lengths: Tensor,
        *,
        answer_ids: Tensor,
        answer_lengths: Tensor,
        owner: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """One batch to its loss: each answer's sum over tokens, times its weight, divided by the number of images.

        Args:
            images: (B, 3, height, width), normalised; or items of several pictures, see `network.pictures`.
            ids: (B, T) questions `[CLS] ... [SEP]`; lengths (B,) of them, on the CPU.
            answer_ids: (A, Ta) answers `[CLS] ... [SEP]`; answer_lengths (A,) as `lengths`.
            owner: (A,) the question in the batch that each answer belongs to.
            weights: (A,) how much each answer counts.
        """
        keys = self.question_keys(images, ids, lengths)
        each = self.answer_losses(keys, answer_ids, answer_lengths, owner=owner)
        return (weights * each).sum() / len(images)

    def answer_losses(
        self, keys: ProjectedKeys, answer_ids: Tensor, answer_lengths: Tensor, *, owner: Tensor
    ) -> Tensor:
        """The sum over the tokens of each answer (A,) to the questions of `keys`; arguments as in `forward`."""
        rows = Rows(answer_lengths, answer_ids.shape[1], answer_ids.device)
        answer_ids = with_first(answer_ids, self.specials.dec)
        states = self.text_decoder(answer_ids, rows, keys.with_extra(owner))  # not every question has as many answers
        each = losses.language_model_each(
            self.text_decoder.head(states), rows.next_tokens(answer_ids), self.label_smoothing
        )
        return rows.unpack(each).sum(dim=1)

    def question_keys(self, images: Tensor | Pictures, ids: Tensor, lengths: Tensor) -> ProjectedKeys:
        """Keys of the states of questions about images, to which the answer decoder attends.

        Padding of a question is masked, so that it never changes an answer. Arguments as in `forward`.
        """
        return self.keys_of_questions(encode(self.image_encoder, images), ids, lengths)

    def keys_of_questions(self, image_states: States, ids: Tensor, lengths: Tensor) -> ProjectedKeys:
        """`question_keys` from the states (B, N, D) of encoded images."""
        keys = self.text_encoder.keys_or_states(image_states, ids.shape[1])
        return self.answer_keys(self.question_states(keys, ids, lengths), lengths)

    def question_states(self, keys: ImageKeys, ids: Tensor, lengths: Tensor) -> Tensor:
        """Questions ids (B, T) about the images of `keys` -> states (B, T, D), zeros at padding."""
        rows = Rows(lengths, ids.shape[1], ids.device)
        return rows.unpack(self.text_encoder.multimodal(with_first(ids, self.specials.enc), rows, keys))

    def answer_keys(self, states: Tensor, lengths: Tensor) -> ProjectedKeys:
        """States (B, T, D) of questions of `lengths` (B,) tokens -> their keys, where padding is masked."""
        real = torch.arange(states.shape[1]) < lengths.cpu()[:, None]  # (B, T), True at a token
        return self.text_decoder.image_keys(states, None if bool(real.all()) else sent(real, states.device))

    @torch.no_grad()
    def answer(
        self, keys: ProjectedKeys, decoding: Decoding, end_id: int, *, uniforms: Tensor | None = None
    ) -> Generated:
        """Generates answers to the questions of `keys` (see `question_keys`); `uniforms` as in `generate`."""
        first = torch.full((len(keys), 1), self.specials.dec, device=keys.device)
        step = DecoderStep(self.text_decoder, keys)
        return generate(step, first, decoding, end_id=end_id, pad_id=self.specials.pad, uniforms=uniforms)


def answer_sizes(question: TextConfig) -> TextConfig:
    """The decoder's sizes: those of the question encoder, to whose states it attends instead of an image's."""
    return TextConfig(**{**question.__dict__, "image_width": question.width})
