"""A linear function of a state, followed back through the layers to everything that the state is a sum of.

MED normalises after every sub-layer (post-LN, as BERT): x1 = norm(x + attention). A layer norm is
gain * (u - mean(u)) / scale + bias. With `scale` frozen at the value that was observed it is linear in u, and what u is
a sum of can be told apart. The image encoder normalises before each sub-layer: its residual stream is a plain sum, with
one norm at the end. Everything is computed in float64, so that the parts sum to the score.

Shapes: S scores, each read at one token of one text, D width, H heads, d head width, K keys.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip.interpret.recording import Trace
from blip.network.cross_attention import CrossAttention
from blip.network.embeddings import Embeddings, LMHead
from blip.network.med import FeedForward, SelfAttention, TextTransformer, layers_of
from blip.network.vit import Block, ViT

Attentions = list[tuple[str, SelfAttention | CrossAttention]]  # of a layer, in the order of computation


@dataclass
class Reads:
    """Where S scores are read: the number of the text (or image) and of the token, (S,) each."""

    texts: Tensor
    tokens: Tensor

    def states(self, x: Tensor) -> Tensor:
        """States (R, T, D) -> (S, D), in float64."""
        return x[self.texts, self.tokens].double()

    def heads(self, z: Tensor) -> Tensor:
        """What heads read (R, H, T, e) -> (S, H, e), in float64."""
        return z[self.texts, :, self.tokens].double()


def first_tokens(count: int, device: torch.device) -> Reads:
    """The first token of each of `count` texts or images."""
    return Reads(torch.arange(count, device=device), torch.zeros(count, dtype=torch.long, device=device))


@dataclass
class Walk:
    """score = direction · state + the sum of `parts`, at every point of the way back.

    Args:
        direction: (S, D) in float64.
        reads: where the scores are read.
        parts: (S,) of each component so far.
        sources: (S, H, K) of each attention: what each head took from each key. Only with `by_source`.
    """

    direction: Tensor
    reads: Reads
    by_source: bool = False
    parts: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, vector: Tensor) -> None:
        """The state is a sum in which `vector`, (S, D) or (D,), occurs: it becomes a part, or adds to one."""
        self._give(name, (self.direction * vector.double()).sum(dim=-1))

    def _give(self, name: str, value: Tensor) -> None:
        self.parts[name] = self.parts[name] + value if name in self.parts else value

    def through_norm(self, name: str, norm: nn.LayerNorm, u: Tensor) -> None:
        """From norm(u) back to u (S, D), whose scale is frozen."""
        self.add(name, norm.bias)
        gained = self.direction * norm.weight.double()
        scale = (u.var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        self.direction = (gained - gained.mean(dim=-1, keepdim=True)) / scale

    def through_linear(self, name: str, linear: nn.Linear) -> None:
        """From linear(u) back to u."""
        if linear.bias is not None:
            self.add(name, linear.bias)
        self.direction = self.direction @ linear.weight.double()

    def through_gelu(self, u: Tensor) -> None:
        """From gelu(u) = u · Φ(u) back to u (S, D), whose gate Φ(u) is frozen."""
        self.direction = self.direction * torch.special.ndtr(u)

    def split_heads(self, name: str, out: nn.Linear, *, t: Trace, site: str, bias: str) -> None:
        """The output of an attention becomes a part for each head, and its bias one.

        Args:
            name: of the parts, `NAME.head.0` and so on.
            site: of the attention in the trace, such as `text.0.self`.
            bias: the part that the output's bias adds to.
        """
        z = self.reads.heads(t[f"{site}.z"])  # (S, H, d)
        self.add(bias, out.bias)
        per_head = (self.direction @ out.weight.double()).unflatten(1, z.shape[1:])  # (S, H, d)
        each = (per_head * z).sum(dim=2).unbind(dim=1)
        for head, value in reversed(list(enumerate(each))):  # as everything here, from the end
            self._give(f"{name}.head.{head}", value)
        if self.by_source:
            values = t[f"{site}.v"].double()[self.reads.texts]  # (S, H, K, d)
            pattern = self.reads.heads(t[f"{site}.pattern"])  # (S, H, K)
            self.sources[name] = pattern * (values @ per_head[..., None]).squeeze(-1)


# ---- MED -------------------------------------------------------------------------------------------------------------


def through_text(walk: Walk, t: Trace, transformer: TextTransformer, *, stack: str, ids: Tensor, images: bool) -> None:
    """From the states after the last layer of `stack` to the embeddings of ids (R, T), which are split as well.

    `images`: the texts attend to an image, or to a question.
    """
    for number, layer in reversed(list(enumerate(layers_of(transformer)))):
        attentions: Attentions = [("self", layer.self_attention)]
        if images:
            attentions.append(("cross", layer.cross_attention))  # type: ignore[arg-type]
        through_layer(walk, t, attentions, layer.feed_forward, point=f"{stack}.{number}")
    through_words(walk, transformer.embeddings, stack=stack, ids=ids)  # type: ignore[arg-type]


def through_words(walk: Walk, embeddings: Embeddings, *, stack: str, ids: Tensor) -> None:
    """From what enters the first layer to the embeddings of ids (R, T) and of their positions."""
    words = embeddings.words(ids[walk.reads.texts, walk.reads.tokens]).double()
    positions = embeddings.positions(walk.reads.tokens).double()
    walk.through_norm(f"{stack}.embedding.bias", embeddings.norm, words + positions)
    walk.add(f"{stack}.embedding.position", positions)
    walk.add(f"{stack}.embedding.word", words)


def through_layer(
    walk: Walk, t: Trace, attentions: Attentions, feed_forward: FeedForward, *, point: str, mlp: str = "mlp",
    name: str = "",
) -> None:  # fmt: skip
    """Back through norm(x + feed-forward) and norm(x + attention) of each attention, the last one first.

    Args:
        point: the layer in the trace, such as `text.0`; `mlp` is its feed-forward network there.
        name: of the parts, the same unless given.
    """
    name = name or point
    reads, bias = walk.reads, f"{name}.bias"
    before = [reads.states(t[f"{point}.in"])]  # what enters each sub-layer, (S, D) each
    sums = []  # what each sub-layer normalises
    for site, attention in attentions:
        z = reads.heads(t[f"{point}.{site}.z"]).flatten(1)
        sums.append(before[-1] + linear(attention.out, z))
        before.append(normed(attention.norm, sums[-1]))
    added_by_mlp, down = reads.states(t[f"{point}.{mlp}"]), feed_forward.down
    walk.through_norm(bias, feed_forward.norm, before[-1] + added_by_mlp)
    walk.add(f"{name}.{mlp}", added_by_mlp - down.bias.double())
    walk.add(bias, down.bias)
    for (site, attention), added in reversed(list(zip(attentions, sums, strict=True))):
        walk.through_norm(bias, attention.norm, added)
        walk.split_heads(f"{name}.{site}", attention.out, t=t, site=f"{point}.{site}", bias=bias)


def through_word_head(walk: Walk, head: LMHead, states: Tensor, *, name: str) -> None:
    """From what is multiplied with the words' embeddings back to the states (S, D); `name` is the part of biases."""
    before = linear(head.transform, states)
    walk.through_norm(name, head.norm, F.gelu(before))
    walk.through_gelu(before)
    walk.through_linear(name, head.transform)


