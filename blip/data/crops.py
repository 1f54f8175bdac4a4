"""Random crops, drawn before their image is decoded, and images of which the crop alone is read.

S: side in pixels of the square that the network takes.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from blip.data.decoding_cost import JPEGS
from blip.data.image_bytes import LIMITS, ImageLimits
from blip.data.images import Source, eight_bits, opened, upright

RATIOS = (3 / 4, 4 / 3)  # of a crop's width to its height, as in torchvision
TRIES = 10  # of which none fits into very long images: their centre is taken
FRACTIONS = (8, 4, 2)  # 1 / these are the sizes at which a JPEG can be decoded
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # entry of EXIF, and its values that exchange width and height
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
FractionalBox = tuple[float, float, float, float]


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


def open_crop(source: Source, crop: Crop, side: int, limits: ImageLimits = LIMITS) -> tuple[Image.Image, FractionalBox]:
    """An image, upright, 8 bits, in grey or RGB, and the box of the crop in it.

    A JPEG in grey or RGB is decoded at 1/2, 1/4 or 1/8 of its size where the crop keeps `side` pixels or more either
    way; all of its file is read even so, and damage found. Errors as in `open_image`.
    """
    with opened(source, limits) as image:
        if image.format in JPEGS and image.mode in ("L", "RGB"):
            return _drafted(image, crop, side)
        image = eight_bits(upright(image))
        return image, crop.box(image.size)


def _drafted(image: Image.Image, crop: Crop, side: int) -> tuple[Image.Image, FractionalBox]:
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
