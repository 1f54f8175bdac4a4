"""Image files in, normalised tensors out: reading any image mode as RGB, and the transforms of training and evaluation.

S is the side of the square image that the network takes, in pixels.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from blip.data.embedded import read_image
from blip.errors import BlipError

# of CLIP's training images; BLIP (Li et al. 2022) uses them too
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# 1 GiB / 4 / 3, the number above which Pillow warns of a decompression bomb: 256 MiB as RGB. Here it is an error.
MAX_PIXELS = 89_478_485

HIGH_DEPTH = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
WINDOW = (0.5, 99.5)  # percentiles that become black and white


class UnreadableImage(BlipError):
    """An image that cannot be used: `path` names it, `reason` says why."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.path}: {self.reason}"


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Reads a path, a row of a parquet or arrow file (`embedded.py`), bytes or a PIL image as 8-bit RGB, upright.

    Raises:
        UnreadableImage: missing, empty, truncated, not an image, of no size, or of more than `MAX_PIXELS`.
    """
    name = str(source) if isinstance(source, (str, Path)) else "(in memory)"
    try:
        if isinstance(source, Image.Image):
            return _checked_rgb(source)
        data = source if isinstance(source, bytes) else read_image(source)
        if not data:
            raise ValueError("the file is empty")
        with Image.open(io.BytesIO(data)) as image:
            return _checked_rgb(image)
    except FileNotFoundError:
        raise UnreadableImage(name, "no such file") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImage(name, "not an image, or of a kind that Pillow does not know") from None
    except MemoryError:
        raise
    except Exception as error:  # on broken files Pillow's decoders raise nearly every kind of exception
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def _checked_rgb(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width == 0 or height == 0:
        raise ValueError(f"it has {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}: make it smaller")
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB, turned upright by its EXIF entry.

    16-bit, 32-bit and float images are windowed (see `window`), never clipped. Transparency is laid on white: such
    files are figures made for white pages, whose black letters and lines would vanish on black; scans carry none.
    Of several frames or pages the first counts.
    """
    # a broken EXIF block says nothing about the pixels; if those are broken, converting raises
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode in HIGH_DEPTH:
        return Image.fromarray(window(np.asarray(image))).convert("RGB")
    if (image.mode == "P" and "transparency" in image.info) or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        # premultiplied modes convert to RGBA through their plain twin only
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGBA")).convert("RGBA")
        if image.getchannel("A").getextrema()[1] == 0:  # all transparent: a broken alpha channel, not an empty picture
            return image.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def window(values: np.ndarray) -> np.ndarray:
    """(H, W) of any number type -> (H, W) uint8: the 0.5th percentile becomes 0, the 99.5th 255, linear between.

    Where these two are equal (a small object on an even ground) the minimum and maximum take their place; a constant
    image becomes black. NaN and infinities become the nearest end (NaN: black) and do not count in the percentiles.
    """
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(finite, WINDOW)
    if low == high:
        low, high = finite.min(), finite.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low).clip(low, high) - low) / (high - low)
    return np.round(scaled * 255).astype(np.uint8)


def train_transform(
    image_size: int,
    crop_scale: tuple[float, float] | None = (0.2, 1.0),
    randaugment: tuple[int, int] | None = (2, 5),
    horizontal_flip: bool = False,
) -> v2.Compose:
    """PIL RGB -> float32 (3, S, S) with augmentation; every draw comes from torch's global generator.

    Args:
        image_size: S.
        crop_scale: share of the image's area that a random crop keeps; None resizes the whole image.
        randaugment: number of operations and their magnitude, 0 to 10; None leaves them out.
        horizontal_flip: mirror every second image. Off, since in medical images left is left.
    """
    _check_size(image_size)
    steps: list[nn.Module] = [_resize(image_size)]
    if crop_scale is not None:
        low, high = crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is {crop_scale}; it needs 0 < smallest <= largest <= 1, or None for no crop")
        steps = [
            v2.RandomResizedCrop(image_size, scale=(low, high), interpolation=InterpolationMode.BICUBIC, antialias=True)
        ]
    if horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if randaugment is not None:
        steps.append(RandAugment(*randaugment))
    return v2.Compose(steps + _to_tensor())


def unnormalise(images: torch.Tensor) -> torch.Tensor:
    """The inverse of the normalisation: (..., 3, S, S) to values in 0..1, to look at."""
    mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (MEAN, STD))
    return (images * std + mean).clamp(0, 1)


def eval_transform(image_size: int) -> v2.Compose:
    """PIL RGB -> float32 (3, S, S): bicubic resize to a square, no crop."""
    _check_size(image_size)
    return v2.Compose([_resize(image_size), *_to_tensor()])


class RandAugment(nn.Module):
    """`count` operations, drawn with replacement, each then applied with probability one half. PIL RGB -> PIL RGB.

    RandAugment (Cubuk et al. 2020) as BLIP has it: ten operations, of which none inverts or posterises, moves of 10
    pixels at most, grey where nothing is left, magnitude on a scale of 0 to 10. torchvision's own has other
    operations and moves by up to 45 % of the width.
    """

    OPERATIONS = (
        "identity", "autocontrast", "equalize", "brightness", "sharpness",
        "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
    )  # fmt: skip

    def __init__(self, count: int = 2, magnitude: int = 5):
        super().__init__()
        if count < 0 or not 0 <= magnitude <= 10:
            raise ValueError(f"randaugment is ({count}, {magnitude}); it needs a count >= 0 and a magnitude of 0 to 10")
        self.count = count
        self.magnitude = magnitude

    def forward(self, image: Image.Image) -> Image.Image:
        for operation in torch.randint(len(self.OPERATIONS), (self.count,)).tolist():
            if torch.rand(()) < 0.5:
                image = self.apply_one(image, self.OPERATIONS[operation])
        return image

    def apply_one(self, image: Image.Image, operation: str) -> Image.Image:
        """One operation at the magnitude, geometric ones in a random direction."""
        level = self.magnitude / 10
        if operation == "identity":
            return image
        if operation == "autocontrast":
            return F.autocontrast(image)
        if operation == "equalize":
            return F.equalize(image)
        factor = 0.1 + 1.8 * level  # 1, no change, at the published magnitude of 5
        if operation == "brightness":
            return F.adjust_brightness(image, factor)
        if operation == "sharpness":
            return F.adjust_sharpness(image, factor)
        if torch.rand(()) < 0.5:
            level = -level
        shear = np.degrees(np.arctan(0.3 * level)).item()  # a slope of 0.3 at most, in degrees
        shift = round(10 * level)  # pixels
        return F.affine(
            image,
            angle=30.0 * level if operation == "rotate" else 0.0,
            translate=[shift if operation == "translate_x" else 0, shift if operation == "translate_y" else 0],
            scale=1.0,
            shear=[shear if operation == "shear_x" else 0.0, shear if operation == "shear_y" else 0.0],
            interpolation=InterpolationMode.BILINEAR,
            fill=[128.0, 128.0, 128.0],
        )


def _resize(image_size: int) -> v2.Resize:
    return v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def _to_tensor() -> list[nn.Module]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; it is a side in pixels, such as 224")
