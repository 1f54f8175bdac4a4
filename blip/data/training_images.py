"""Training images from a file to pixels, in two ways with the same distribution.

`WholeImages` decodes an image, then draws from torch's generator and transforms it: the pipeline `pil`. `FastImages`
draws the crop first, decodes a JPEG at the fraction of its size that the crop needs, resizes the crop alone and leaves
normalisation, and RandAugment where there is a GPU, to `augment.py`: the pipeline `fast`. A data set calls `read`,
which raises UnreadableImage, and then `finish`.

S: side in pixels of the square that the network takes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip.data.batches import Pixels
from blip.data.decoding_cost import JPEGS
from blip.data.image_bytes import LIMITS, ImageLimits
from blip.data.images import Source, eight_bits, open_image, opened, upright
from blip.data.randaugment import RandAugment
from blip.data.transforms import check_crop, check_size
from blip.hashing import stable_hash

RATIOS = (3 / 4, 4 / 3)  # of a crop's width to its height, as in torchvision
TRIES = 10  # of which none fits into very long images: their centre is taken
FRACTIONS = (8, 4, 2)  # 1 / these are the sizes at which a JPEG can be decoded
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # entry of EXIF, and its values that exchange width and height
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
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
        image = open_crop(source, crop, self.image_size, self.limits)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment_here:
            image, operations = self.randaugment.apply(image, operations), ()
        return Pixels(_tensor(image), operations)

    def finish(self, pixels: Pixels) -> Pixels:
        """The same: all is done when the image is read."""
        return pixels


TrainingImages = WholeImages | FastImages


def images_of(transform: Transform | TrainingImages, limits: ImageLimits) -> TrainingImages:
    """What a data set is given as its `transform`: a function of whole images, or images of one of the two ways."""
    return transform if isinstance(transform, TrainingImages) else WholeImages(transform, limits)


# ---- the crop --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop:
    """A random crop before the size of its image is known: the same draws fit any size."""

    scale: tuple[float, float] | None  # share of the image's area; None: the whole image
    shares: np.ndarray  # (TRIES, 4) from 0 to 1: area, ratio, top and left of each try

    @classmethod
    def draw(cls, scale: tuple[float, float] | None, generator: np.random.Generator) -> "Crop":
        return cls(scale, generator.random((TRIES, 4)) if scale else np.empty((0, 4)))

    def box(self, size: tuple[int, int]) -> Box:
        """The box in an image of this width and height, of torchvision's distribution: the area is uniform, the
        logarithm of the ratio is, and the place is; the first of ten tries that fits."""
        width, height = size
        if self.scale is None:
            return 0, 0, width, height
        low, high = self.scale
        least, most = map(math.log, RATIOS)
        for area, ratio, top, left in self.shares.tolist():
            pixels = width * height * (low + area * (high - low))
            aspect = math.exp(least + ratio * (most - least))
            wide, tall = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < wide <= width and 0 < tall <= height:
                x, y = int(left * (width - wide + 1)), int(top * (height - tall + 1))
                return x, y, x + wide, y + tall
        wide, tall = min(width, round(height * RATIOS[1])), min(height, round(width / RATIOS[0]))
        x, y = (width - wide) // 2, (height - tall) // 2
        return x, y, x + wide, y + tall


def open_crop(source: Source, crop: Crop, side: int, limits: ImageLimits = LIMITS) -> Image.Image:
    """The crop of an image, upright, 8 bits, in grey or RGB, resized to a square of `side` pixels.

    A JPEG in grey or RGB is decoded at 1/2, 1/4 or 1/8 of its size where the crop keeps `side` pixels or more either
    way; all of its file is read even so, and damage found. Errors as in `open_image`.
    """
    with opened(source, limits) as image:
        if image.format in JPEGS and image.mode in ("L", "RGB"):
            image, box = _drafted(image, crop, side)
        else:
            image = eight_bits(upright(image))
            box = crop.box(image.size)
        return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _drafted(image: Image.Image, crop: Crop, side: int) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """A JPEG, upright, at a fraction of its size, and the box of the crop in it. Its header alone has been read."""
    orientation = _orientation(image)  # a JPEG has all of its EXIF block in its header
    width, height = image.size
    box = crop.box((height, width) if orientation in TURNED else (width, height))
    room = min(box[2] - box[0], box[3] - box[1]) // side
    fraction = next((one for one in FRACTIONS if one <= room), 1)
    if fraction > 1:
        image.draft(image.mode, (width // fraction, height // fraction))
        fraction = round(width / image.width)
    # parts of a pixel by which the small image is larger, at its right and lower edge; turning takes them elsewhere
    wide, high = image.width - width / fraction, image.height - height / fraction
    x = {2: wide, 3: wide, 6: high, 7: high}.get(orientation, 0.0)
    y = {3: high, 4: high, 7: wide, 8: wide}.get(orientation, 0.0)
    left, top, right, bottom = (place / fraction for place in box)
    return upright(image), (left + x, top + y, right + x, bottom + y)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ORIENTATION, 1)
        return found if isinstance(found, int) else 1
    except Exception:  # a broken block, which `upright` ignores
        return 1


def _tensor(image: Image.Image) -> Tensor:
    """uint8 (3, S, S)."""
    values = torch.from_numpy(np.array(image))
    if values.ndim == 2:
        return values.expand(3, -1, -1).contiguous()
    return values.permute(2, 0, 1).contiguous()