# ---- the image encoder -----------------------------------------------------------------------------------------------


def through_image(walk: Walk, t: Trace, encoder: ViT) -> None:
    """From the normed state of CLS after the last block to its embedding. The residual stream needs no other norm."""
    blocks: list[Block] = list(encoder.blocks)  # type: ignore[arg-type]
    if encoder.picture_embeddings is not None:  # added to the last states; an only picture has the first
        walk.add("image.embedding.picture", encoder.picture_embeddings.vectors[0])
    walk.through_norm("image.bias", encoder.norm, walk.reads.states(t[f"image.{len(blocks) - 1}.out"]))
    for number, block in reversed(list(enumerate(blocks))):
        name = f"image.{number}"
        down: nn.Linear = block.mlp[2]  # type: ignore[assignment]
        walk.add(f"{name}.mlp", walk.reads.states(t[f"{name}.mlp"]) - down.bias.double())
        walk.add(f"{name}.bias", down.bias)
        walk.split_heads(f"{name}.attn", block.proj, t=t, site=f"{name}.attn", bias=f"{name}.bias")
    cls, position = encoder.cls_token[0, 0], encoder.positions[0, 0]
    if isinstance(encoder.first_norm, nn.LayerNorm):
        before = (cls + position).double().expand(len(walk.direction), -1)
        walk.through_norm("image.embedding.bias", encoder.first_norm, before)
    walk.add("image.embedding.position", position)
    walk.add("image.embedding.cls", cls)


def image_output(encoder: ViT, x: Tensor) -> Tensor:
    """What the image encoder gives of the states (S, D) of an only picture after its last block, in float64."""
    x = normed(encoder.norm, x)
    return x if encoder.picture_embeddings is None else x + encoder.picture_embeddings.vectors[0].double()


# ---- in float64 ------------------------------------------------------------------------------------------------------


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer, computed in float64."""
    return F.linear(x, layer.weight.double(), None if layer.bias is None else layer.bias.double())


def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A layer norm, computed in float64."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight.double(), norm.bias.double(), norm.eps)
