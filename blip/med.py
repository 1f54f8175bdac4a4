"""MED, the mixture of encoder and decoder (Li et al. 2022, section 3.1): one text transformer, three ways through it.

`TextEncoder.text` sees text alone; `TextEncoder.multimodal` also looks at images; `TextDecoder` writes about images.
Encoder and decoder share everything but self-attention.

Shapes: R texts (rows), T tokens of the longest, P tokens in memory (R*T, or fewer when packed), D width, H heads,
d head width, B images, N image tokens, V words.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from blip.attention import Attention
from blip.rows import ONE_TOKEN, Cache, ImageKeys, Keys, OneToken, Rows


@dataclass
class TextConfig:
    """Sizes of the text transformer. `image_width` is the width of the states that cross-attention looks at."""

    vocab_size: int = 30524
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    max_positions: int = 512
    image_width: int = 768
    dropout: float = 0.1


class TextEncoder(nn.Module):
    """Bidirectional self-attention; `multimodal` adds cross-attention to images."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            [Layer(SelfAttention(config), CrossAttention(config), FeedForward(config)) for _ in range(config.layers)]
        )
        self.apply(partial(_init_weights, width=config.width))

    def project(self, states: Tensor) -> ImageKeys:
        """Image states (B, N, image_width) -> the keys and values of every layer, projected once for all passes."""
        states = cast_once(states)
        return ImageKeys([layer.cross_attention.project(states) for layer in layers_of(self)])

    def text(self, ids: Tensor, rows: Rows, first_only: bool = False, words: Tensor | None = None) -> Tensor:
        """ids (R, T) -> states (P, D) of text alone, or (R, D) of each text's first token with `first_only`.

        `words` as in `Embeddings`.
        """
        return self._encode(ids, rows, None, first_only, words)

    def multimodal(
        self, ids: Tensor, rows: Rows, keys: ImageKeys, first_only: bool = False, words: Tensor | None = None
    ) -> Tensor:
        """ids (R, T), the first one `[ENC]`, -> states (P, D) of text that looks at images; the rest as in `text`."""
        return self._encode(ids, rows, keys, first_only, words)

    def _encode(
        self, ids: Tensor, rows: Rows, keys: ImageKeys | None, first_only: bool, words: Tensor | None
    ) -> Tensor:
        x = self.embeddings(ids, rows, words=words)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, rows, keys, i, first_only=first_only and i == last)
        return x


def layers_of(module: "TextEncoder | TextDecoder") -> "list[Layer]":
    """The layers with their type, which a ModuleList does not tell a type checker."""
    return cast("list[Layer]", list(module.layers))


class TextDecoder(nn.Module):
    """Causal self-attention and cross-attention: predicts the next token.

    Its embeddings, cross-attention and feed-forward networks are those of `shared`, by reference; only self-attention
    is its own. The head's matrix is the word embedding.
    """

    def __init__(self, shared: TextEncoder):
        super().__init__()
        self.config = config = shared.config
        self.embeddings = shared.embeddings
        self.layers = nn.ModuleList(
            [Layer(SelfAttention(config), layer.cross_attention, layer.feed_forward) for layer in layers_of(shared)]
        )
        self.head = LMHead(config, shared.embeddings.words)
        for layer in layers_of(self):
            layer.self_attention.apply(partial(_init_weights, width=config.width))
        self.head.transform.apply(partial(_init_weights, width=config.width))

    def forward(self, ids: Tensor, rows: Rows, keys: ImageKeys, words: Tensor | None = None) -> Tensor:
        """ids (R, T), the first one `[DEC]`, -> states (P, D), the input of `head`; `words` as in `Embeddings`."""
        x = self.embeddings(ids, rows, words=words)
        for i, layer in enumerate(self.layers):
            x = layer(x, rows, keys, i, causal=True)
        return x

    def step(self, ids: Tensor, keys: ImageKeys, cache: Cache) -> Tensor:
        """The next T tokens of R texts of equal length: ids (R, T) -> logits of the last one (R, V); extends `cache`.

        `cache` holds the self-attention keys and values of what came before; start with `Cache()`.
        """
        rows = Rows(torch.full((len(ids),), ids.shape[1]), ids.shape[1], ids.device)
        x = self.embeddings(ids, rows, past=cache.length)
        for i, layer in enumerate(self.layers):
            x = layer(x, rows, keys, i, causal=True, cache=cache)
        return self.head(rows.unpack(x)[:, -1])


