"""Steps of a language model of transformers for `generation.generate`, each with its own way to keep the past.

`CausalStep` and `Seq2SeqStep` keep the cache that transformers offers, a row of it for every text. `SharedPrefixStep`
keeps the keys of an image once for all its texts and never moves a key; it serves the causal models that are named in
`language_models.SHARED_PREFIX`.

Shapes: B images, K texts of each, R = B*K rows, P tokens before the first new one (queries and prompt), N tokens in the
cache, H heads, d head width, W width of the embeddings, V words.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SHARED = "blip_shared_prefix"  # the name under which transformers finds `shared_attention`


def takes(module: Any, argument: str) -> bool:
    """Whether the `forward` of a module has a parameter of this name."""
    return argument in inspect.signature(module.forward).parameters


def cache_argument(module: Any) -> str:
    """The name by which the `forward` of a module of transformers takes a cache; it changed in version 5."""
    return "cache" if takes(module, "cache") else "past_key_values"


def places(mask: Tensor) -> Tensor:
    """The position of each token (B, T), where padding has none: `mask` is True at a token."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


class CausalStep:
    """A causal model with transformers' cache, which repeats all that precedes for every text."""

    def __init__(self, module: Any, prefix: Tensor, mask: Tensor):
        """prefix (B, P, W) of embeddings, `mask` (B, P) True where one counts."""
        from transformers import DynamicCache

        self.module, self.prefix, self.seen = module, prefix, mask
        self.cache: Any = DynamicCache(config=module.config)
        self.argument = cache_argument(module)
        self.has_positions = takes(module, "position_ids")
        self.options: dict[str, Any] = {"logits_to_keep": 1} if takes(module, "logits_to_keep") else {}
        self.begun = False

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest tokens (R, 1) -> logits (R, V). The first call reads the prefix in place of `ids`."""
        if not self.begun:
            self.begun = True
            return self._read({"inputs_embeds": self.prefix}, places(self.seen))
        self.seen = F.pad(self.seen, (0, 1), value=True)
        return self._read({"input_ids": ids}, self.seen.sum(dim=1, keepdim=True) - 1)

    def select(self, rows: Tensor, per_image: int = 1) -> None:
        """See `decoding.Step`."""
        self.cache.reorder_cache(rows)
        self.seen = self.seen.index_select(0, rows)

    def _read(self, tokens: dict[str, Tensor], positions: Tensor) -> Tensor:
        more: dict[str, Any] = {"position_ids": positions} if self.has_positions else {}
        more |= {self.argument: self.cache, **self.options}
        out = self.module(**tokens, **more, attention_mask=self.seen.long(), use_cache=True)
        return out.logits[:, -1]


class Seq2SeqStep:
    """An encoder-decoder: the encoder reads once an image, the keys of its states stay where they are."""

    def __init__(self, module: Any, prefix: Tensor, mask: Tensor):
        """prefix (B, P, W) of embeddings for the encoder, `mask` (B, P) True where one counts."""
        from transformers import DynamicCache, EncoderDecoderCache

        self.module, self.seen, self.per_image = module, mask.long(), 1
        self.states = module.get_encoder()(inputs_embeds=prefix, attention_mask=self.seen).last_hidden_state
        self.cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.argument = cache_argument(module)

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest tokens (R, 1) -> logits (R, V)."""
        from transformers.modeling_outputs import BaseModelOutput

        out = self.module(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.states),
            attention_mask=self.seen, decoder_input_ids=ids, use_cache=True, **{self.argument: self.cache},
        )  # fmt: skip
        return out.logits[:, -1]

    def select(self, rows: Tensor, per_image: int = 1) -> None:
        """See `decoding.Step`."""
        self.cache.self_attention_cache.reorder_cache(rows)
        images = len(self.states) // self.per_image
        if per_image != self.per_image or len(rows) // per_image != images:
            # texts move within their image alone: the keys of the image's states change with the images
            self.cache.cross_attention_cache.reorder_cache(rows)
            self.states, self.seen = self.states.index_select(0, rows), self.seen.index_select(0, rows)
        self.per_image = per_image


# ---- keys held once an image -----------------------------------------------------------------------------------------


