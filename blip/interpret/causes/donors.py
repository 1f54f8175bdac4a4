"""Resample ablation: which other pair stands in for a pair, and how its values fit.

Shapes: T tokens, T' tokens of the other pair, d the last dimension.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import OneImage, Study
from blip.inference.predictor import Predictor
from blip.inference.query_scoring import token_counts
from blip.interpret.causes.metrics import OneText
from blip.interpret.causes.patching import Pair
from blip.interpret.explain import pictures_in


def name_of(image: OneImage) -> str:
    """What is equal for two pairs of one image: its path, or those of a study; of others, which object it is."""
    if isinstance(image, Study):
        return ", ".join(map(name_of, image.pictures))
    return str(image) if isinstance(image, str | Path) else f"image {id(image)}"


def fitted(values: Tensor, tokens: int, *, pictures: tuple[int, int] = (1, 1)) -> Tensor:
    """(..., T', d) -> (..., T, d): the first tokens, or copies of the last one behind them.

    `pictures` are those that stand side by side here and there: of these the first, or copies of the last, each with
    its tokens.
    """
    before, after = pictures
    index = torch.arange(tokens, device=values.device).unflatten(0, (after, -1))
    own = index[0].clamp(max=values.shape[-2] // before - 1)
    start = torch.arange(after, device=values.device).clamp(max=before - 1) * (values.shape[-2] // before)
    return values.index_select(-2, (start[:, None] + own).flatten())


class Donors:
    """For each pair others with another image, of equally long texts and as many pictures where there are such.

    Raises:
        InputError: all pairs have one image.
    """

    def __init__(self, m: Predictor, pairs: Sequence[Pair], groups: Sequence[str], *, seed: int) -> None:
        if len(set(groups)) < 2:
            raise InputError("resampling draws what another image gives, and all pairs have one image: take mean")
        self.groups, self.seed = groups, seed
        lengths = _lengths(m, [text for _, text in pairs])
        self.sizes = [(pictures_in(image), *length) for (image, _), length in zip(pairs, lengths, strict=True)]
        self.alike: dict[tuple[int, ...], list[int]] = {}
        for number, size in enumerate(self.sizes):
            self.alike.setdefault(size, []).append(number)

    def of(self, number: int) -> Iterator[int]:
        """The numbers of pairs that can stand in for a pair, the drawn one first."""
        start = random.Random(f"{self.seed} {number}").random()
        candidates = chain(_from(self.alike[self.sizes[number]], start), _from(range(len(self.groups)), start))
        return (other for other in candidates if self.groups[other] != self.groups[number])


def _from(numbers: Sequence[int], start: float) -> Iterator[int]:
    """All numbers, beginning at a share of the list; lazily, as mostly the first one is taken."""
    first = int(start * len(numbers))
    return (numbers[(first + i) % len(numbers)] for i in range(len(numbers)))


def _lengths(m: Predictor, texts: Sequence[OneText]) -> list[tuple[int, ...]]:
    """The tokens of each text, or of its question and its answer."""
    parts = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    counts = iter(token_counts(m, [one for part in parts for one in part]))
    return [tuple(next(counts) for _ in part) for part in parts]
