"""Training images from a file to pixels, in two ways with the same distribution.

`WholeImages` decodes an image, then draws from torch's generator and transforms it: the pipeline `pil`. `FastImages`
draws the crop first, decodes a JPEG at the fraction of its size that the crop needs, resizes the crop alone and leaves
normalisation, and RandAugment where there is a GPU, to `augment.py`: the pipeline `fast`. A data set calls `read`,
which raises UnreadableImage, and then `finish`. `ByEpoch` has such a way for each size of a run.

S: side in pixels of the square that the network takes, C: 1 channel of grey or 3 of RGB.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from blip.data.batches import Pixels
from blip.data.crops import Crop, FractionalBox, open_crop
from blip.data.image_bytes import LIMITS, ImageLimits
from blip.data.images import Source, open_image
from blip.data.randaugment import RandAugment
from blip.data.transforms import check_crop, check_size
from blip.errors import InputError
from blip.hashing import stable_hash

Transform = Callable[[Image.Image], Tensor]


class WholeImages:
    """Decodes whole images; `transform` makes the pixels, with draws from torch's generator."""

    def __init__(self, transform: Transform, limits: ImageLimits = LIMITS):
        self.transform, self.limits = transform, limits

    def read(self, source: Source, *key: int) -> Image.Image:
        """The image as `open_image` gives it."""
        return open_image(source, self.limits)

    def finish(self, image: Image.Image) -> Pixels:
        """The transformed image; what is random comes from torch's generator."""
        return Pixels(self.transform(image))


class FastImages:
    """Reads the crop of an image alone. What is random depends on the seed, the epoch and the number of the sample."""

    def __init__(
        self,
        image_size: int,
        crop_scale: tuple[float, float] | None = (0.2, 1.0),
        randaugment: tuple[int, int] | None = (2, 5),
        *,
        horizontal_flip: bool = False,
        limits: ImageLimits = LIMITS,
        augment_here: bool = True,
    ):
        """Arguments as in `train_transform`; `augment_here`: RandAugment is done by PIL in this process, otherwise
        drawn alone, for `augment.prepared`."""
        check_size(image_size)
        check_crop(crop_scale)
        self.image_size, self.crop_scale, self.horizontal_flip = image_size, crop_scale, horizontal_flip
        self.randaugment = RandAugment(*(randaugment or (0, 0)))
        self.limits, self.augment_here = limits, augment_here

    def read(self, source: Source, *key: int) -> Pixels:
        """The pixels, uint8, of a sample; `key` is the seed, the epoch and the number of the sample, and of its image
        where it has several. UnreadableImage as in `open_image`."""
        generator = np.random.default_rng(stable_hash("image", *key))
        crop = Crop.draw(self.crop_scale, generator)
        flip = self.horizontal_flip and generator.random() < 0.5
        operations = self.randaugment.draw(generator)
        pixels = resized(*open_crop(source, crop, self.image_size, self.limits), self.image_size)  # (C, S, S)
        if flip:
            pixels = pixels.flip(-1)
        if self.augment_here:
            pixels, operations = _tensor(self.randaugment.apply_drawn(_image(pixels), operations)), ()
        return Pixels(pixels.expand(3, -1, -1).contiguous(), operations)

    def finish(self, pixels: Pixels) -> Pixels:
        """The same: all is done when the image is read."""
        return pixels


class ByEpoch:
    """Images whose size grows in the course of a run: ways to read them, each of which begins with an epoch.

    The way depends on the epoch of a sample alone: any worker gives a sample the size of its own epoch.
    """

    def __init__(self, images: Mapping[int, WholeImages | FastImages]):
        """`images`: by the epoch that each begins with, counted from 0; the first one begins with 0."""
        if not images or min(images) != 0:
            raise InputError(f"images begin with the epochs {sorted(images)}; the first one has to be 0")
        self.images = dict(images)

    def at(self, epoch: int) -> WholeImages | FastImages:
        """The way of an epoch."""
        return self.images[max(begin for begin in self.images if begin <= epoch)]

    def read(self, source: Source, *key: int) -> tuple[WholeImages | FastImages, Any]:
        """What `finish` takes; `key` as in `FastImages.read`, the epoch second."""
        images = self.at(key[1])
        return images, images.read(source, *key)

    def finish(self, read: tuple[WholeImages | FastImages, Any]) -> Pixels:
        """The pixels of an image, in the size of its epoch."""
        images, image = read
        return images.finish(image)


@runtime_checkable
class TrainingImages(Protocol):
    """How a data set gets its images: one of the ways above."""

    def read(self, source: Source, /, *key: int) -> Any:
        """What `finish` takes; UnreadableImage where there is no such image."""

    def finish(self, read: Any, /) -> Pixels:
        """The pixels."""


def images_of(transform: Transform | TrainingImages, limits: ImageLimits) -> TrainingImages:
    """What a data set is given as its `transform`: a function of whole images, or images of one of the two ways."""
    return transform if isinstance(transform, TrainingImages) else WholeImages(transform, limits)


def resized(image: Image.Image, box: FractionalBox, side: int) -> Tensor:
    """A box of an image as a square, bicubic: uint8 (C, S, S). Its edges are rounded to whole pixels of the image.

    torch and PIL differ by 2 of 256 levels at most, and torch takes a quarter of the time. Of an image decoded at a
    fraction of its size the box has at least `side` pixels: rounding moves an edge by half a pixel of the result.
    """
    left, top, right, bottom = (round(place) for place in box)
    whole = left, top, max(right, left + 1), max(bottom, top + 1)
    return F.interpolate(_tensor(image.crop(whole))[None], (side, side), mode="bicubic", antialias=True)[0].contiguous()


def _image(pixels: Tensor) -> Image.Image:
    """(C, S, S), uint8, as an image in grey or RGB."""
    values = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    return Image.fromarray(values.contiguous().numpy())


def _tensor(image: Image.Image) -> Tensor:
    """uint8 (C, height, width)."""
    values = torch.from_numpy(np.array(image))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)
