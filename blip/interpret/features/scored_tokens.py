"""The tokens of captions and answers whose logits are taken apart, and the logit as a linear function.

Shapes: R texts, T tokens of the longest, S scores, D width of the word head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.predictor import Predictor
from blip.interpret.features.residual import Reads
from blip.network.embeddings import LMHead

Words = tuple[str, str]  # a word, and that against which it is held; either may be empty


@dataclass
class Scored:
    """S logits, or differences of two: direction · (what the head multiplies with embeddings) + constant.

    Args:
        reads: where each is read: the token before it.
        direction, constant: (S, D) and (S,).
        labels: `0.1 small`, the text, the place of the token and the token.
    """

    reads: Reads
    direction: Tensor
    constant: Tensor
    labels: list[str]


def scored_tokens(m: Predictor, head: LMHead, ids: Tensor, *, lengths: Tensor, words: Words) -> Scored:
    """The logits of all tokens of ids (R, T) of these lengths; or of `words`, once a text.

    Raises:
        InputError: a word has no token, both begin with the same one, or a text has neither.
    """
    rows, places = _written(m, ids, lengths, words)
    reads = Reads(rows.to(m.device), places.to(m.device) - 1)  # a word is read at the token before it
    targets = ids[reads.texts, reads.tokens + 1]
    matrix, biases = head.words.weight, head.bias
    direction, constant = matrix[targets].double(), biases[targets].double()
    if words[0]:
        chosen, other = token_of(m, words[0]), token_of(m, words[1]) if words[1] else None
        direction, constant = matrix[chosen].double(), biases[chosen].double()
        if chosen == other:
            raise InputError(f"{words[0]!r} and {words[1]!r} begin with the same token: there is no difference")
        if other is not None:
            direction, constant = direction - matrix[other].double(), constant - biases[other].double()
        direction, constant = direction.expand(len(targets), -1), constant.expand(len(targets))
    names = [m.tokenizer.token(i) for i in targets.tolist()]
    labels = [f"{row}.{place} {name}" for row, place, name in zip(rows.tolist(), places.tolist(), names, strict=True)]
    return Scored(reads, direction, constant, labels)


def _written(m: Predictor, ids: Tensor, lengths: Tensor, words: Words) -> tuple[Tensor, Tensor]:
    """Numbers of texts and places of tokens, (S,) each: all that are written, or where one of `words` stands first."""
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    real[:, 0] = False
    if words[0]:
        tokens = torch.tensor([token_of(m, word) for word in words if word])
        found = real & torch.isin(ids.cpu(), tokens)
        if not found.any(dim=1).all():
            row = int((~found.any(dim=1)).nonzero()[0])
            raise InputError(f"text {row + 1} has neither of the words asked for: {', '.join(filter(None, words))}")
        return torch.arange(len(ids)), found.int().argmax(dim=1)
    rows, places = real.nonzero(as_tuple=True)
    return rows, places


def token_of(m: Predictor, word: str) -> int:
    """The first token of a word."""
    ids = m.tokenizer.encode([m.cleaned(word)], m.positions)[0][1:-1]
    if not ids:
        raise InputError(f"{word!r} has no token")
    return ids[0]
