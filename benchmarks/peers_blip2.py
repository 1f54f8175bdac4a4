"""The first stage of BLIP-2 as published (Li et al. 2023, section 3.2): the peer of `blip2_stage1.py`.

It is the plain algorithm: a pass of the queries with an image, one of the text, one of both over three rows a pair with
the image's states repeated, and one of the text behind the keys that the first pass kept. Each projects the image's
states anew, every text is padded to one length, every token of the last layer is computed, the soft-max is written out
and masks are added to it. Parameters have the names of this package, so that both sides load the same weights.

Shapes: B pairs, R rows, T text tokens, N image tokens, Q queries, S = Q+T, D width, H heads, E embedding width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip.network.qformer import QFormerConfig
from blip.network.vit import ViT, ViTConfig

MASKED = -10000.0
Keys = tuple[Tensor, Tensor]


class PlainAttention(nn.Module):
    """norm(x + out(attention)) with a written-out soft-max."""

    def __init__(self, width: int, heads: int, width_seen: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width_seen, width), nn.Linear(width_seen, width)
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)

    def forward(
        self, x: Tensor, seen: Tensor, mask: Tensor | None = None, past: Keys | None = None
    ) -> tuple[Tensor, Keys]:
        """x (R, S, D) attends to `seen` (R, N, e), behind `past`; `mask` (R, 1, S or 1, N) is added to the scores."""
        q, k, v = (self.split(proj(y)) for proj, y in ((self.q, x), (self.k, seen), (self.v, seen)))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        if mask is not None:
            scores = scores + mask
        z = (scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2)
        return self.norm(x + self.out(z)), (k, v)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class PlainFeedForward(nn.Module):
    """norm(x + W2 gelu(W1 x))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(F.gelu(self.up(x))))


class PlainLayer(nn.Module):
    """A layer over queries, text or both."""

    def __init__(self, sizes: QFormerConfig, number: int):
        super().__init__()
        self.self_attention = PlainAttention(sizes.width, sizes.heads, sizes.width)
        self.cross_attention = None
        if number % sizes.cross_every == 0:
            self.cross_attention = PlainAttention(sizes.width, sizes.heads, sizes.image_width)
        self.query_feed_forward = PlainFeedForward(sizes.width, sizes.hidden)
        self.feed_forward = PlainFeedForward(sizes.width, sizes.hidden)

    def forward(
        self, x: Tensor, mask: Tensor | None, *, queries: int, image: Tensor | None, past: Keys | None
    ) -> tuple[Tensor, Keys]:
        """x (R, S, D), of which the first `queries` are queries of `image` (R, N, e)."""
        x, keys = self.self_attention(x, x, mask, past)
        if queries == 0:
            return self.feed_forward(x), keys
        q, text = x[:, :queries], x[:, queries:]
        if self.cross_attention is not None and image is not None:
            q, _ = self.cross_attention(q, image)
        q = self.query_feed_forward(q)
        return (torch.cat([q, self.feed_forward(text)], dim=1) if text.shape[1] else q), keys


class PlainEmbeddings(nn.Module):
    """Of queries and text."""

    def __init__(self, sizes: QFormerConfig):
        super().__init__()
        self.words = nn.Embedding(sizes.vocab_size, sizes.width, padding_idx=0)
        self.positions = nn.Embedding(sizes.max_positions, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, eps=1e-12)

    def forward(self, queries: Tensor | None, ids: Tensor | None) -> Tensor:
        parts = [] if queries is None else [queries]
        if ids is not None:
            parts.append(self.words(ids) + self.positions.weight[: ids.shape[1]])
        return self.norm(torch.cat(parts, dim=1))


class PlainHead(nn.Module):
    """BERT's prediction head; its matrix is the word embedding."""

    def __init__(self, sizes: QFormerConfig, words: nn.Embedding):
        super().__init__()
        self.transform, self.norm = nn.Linear(sizes.width, sizes.width), nn.LayerNorm(sizes.width, eps=1e-12)
        self.words, self.bias = words, nn.Parameter(torch.zeros(sizes.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.transform(x))), self.words.weight, self.bias)


