"""What retrieval is evaluated on, and its result: texts, batches of images, rankings.

Shapes: M texts, T text tokens, N image tokens, D width, B images of a batch, Q queries, k candidates of a query.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from blip.errors import InputError

# Batches of image numbers -> their tensors, batch by batch: pixels (B, 3, height, width), or states (B, N, D).
Batches = Callable[[Sequence[Sequence[int]]], Iterable[Tensor]]


@dataclass
class Texts:
    """The captions of a set, on the CPU. An image may have several, and a caption may describe several images."""

    ids: Tensor  # (M, T) `[CLS] ... [SEP]` and padding
    lengths: Tensor  # (M,)
    images: Sequence[Sequence[int]]  # M lists: the numbers of the images that each describes

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.lengths) == len(self.images):
            raise InputError(
                f"{len(self.ids)} texts, {len(self.lengths)} lengths and {len(self.images)} lists of images: "
                "each text needs one of each"
            )
        if len(self.ids) == 0:
            raise InputError("there are no texts to retrieve")


@dataclass
class Ranking:
    """The candidates of each query, the best first."""

    candidates: Tensor  # (Q, k) numbers of texts or images
    scores: Tensor  # (Q, k)

    def lists(self) -> list[dict[str, list]]:
        """One dictionary a query, for JSON."""
        rows = zip(self.candidates.tolist(), self.scores.tolist(), strict=True)
        return [{"candidates": candidates, "scores": [round(s, 6) for s in scores]} for candidates, scores in rows]


@dataclass
class Retrieval:
    """The result of `evaluate_retrieval`; `metrics` are shares, and ranks counted from 1."""

    metrics: dict[str, float]
    image_to_text: Ranking
    text_to_image: Ranking

    def as_json(self) -> dict:
        return {
            "metrics": self.metrics,
            "image_to_text": self.image_to_text.lists(),
            "text_to_image": self.text_to_image.lists(),
        }
