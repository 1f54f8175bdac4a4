"""What a predictor takes: one image or text, or a list of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from blip.models.decoding import Decoding

ImageInput = str | Path | Image.Image | Tensor  # a tensor is (3, S, S), as `Predictor.transform` gives it
Images = ImageInput | Sequence[ImageInput]
Texts = str | Sequence[str]

# how `blip caption` writes unless told otherwise; `blip explain` explains the same captions
CAPTIONS = Decoding(beams=3, max_new_tokens=30)


def as_list(items: Images | Texts) -> list:
    """One image or text as a list of it, several as a list of them."""
    return [items] if isinstance(items, str | Path | Image.Image) else list(items)


def batches_of(items: list, size: int) -> Iterator[list]:
    """Parts of `size` items, in order; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def each_once(items: list) -> tuple[list, list[int]]:
    """The distinct objects of a list, and for each item the number of its object among these."""
    number_of: dict[int, int] = {}
    numbers = [number_of.setdefault(id(item), len(number_of)) for item in items]
    return [items[numbers.index(number)] for number in range(len(number_of))], numbers
