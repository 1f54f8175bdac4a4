"""Floating-point operations of BLIP-2's Q-Former, counted from the sizes as in `flops.py`.

Forward operations of one row or image unless a name says otherwise; keys of the image are counted apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from blip.network.flops import Vision, attention, image_tokens, patches_forward, vit_forward
from blip.network.qformer import QFormerConfig


@dataclass
class Blip2Savings:
    """What a step of stage 1 does not compute; all True is this package, all False is the published algorithm."""

    shared_keys: bool = True  # an image's keys are projected once, not by the queries alone and by three rows a pair
    packed: bool = True  # no padding in layers that treat each token alone
    read_only: bool = True  # the last layers of contrast and matching compute what is read: [CLS], or the queries


@dataclass
class Blip2StepFlops:
    """Operations of one step over a batch, forward and backward."""

    image: float  # of a frozen encoder forward only
    keys: float  # cross-attention's projections of the image
    look: float
    text: float
    match: float
    language: float
    contrast: float  # projections to the embedding and similarities

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def blip2_step(
    vision: Vision,
    qformer: QFormerConfig,
    lengths: Sequence[int],
    *,
    longest: int | None = None,
    embed_dim: int = 256,
    savings: Blip2Savings | None = None,
    frozen: bool = True,
) -> Blip2StepFlops:
    """The cost of one step of stage 1 over pairs whose texts have `lengths` tokens, special ones included.

    `longest`: what texts are padded to, at least the longest of the batch (the default). ITM is counted as three texts
    a pair of these lengths, although the hard texts that are drawn may have others. `frozen`: the image encoder is, but
    for its final norm.
    """
    savings = savings or Blip2Savings()
    pairs, longest = len(lengths), longest or max(lengths)
    tokens = sum(lengths) if savings.packed else pairs * longest
    seen, one = image_tokens(vision), savings.read_only
    image = pairs * (vit_forward(vision) if frozen else 3 * vit_forward(vision) - patches_forward(vision))
    keys = pairs * (1 if savings.shared_keys else 4) * image_keys_forward(vision, qformer)
    look = pairs * look_forward(qformer, seen)
    text = texts_forward(qformer, pairs, tokens, longest=longest, first_only=one)
    match = match_forward(qformer, 3 * pairs, 3 * tokens, longest=longest, seen=seen, queries_only=one)
    match += 2 * 3 * pairs * qformer.queries * qformer.width * 2  # the head's two classes
    written = texts_forward(qformer, pairs, tokens, longest=longest, past=qformer.queries)
    written += 2.0 * tokens * qformer.width * (qformer.width + qformer.vocab_size)
    projections = 2 * pairs * (qformer.queries + 1) * qformer.width * embed_dim
    similarities = 2 * 2.0 * pairs * pairs * qformer.queries * embed_dim  # both directions
    # the features that are compared with need no gradient, so the backward pass costs as much as the forward pass
    contrast = 3 * projections + 2 * similarities
    return Blip2StepFlops(image, 3 * keys, 3 * look, 3 * text, 3 * match, 3 * written, contrast)


def crossing_layers(qformer: QFormerConfig) -> int:
    """How many layers attend to the image."""
    return -(-qformer.layers // qformer.cross_every)


def image_keys_forward(vision: Vision, qformer: QFormerConfig) -> float:
    """Keys and values of one image for every layer that attends to it."""
    # of the encoder's own width: that of a `QFormerConfig` is ViT-g's unless it is given
    return 2.0 * image_tokens(vision) * vision.width * 2 * qformer.width * crossing_layers(qformer)


def look_forward(qformer: QFormerConfig, seen: int) -> float:
    """The queries alone with an image of `seen` tokens."""
    own = qformer.queries * _each_token(qformer) + attention(qformer.queries, qformer.queries, qformer.width)
    return qformer.layers * own + crossing_layers(qformer) * _crossing(qformer, seen)


def texts_forward(
    qformer: QFormerConfig, rows: int, tokens: int, *, longest: int, past: int = 0, first_only: bool = False
) -> float:
    """`rows` texts of `tokens` tokens in all, without queries, or behind the keys of `past` ones.

    Self-attention unfolds to the longest text, packed or not.
    """
    layer = tokens * _each_token(qformer) + rows * attention(longest, past + longest, qformer.width)
    if not first_only:
        return qformer.layers * layer
    last = tokens * _keys(qformer) + rows * (_each_token(qformer) - _keys(qformer))
    return (qformer.layers - 1) * layer + last + rows * attention(1, past + longest, qformer.width)


def match_forward(
    qformer: QFormerConfig, rows: int, tokens: int, *, longest: int, seen: int, queries_only: bool = True
) -> float:
    """`rows` rows of queries and texts of `tokens` tokens in all, each with an image of `seen` tokens."""
    queries, width = rows * qformer.queries, qformer.width
    length = qformer.queries + longest
    layer = (queries + tokens) * _each_token(qformer) + rows * attention(length, length, width)
    last = layer
    if queries_only:
        last = queries * _each_token(qformer) + tokens * _keys(qformer)
        last += rows * attention(qformer.queries, length, width)
    return (qformer.layers - 1) * layer + last + rows * crossing_layers(qformer) * _crossing(qformer, seen)


def _keys(qformer: QFormerConfig) -> float:
    """Keys and values of a token in self-attention of one layer."""
    return 2 * 2.0 * qformer.width**2


def _each_token(qformer: QFormerConfig) -> float:
    """What a token costs in one layer by itself: self-attention's projections and the feed-forward network."""
    return _keys(qformer) + 2 * 2.0 * qformer.width * (qformer.width + qformer.hidden)


def _crossing(qformer: QFormerConfig, seen: int) -> float:
    """Cross-attention of the queries of one row in one layer, without the image's keys."""
    projections = 2 * 2.0 * qformer.queries * qformer.width**2  # of the query, and of the output
    return projections + attention(qformer.queries, seen, qformer.width)