class PlainQFormer(nn.Module):
    """One pass over queries, text or both."""

    def __init__(self, sizes: QFormerConfig):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, sizes.queries, sizes.width))
        self.embeddings = PlainEmbeddings(sizes)
        self.layers = nn.ModuleList([PlainLayer(sizes, number) for number in range(sizes.layers)])
        self.head = PlainHead(sizes, self.embeddings.words)

    def forward(
        self,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        image: Tensor | None = None,
        *,
        past: list[Keys] | None = None,
    ) -> tuple[Tensor, list[Keys]]:
        """ids (R, T) and `image` (R, N, e), or one of them, -> states (R, S, D), and the keys of each layer."""
        queries = None if image is None else self.queries.expand(len(image), -1, -1)
        x, kept = self.embeddings(queries, ids), []
        for number, layer in enumerate(self.layers):
            count, before = (0 if queries is None else queries.shape[1]), (None if past is None else past[number])
            x, keys = layer(x, mask, queries=count, image=image, past=before)
            kept.append(keys)
        return x, kept


class PublishedBlip2(nn.Module):
    """Stage 1 in one process. The image encoder is the module of ours, frozen but for its final norm."""

    def __init__(self, vit: ViTConfig, sizes: QFormerConfig, pad: int, dec: int, embed_dim: int):
        super().__init__()
        self.pad, self.dec = pad, dec
        self.image_encoder = ViT(vit)
        self.qformer = PlainQFormer(sizes)
        self.image_proj, self.text_proj = nn.Linear(sizes.width, embed_dim), nn.Linear(sizes.width, embed_dim)
        self.itm_head = nn.Linear(sizes.width, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def forward(
        self, images: Tensor, ids: Tensor, draw: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """images (B, 3, height, width), ids (B, T) padded -> ITC, ITM and LM losses."""
        real = (ids != self.pad).float()  # (B, T)
        states = self.image_encoder(images)
        seen, past = self.qformer(image=states)
        text, _ = self.qformer(ids, (1 - real)[:, None, None] * MASKED)
        image_features = F.normalize(self.image_proj(seen), dim=-1)  # (B, Q, E)
        text_features = F.normalize(self.text_proj(text[:, 0]), dim=-1)
        other_images, other_texts = image_features.detach(), text_features.detach()
        image_to_text = torch.einsum("bqe,ce->bcq", image_features, other_texts).amax(dim=2) / self.temperature
        text_to_image = torch.einsum("be,cqe->bcq", text_features, other_images).amax(dim=2) / self.temperature
        own = torch.arange(len(ids), device=ids.device)
        itc = F.cross_entropy(image_to_text, own, label_smoothing=0.1)
        itc = (itc + F.cross_entropy(text_to_image, own, label_smoothing=0.1)) / 2
        itm = self.match(ids, real, states, image_to_text=image_to_text, text_to_image=text_to_image, draw=draw)
        return itc, itm, self.language_model(ids, real, past)

    def match(
        self,
        ids: Tensor,
        real: Tensor,
        states: Tensor,
        *,
        image_to_text: Tensor,
        text_to_image: Tensor,
        draw: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """ITM of 3B rows: matched, (text, hard image), (hard text, image)."""
        count, width = len(ids), self.qformer.queries.shape[1]
        with torch.no_grad():
            weights = [F.softmax(s.clone().fill_diagonal_(MASKED), dim=1) for s in (text_to_image, image_to_text)]
            (hard_image, _), (hard_text, _) = (draw(w.fill_diagonal_(0)) for w in weights)
        all_ids, all_real = torch.cat([ids, ids, ids[hard_text]]), torch.cat([real, real, real[hard_text]])
        all_states = torch.cat([states, states[hard_image], states])
        all_real = torch.cat([all_real.new_ones(3 * count, width), all_real], dim=1)
        both, _ = self.qformer(all_ids, (1 - all_real)[:, None, None] * MASKED, all_states)
        logits = self.itm_head(both[:, :width]).mean(dim=1)
        labels = (torch.arange(3 * count, device=ids.device) < count).long()
        return F.cross_entropy(logits, labels)

    def language_model(self, ids: Tensor, real: Tensor, past: list[Keys]) -> Tensor:
        """LM of the texts behind the keys of the queries."""
        first = ids.clone()
        first[:, 0] = self.dec
        length, width = ids.shape[1], self.qformer.queries.shape[1]
        earlier = real.new_ones(length, length).tril() * real[:, None]  # (B, T, T)
        allowed = torch.cat([earlier.new_ones(len(ids), length, width), earlier], dim=2)[:, None]
        written, _ = self.qformer(first, (1 - allowed) * MASKED, past=past)
        targets = ids.masked_fill(ids == self.pad, -100)
        logits = self.qformer.head(written)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), label_smoothing=0.1)