class SharedPrefixStep:
    """A causal model whose texts about an image share its keys: the twin of `CausalStep`, equal up to rounding.

    The K texts of an image lie side by side on the query axis, as in `cross_attention`. Behind the P keys of the
    prefix, the keys of all tokens that were written about the image lie in the order in which they were written, K a
    step; a text attends to the tokens of its own past by a mask. When beams change places, rows of that mask do: no
    key is copied, repeated or moved.
    """

    def __init__(self, module: Any, prefix: Tensor, mask: Tensor, *, room: int):
        """`prefix` and `mask` as in `CausalStep`; `room`: tokens that will be written about an image, by all texts."""
        self.module, self.prefix, self.mask, self.room = module, prefix, mask, room
        self.argument = cache_argument(module)
        self.lengths = mask.sum(dim=1)  # (B,) tokens before the next one, those of the text included
        self.visible = mask[:, None]  # (B, K, N) what each text attends to
        self.cache: Any = None

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest tokens (R, 1) -> logits (R, V). The first call reads the prefix in place of `ids`."""
        if self.cache is None:
            return self._read_prefix()
        images, texts, _ = self.visible.shape
        newest = torch.eye(texts, dtype=torch.bool, device=ids.device).expand(images, texts, texts)
        self.visible = torch.cat([self.visible, newest], dim=2)
        out = self.module(
            input_ids=ids,
            position_ids=self.lengths.repeat_interleave(texts)[:, None],
            attention_mask=self.visible[:, None],
            use_cache=True,
            logits_to_keep=1,
            **{self.argument: self.cache},
        )
        self.lengths = self.lengths + 1
        return out.logits[:, -1]

    def select(self, rows: Tensor, per_image: int = 1) -> None:
        """See `decoding.Step`."""
        count, texts, tokens = self.visible.shape
        self.visible = self.visible.flatten(0, 1).index_select(0, rows).view(-1, per_image, tokens)
        images = rows[::per_image] // texts  # (B',)
        if len(images) < count:  # images stay in order: as many as before are the same
            self.lengths = self.lengths.index_select(0, images)
            for layer in self.cache.layers:
                layer.select(images)

    def _read_prefix(self) -> Tensor:
        from transformers import DynamicCache

        read: Any = DynamicCache(config=self.module.config)
        out = self.module(
            inputs_embeds=self.prefix,
            position_ids=places(self.mask),
            attention_mask=self.mask.long(),
            use_cache=True,
            logits_to_keep=1,
            **{self.argument: read},
        )
        self.cache = ImageCache([ImageLayer(layer.keys, layer.values, self.room) for layer in read.layers])
        return out.logits[:, -1]


class ImageCache:
    """What the causal models of `language_models.SHARED_PREFIX` call of a cache of transformers."""

    def __init__(self, layers: "list[ImageLayer]"):
        self.layers = layers

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """See `ImageLayer`."""
        return self.layers[layer].update(keys, values)

    def get_seq_length(self, layer: int = 0) -> int:
        """N."""
        return self.layers[layer].length


class ImageLayer:
    """Keys and values of one layer: the prefix of each image and what was written about it."""

    def __init__(self, keys: Tensor, values: Tensor, room: int):
        """Keys and values (B, H, P, d) of the prefix; `room` more are expected."""
        images, heads, self.length, per_head = keys.shape
        self.keys = keys.new_empty(images, heads, self.length + room, per_head)
        self.values = values.new_empty(images, heads, self.length + room, values.shape[-1])
        self.keys[:, :, : self.length], self.values[:, :, : self.length] = keys, values

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, 1, d) of the newest tokens -> all keys and values (B, H, N, d)."""
        images, texts = len(self.keys), len(keys) // len(self.keys)
        newest = slice(self.length, self.length + texts)
        self.keys[:, :, newest] = keys.view(images, texts, *keys.shape[1::2]).transpose(1, 2)
        self.values[:, :, newest] = values.view(images, texts, *values.shape[1::2]).transpose(1, 2)
        self.length += texts
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def select(self, images: Tensor) -> None:
        """Keeps `images` (B',), in that order."""
        self.keys, self.values = self.keys.index_select(0, images), self.values.index_select(0, images)


def shared_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention for transformers: queries (R, H, 1, d) of the K texts of B images, keys and values (B, h, N, d).

    `attention_mask` (B, 1, K, N) is True where a text may attend. Where every row has its own keys, this is
    transformers' `sdpa`. Returns (R, 1, H, d).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if len(query) == len(key):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    images, (rows, heads, _, per_head) = len(key), query.shape
    query = query.view(images, rows // images, heads, per_head).transpose(1, 2)  # (B, H, K, d)
    grouped = {"enable_gqa": True} if key.shape[1] != heads else {}
    z = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=options.get("scaling"), **grouped
    )
    return z.transpose(1, 2).reshape(rows, 1, heads, -1), None


def use_shared_attention(module: Any) -> None:
    """Lets a module of transformers attend by `shared_attention`; what it computes otherwise stays the same."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(SHARED, shared_attention)
    AttentionMaskInterface.register(SHARED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    module.set_attn_implementation(SHARED)
