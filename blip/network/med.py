"""MED, the mixture of encoder and decoder (Li et al. 2022, section 3.1): one text transformer, three ways through it.

`TextEncoder.text` reads text alone; `TextEncoder.multimodal` also attends to images; `TextDecoder` predicts the tokens
of texts about images. Encoder and decoder share everything but self-attention.

Shapes: R texts (rows), T tokens of the longest, P tokens in memory (R*T, or fewer when packed), D width, H heads,
d head width, B images, N image tokens, V words. "Image" stands for whatever cross-attention attends to: in VQA the
decoder attends to the states of a question.
"""

from functools import partial
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from blip.hardware.profile import profile_of
from blip.network.attention import Attention, cast_once
from blip.network.cross_attention import (
    CrossAttention,
    ImageKeys,
    ImageStates,
    LayerImages,
    PairCrossAttention,
    PairKeys,
    ProjectedKeys,
    cross_attention,
)
from blip.network.embeddings import Embeddings, LMHead, TextConfig, init_weights
from blip.network.packing import ONE_TOKEN, Cache, Extend, KeyCache, Packing, Rows, TokenLayout
from blip.network.pictures import States, side_by_side


class TextTransformer(nn.Module):
    """What the encoder and the decoder have in common: layers, and keys of images for all of them."""

    layers: nn.ModuleList

    def image_keys(self, states: States, mask: Tensor | None = None) -> ProjectedKeys:
        """Image states (B, N, image_width) -> the keys and values of every layer, projected once for all passes.

        `mask` (B, N) is True at the states that texts may attend to; without it, all of them. Items of several pictures
        (`PictureStates`) have those of all their pictures, side by side.
        """
        states, mask = side_by_side(states, mask)
        states = cast_once(states)
        return ProjectedKeys([layer.image_keys(states) for layer in self._cross_attentions()], mask)

    def keys_or_states(self, states: States, tokens: int, mask: Tensor | None = None) -> ImageKeys:
        """As `image_keys`, or the states themselves where these are quicker and give the same.

        `tokens`: how many tokens will attend to each image in all; see `ImageAttention.can_attend_to_states`. Some
        devices are always quicker with keys, see `Profile.see_states`.
        """
        quicker = profile_of(states.device).see_states
        if quicker and all(layer.can_attend_to_states(tokens) for layer in self._cross_attentions()):
            states, mask = side_by_side(states, mask)
            return ImageStates(cast_once(states), mask)
        return self.image_keys(states, mask)

    def pair_keys(self, states: Tensor) -> PairKeys:
        """States (B, 2, N, image_width) of pairs of images -> the keys of every layer, where texts attend to both."""
        states = cast_once(states)
        layers = [cast(PairCrossAttention, layer.cross_attention) for layer in layers_of(self)]
        first = ProjectedKeys([layer.first.image_keys(states[:, 0]) for layer in layers])
        return PairKeys(first, ProjectedKeys([layer.second.image_keys(states[:, 1]) for layer in layers]))

    def _cross_attentions(self) -> list[CrossAttention]:
        return [cast(CrossAttention, layer.cross_attention) for layer in layers_of(self)]


def layers_of(module: TextTransformer) -> "list[Layer]":
    """The layers as a typed list: a type checker does not infer the type of a ModuleList's items."""
    return cast("list[Layer]", list(module.layers))


