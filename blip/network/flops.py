"""Floating-point operations and parameters of a pre-training step, counted from the sizes: 2 operations a multiply-add.

Matrix products, convolution and attention are counted; norms, activations, soft-max and the optimizer are not. A
backward pass costs twice its forward pass. Recomputation is not counted, neither of activations nor inside a fused
attention kernel: operations over time are the useful rate of a machine. `benchmarks/flops.py` counts inference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol


class Vision(Protocol):
    """The sizes that matter here, for example a `ViTConfig`."""

    image_size: int
    patch: int
    width: int
    depth: int
    mlp_ratio: float


class Text(Protocol):
    """The sizes that matter here, for example a `TextConfig`."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    max_positions: int
    image_width: int


@dataclass
class Savings:
    """What a step does not compute; all True is this package, all False is the published algorithm."""

    shared_keys: bool = True  # an image's keys are projected once, not by each of four passes
    packed: bool = True  # no padding in layers that treat each token alone
    one_token: bool = True  # the last layers of ITC, ITM and the twin compute the one token that is read


@dataclass
class ImageTokens:
    """The tokens of an image in a training step, CLS among them."""

    embedded: int  # of the image at its size
    kept: int  # of these, what the blocks of the encoder and texts see; all, unless patches are left out
    twin: int  # what the blocks of the twin see
    pictures: float = 1  # of an item, each of so many tokens; the mean of a batch


@dataclass
class StepFlops:
    """Operations of one step over a batch, forward and backward; the twin's are forward only."""

    image: float
    image_twin: float
    text: float
    text_twin: float
    keys: float  # cross-attention's projections of the image
    match: float
    language: float
    contrast: float  # projections to the embedding and similarities to the queue

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def pretrain_step(
    vision: Vision,
    text: Text,
    lengths: Sequence[int],
    *,
    longest: int | None = None,
    embed_dim: int = 256,
    queue: int = 57600,
    savings: Savings | None = None,
    seen: ImageTokens | None = None,
) -> StepFlops:
    """The cost of one step over pairs whose texts have `lengths` tokens, special ones included.

    `longest`: what texts are padded to, at least the longest of the batch (the default). ITM is counted as three texts
    a pair of these lengths, although the hard texts that are drawn may have others. `seen`: where images are smaller
    than `vision` has them, or patches are left out.
    """
    savings = savings or Savings()
    seen = seen or ImageTokens(*[image_tokens(vision)] * 3)
    kept, embedding, each = seen.kept, patches_forward(vision, seen.embedded), seen.pictures
    pairs, longest = len(lengths), longest or max(lengths)
    tokens = sum(lengths) if savings.packed else pairs * longest
    one = savings.one_token
    image = each * pairs * (embedding + blocks_forward(vision, kept))
    image_twin = each * pairs * (embedding + blocks_forward(vision, seen.twin, cls_only=one))
    alone = text_forward(text, pairs, tokens, longest=longest, first_only=one)
    match = text_forward(text, 3 * pairs, 3 * tokens, longest=longest, image_tokens=each * kept, first_only=one)
    match += 2 * 3 * pairs * text.width * 2  # the head's two classes
    language = text_forward(text, pairs, tokens, longest=longest, image_tokens=each * kept)
    language += head_forward(text, tokens)
    keys = each * pairs * keys_forward(vision, text, kept) * (1 if savings.shared_keys else 4)
    projections = 2 * pairs * embed_dim * (each * vision.width + text.width)
    similarities = 2 * 2 * pairs * embed_dim * (pairs + queue)  # both directions
    # the candidates need no gradient, so the similarities' backward pass costs as much as the forward pass
    contrast = (3 + 1) * projections + (2 + 1) * similarities
    # nor do the pixels
    image_step = 3 * image - each * pairs * embedding
    return StepFlops(image_step, image_twin, 3 * alone, alone, 3 * keys, 3 * match, 3 * language, contrast)


