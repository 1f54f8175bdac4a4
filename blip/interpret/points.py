"""The named points inside a model, and the shape in which `blip.trace` reads and edits each.

    image.L.in, image.L.mlp, image.L.out         (B, 1+N, D) states of block L: before it, what its MLP adds, after it
    image.L.attn.{q,k,v,z}                       (B, H, 1+N, d); z is the result of a head, before the output projection
    image.L.attn.pattern                         (B, H, 1+N, 1+N), rows sum to one
    text.L.in, text.L.mlp, text.L.out            (R, T, D) of text layer L; mlp before the residual and its norm
    text.L.self.{q,k,v,z}                        (R, H, T, d)
    text.L.self.pattern                          (R, H, T, T)
    text.L.cross.{q,z}                           (R, H, T, d)
    text.L.cross.{k,v}                           (B, H, 1+N, d) of the images that are attended to
    text.L.cross.pattern                         (R, H, T, 1+N)
    decoder.L.*                                  the same of the text decoder, also of layers shared with the encoder
    qformer.L.*                                  the same of the Q-Former, for T the Q queries, T tokens or Q+T of both;
                                                 `cross` is of the queries, in some layers; `mlp` is of the texts
    qformer.L.query_mlp                          (R, Q, D) what the queries' own network adds
    queries                                      (R, Q, D) of the last layer: matched, or shown to a language model

B images of N patches, R texts of T tokens, D width, H heads of width d. Padding is zero. The last layer runs for
`[ENC]` alone where nothing else is needed (matching): T is 1 there; of an image whose CLS alone is needed
(`encode_image`) the last block gives one row. In NLVR2 `cross` is `cross.first` and `cross.second`, one for each image.
In VQA the decoder attends to the T tokens of the question instead of an image. With a cache, T counts the new tokens;
so it does where the Q-Former writes, which reads the keys and values of the queries of an earlier pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from einops import rearrange
from torch import Tensor, nn

from blip.network.attention import Attention
from blip.network.cross_attention import LayerImages, LayerKeys, PairCrossAttention
from blip.network.med import Layer
from blip.network.packing import OneToken, TokenLayout
from blip.network.qformer import QFormer, QFormerLayer
from blip.network.query_rows import QueriesAndText
from blip.network.vit import Block

STATES = ("in", "mlp", "out")
ATTENTION_POINTS = ("q", "k", "v", "z", "pattern")
STACKS = {
    "image": ("image_encoder", "blocks"),
    "text": ("text_encoder", "layers"),
    "decoder": ("text_decoder", "layers"),
    "qformer": ("qformer", "layers"),
}
QUERIES = "queries"  # the point behind the last layer of the Q-Former
AnyLayer = Block | Layer | QFormerLayer


def is_state(point: str) -> bool:
    """Whether a point has states, (R, T, D); the points of an attention have heads."""
    return point.rpartition(".")[2] not in ATTENTION_POINTS


def layers_of(model: nn.Module) -> Iterator[tuple[str, AnyLayer]]:
    """("image.0", its block), ... ("decoder.11", its layer), of the stacks that the model has."""
    for stack, (part, attribute) in STACKS.items():
        if hasattr(model, part):
            for number, layer in enumerate(getattr(getattr(model, part), attribute)):
                yield f"{stack}.{number}", layer


def attentions(layer: AnyLayer) -> dict[str, Attention]:
    """The attention of a layer by what follows the layer's name: `attn`, or `self` and `cross`."""
    if isinstance(layer, Block):
        return {"attn": layer.attention}
    found = {"self": cast(Attention, layer.self_attention.attention)}
    cross = layer.cross_attention
    if cross is None:
        return found
    if isinstance(cross, PairCrossAttention):
        return found | {"cross.first": cross.first.attention, "cross.second": cross.second.attention}
    return found | {"cross": cross.attention}


def mlps_of(layer: AnyLayer) -> dict[str, nn.Module]:
    """By point, the modules whose output is what a feed-forward network adds, before residual and norm."""
    if isinstance(layer, Block):
        return {"mlp": layer.mlp}
    found: dict[str, nn.Module] = {}
    if isinstance(layer, QFormerLayer):
        found["query_mlp"] = layer.query_feed_forward.down
    if hasattr(layer, "feed_forward"):
        found["mlp"] = layer.feed_forward.down
    return found


def queries_of(model: nn.Module) -> nn.Module | None:
    """The module whose output is the point `queries`."""
    qformer = getattr(model, "qformer", None)
    return qformer.out if isinstance(qformer, QFormer) else None


