"""A small retrieval set, and its evaluation in one process or in each of two."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from blip import distributed
from blip.evaluation import retrieval
from blip.models.retrieval import RetrievalModel
from helpers.running import join
from helpers.tiny import specials_of, spread, tiny_text, tiny_vit

TEXT = tiny_text(dropout=0.1)
SPECIALS = specials_of(TEXT)
SETS = {"uneven": (7, 17), "one image": (1, 2)}  # images, texts


def build() -> RetrievalModel:
    """Weights large enough for scores to differ, the same in every process."""
    torch.manual_seed(5)
    return spread(RetrievalModel(tiny_vit(), TEXT, SPECIALS, embed_dim=8), std=0.3)


def make_set(images: int, texts: int) -> tuple[Tensor, retrieval.Texts]:
    """Pixels, and texts of 3 to 9 tokens. Text 1 describes two images; the last image has no text of its own."""
    g = torch.Generator().manual_seed(6)
    lengths = torch.randint(3, 10, (texts,), generator=g)
    ids = torch.randint(1, 48, (texts, 9), generator=g).masked_fill(torch.arange(9) >= lengths[:, None], SPECIALS.pad)
    answers = [[i % max(1, images - 1)] for i in range(texts)]
    answers[1] = sorted({0, min(1, images - 1)})
    return torch.randn(images, 3, 32, 32, generator=g), retrieval.Texts(ids, lengths, answers)


def source(pixels: Tensor) -> retrieval.Batches:
    def images(numbers: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for batch in numbers:
            yield pixels[list(batch)]

    return images


def evaluate(name: str, k: int, batch_size: int = 2) -> retrieval.Retrieval:
    pixels, texts = make_set(*SETS[name])
    return retrieval.evaluate_retrieval(
        build(), source(pixels), len(pixels), texts=texts, device=torch.device("cpu"), k=k, batch_size=batch_size
    )


CASES = [("uneven", 3), ("uneven", 100), ("one image", 2)]


def process(rank: int, port: int, folder: Path) -> None:
    """All of one process: joins the other, evaluates `CASES`, writes FOLDER/RANK.pt."""
    join(rank, port)
    found = [evaluate(name, k) for name, k in CASES]
    distributed.stop()
    torch.save(found, folder / f"{rank}.pt")