def image_tokens(vision: Vision) -> int:
    """Patches and CLS."""
    return 1 + (vision.image_size // vision.patch) ** 2


def patches_forward(vision: Vision, tokens: int | None = None) -> float:
    """The patch embedding of one image of `tokens` tokens, CLS among them; None: at the size of `vision`."""
    return 2.0 * ((tokens or image_tokens(vision)) - 1) * 3 * vision.patch**2 * vision.width


def vit_forward(vision: Vision, cls_only: bool = False) -> float:
    """One image through the encoder; `cls_only`: the last block needs all keys and values, else CLS alone."""
    return patches_forward(vision) + blocks_forward(vision, image_tokens(vision), cls_only)


def blocks_forward(vision: Vision, tokens: int, cls_only: bool = False) -> float:
    """`tokens` tokens of one image through the blocks."""
    n, d = tokens, vision.width
    per_token = 2 * d * (2 * d + 2 * round(d * vision.mlp_ratio))  # query, output projection, MLP
    keys = 2 * n * 2 * d * d
    block = n * per_token + keys + attention(n, n, d)
    last = per_token + keys + attention(1, n, d) if cls_only else block
    return (vision.depth - 1) * block + last


def text_forward(
    text: Text, rows: int, tokens: int, *, longest: int, image_tokens: float = 0, first_only: bool = False
) -> float:
    """`rows` texts of `tokens` tokens in all; with `image_tokens` they attend to images, without the keys of these.

    Self-attention unfolds to the longest text, packed or not.
    """
    d = text.width
    attends = image_tokens > 0
    per_token = 2 * d * (2 * d + 2 * text.hidden)  # query, output projection, feed-forward
    per_token += attends * 2 * d * 2 * d  # cross-attention's query and output projection
    keys = 2 * tokens * 2 * d * d
    attend = rows * attention(longest, longest, d) + attends * rows * attention(longest, image_tokens, d)
    layer = tokens * per_token + keys + attend
    if not first_only:
        return text.layers * layer
    last = rows * (per_token + attention(1, longest, d) + attends * attention(1, image_tokens, d)) + keys
    return (text.layers - 1) * layer + last


def attention(queries: int, keys: float, width: int) -> float:
    """Scores and the weighted sum of values, all heads together."""
    return 2 * 2.0 * queries * keys * width


def keys_forward(vision: Vision, text: Text, tokens: int | None = None) -> float:
    """Keys and values of one image for every layer's cross-attention; `tokens` as in `patches_forward`."""
    return 2.0 * (tokens or image_tokens(vision)) * text.image_width * 2 * text.width * text.layers


def head_forward(text: Text, tokens: int) -> float:
    """The word head: its transform, then a logit for each word."""
    return 2.0 * tokens * text.width * (text.width + text.vocab_size)


@dataclass
class Parameters:
    """Parameter counts. `decoder` is what the decoder does not share with the encoder: self-attention and the head."""

    image_encoder: int
    text_encoder: int
    decoder: int
    heads: int  # both projections, the match head, the temperature

    @property
    def total(self) -> int:
        return self.image_encoder + self.text_encoder + self.decoder + self.heads


def pretrain_parameters(vision: Vision, text: Text, embed_dim: int = 256) -> Parameters:
    """Trained parameters of the pre-training model; its twin holds all but `decoder` and the match head once more."""
    d, w, w_image = vision.width, text.width, text.image_width
    block = _linear(d, 3 * d) + _linear(d, d) + _mlp(d, round(d * vision.mlp_ratio)) + 2 * _norm(d)
    image = _linear(3 * vision.patch**2, d) + d + image_tokens(vision) * d + vision.depth * block + _norm(d)
    own_attention = 4 * _linear(w, w) + _norm(w)
    cross_attention = 2 * _linear(w, w) + 2 * _linear(w_image, w) + _norm(w)
    layer = own_attention + cross_attention + _mlp(w, text.hidden) + _norm(w)
    encoder = (text.vocab_size + text.max_positions) * w + _norm(w) + text.layers * layer
    decoder = text.layers * own_attention + _linear(w, w) + _norm(w) + text.vocab_size
    heads = _linear(d, embed_dim) + _linear(w, embed_dim) + _linear(w, 2) + 1
    return Parameters(image, encoder, decoder, heads)


def _linear(width_in: int, width_out: int) -> int:
    return (width_in + 1) * width_out


def _mlp(width: int, hidden: int) -> int:
    return _linear(width, hidden) + _linear(hidden, width)


def _norm(width: int) -> int:
    return 2 * width