class Embeddings(nn.Module):
    """Word and learned position embeddings, normalised. BLIP has no token types."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.width, padding_idx=0)
        self.positions = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, rows: Rows, past: int = 0, words: Tensor | None = None) -> Tensor:
        """ids (R, T) -> (P, D); `past` tokens stand before the first one.

        With `words` (W, D), embeddings looked up before (`TiedLookUp`), `ids` are rows of it.
        """
        positions = torch.arange(past, past + ids.shape[1], device=ids.device).expand_as(ids)
        ids = rows.pack(ids)
        x = self.words(ids) if words is None else F.embedding(ids, words)
        return self.dropout(self.norm(x + self.positions(rows.pack(positions))))


class TiedLookUp(torch.autograd.Function):
    """Rows `ids` (W,) of the vocabulary's matrix (V, D), and the matrix itself for the word head: -> (W, D), (V, D).

    A look-up of its own costs a gradient of the vocabulary's size, and its sum with the head's gradient another: 94 MB
    each for BERT's. Here the rows' gradient is added to the head's in place, which nothing else holds.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids)
        return matrix.index_select(0, ids), matrix.view_as(matrix)

    @staticmethod
    def backward(ctx: Any, rows: Tensor, matrix: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        # on a CPU `index_put_` would add in any order, and two runs would differ in the last bits
        return matrix.index_add_(0, ids, rows.to(matrix.dtype)), None


class Layer(nn.Module):
    """Self-attention, cross-attention when there is an image, then a feed-forward network; post-norm as in BERT."""

    def __init__(self, self_attention: "SelfAttention", cross_attention: "CrossAttention", feed_forward: "FeedForward"):
        super().__init__()
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Tensor,
        rows: Rows,
        keys: ImageKeys | None,
        index: int,
        causal: bool = False,
        first_only: bool = False,
        cache: Cache | None = None,
    ) -> Tensor:
        """(P, D) -> (P, D), or (R, D) with `first_only`: all tokens are keys, each text's first one alone comes out."""
        x = self.self_attention(x, rows, causal, first_only, cache, index)
        if keys is not None:
            queries = ONE_TOKEN if first_only else rows
            x = self.cross_attention(x, queries, keys.layers[index], keys.extra)
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
        self, x: Tensor, rows: Rows, causal: bool, first_only: bool, cache: Cache | None = None, index: int = 0
    ) -> Tensor:
        """(P, D) -> (P, D), or (R, D) with `first_only`."""
        queries: Rows | OneToken = rows
        y = cast_once(x)
        k, v = self._heads(rows.unpack(self.k(y))), self._heads(rows.unpack(self.v(y)))
        if first_only:
            x, y, queries = x.index_select(0, rows.first), y.index_select(0, rows.first), ONE_TOKEN
        q = self._heads(queries.unpack(self.q(y)))
        if cache is not None:
            k, v = cache.extend(index, k, v)
            causal = causal and q.shape[2] > 1  # a single new token may see all that came before
        # padding stands at the end, where a causal query of a real token never looks
        z = self.attention(q, k, v, mask=None if causal else rows.mask, causal=causal)
        z = queries.pack(rearrange(z, "r h t d -> r t (h d)"))
        return self.norm(x + self.dropout(self.out(z)))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "r t (h d) -> r h t d", h=self.heads)


def cast_once(x: Tensor) -> Tensor:
    """x in the type in which autocast multiplies: else each projection that reads x makes a copy, and keeps it."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class CrossAttention(nn.Module):
    """norm(x + out(attention(x, image)))."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.width, config.width)
        self.k = nn.Linear(config.image_width, config.width)
        self.v = nn.Linear(config.image_width, config.width)
        self.attention = Attention(config.dropout)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def project(self, states: Tensor) -> Keys:
        """(B, N, image_width) -> keys and values (B, H, N, d)."""
        k, v = (rearrange(proj(states), "b n (h d) -> b h n d", h=self.heads) for proj in (self.k, self.v))
        return k, v

    def forward(self, x: Tensor, rows: Rows | OneToken, keys: Keys, extra: Tensor | None = None) -> Tensor:
        """(P, D) -> (P, D); `keys` and `extra` as in `ImageKeys`."""
        q = rows.unpack(self.q(x))  # (R, T, D)
        if extra is None:
            z = self._look(q, keys)
        else:
            q, q_extra = q.split([len(q) - len(extra), len(extra)])
            extra_keys = _select(keys[0], extra), _select(keys[1], extra)
            z = torch.cat([self._look(q, keys), self._look(q_extra, extra_keys)])
        return self.norm(x + self.dropout(self.out(rows.pack(z))))

    def _look(self, q: Tensor, keys: Keys) -> Tensor:
        """(B*c, T, D) -> (B*c, T, D): the c texts of an image side by side on the query axis."""
        k, v = keys
        images, width = len(k), q.shape[1]
        q = rearrange(q, "(b c) t (h d) -> b h (c t) d", b=images, h=self.heads)
        z = self.attention(q, k, v)
        return rearrange(z, "b h (c t) d -> (b c) t (h d)", t=width)


def _select(x: Tensor, images: Tensor) -> Tensor:
    """x (B, H, N, d) at `images` (E,) -> (E, H, N, d). It lies in memory as (B, N, H, d) and is copied so."""
    return x.transpose(1, 2).index_select(0, images).transpose(1, 2)


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


class LMHead(nn.Module):
    """BERT's prediction head: transform, then the word embedding as the output matrix."""

    def __init__(self, config: TextConfig, words: nn.Embedding):
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.words = words
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, matrix: Tensor | None = None) -> Tensor:
        """(..., D) -> logits (..., V). `matrix`: the word embedding as `TiedLookUp` returned it."""
        matrix = self.words.weight if matrix is None else matrix
        return F.linear(self.norm(F.gelu(self.transform(x))), matrix, self.bias)


def _init_weights(module: nn.Module, width: int) -> None:
    """BERT's initialisation: normal, standard deviation 0.02 at width 768, the padding's embedding zero.

    Narrower models start larger, by the square root: with 0.02 at width 96 losses stand still for hundreds of steps.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 * (768 / width) ** 0.5)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx].detach())
