"""What a text sees of an image, or of two: keys and values of the image, or the image's states themselves.

Shapes: R texts (rows), c of an image, T tokens of the longest, P tokens in memory, D width, H heads, d head width,
B images, N image tokens, e width of the image's states, E images named by `ImageKeys.extra`.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from blip.network.attention import Attention
from blip.network.embeddings import TextConfig
from blip.network.packing import ImageKeys, Keys, OneToken, Rows


class ImageAttention(nn.Module):
    """out(attention(x, image)): what a text sees of an image."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.width, config.width)
        self.k = nn.Linear(config.image_width, config.width)
        self.v = nn.Linear(config.image_width, config.width)
        self.attention = Attention(config.dropout)
        self.out = nn.Linear(config.width, config.width)

    def project(self, states: Tensor) -> Keys:
        """(B, N, image_width) -> keys and values (B, H, N, d)."""
        k, v = (rearrange(proj(states), "b n (h d) -> b h n d", h=self.heads) for proj in (self.k, self.v))
        return k, v

    def see(self, x: Tensor, rows: Rows | OneToken, keys: Keys | None, images: ImageKeys) -> Tensor:
        """(P, D) -> (P, D), looking at the keys and values of a layer; who looks at which image: see `ImageKeys`."""
        if keys is None:
            return self.out(rows.pack(self.see_states(rows.unpack(self.q(x)), images)))
        (k, v), extra, mask = keys, images.extra, images.mask
        if extra is None and len(k) == 1:  # all tokens look at one image: they lie side by side as they are
            return self.out(self._side_by_side(self.q(x)[None], k, v, mask)[0])
        q = rows.unpack(self.q(x))  # (R, T, D)
        if extra is None:
            z = self._side_by_side(q, k, v, mask)
        else:
            own, q_extra = q.split([len(q) - len(extra), len(extra)])
            extra_mask = None if mask is None else mask.index_select(0, extra)
            z = self._side_by_side(q_extra, _select(k, extra), _select(v, extra), extra_mask)
            if len(own):
                z = torch.cat([self._side_by_side(own, k, v, mask), z])
        return self.out(rows.pack(z))

    def _side_by_side(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B*c, T, D) -> (B*c, T, D): the c texts of an image side by side on the query axis."""
        images, width = len(k), q.shape[1]
        q = rearrange(q, "(b c) t (h d) -> b h (c t) d", b=images, h=self.heads)
        z = self.attention(q, k, v, None if mask is None else mask[:, None, None])
        return rearrange(z, "b h (c t) d -> (b c) t (h d)", t=width)

    def can_see_states(self, tokens: int) -> bool:
        """Whether `tokens` tokens an image are few enough for `see_states`, and nothing hinders it.

        Keys and values of N states cost 4 N D^2 multiply-adds, a token that looks at states instead about 2 N H D more
        than one that looks at keys; so the border is near 2 D / H, and D / H leaves room for the larger attention.
        """
        wrapped = any(type(proj) is not nn.Linear for proj in (self.k, self.v))  # an adapter is more than its weight
        watched = any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())
        return tokens < self.q.out_features // self.heads and not (self.training or wrapped or watched)

    def see_states(self, q: Tensor, images: ImageKeys) -> Tensor:
        """Queries (B*c, T, D) -> (B*c, T, D), with the projections of keys and values on the side of the queries.

        q (W s) = (q W) s: a state is key and value itself, for all heads. The keys' bias adds the same to all scores of
        a query, which the soft-max takes out; the values' bias comes through as it is, since a pattern sums to one.
        """
        states, width, per_head = images.states, q.shape[1], q.shape[2] // self.heads
        assert states is not None
        w_k, w_v = (rearrange(proj.weight, "(h d) e -> h d e", h=self.heads) for proj in (self.k, self.v))
        q = rearrange(q, "r t (h d) -> h (r t) d", h=self.heads) * per_head**-0.5
        q = rearrange(q @ w_k, "h (b m) e -> b (h m) e", b=len(states))  # m = c*t tokens of an image
        scores = (q @ states.transpose(1, 2)).float()  # (B, H*m, N)
        if images.mask is not None:
            scores = scores.masked_fill(~images.mask[:, None], float("-inf"))
        z = scores.softmax(dim=-1).to(states.dtype) @ states
        z = rearrange(z, "b (h m) e -> h (b m) e", h=self.heads) @ w_v.transpose(1, 2)
        return rearrange(z, "h (r t) d -> r t (h d)", t=width) + self.v.bias


class CrossAttention(ImageAttention):
    """norm(x + out(attention(x, image)))."""

    def __init__(self, config: TextConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, x: Tensor, rows: Rows | OneToken, keys: ImageKeys, index: int) -> Tensor:
        """(P, D) -> (P, D), looking at the keys of layer `index`."""
        return self.norm(x + self.dropout(self.see(x, rows, keys.of_layer(index), keys)))


class PairCrossAttention(nn.Module):
    """norm(x + both(attention(x, image 0), attention(x, image 1))): each image has projections of its own (NLVR2).

    What was seen in the two is averaged, or with `merge` put side by side and brought back to one width.
    """

    def __init__(self, config: TextConfig, merge: bool):
        super().__init__()
        self.first, self.second = ImageAttention(config), ImageAttention(config)
        self.merge = nn.Linear(2 * config.width, config.width) if merge else None
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)

    def project(self, states: Tensor) -> Keys:
        """(B, 2, N, image_width) -> keys and values (B, 2, H, N, d)."""
        (k, v), (k_second, v_second) = self.first.project(states[:, 0]), self.second.project(states[:, 1])
        return torch.stack([k, k_second], dim=1), torch.stack([v, v_second], dim=1)

    def can_see_states(self, tokens: int) -> bool:
        return False

    def forward(self, x: Tensor, rows: Rows | OneToken, keys: ImageKeys, index: int) -> Tensor:
        """(P, D) -> (P, D), looking at the keys of layer `index`."""
        k, v = keys.layers[index]
        first = self.first.see(x, rows, (k[:, 0], v[:, 0]), keys)
        second = self.second.see(x, rows, (k[:, 1], v[:, 1]), keys)
        both = (first + second) / 2 if self.merge is None else self.merge(torch.cat([first, second], dim=-1))
        return self.norm(x + self.dropout(both))


FIRST_MERGED = 6  # of the layers that look at two images; the published model averages below


def cross_attention(config: TextConfig, layer: int) -> CrossAttention | PairCrossAttention:
    """The cross-attention of layer number `layer`, to as many images as the configuration says."""
    return CrossAttention(config) if config.images == 1 else PairCrossAttention(config, merge=layer >= FIRST_MERGED)


def _select(x: Tensor, images: Tensor) -> Tensor:
    """x (B, H, N, d) at `images` (E,) -> (E, H, N, d). It lies in memory as (B, N, H, d) and is copied so."""
    return x.transpose(1, 2).index_select(0, images).transpose(1, 2)
