"""What a predictor takes: one image or text, or several of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from blip.data.arrays import SHAPES, array_image, is_image
from blip.errors import InputError
from blip.hashing import stable_hash
from blip.models.decoding import Decoding


class Study:
    """One item of several pictures: views of a study, slices of a volume, frames of a video, in order.

    Methods of a predictor take it wherever they take an image; a list in a list means the same. A flat list is still
    several images, each by itself.

    Example:
        >>> m = blip.load("checkpoint")
        >>> text, = m.caption(blip.Study(["chest.png", "normal.png"]))
        >>> texts = m.caption([["chest.png", "normal.png"], ["chest.png"]])  # two studies
    """

    def __init__(self, pictures: "Sequence[ImageInput] | np.ndarray | Tensor"):
        """`pictures`: one or more, as in `as_list`. InputError where there are none, or one is no picture."""
        self.pictures: list[Any] = as_list(pictures)
        if not self.pictures or any(isinstance(one, Study) for one in self.pictures):
            raise InputError("a study is a list of one or more pictures: paths, PIL images or arrays")

    def __repr__(self) -> str:
        return f"Study of {len(self.pictures)} pictures"


# a tensor is (3, S, S), as `Predictor.transform` gives it; an array (H, W) or (H, W, C); bytes are those of a file
ImageInput = str | Path | bytes | Image.Image | np.ndarray | Tensor
OneImage = ImageInput | Study
Images = OneImage | Sequence[OneImage | Sequence[ImageInput]]
Texts = str | Sequence[str]

# how `blip caption` writes unless told otherwise; `blip explain` explains the same captions
CAPTIONS = Decoding(beams=3, max_new_tokens=30)


def as_list(items: Images | Texts) -> list:
    """One image or text as a list of it, several as a list of them; arrays of numbers become images of PIL.

    An array (H, W) or (H, W, C) with 1, 3 or 4 channels is one image, an array (B, H, W, C) is B of them. A tensor
    (3, S, S) is one ready image, a tensor (B, 3, S, S) is B of them. The bytes of a file, or an open one, are one. A
    list in the list is one item of several pictures, as a `Study` is.

    Raises:
        InputError: an array or tensor has another shape.

    Example:
        >>> import numpy as np
        >>> [image.size for image in as_list(np.zeros((20, 30, 3), np.uint8))]
        [(30, 20)]
    """
    if isinstance(items, np.ndarray) and items.dtype.kind not in "OUS":
        if items.ndim == 4:
            return [array_image(one) for one in items]
        if not is_image(items):
            raise InputError(
                f"an array of shape {items.shape} is neither one image, {SHAPES}, nor several, (B, H, W, C): give a "
                "list of images, or bring the channels to the end, as np.moveaxis(array, 0, -1) does"
            )
    if isinstance(items, Tensor):
        if items.ndim == 4:
            return [_one(tensor) for tensor in items]
        return [_one(items)]
    single = isinstance(items, Study | str | Path | Image.Image | bytes | bytearray | memoryview) or hasattr(
        items, "read"
    )
    if single or (isinstance(items, np.ndarray) and items.dtype.kind not in "OUS"):
        return [_one(items)]
    several: Any = items
    return [_one(item) for item in several]


def _one(item: Any) -> Any:
    """An image or text as `Predictor.pixels` and the tokenizer take it. InputError as in `as_list`."""
    if isinstance(item, list | tuple):
        return Study(item)
    if isinstance(item, np.ndarray):
        return array_image(item)
    if isinstance(item, bytearray | memoryview):
        return bytes(item)
    if isinstance(item, Tensor) and (item.ndim != 3 or item.shape[0] != 3):
        raise InputError(
            f"a tensor of shape {tuple(item.shape)} is no ready image, which is (3, S, S) as the predictor's transform "
            "gives it: give an array of numpy or an image of PIL instead"
        )
    return item


def questions_about(images: Images, questions: Texts) -> tuple[list, list]:
    """As many images as questions, where one image goes with all questions; InputError for other numbers."""
    images, questions = as_list(images), as_list(questions)
    if len(images) == 1:
        images = images * len(questions)
    if len(images) != len(questions):
        raise InputError(f"{len(images)} images and {len(questions)} questions: give as many, or one image")
    return images, questions


def batches_of(items: list, size: int) -> Iterator[list]:
    """Parts of `size` items, in order; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def each_once(items: list) -> tuple[list, list[int]]:
    """The distinct objects of a list, and for each item the number of its object among these."""
    number_of: dict[int, int] = {}
    numbers = [number_of.setdefault(id(item), len(number_of)) for item in items]
    return [items[numbers.index(number)] for number in range(len(number_of))], numbers


def seed_of_each(seed: int | Sequence[int], count: int) -> Sequence[int]:
    """The seed of each of `count` images; InputError where others are given than one for all or one for each."""
    if isinstance(seed, int):
        return [stable_hash("captions", seed, number) for number in range(count)]
    if len(seed) != count:
        raise InputError(f"{count} images and {len(seed)} seeds: give one for all, or as many")
    return seed
