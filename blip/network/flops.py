"""Floating-point operations and parameters of a pre-training step, counted from the sizes: 2 operations a multiply-add.

Matrix products, convolution and attention are counted; norms, activations, soft-max and the optimizer are not. A
backward pass costs twice its forward pass. What is counted is what the step computes, so that dividing by the time
gives the machine's useful rate: recomputation inside a fused attention kernel does not count.

Shapes: B pairs, R texts, T tokens of the longest, P tokens computed, N image tokens, D width, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol


class Vision(Protocol):
    """The sizes that count, of `vit.ViTConfig` or anything alike."""

    image_size: int
    patch: int
    width: int
    depth: int
    mlp_ratio: int


class Text(Protocol):
    """The sizes that count, of `med.TextConfig` or anything alike."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    max_positions: int
    image_width: int


@dataclass
class Savings:
    """What a step leaves out; all True is this package, all False is the published algorithm."""

    shared_keys: bool = True  # an image's keys are projected once, not by each of four passes
    packed: bool = True  # token-wise layers see no padding
    one_token: bool = True  # the last layers of ITC, ITM and the twin compute the one token that is read


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
    longest: int | None = None,
    embed_dim: int = 256,
    queue: int = 57600,
    savings: Savings | None = None,
) -> StepFlops:
    """The cost of one step over pairs whose texts have `lengths` tokens, special ones included.

    `longest`: what texts are padded to, at least the longest of the batch (the default). ITM is counted as three texts
    a pair of these lengths; the hard texts drawn have other lengths, by chance.
    """
    savings = savings or Savings()
    pairs, longest = len(lengths), longest or max(lengths)
    tokens = sum(lengths) if savings.packed else pairs * longest
    one = savings.one_token
    image = pairs * vit_forward(vision)
    image_twin = pairs * vit_forward(vision, cls_only=one)
    alone = text_forward(text, pairs, tokens, longest, first_only=one)
    match = text_forward(text, 3 * pairs, 3 * tokens, longest, image_tokens(vision), one)
    match += 2 * 3 * pairs * text.width * 2  # the head's two classes
    language = text_forward(text, pairs, tokens, longest, image_tokens(vision))
    language += head_forward(text, tokens)
    keys = pairs * keys_forward(vision, text) * (1 if savings.shared_keys else 4)
    projections = 2 * pairs * embed_dim * (vision.width + text.width)
    similarities = 2 * 2 * pairs * embed_dim * (pairs + queue)  # both directions
    # the candidates need no gradient, so the similarities' backward pass costs as much as the forward pass
    contrast = (3 + 1) * projections + (2 + 1) * similarities
    # nor do the pixels
    image_step = 3 * image - pairs * patches_forward(vision)
    return StepFlops(image_step, image_twin, 3 * alone, alone, 3 * keys, 3 * match, 3 * language, contrast)


