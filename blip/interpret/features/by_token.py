"""A score that was taken apart, summed by the token of text or image from which heads took what they write.

Shapes: R texts, S scores, T tokens, K keys of cross-attention.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blip.inference.predictor import Predictor
from blip.interpret.features.residual import Walk


@dataclass
class Taken:
    """Scores that were taken apart: one walk through a text or a decoder, and for a cosine one through an image.

    Args:
        walks: the last one is that of the text.
        labels: of the S scores.
        written: ids (R, T) of the tokens that the text's own attention reads.
        question: ids (R, K) of the tokens that cross-attention reads, where that is no image.
        grid: patches (height, width) of the image.
    """

    walks: list[Walk]
    labels: list[str]
    written: Tensor
    question: Tensor | None = None
    grid: tuple[int, int] | None = None

    def parts(self) -> dict[str, Tensor]:
        """(S,) of each component, from the embeddings up."""
        return {name: value for walk in self.walks for name, value in reversed(walk.parts.items())}

    def total(self, wanted: Callable[[str], bool]) -> Tensor:
        """(S,) of all components whose names are wanted."""
        chosen = [value for name, value in self.parts().items() if wanted(name)]
        return torch.stack(chosen).sum(dim=0) if chosen else torch.zeros_like(self.walks[0].direction[:, 0])

    def taken_from(self, wanted: Callable[[str], bool]) -> Tensor:
        """(S, T) or (S, K): what all heads of the attentions whose names are wanted took from each key."""
        return sum(x.sum(dim=1) for walk in self.walks for name, x in walk.sources.items() if wanted(name))  # type: ignore[return-value]


def by_token(m: Predictor, taken: Taken, by: str) -> dict[str, Tensor]:
    """(S,) by column, see `contributions`: tokens of the text (`word`) or of the image (`patch`), then everything else.

    The embedding of the token at which a score is read belongs to that token.
    """
    embedding_of_text = taken.total(lambda name: _is_embedding(name) and not name.startswith("image."))
    embedding_of_image = taken.total(lambda name: _is_embedding(name) and name.startswith("image."))
    if by == "word":
        tokens = taken.taken_from(_of_text)
        tokens[torch.arange(len(tokens)), taken.walks[-1].reads.tokens] += embedding_of_text
        of_others = taken.total(lambda name: _is_head(name) and not _of_text(name)) + embedding_of_image
        other = "image" if taken.question is None else "question"
    else:
        tokens = taken.taken_from(lambda name: not _of_text(name))
        tokens[:, 0] += embedding_of_image  # of CLS
        of_others = taken.total(lambda name: _is_head(name) and _of_text(name)) + embedding_of_text
        other = "text"
    columns = dict(zip(_labels(m, taken, by, tokens.shape[1]), tokens.unbind(dim=1), strict=True))
    columns[other] = of_others
    columns["mlp"] = taken.total(lambda name: name.endswith(".mlp"))
    columns["bias"] = taken.total(lambda name: name.endswith("bias"))
    return columns


def _of_text(name: str) -> bool:
    return ".self" in name


def _is_head(name: str) -> bool:
    return ".head." in name and not name.endswith("bias")


def _is_embedding(name: str) -> bool:
    return ".embedding." in name and not name.endswith("bias")


def _labels(m: Predictor, taken: Taken, by: str, count: int) -> list[str]:
    """The tokens themselves of one text, numbers where there are several; patches by row and column."""
    ids = taken.written if by == "word" else taken.question
    if ids is not None:
        return [f"{i} {m.tokenizer.token(int(ids[0, i])) if len(ids) == 1 else 'token'}" for i in range(count)]
    height, width = taken.grid or (0, 0)
    pictures, rest = divmod(count, 1 + height * width)
    if taken.grid is None or rest:
        return [f"key {i}" for i in range(count)]
    labels = ["CLS", *(f"{row},{column}" for row in range(height) for column in range(width))]
    if pictures == 1:
        return labels
    return [f"picture {number + 1} {label}" for number in range(pictures) for label in labels]
