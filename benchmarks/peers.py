"""The pre-training step as published (Li et al. 2022), made of transformers' BLIP modules: the peer of `train_step.py`.

It is the plain algorithm: every pass projects the image's states to keys and values anew, every text is padded to one
length, every token of the last layer is computed, the twin is moved parameter by parameter. The parts are those of
transformers, with the attention that they use by default; what is between them follows the paper's algorithm.

Shapes: B pairs, T text tokens, N image tokens, D width, E embedding width, Q queue.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

from blip.network.med import TextConfig
from blip.network.vit import ViTConfig

# parts of our names and of transformers', applied in this order
VISION_NAMES = [
    ("patch_embed.", "embeddings.patch_embedding."),
    ("cls_token", "embeddings.class_embedding"),
    ("positions", "embeddings.position_embedding"),
    ("norm.", "post_layernorm."),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".qkv.", ".self_attn.qkv."),
    (".proj.", ".self_attn.projection."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.2.", ".mlp.fc2."),
]
TEXT_NAMES = [
    ("embeddings.words.", "embeddings.word_embeddings."),
    ("embeddings.positions.", "embeddings.position_embeddings."),
    ("embeddings.norm.", "embeddings.LayerNorm."),
    ("layers.", "encoder.layer."),
    ("self_attention.", "attention."),
    ("cross_attention.", "crossattention."),
    ("attention.q.", "attention.self.query."),
    ("attention.k.", "attention.self.key."),
    ("attention.v.", "attention.self.value."),
    ("attention.out.", "attention.output.dense."),
    ("attention.norm.", "attention.output.LayerNorm."),
    ("feed_forward.up.", "intermediate.dense."),
    ("feed_forward.down.", "output.dense."),
    ("feed_forward.norm.", "output.LayerNorm."),
]
HEAD_NAMES = [("transform.", "transform.dense."), ("norm.", "transform.LayerNorm."), ("words.", "decoder.")]


class PublishedPretrain(nn.Module):
    """Model, momentum twin and queue in one module, as the published code holds them."""

    def __init__(self, vit: ViTConfig, text: TextConfig, pad: int, enc: int, dec: int, embed_dim: int, queue_size: int):
        super().__init__()
        self.pad, self.enc, self.dec = pad, enc, dec
        self.momentum = 0.995
        text_config = text_configuration(text)
        self.vision = BlipVisionModel(vision_configuration(vit))
        self.text_encoder = BlipTextModel(text_config, add_pooling_layer=False)
        self.text_decoder = BlipTextLMHeadModel(text_config)
        share_all_but_self_attention(self.text_encoder, self.text_decoder)
        self.image_proj = nn.Linear(vit.width, embed_dim)
        self.text_proj = nn.Linear(text.width, embed_dim)
        self.itm_head = nn.Linear(text.width, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))

        self.vision_m, self.text_encoder_m = deepcopy(self.vision), deepcopy(self.text_encoder)
        self.image_proj_m, self.text_proj_m = deepcopy(self.image_proj), deepcopy(self.text_proj)
        self.pairs = [
            (self.vision, self.vision_m),
            (self.text_encoder, self.text_encoder_m),
            (self.image_proj, self.image_proj_m),
            (self.text_proj, self.text_proj_m),
        ]
        for _, twin in self.pairs:
            twin.requires_grad_(False)
        self.register_buffer("image_queue", F.normalize(torch.randn(embed_dim, queue_size), dim=0))
        self.register_buffer("text_queue", F.normalize(torch.randn(embed_dim, queue_size), dim=0))
        self.pointer = 0

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def forward(
        self, images: Tensor, ids: Tensor, alpha: float, draw: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """images (B, 3, height, width), ids (B, T) padded -> ITC, ITM, LM losses; moves the twin, pushes the queue."""
        with torch.no_grad():
            self.temperature.clamp_(0.001, 0.5)
        mask = (ids != self.pad).long()  # (B, T)
        states = self.vision(images).last_hidden_state  # (B, N, D)
        image_features = F.normalize(self.image_proj(states[:, 0]), dim=-1)
        text = self.text_encoder(ids, attention_mask=mask).last_hidden_state
        text_features = F.normalize(self.text_proj(text[:, 0]), dim=-1)
        itc, image_to_text, text_to_image = self.contrast(images, ids, mask, image_features, text_features, alpha)
        itm = self.match(ids, mask, states, image_to_text, text_to_image, draw)
        lm = self.language_model(ids, mask, states)
        return itc, itm, lm

    def contrast(
        self, images: Tensor, ids: Tensor, mask: Tensor, image_features: Tensor, text_features: Tensor, alpha: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The twin's turn and the ITC loss; the similarities (B, B+Q) over the temperature are for the negatives."""
        with torch.no_grad():
            self.update_twin()
            states = self.vision_m(images).last_hidden_state
            image_m = F.normalize(self.image_proj_m(states[:, 0]), dim=-1)
            text = self.text_encoder_m(ids, attention_mask=mask).last_hidden_state
            text_m = F.normalize(self.text_proj_m(text[:, 0]), dim=-1)
            all_images = torch.cat([image_m.T.float(), self.image_queue], dim=1)  # (E, B+Q)
            all_texts = torch.cat([text_m.T.float(), self.text_queue], dim=1)
            twin_image_to_text = image_m @ all_texts / self.temperature
            twin_text_to_image = text_m @ all_images / self.temperature
            targets = torch.zeros_like(twin_image_to_text)
            targets.fill_diagonal_(1)
            image_targets = alpha * F.softmax(twin_image_to_text, dim=1) + (1 - alpha) * targets
            text_targets = alpha * F.softmax(twin_text_to_image, dim=1) + (1 - alpha) * targets
        image_to_text = image_features @ all_texts / self.temperature
        text_to_image = text_features @ all_images / self.temperature
        loss_images = -torch.sum(F.log_softmax(image_to_text, dim=1) * image_targets, dim=1).mean()
        loss_texts = -torch.sum(F.log_softmax(text_to_image, dim=1) * text_targets, dim=1).mean()
        self.push(image_m, text_m)
        return (loss_images + loss_texts) / 2, image_to_text, text_to_image

    def match(
        self,
        ids: Tensor,
        mask: Tensor,
        states: Tensor,
        image_to_text: Tensor,
        text_to_image: Tensor,
        draw: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """ITM in two passes: B matched rows, then 2B rows of (text, hard image) and (hard text, image)."""
        count = len(ids)
        ids = ids.clone()
        ids[:, 0] = self.enc
        matched = self.multimodal(ids, mask, states)
        with torch.no_grad():
            image_weights = F.softmax(text_to_image[:, :count].float(), dim=1) + 1e-4
            image_weights.fill_diagonal_(0)
            text_weights = F.softmax(image_to_text[:, :count].float(), dim=1) + 1e-4
            text_weights.fill_diagonal_(0)
        hard_states, hard_ids, hard_mask = [], [], []
        for b in range(count):
            hard_states.append(states[draw(image_weights[b : b + 1])[0].item()])
        for b in range(count):
            chosen = draw(text_weights[b : b + 1])[0].item()
            hard_ids.append(ids[chosen])
            hard_mask.append(mask[chosen])
        unmatched = self.multimodal(
            torch.cat([ids, torch.stack(hard_ids)]),
            torch.cat([mask, torch.stack(hard_mask)]),
            torch.cat([torch.stack(hard_states), states]),
        )
        logits = self.itm_head(torch.cat([matched, unmatched]))
        labels = torch.cat([torch.ones(count), torch.zeros(2 * count)]).long().to(ids.device)
        return F.cross_entropy(logits, labels)

    def multimodal(self, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
        """Texts (R, T), each with its own copy of an image's states (R, N, D) -> state of the first token (R, D)."""
        seen = torch.ones(states.shape[:-1], dtype=torch.long, device=states.device)
        out = self.text_encoder(ids, attention_mask=mask, encoder_hidden_states=states, encoder_attention_mask=seen)
        return out.last_hidden_state[:, 0]

    def language_model(self, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
        ids = ids.clone()
        ids[:, 0] = self.dec
        labels = ids.masked_fill(ids == self.pad, -100)
        seen = torch.ones(states.shape[:-1], dtype=torch.long, device=states.device)
        out = self.text_decoder(
            ids, attention_mask=mask, encoder_hidden_states=states, encoder_attention_mask=seen, labels=labels
        )
        return out.loss

    def update_twin(self) -> None:
        for model, twin in self.pairs:
            for param, param_m in zip(model.parameters(), twin.parameters(), strict=True):
                param_m.data = param_m.data * self.momentum + param.data * (1.0 - self.momentum)

    @torch.no_grad()
    def push(self, image_m: Tensor, text_m: Tensor) -> None:
        count = len(image_m)
        self.image_queue[:, self.pointer : self.pointer + count] = image_m.T
        self.text_queue[:, self.pointer : self.pointer + count] = text_m.T
        self.pointer = (self.pointer + count) % self.image_queue.shape[1]

    @torch.no_grad()
    def load_ours(self, state: dict[str, Tensor], queue: dict[str, Tensor]) -> None:
        """Weights of a `PretrainModel` by name, and of its `Queue`; the twin starts as a copy, as in a first step."""
        parts = {name: {} for name in ("image_encoder", "text_encoder", "text_decoder")}
        for name, tensor in state.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor
            else:
                self.get_parameter(name).copy_(tensor)
        decoder = parts["text_decoder"]
        head = {name.removeprefix("head."): decoder.pop(name) for name in list(decoder) if name.startswith("head.")}
        self.vision.load_state_dict(renamed(parts["image_encoder"], VISION_NAMES))
        self.text_encoder.load_state_dict(renamed(parts["text_encoder"], TEXT_NAMES))
        self.text_decoder.bert.load_state_dict(renamed(decoder, TEXT_NAMES))
        head["decoder.bias"] = head["bias"]
        self.text_decoder.cls.predictions.load_state_dict(renamed(head, HEAD_NAMES))
        for model, twin in self.pairs:
            twin.load_state_dict(model.state_dict())
        self.image_queue.copy_(queue["images"])
        self.text_queue.copy_(queue["texts"])


def share_all_but_self_attention(encoder: BlipTextModel, decoder: BlipTextLMHeadModel) -> None:
    decoder.bert.embeddings = encoder.embeddings
    for ours, theirs in zip(encoder.encoder.layer, decoder.bert.encoder.layer, strict=True):
        theirs.crossattention = ours.crossattention
        theirs.intermediate = ours.intermediate
        theirs.output = ours.output
    head = decoder.cls.predictions
    head.decoder.weight = encoder.embeddings.word_embeddings.weight
    head.decoder.bias = head.bias


def vision_configuration(vit: ViTConfig) -> BlipVisionConfig:
    return BlipVisionConfig(
        hidden_size=vit.width,
        intermediate_size=vit.hidden,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.heads,
        image_size=vit.image_size,
        patch_size=vit.patch,
        layer_norm_eps=1e-6,
    )


def text_configuration(text: TextConfig) -> BlipTextConfig:
    return BlipTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        encoder_hidden_size=text.image_width,
        intermediate_size=text.hidden,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        max_position_embeddings=text.max_positions,
        hidden_dropout_prob=text.dropout,
        attention_probs_dropout_prob=text.dropout,
        is_decoder=True,  # gives the layers cross-attention
        label_smoothing=0.1,
        pad_token_id=0,
    )


def renamed(state: dict[str, Tensor], table: list[tuple[str, str]]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in state.items():
        for ours, theirs in table:
            name = name.replace(ours, theirs)
        out[name] = tensor
    return out