def image_tokens(vision: Vision) -> int:
    """Patches and CLS."""
    return 1 + (vision.image_size // vision.patch) ** 2


def patches_forward(vision: Vision) -> float:
    """The patch embedding of one image."""
    return 2.0 * (image_tokens(vision) - 1) * 3 * vision.patch**2 * vision.width


def vit_forward(vision: Vision, cls_only: bool = False) -> float:
    """One image through the encoder; `cls_only`: the last block needs all keys and values, else CLS alone."""
    n, d = image_tokens(vision), vision.width
    per_token = 2 * d * d * (2 + 2 * vision.mlp_ratio)  # query, output projection, MLP
    keys = 2 * n * 2 * d * d
    block = n * per_token + keys + attention(n, n, d)
    last = per_token + keys + attention(1, n, d) if cls_only else block
    return patches_forward(vision) + (vision.depth - 1) * block + last


def text_forward(
    text: Text, rows: int, tokens: int, longest: int, image_tokens: int = 0, first_only: bool = False
) -> float:
    """`rows` texts of `tokens` tokens in all; with `image_tokens` they look at images, whose keys are counted apart.

    Self-attention unfolds to the longest text, packed or not.
    """
    d = text.width
    looks = image_tokens > 0
    per_token = 2 * d * (2 * d + 2 * text.hidden)  # query, output projection, feed-forward
    per_token += looks * 2 * d * 2 * d  # cross-attention's query and output projection
    keys = 2 * tokens * 2 * d * d
    attend = rows * attention(longest, longest, d) + looks * rows * attention(longest, image_tokens, d)
    layer = tokens * per_token + keys + attend
    if not first_only:
        return text.layers * layer
    last = rows * (per_token + attention(1, longest, d) + looks * attention(1, image_tokens, d)) + keys
    return (text.layers - 1) * layer + last


def attention(queries: int, keys: int, width: int) -> float:
    """Scores and the weighted sum of values, all heads together."""
    return 2 * 2.0 * queries * keys * width


def keys_forward(vision: Vision, text: Text) -> float:
    """Keys and values of one image for every layer's cross-attention."""
    return 2.0 * image_tokens(vision) * text.image_width * 2 * text.width * text.layers


def head_forward(text: Text, tokens: int) -> float:
    """The word head: its transform, then a logit for each word."""
    return 2.0 * tokens * text.width * (text.width + text.vocab_size)


# ---- inference -------------------------------------------------------------------------------------------------------


def match_pair(vision: Vision, text: Text, longest: int) -> float:
    """An image and a text of `longest` tokens, padding included, as published: the pair projects its own keys."""
    pair = text_forward(text, 1, longest, longest, image_tokens(vision)) + keys_forward(vision, text)
    return pair + 2 * text.width * 2  # the head's two classes


def match_grouped(vision: Vision, text: Text, lengths: Sequence[int], images: int, keys: bool = True) -> float:
    """Pairs whose texts have `lengths` tokens, grouped by image: an image's keys are made once, nothing is padded.

    Only self-attention unfolds, to a length near a text's own since texts are sorted; it is counted at its own. Without
    `keys`, texts look at states, and in the last layer one token of each.
    """
    seen = image_tokens(vision)
    texts = sum(text_forward(text, 1, n, n, seen, first_only=True) for n in lengths)
    looks = sum((text.layers - 1) * n + 1 for n in lengths) * on_states(vision, text) / text.layers
    return texts + (images * keys_forward(vision, text) if keys else looks) + len(lengths) * 2 * text.width * 2


def write(vision: Vision, text: Text, rows: int, new: int, key_sets: int, prompt: int = 1) -> float:
    """`new` tokens of each of `rows` texts by a decoder with a cache.

    Images' keys are projected `key_sets` times; 0: texts look at states. Beams come from one text each, so the first
    step has fewer rows; it is counted with all.
    """
    tokens = prompt - 1 + new  # the last one written is not read
    alone = text_forward(text, 1, 1, 1, image_tokens(vision))
    alone += 0 if key_sets else on_states(vision, text)
    others = text.layers * sum(attention(1, before, text.width) for before in range(tokens))
    each = tokens * alone + others + new * head_forward(text, 1)
    return rows * each + key_sets * keys_forward(vision, text)


def read_questions(vision: Vision, text: Text, lengths: Sequence[int], keys: bool) -> float:
    """Questions of `lengths` tokens, padding included where there is some, each looking at an image of its own.

    `keys`: at its keys, else at its states.
    """
    seen = image_tokens(vision)
    if keys:
        return sum(text_forward(text, 1, n, n, seen) + keys_forward(vision, text) for n in lengths)
    return sum(text_forward(text, 1, n, n, seen) + n * on_states(vision, text) for n in lengths)


def on_states(vision: Vision, text: Text) -> float:
    """What a token costs more, over all layers, that looks at an image's states: see `ImageAttention.see_states`."""
    folded = 2 * 2.0 * text.width * text.image_width  # the keys' projection of its query, the values' of what it saw
    wider = text.heads * text.image_width - text.width
    return text.layers * (folded + attention(1, image_tokens(vision), wider))


def rank_padded(text: Text, k: int, longest: int, question: int) -> float:
    """k answers padded to `longest` tokens, each with a copy of a question's `question` states, and [DEC] alone."""
    once = text_forward(text, 1, 1, 1, question) + head_forward(text, 1)
    padded = text_forward(text, k, k * longest, longest, question) + head_forward(text, k * longest)
    return once + padded + (k + 1) * _question_keys(text, question)


def rank_tree(text: Text, nodes: int, question: int, row: int = 64) -> float:
    """A tree of `nodes` tokens over one question, and [DEC] alone; nodes are laid out in rows of some `row` nodes."""
    once = text_forward(text, 1, 1, 1, question) + head_forward(text, 1)
    one = text_forward(text, 1, 1, 1, question) + text.layers * attention(1, row - 1, text.width)
    return once + nodes * (one + head_forward(text, 1)) + _question_keys(text, question)


def _question_keys(text: Text, question: int) -> float:
    """Keys and values of a question's states, which are as wide as the decoder's own."""
    return 2.0 * question * text.width * 2 * text.width * text.layers


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
    block = _linear(d, 3 * d) + _linear(d, d) + _mlp(d, vision.mlp_ratio * d) + 2 * _norm(d)
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