def names_of(model: nn.Module) -> list[str]:
    """Every name that a model has, in the order in which it computes them."""
    found = []
    for name, layer in layers_of(model):
        inside = [f"{site}.{point}" for site in attentions(layer) for point in ATTENTION_POINTS]
        found += [f"{name}.{point}" for point in ("in", *inside, *mlps_of(layer), "out")]
    return found if queries_of(model) is None else [*found, QUERIES]


class Layout(Protocol):
    """The order of a tensor in memory, and how it is brought to the shape in the table above and back."""

    def grid(self, x: Tensor) -> Tensor:
        """From memory to the shape of the table."""

    def flat(self, x: Tensor) -> Tensor:
        """From the shape of the table to memory."""


class AsItIs:
    """Memory already has the shape of the table."""

    def grid(self, x: Tensor) -> Tensor:
        return x

    def flat(self, x: Tensor) -> Tensor:
        return x


@dataclass
class States:
    """States of texts: (P, D) in memory, (R, T, D) in the table; P tokens without padding."""

    rows: TokenLayout | OneToken

    def grid(self, x: Tensor) -> Tensor:
        x = self.rows.unpack(x)
        return x if isinstance(self.rows, OneToken) else _without_padding(x, self.rows.real)

    def flat(self, x: Tensor) -> Tensor:
        return self.rows.pack(x)


@dataclass
class OwnTokens:
    """Queries or results of self-attention: (R, H, T, e) in both; padding is read as zero."""

    rows: TokenLayout | OneToken

    def grid(self, x: Tensor) -> Tensor:
        if isinstance(self.rows, OneToken) or self.rows.real is None:
            return x
        return x * self.rows.real[:, None, :, None]

    def flat(self, x: Tensor) -> Tensor:
        return x


@dataclass
class CrossQueries:
    """Queries or results of cross-attention, where the texts of an image lie side by side.

    In memory (B, H, c*T, e) for c texts an image, or (1, H, P, e) where all texts attend to one image. `real` (R, T)
    marks the tokens of these texts that are not padding.
    """

    rows: TokenLayout | OneToken
    images: int
    packed: bool
    real: Tensor | None

    def grid(self, x: Tensor) -> Tensor:
        if self.packed:
            x = self.rows.unpack(x[0].transpose(0, 1)).transpose(1, 2)
        else:
            tokens = 1 if isinstance(self.rows, OneToken) else self.rows.longest
            x = rearrange(x, "b h (c t) e -> (b c) h t e", t=tokens)
        return x if self.real is None else x * self.real[:, None, :, None]

    def flat(self, x: Tensor) -> Tensor:
        if self.packed:
            return self.rows.pack(x.transpose(1, 2)).transpose(0, 1)[None]
        return rearrange(x, "(b c) h t e -> b h (c t) e", b=self.images)


@dataclass
class LayerPass:
    """One pass of some texts, of queries or of both through one layer."""

    name: str
    rows: TokenLayout
    keys: LayerImages | None
    queries: TokenLayout | OneToken  # of attention and what follows it: all tokens, or the first token of each text
    crossing: TokenLayout | OneToken  # of cross-attention
    texts: TokenLayout | OneToken  # of the texts' feed-forward network

    def layout(self, site: str, images: int, *, earlier: int) -> Layout:
        """The layout of queries at `site`, which attend to `images` images.

        Where `keys.extra` names images, the texts that attend to those are computed first, in a call of their own;
        `earlier` is the number of calls in this pass before the one that is laid out.
        """
        if site == "self":
            return OwnTokens(self.queries)
        extra = self.keys.extra if isinstance(self.keys, LayerKeys) else None
        real = None if isinstance(self.crossing, OneToken) else self.crossing.real
        if extra is None:
            return CrossQueries(self.crossing, images, images == 1 and not isinstance(self.crossing, OneToken), real)
        own = self.rows.count - len(extra)
        part = None if real is None else (real[own:] if earlier == 0 else real[:own])
        return CrossQueries(self.crossing, images, False, part)

    def mlp_layout(self, point: str) -> Layout:
        """The layout at `mlp` or `query_mlp`."""
        return States(self.texts if point == "mlp" else self.crossing)


def pass_of(name: str, layer: AnyLayer, args: tuple, kwargs: dict) -> LayerPass:
    """The pass that is a call of a text layer with these arguments."""
    rows: TokenLayout = args[1]
    out = cast("TokenLayout | OneToken", rows.first_packing) if kwargs.get("first_only") else rows
    if not isinstance(layer, QFormerLayer):
        return LayerPass(name, rows, args[2], out, out, out)
    crossing = kwargs.get("queries") or out
    return LayerPass(
        name, rows, kwargs.get("keys"), out, crossing, rows.texts if isinstance(rows, QueriesAndText) else out
    )


def _without_padding(x: Tensor, real: Tensor | None) -> Tensor:
    return x if real is None else x * real[..., None]
