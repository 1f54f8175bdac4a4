"""The Q-Former of BLIP-2 (Li et al. 2023, section 3.1): learned queries read an image, for texts or a language model.

One transformer, four ways through it. Queries and texts share self-attention; only queries attend to the image, in
every second layer; each has its own feed-forward networks:

    look    queries attend to the image                       -> features; what a language model is shown
    text    a text alone                                      -> features
    match   queries and a text attend to one another          -> does the text describe the image?
    write   a text attends to the queries and to itself so far -> the next token

Queries do not depend on a text that is written: `look` leaves its self-attention keys and values, and `write` puts the
text behind them. The keys of the image are projected once, for `look` and for all rows of `match`.

Shapes: B images, N image tokens, Q queries, R texts (rows), T tokens of the longest, P tokens in memory, D width,
H heads, d head width, V words.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from blip.errors import InputError
from blip.network.attention import Tap
from blip.network.cross_attention import CrossAttention, ImageKeys, LayerImages
from blip.network.embeddings import Embeddings, LMHead, TextConfig, init_weights
from blip.network.med import FeedForward, SelfAttention, TextTransformer
from blip.network.packing import Cache, Extend, Keys, Rows, TokenLayout
from blip.network.query_rows import QueriesAndText, QueryRows, TextBehind


@dataclass
class QFormerConfig:
    """Sizes of the Q-Former. `image_width` is the width of the states that queries attend to.

    `queries`: how many; `cross_every`: the layers 0, `cross_every`, 2 `cross_every` ... attend to the image. Without
    `text` there are no words, no feed-forward networks for texts and no head, and `look` is the only way: what stands
    between an image encoder and a language model.
    """

    vocab_size: int = 30523
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    max_positions: int = 512
    image_width: int = 1408
    dropout: float = 0.1
    queries: int = 32
    cross_every: int = 2
    text: bool = True

    def of_parts(self) -> TextConfig:
        """The sizes of attention, feed-forward networks and embeddings."""
        return TextConfig(
            self.vocab_size, self.width, self.layers, self.heads, self.hidden, self.max_positions, self.image_width,
            self.dropout,
        )  # fmt: skip


@dataclass
class QueryStates:
    """What queries have read from B images."""

    states: Tensor  # (B, Q, D)
    layers: dict[int, Keys]  # self-attention keys and values (B, H, Q, d) of the queries, by layer, with gradients

    def cache(self) -> Cache:
        """A new cache in which the queries precede what `QFormer.write` reads; these states stay as they are."""
        cache = Cache()
        cache.layers = dict(self.layers)
        return cache


class QueryEmbeddings(nn.Module):
    """What `Embeddings` has for queries: their norm and dropout, and no words."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)


