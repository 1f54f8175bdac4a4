"""How a text attends to an image, or to two: the keys and values of the image, or its states in their place.

Read `CrossAttention` first, then the two forms that an image can have: `ProjectedKeys` and `ImageStates`. A layer of
the text transformer is handed what it attends to itself, `LayerKeys` or the states: it does not know its own number.

Shapes: R texts (rows), c of an image, T tokens of the longest, P tokens in memory, D width, H heads, d head width,
B images, N image tokens, e width of the image's states, E images named by `ProjectedKeys.extra`.
"""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn

from blip.network.attention import Attention
from blip.network.embeddings import TextConfig
from blip.network.packing import Keys, Packing


class ImageAttention(nn.Module):
    """out(attention(x, image)), the part that attention to one image and to two have in common."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.width, config.width)
        self.k = nn.Linear(config.image_width, config.width)
        self.v = nn.Linear(config.image_width, config.width)
        self.attention = Attention(config.dropout)
        self.out = nn.Linear(config.width, config.width)

    def image_keys(self, states: Tensor) -> Keys:
        """(B, N, e) -> keys and values (B, H, N, d)."""
        k, v = (rearrange(proj(states), "b n (h d) -> b h n d", h=self.heads) for proj in (self.k, self.v))
        return k, v

    def attend_to_keys(self, q: Tensor, keys: Keys, mask: Tensor | None) -> Tensor:
        """Queries (B*c, T, D) -> (B*c, T, D): the c texts of an image lie side by side on the query axis.

        Keys and values (B, H, N, d) each; `mask` (B, N) is True at the keys that may be attended to.
        """
        k, v = keys
        images, width = len(k), q.shape[1]
        q = rearrange(q, "(b c) t (h d) -> b h (c t) d", b=images, h=self.heads)
        z = self.attention(q, k, v, None if mask is None else mask[:, None, None])
        return rearrange(z, "b h (c t) d -> (b c) t (h d)", t=width)

    def attend_to_states(self, q: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (B*c, T, D) -> (B*c, T, D), with the projections of keys and values on the side of the queries.

        states (B, N, e). q (W s) = (q W) s: a state is key and value itself, for all heads. The keys' bias adds the
        same to all scores of a query, which the soft-max takes out; the values' bias comes through as it is, since a
        pattern sums to one.
        """
        width, per_head = q.shape[1], q.shape[2] // self.heads
        w_k, w_v = (rearrange(proj.weight, "(h d) e -> h d e", h=self.heads) for proj in (self.k, self.v))
        q = rearrange(q, "r t (h d) -> h (r t) d", h=self.heads) * per_head**-0.5
        q = rearrange(q @ w_k, "h (b m) e -> b (h m) e", b=len(states))  # m = c*t tokens of an image
        scores = (q @ states.transpose(1, 2)).float()  # (B, H*m, N)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        z = scores.softmax(dim=-1).to(states.dtype) @ states
        z = rearrange(z, "b (h m) e -> h (b m) e", h=self.heads) @ w_v.transpose(1, 2)
        return rearrange(z, "h (r t) d -> r t (h d)", t=width) + self.v.bias

    def can_attend_to_states(self, tokens: int) -> bool:
        """Whether `tokens` tokens an image are few enough for `attend_to_states`, and nothing rules it out.

        Keys and values of N states cost 4 N D^2 multiply-adds; a token that attends to states instead costs about
        2 N H D more than one that attends to keys. The limit is therefore near 2 D / H, and D / H leaves room for the
        larger attention.
        """
        wrapped = any(type(proj) is not nn.Linear for proj in (self.k, self.v))  # an adapter is more than its weight
        watched = any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())
        return tokens < self.q.out_features // self.heads and not (self.training or wrapped or watched)


# ---- what texts attend to --------------------------------------------------------------------------------------------


@dataclass
class ProjectedKeys:
    """Keys and values of B images for every layer, projected once for all texts that attend to them.

    Rows that share an image lie side by side on the query axis, because cross-attention has no mask on its queries: no
    key is ever repeated. Which row attends to which image follows from the order of the rows:

        B*c rows              row r attends to image r // c
        E rows with `extra`   the last E rows of all; row i of these attends to image `extra[i]`

    so that a text can be shown another text's image without projecting that image again.
    """

    layers: list[Keys]
    mask: Tensor | None = None  # (B, N), True at the keys that may be attended to; None: at all of them
    extra: Tensor | None = None  # (E,) numbers of images

    def __len__(self) -> int:
        """B, the images."""
        return len(self.layers[0][0])

    @property
    def device(self) -> torch.device:
        return self.layers[0][0].device

    def with_extra(self, images: Tensor) -> "ProjectedKeys":
        """The same keys, where the last E rows attend to `images` (E,); E may be all rows."""
        return replace(self, extra=images)

    def select(self, images: Tensor) -> "ProjectedKeys":
        """Those of `images` (B',), in that order, without `extra`."""
        layers = [(k.index_select(0, images), v.index_select(0, images)) for k, v in self.layers]
        return ProjectedKeys(layers, None if self.mask is None else self.mask.index_select(0, images))

    def of_layer(self, number: int) -> "LayerKeys":
        """What the layer of this number attends to."""
        return LayerKeys(self.layers[number], self.mask, self.extra)


