"""Fine-tuned tasks as transformers' modules do them, with our weights: peers of rerank.py, generate.py, vqa_rank.py.

Where transformers has no function for a task (re-ranking, ranking of answers), its modules are put together as the
published code does: image or question states repeated for each text, every text padded to one length.

Shapes: B images or questions, R texts, T text tokens, N image tokens, D width, k candidates.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipConfig, BlipForConditionalGeneration
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

from benchmarks.peers import HEAD_NAMES, TEXT_NAMES, VISION_NAMES, renamed, text_configuration, vision_configuration
from blip.models.caption import CaptionModel
from blip.models.retrieval import RetrievalModel
from blip.models.vqa import VqaModel
from blip.network.embeddings import TextConfig
from blip.network.med import TextDecoder, TextEncoder
from blip.network.vit import ViT


def encoder(ours: TextEncoder) -> BlipTextModel:
    theirs = BlipTextModel(text_configuration(ours.config), add_pooling_layer=False)
    theirs.load_state_dict(renamed(ours.state_dict(), TEXT_NAMES))
    return theirs.eval()


def load_decoder(theirs: BlipTextLMHeadModel, ours: TextDecoder) -> None:
    state = ours.state_dict()
    head = {name.removeprefix("head."): state.pop(name) for name in list(state) if name.startswith("head.")}
    theirs.bert.load_state_dict(renamed(state, TEXT_NAMES))
    theirs.cls.predictions.load_state_dict(renamed({**head, "decoder.bias": head["bias"]}, HEAD_NAMES))


def load_vision(theirs: nn.Module, ours: ViT) -> None:
    theirs.load_state_dict(renamed(ours.state_dict(), VISION_NAMES))


def captioner(ours: CaptionModel, end_id: int) -> BlipForConditionalGeneration:
    """`BlipForConditionalGeneration` with our weights, whose `generate` starts with `[DEC]` and ends with `end_id`."""
    text = configuration(ours.text_decoder.config, ours.specials.pad, ours.specials.dec, end_id)
    config = BlipConfig(vision_config=vision_configuration(ours.image_encoder.config).to_dict(), text_config=text)
    theirs = BlipForConditionalGeneration(config)
    load_vision(theirs.vision_model, ours.image_encoder)
    load_decoder(theirs.text_decoder, ours.text_decoder)
    return theirs.eval()


def configuration(text: TextConfig, pad: int, dec: int, end: int) -> dict:
    ids = {"pad_token_id": pad, "bos_token_id": dec, "sep_token_id": end, "eos_token_id": end}
    return {**text_configuration(text).to_dict(), **ids}


class PublishedMatch(nn.Module):
    """Text encoder and match head; each text has its own copy of an image's states."""

    def __init__(self, ours: TextEncoder, head: nn.Linear):
        super().__init__()
        self.encoder, self.head = encoder(ours), head

    def forward(self, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
        """ids and mask (k, T), the first token `[ENC]`; states (k, N, D) -> logits (k,) of a match."""
        return self.logits(ids, mask, states)[:, 1]

    def probability(self, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
        return self.logits(ids, mask, states).float().softmax(dim=1)[:, 1]

    def logits(self, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
        seen = torch.ones(states.shape[:-1], dtype=torch.long, device=states.device)
        out = self.encoder(ids, attention_mask=mask, encoder_hidden_states=states, encoder_attention_mask=seen)
        return self.head(out.last_hidden_state[:, 0])


class PublishedFilter(nn.Module):
    """Image encoder, text encoder and heads, as `BlipForImageTextRetrieval` has them, for several texts an image."""

    def __init__(self, ours: RetrievalModel):
        super().__init__()
        self.vision_model = BlipVisionModel(vision_configuration(ours.image_encoder.config))
        load_vision(self.vision_model, ours.image_encoder)
        self.match = PublishedMatch(ours.text_encoder, ours.itm_head)
        self.image_proj, self.text_proj = ours.image_proj, ours.text_proj
        self.eval()

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor, enc_id: int) -> Tensor:
        """images (B, 3, S, S), ids and mask (B*c, T), the first token `[CLS]` -> (2, B*c): matches, cosines."""
        states = self.vision_model(images).last_hidden_state
        states = states.repeat_interleave(len(ids) // len(states), dim=0)
        alone = self.match.encoder(ids, attention_mask=mask).last_hidden_state[:, 0]
        features = [F.normalize(linear(x).float(), dim=-1)
                    for linear, x in ((self.image_proj, states[:, 0]), (self.text_proj, alone))]  # fmt: skip
        first = ids.clone()
        first[:, 0] = enc_id
        return torch.stack([self.match.probability(first, mask, states), (features[0] * features[1]).sum(dim=1)])


class PublishedRank(nn.Module):
    """Question encoder and answer decoder as in `BlipForQuestionAnswering`, and the published ranking of answers."""

    def __init__(self, ours: VqaModel):
        super().__init__()
        self.specials = ours.specials
        self.text_encoder = encoder(ours.text_encoder)
        config = text_configuration(ours.text_decoder.config)
        config.label_smoothing = ours.label_smoothing
        self.text_decoder = BlipTextLMHeadModel(config)
        load_decoder(self.text_decoder, ours.text_decoder)
        self.eval()

    def question_states(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """ids and mask (B, T), the first token `[ENC]`; image states (B, N, D) -> (B, T, D)."""
        seen = torch.ones(image_states.shape[:-1], dtype=torch.long, device=ids.device)
        return self.text_encoder(
            ids, attention_mask=mask, encoder_hidden_states=image_states, encoder_attention_mask=seen
        ).last_hidden_state

    def rank(self, states: Tensor, answers: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Question states (B, T, D); answers (A, L) `[DEC] ... [SEP]` -> numbers and scores (B, k).

        No state is one of padding, since cross-attention drops its mask (transformers, up to 5.24).
        """
        count, pad = len(states), self.specials.pad
        start = answers[:1, :1].expand(count, 1)
        first = self.text_decoder(start, encoder_hidden_states=states).logits[:, 0]
        chosen = F.softmax(first, dim=1).index_select(1, answers[:, 1]).topk(k, dim=1).indices  # (B, k)
        ids = answers[chosen.flatten()]  # (B*k, L)
        loss = self.text_decoder(
            ids,
            attention_mask=(ids != pad).long(),
            encoder_hidden_states=states.repeat_interleave(k, dim=0),
            labels=ids.masked_fill(ids == pad, -100),
            reduction="none",
        ).loss
        return chosen, -loss.view(count, k)
