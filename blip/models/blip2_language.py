"""BLIP-2, stage 2: queries of an image before the text of a frozen language model (Li et al. 2023, section 3.3).

The queries of the Q-Former read the image, a linear layer takes them to the width of the language model's embeddings,
and the language model reads them as if they were words. What is trained is all but the language model (and the image
encoder, where a task freezes it).

Shapes: B images with a text each, N image tokens, E width of the image encoder, Q queries, D width of the Q-Former,
W width of the language model's embeddings, T tokens of a text, U targets of a text, S tokens of a question.
"""

import torch
from torch import Tensor, nn

from blip.errors import InputError
from blip.models.decoding import Decoding, Generated
from blip.models.generation import generate
from blip.models.language_models import LanguageModel
from blip.network.packing import Rows
from blip.network.pictures import Pictures, States, encode
from blip.network.qformer import QFormer, QFormerConfig
from blip.network.vit import ViT, ViTConfig

LANGUAGE_MODEL = "language_model."  # how names of its tensors begin


class Blip2LanguageModel(nn.Module):
    """Image encoder, Q-Former, projection, and a language model that is set afterwards (`attach`).

    Args:
        qformer: without words (`text=False`), unless questions are read beside the queries.
        language_width: W.
    """

    def __init__(self, vit: ViTConfig, qformer: QFormerConfig, language_width: int):
        super().__init__()
        self.image_encoder = ViT(vit)
        self.qformer = QFormer(qformer)
        self.language_proj = nn.Linear(qformer.width, language_width)
        self.language_model: LanguageModel | None = None

    def attach(self, language_model: LanguageModel) -> "Blip2LanguageModel":
        """Sets the language model.

        Raises:
            InputError: its embeddings have another width than the projection.
        """
        if language_model.width != self.language_proj.out_features:
            raise InputError(
                f"the language model's embeddings are {language_model.width} wide, the projection before it is made "
                f"for {self.language_proj.out_features}: it was trained with another language model"
            )
        self.language_model = language_model
        return self

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint holds: all but the language model's."""
        return {name: x for name, x in self.state_dict().items() if not name.startswith(LANGUAGE_MODEL)}

    def forward(
        self,
        images: Tensor | Pictures,
        ids: Tensor,
        mask: Tensor,
        *,
        targets: Tensor,
        question_ids: Tensor | None = None,
        question_lengths: Tensor | None = None,
    ) -> Tensor:
        """One batch to its language modelling loss, the mean over the targets that count.

        Args:
            images: (B, 3, height, width), normalised; or items of several pictures, see `network.pictures`.
            ids: (B, T), with `mask` (B, T) and `targets` (B, U) as in `language_tokens.TextBatch`.
            question_ids: (B, S), question_lengths (B,) on the CPU: read by the Q-Former beside the queries.
        """
        queries = self.query_inputs(encode(self.image_encoder, images), question_ids, question_lengths)
        return self._attached.loss(queries, ids, mask, targets=targets)

    def query_inputs(
        self, image_states: States, question_ids: Tensor | None = None, question_lengths: Tensor | None = None
    ) -> Tensor:
        """Image states (B, N, E) -> what the language model reads of them (B, Q, W); questions as in `forward`."""
        keys = self.qformer.keys_or_states(image_states, self.qformer.config.queries)
        if question_ids is None:
            states = self.qformer.look(keys).states
        else:
            assert question_lengths is not None
            rows = Rows(question_lengths, question_ids.shape[1], question_ids.device)
            states = self.qformer.match(question_ids, rows, keys)
        return self.language_proj(states)

    def log_probs(
        self,
        image_states: States,
        ids: Tensor,
        mask: Tensor,
        *,
        targets: Tensor,
        question_ids: Tensor | None = None,
        question_lengths: Tensor | None = None,
    ) -> Tensor:
        """The log-probability of each target (B, U), 0 where it does not count; arguments as in `forward`."""
        queries = self.query_inputs(image_states, question_ids, question_lengths)
        return self._attached.log_probs(queries, ids, mask, targets=targets)

    @torch.no_grad()
    def write(
        self,
        images: Tensor | Pictures,
        ids: Tensor,
        mask: Tensor,
        *,
        decoding: Decoding,
        question_ids: Tensor | None = None,
        question_lengths: Tensor | None = None,
        uniforms: Tensor | None = None,
    ) -> Generated:
        """Texts about images (B, 3, height, width) that continue prompts `ids` (B, T) with `mask` (B, T).

        Prompts come from `LanguageTokens.prompts`; `uniforms` draw samples, see `generate`; the rest as in `forward`.
        """
        queries = self.query_inputs(encode(self.image_encoder, images), question_ids, question_lengths)
        return self.write_about(queries, ids, mask, decoding=decoding, uniforms=uniforms)

    @torch.no_grad()
    def write_about(
        self, queries: Tensor, ids: Tensor, mask: Tensor, *, decoding: Decoding, uniforms: Tensor | None = None
    ) -> Generated:
        """`write` from what `query_inputs` returned, (B, Q, W).

        The published lengths count one token before the text, whatever the prompt, and its penalty of repetition sees
        that token alone; by `length_norm: generated` the penalty sees the prompt, as in transformers 5.
        """
        language = self._attached
        language.check_length(queries.shape[1] + ids.shape[1] + decoding.max_new_tokens)
        step = language.step(queries, ids, mask, room=decoding.texts * decoding.max_new_tokens)
        published = decoding.length_norm != "generated"
        before = language.first(len(ids), ids.device) if published else language.written_before(ids, mask)
        return generate(step, before, decoding, end_id=language.ids.end, pad_id=language.ids.pad, uniforms=uniforms)

    @property
    def _attached(self) -> LanguageModel:
        if self.language_model is None:
            raise InputError("this BLIP-2 has no language model: `attach` one before it reads or writes text")
        return self.language_model