class TextEncoder(TextTransformer):
    """Bidirectional self-attention; `multimodal` adds cross-attention to images."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            [
                Layer(SelfAttention(config), cross_attention(config, i), FeedForward(config))
                for i in range(config.layers)
            ]
        )
        self.apply(partial(init_weights, width=config.width))

    def text(self, ids: Tensor, rows: TokenLayout, first_only: bool = False, *, words: Tensor | None = None) -> Tensor:
        """ids (R, T) -> states (P, D) of text alone, or (R, D) of each text's first token with `first_only`.

        `words` as in `Embeddings`.
        """
        return self._encode(ids, rows, None, first_only, words)

    def multimodal(
        self,
        ids: Tensor,
        rows: TokenLayout,
        keys: ImageKeys | PairKeys,
        *,
        first_only: bool = False,
        words: Tensor | None = None,
    ) -> Tensor:
        """ids (R, T), the first one `[ENC]`, -> states (P, D) of text that attends to images; the rest as in `text`."""
        return self._encode(ids, rows, keys, first_only, words)

    def _encode(
        self, ids: Tensor, rows: TokenLayout, keys: ImageKeys | PairKeys | None, first_only: bool, words: Tensor | None
    ) -> Tensor:
        x = self.embeddings(ids, rows, words=words)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, rows, None if keys is None else keys.of_layer(i), first_only=first_only and i == last)
        return x


class TextDecoder(TextTransformer):
    """Causal self-attention and cross-attention: predicts the next token. The head's matrix is the word embedding.

    Its embeddings, cross-attention and feed-forward networks are those of `shared`, by reference; only self-attention
    is its own. Without `shared` (captioning, VQA) everything is.
    """

    def __init__(self, config: TextConfig, shared: TextEncoder | None = None):
        super().__init__()
        self.config = config
        self.embeddings = shared.embeddings if shared else Embeddings(config)
        self.layers = nn.ModuleList()
        for i in range(config.layers):
            if shared:
                theirs = layers_of(shared)[i]
                cross, feed_forward = theirs.cross_attention, theirs.feed_forward
            else:
                cross, feed_forward = cross_attention(config, i), FeedForward(config)
            self.layers.append(Layer(SelfAttention(config), cross, feed_forward))
        self.head = LMHead(config, self.embeddings.words)
        for layer in layers_of(self) if shared else []:
            layer.self_attention.apply(partial(init_weights, width=config.width))
        (self.head.transform if shared else self).apply(partial(init_weights, width=config.width))

    def forward(
        self,
        ids: Tensor,
        rows: TokenLayout,
        keys: ImageKeys,
        *,
        words: Tensor | None = None,
        cache: KeyCache | None = None,
    ) -> Tensor:
        """ids (R, T), the first one `[DEC]`, -> states (P, D), the input of `head`; `words` as in `Embeddings`.

        With `cache`, the self-attention keys and values of the tokens before these, these tokens follow those and
        extend the cache.
        """
        x = self.embeddings(ids, rows, past=cache.length if cache else 0, words=words)
        for i, layer in enumerate(self.layers):
            extend = partial(cache.extend, i) if cache else None
            x = layer(x, rows, keys.of_layer(i), causal=True, extend=extend)
        return x

    def step(self, ids: Tensor, keys: ImageKeys, cache: Cache) -> Tensor:
        """The next T tokens of R texts of equal length: ids (R, T) -> logits (R, V) after the last one.

        Extends `cache`, which is `Cache()` at the start.
        """
        rows = Rows(torch.full((len(ids),), ids.shape[1]), ids.shape[1], ids.device)
        return self.head(rows.unpack(self(ids, rows, keys, cache=cache))[:, -1])


class Layer(nn.Module):
    """Self-attention, cross-attention when there is an image, then a feed-forward network; post-norm as in BERT."""

    def __init__(
        self,
        self_attention: "SelfAttention",
        cross_attention: "CrossAttention | PairCrossAttention",
        feed_forward: "FeedForward",
    ):
        super().__init__()
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Tensor,
        rows: TokenLayout,
        keys: LayerImages | None,
        *,
        causal: bool = False,
        first_only: bool = False,
        extend: Extend | None = None,
    ) -> Tensor:
        """(P, D) -> (P, D), or (R, D) with `first_only`: all tokens are keys, each text's first one alone comes out.

        `extend` puts this layer's keys and values behind those of the tokens before these, and is that of a cache.
        """
        x = self.self_attention(x, rows, causal, first_only=first_only, extend=extend)
        if keys is not None:
            queries = ONE_TOKEN if first_only else rows
            x = self.cross_attention(x, queries, keys)
        return self.feed_forward(x)


class SelfAttention(nn.Module):
    """norm(x + out(attention(x))) within each text."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.width, config.width)
        self.k = nn.Linear(config.width, config.width)
        self.v = nn.Linear(config.width, config.width)
        self.attention = Attention(config.dropout)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(
        self,
        x: Tensor,
        rows: TokenLayout,
        causal: bool,
        *,
        first_only: bool,
        extend: Extend | None = None,
    ) -> Tensor:
        """(P, D) -> (P, D), or (R, D) with `first_only`; `extend` as in `Layer`."""
        queries: Packing = rows
        y = cast_once(x)
        k, v = self._heads(rows.unpack(self.k(y))), self._heads(rows.unpack(self.v(y)))
        if first_only:
            x, y, queries = x.index_select(0, rows.first), y.index_select(0, rows.first), rows.first_packing
        q = self._heads(queries.unpack(self.q(y)))
        if extend is not None:
            k, v = extend(k, v)
            causal = causal and q.shape[2] > 1  # a single new token attends to all that precede it
        mask, causal = rows.attention_mask(causal)
        z = self.attention(q, k, v, mask, causal)
        z = queries.pack(rearrange(z, "r h t d -> r t (h d)"))
        return self.norm(x + self.dropout(self.out(z)))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "r t (h d) -> r h t d", h=self.heads)


class FeedForward(nn.Module):
    """norm(x + W2 gelu(W1 x))."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class DecoderStep:
    """Steps of R = B * per_image texts about B images; an image's keys are held once, however many texts it has."""

    def __init__(self, decoder: TextDecoder, keys: ImageKeys, per_image: int = 1):
        """`keys` of the images, from `TextDecoder.image_keys` or `TextDecoder.keys_or_states`."""
        self.decoder, self.keys, self.per_image = decoder, keys, per_image
        self.cache = Cache()

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest tokens (R, T) -> logits of the next one (R, V)."""
        return self.decoder.step(ids, self.keys, self.cache)

    def select(self, rows: Tensor, per_image: int = 1) -> None:
        """Continues with the texts `rows` (R',): see `decoding.Step`."""
        self.cache.select(rows)
        images = rows[::per_image] // self.per_image  # (B',)
        self.per_image = per_image
        if len(images) < len(self.keys):  # images stay in order: as many as before are the same
            self.keys = self.keys.select(images)