class QFormer(TextTransformer):
    """Learned queries and texts, see above."""

    head: LMHead  # only with `text`

    def __init__(self, config: QFormerConfig):
        super().__init__()
        self.config = config
        parts = config.of_parts()
        self.queries = nn.Parameter(torch.empty(1, config.queries, config.width))
        self.embeddings = Embeddings(parts) if config.text else QueryEmbeddings(parts)
        self.layers = nn.ModuleList([QFormerLayer(config, number) for number in range(config.layers)])
        self.out = Tap()  # of the queries' states, where they leave
        if isinstance(self.embeddings, Embeddings):
            self.head = LMHead(parts, self.embeddings.words)
        self.apply(partial(init_weights, width=config.width))
        nn.init.normal_(self.queries, std=0.02 * (768 / config.width) ** 0.5)
        for layer in layers_of(self):
            layer.copy_feed_forward()

    # ---- the four ways -----------------------------------------------------------------------------------------------

    def look(self, keys: ImageKeys) -> QueryStates:
        """The queries attend to each of the images of `keys`, from `image_keys` or `keys_or_states`."""
        rows, cache = QueryRows(len(keys), self.config.queries, keys.device), Cache()
        x = self._queries(rows.count)
        for number, layer in enumerate(layers_of(self)):
            extend = partial(cache.extend, number)
            x = layer(x, rows, queries=rows, keys=self._keys_of(number, keys), extend=extend)
        return QueryStates(self.out(rows.unpack(x)), cache.layers)

    def text(self, ids: Tensor, rows: Rows, first_only: bool = False, *, words: Tensor | None = None) -> Tensor:
        """ids (R, T) -> states (P, D) of texts alone, or (R, D) of each text's first token with `first_only`.

        `words` as in `Embeddings`.
        """
        x = self._words(ids, rows, words=words)
        for number, layer in enumerate(layers_of(self)):
            x = layer(x, rows, first_only=first_only and number == self.config.layers - 1)
        return x

    def match(self, ids: Tensor, rows: Rows, keys: ImageKeys, *, words: Tensor | None = None) -> Tensor:
        """States (R, Q, D) of the queries of each row, which attend to its text ids (R, T) and to its image.

        Which row attends to which image: see `ProjectedKeys`. `words` as in `Embeddings`.
        """
        queries = QueryRows(rows.count, self.config.queries, ids.device)
        both = QueriesAndText(queries, rows)
        x = torch.cat([self._queries(rows.count), self._words(ids, rows, words=words)])
        for number, layer in enumerate(layers_of(self)):
            last = number == self.config.layers - 1  # the text's states are not read: its keys and values are enough
            x = layer(x, both, queries=queries, keys=self._keys_of(number, keys), first_only=last)
        return self.out(queries.unpack(x))

    def write(self, ids: Tensor, rows: Rows, cache: Cache, *, words: Tensor | None = None) -> Tensor:
        """ids (R, T), the first one `[DEC]`, -> states (P, D), the input of `head`: causal text behind its queries.

        `cache` is that of `QueryStates` of R images, and holds these tokens too afterwards: further ones follow them.
        `words` as in `Embeddings`.
        """
        past = cache.length
        x = self._words(ids, rows, past=past - self.config.queries, words=words)
        behind = TextBehind(rows, past)
        for number, layer in enumerate(layers_of(self)):
            x = layer(x, behind, causal=True, extend=partial(cache.extend, number))
        return x

    # ---- inputs ------------------------------------------------------------------------------------------------------

    def _queries(self, count: int) -> Tensor:
        """The queries of `count` rows (count*Q, D)."""
        x = self.embeddings.norm(self.queries).expand(count, -1, -1)
        return self.embeddings.dropout(x).flatten(0, 1)

    def _words(self, ids: Tensor, rows: Rows, *, past: int = 0, words: Tensor | None) -> Tensor:
        return self.text_embeddings(ids, rows, past, words=words)

    @property
    def text_embeddings(self) -> Embeddings:
        """`embeddings`, where texts are read; InputError where they are not."""
        if not isinstance(self.embeddings, Embeddings):
            raise InputError("this Q-Former was made without `text`: it reads images alone")
        return self.embeddings

    def _keys_of(self, number: int, keys: ImageKeys) -> LayerImages | None:
        """What layer `number` attends to; None where it does not attend to images."""
        every = self.config.cross_every
        return None if number % every else keys.of_layer(number // every)

    def _cross_attentions(self) -> list[CrossAttention]:
        return [layer.cross_attention for layer in layers_of(self) if layer.cross_attention is not None]


def layers_of(qformer: QFormer) -> "list[QFormerLayer]":
    """The layers as a typed list: a type checker does not infer the type of a ModuleList's items."""
    return cast("list[QFormerLayer]", list(qformer.layers))


class QFormerLayer(nn.Module):
    """Self-attention; cross-attention of queries to the image in some layers; a feed-forward network; post-norm."""

    feed_forward: FeedForward  # of texts, only with `text`

    def __init__(self, config: QFormerConfig, number: int):
        super().__init__()
        parts = config.of_parts()
        self.self_attention = SelfAttention(parts)
        self.cross_attention = None if number % config.cross_every else CrossAttention(parts)
        self.query_feed_forward = FeedForward(parts)
        if config.text:
            self.feed_forward = FeedForward(parts)

    def copy_feed_forward(self) -> None:
        """The queries' feed-forward network starts as a copy of the texts'."""
        if hasattr(self, "feed_forward"):
            self.query_feed_forward.load_state_dict(self.feed_forward.state_dict())

    def forward(
        self,
        x: Tensor,
        rows: TokenLayout,
        *,
        queries: QueryRows | None = None,
        keys: LayerImages | None = None,
        causal: bool = False,
        first_only: bool = False,
        extend: Extend | None = None,
    ) -> Tensor:
        """x (R*Q+P, D) of `queries` and texts behind them, or of either alone, laid out as `rows` -> the same.

        With `first_only` all are keys, and those of `rows.first` alone come out: the queries, or of texts alone the
        first tokens. `extend` as in `med.Layer`.
        """
        x = self.self_attention(x, rows, causal, first_only=first_only, extend=extend)
        if queries is None:
            return self.feed_forward(x)
        count = len(queries.first)
        q, text = x[:count], x[count:]
        if self.cross_attention is not None:
            q = self.cross_attention(q, queries, keys)
        q = self.query_feed_forward(q)
        return torch.cat([q, self.feed_forward(text)]) if len(text) else q


class QFormerStep:
    """Steps of R texts, each about an image that the queries have read; see `decoding.Step`."""

    def __init__(self, qformer: QFormer, read: QueryStates):
        """`read` of R images, a text each."""
        self.qformer, self.cache = qformer, read.cache()

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest tokens (R, T) -> logits of the next one (R, V)."""
        rows = Rows(torch.full((len(ids),), ids.shape[1]), ids.shape[1], ids.device)
        states = self.qformer.write(ids, rows, self.cache)
        return self.qformer.head(rows.unpack(states)[:, -1])

    def select(self, rows: Tensor, per_image: int = 1) -> None:
        """Continues with the texts `rows` (R',): see `decoding.Step`."""
        self.cache.select(rows)