@dataclass
class LayerKeys:
    """Keys and values of B images for one layer; the rest as in `ProjectedKeys`."""

    keys: Keys
    mask: Tensor | None = None
    extra: Tensor | None = None

    def attend(self, attention: ImageAttention, x: Tensor, rows: Packing) -> Tensor:
        """Texts x (P, D) -> what they read from the images (P, D), before the output projection."""
        images = len(self.keys[0])
        if self.extra is None and images == 1:  # one image for all tokens: they lie side by side in memory already
            return attention.attend_to_keys(attention.q(x)[None], self.keys, self.mask)[0]
        q = rows.unpack(attention.q(x))  # (R, T, D)
        if self.extra is None:
            return rows.pack(attention.attend_to_keys(q, self.keys, self.mask))
        q_own, q_extra = q.split([len(q) - len(self.extra), len(self.extra)])
        mask = None if self.mask is None else self.mask.index_select(0, self.extra)
        z = attention.attend_to_keys(q_extra, _select(self.keys, self.extra), mask)
        if len(q_own):
            z = torch.cat([attention.attend_to_keys(q_own, self.keys, self.mask), z])
        return rows.pack(z)


@dataclass
class ImageStates:
    """States of B images, used in place of projected keys: faster where only few tokens attend to an image.

    B*c rows of text: row r attends to image r // c.
    """

    states: Tensor  # (B, N, e)
    mask: Tensor | None = None  # (B, N), True at the states that may be attended to; None: at all of them

    def __len__(self) -> int:
        """B, the images."""
        return len(self.states)

    @property
    def device(self) -> torch.device:
        return self.states.device

    def select(self, images: Tensor) -> "ImageStates":
        """Those of `images` (B',), in that order."""
        mask = None if self.mask is None else self.mask.index_select(0, images)
        return ImageStates(self.states.index_select(0, images), mask)

    def of_layer(self, number: int) -> "ImageStates":
        """What the layer of this number attends to: all layers attend to the same states."""
        return self

    def attend(self, attention: ImageAttention, x: Tensor, rows: Packing) -> Tensor:
        """Texts x (P, D) -> what they read from the states (P, D), before the output projection."""
        return rows.pack(attention.attend_to_states(rows.unpack(attention.q(x)), self.states, self.mask))


ImageKeys = ProjectedKeys | ImageStates


@dataclass
class PairKeys:
    """Keys of the first image of each of B pairs, and of the second: each has projections of its own."""

    first: ProjectedKeys
    second: ProjectedKeys

    def of_layer(self, number: int) -> "PairLayerKeys":
        """What the layer of this number attends to."""
        return PairLayerKeys(self.first.of_layer(number), self.second.of_layer(number))


@dataclass
class PairLayerKeys:
    """`PairKeys` for one layer."""

    first: LayerKeys
    second: LayerKeys


LayerImages = LayerKeys | ImageStates | PairLayerKeys


# ---- the layers ------------------------------------------------------------------------------------------------------


class CrossAttention(ImageAttention):
    """norm(x + out(attention(x, image)))."""

    def __init__(self, config: TextConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x: Tensor, rows: Packing, keys: LayerKeys | ImageStates) -> Tensor:
        """(P, D) -> (P, D)."""
        return self.norm(x + self.dropout(self.out(keys.attend(self, x, rows))))


class PairCrossAttention(nn.Module):
    """norm(x + both(attention(x, image 0), attention(x, image 1))): each image has projections of its own (NLVR2).

    What is read from the two is averaged, or with `merge` put side by side and projected back to one width.
    """

    def __init__(self, config: TextConfig, merge: bool):
        super().__init__()
        self.first, self.second = ImageAttention(config), ImageAttention(config)
        self.merge = nn.Linear(2 * config.width, config.width) if merge else None
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x: Tensor, rows: Packing, keys: PairLayerKeys) -> Tensor:
        """(P, D) -> (P, D)."""
        first = self.first.out(keys.first.attend(self.first, x, rows))
        second = self.second.out(keys.second.attend(self.second, x, rows))
        both = (first + second) / 2 if self.merge is None else self.merge(torch.cat([first, second], dim=-1))
        return self.norm(x + self.dropout(both))


FIRST_MERGED = 6  # of the layers that attend to two images; the published model averages below


def cross_attention(config: TextConfig, layer: int) -> CrossAttention | PairCrossAttention:
    """The cross-attention of layer number `layer`, to one image or two, as `TextConfig.images` sets."""
    return CrossAttention(config) if config.images == 1 else PairCrossAttention(config, merge=layer >= FIRST_MERGED)


def _select(keys: Keys, images: Tensor) -> Keys:
    """Keys and values (B, H, N, d) at `images` (E,) -> (E, H, N, d) each.

    They lie in memory as (B, N, H, d), and are copied in that order.
    """
    k, v = (x.transpose(1, 2).index_select(0, images).transpose(1, 2) for x in keys)
    return k, v
