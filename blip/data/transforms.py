"""The transforms of training and evaluation: PIL RGB images to normalised tensors.

S: side in pixels of the square that the network takes.
"""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from blip.errors import InputError

# of CLIP's training images; BLIP (Li et al. 2022) uses them too
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def train_transform(
    image_size: int,
    crop_scale: tuple[float, float] | None = (0.2, 1.0),
    randaugment: tuple[int, int] | None = (2, 5),
    *,
    horizontal_flip: bool = False,
) -> v2.Compose:
    """PIL RGB -> float32 (3, S, S) with augmentation; every draw comes from torch's global generator.

    Args:
        image_size: S.
        crop_scale: share of the image's area that a random crop keeps; None resizes the whole image.
        randaugment: number of operations and their magnitude, 0 to 10; None leaves them out.
        horizontal_flip: mirror every second image. Off by default, since left and right differ in medical images.
    """
    _check_size(image_size)
    steps: list[nn.Module] = [_resize(image_size)]
    if crop_scale is not None:
        low, high = crop_scale
        if not 0 < low <= high <= 1:
            raise InputError(f"crop_scale is {crop_scale}; it needs 0 < smallest <= largest <= 1, or None for no crop")
        steps = [
            v2.RandomResizedCrop(image_size, scale=(low, high), interpolation=InterpolationMode.BICUBIC, antialias=True)
        ]
    if horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if randaugment is not None:
        steps.append(RandAugment(*randaugment))
    return v2.Compose(steps + _to_tensor())


def unnormalise(images: torch.Tensor) -> torch.Tensor:
    """The inverse of the normalisation: (..., 3, S, S) to values in 0..1, for display."""
    mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (MEAN, STD))
    return (images * std + mean).clamp(0, 1)


def eval_transform(image_size: int) -> v2.Compose:
    """PIL RGB -> float32 (3, S, S): bicubic resize to a square, no crop."""
    _check_size(image_size)
    return v2.Compose([_resize(image_size), *_to_tensor()])


class RandAugment(nn.Module):
    """`count` operations, drawn with replacement, each then applied with probability one half. PIL RGB -> PIL RGB.

    RandAugment (Cubuk et al. 2020) as in BLIP: ten operations, none of which inverts or posterises, translations of at
    most 10 pixels, empty areas filled with grey, a magnitude on a scale of 0 to 10. Shears keep the centre of the
    top-left pixel in place, and rotations turn about the point half a pixel right of and below the image's centre, as
    published. torchvision's own has other operations and translates by up to 45 % of the width.
    """

    OPERATIONS = (
        "identity", "autocontrast", "equalize", "brightness", "sharpness",
        "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
    )  # fmt: skip

    def __init__(self, count: int = 2, magnitude: int = 5):
        super().__init__()
        if count < 0 or not 0 <= magnitude <= 10:
            raise InputError(f"randaugment is ({count}, {magnitude}); it needs a count >= 0 and a magnitude of 0 to 10")
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
        # published coordinates count from the centre of the top-left pixel, torchvision's from its corner
        center = [0.5, 0.5] if operation != "rotate" else [image.width / 2 + 0.5, image.height / 2 + 0.5]
        return F.affine(
            image,
            angle=30.0 * level if operation == "rotate" else 0.0,
            translate=[shift if operation == "translate_x" else 0, shift if operation == "translate_y" else 0],
            scale=1.0,
            shear=[shear if operation == "shear_x" else 0.0, shear if operation == "shear_y" else 0.0],
            interpolation=InterpolationMode.BILINEAR,
            fill=[128.0, 128.0, 128.0],
            center=center,
        )


def _resize(image_size: int) -> v2.Resize:
    return v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def _to_tensor() -> list[nn.Module]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise InputError(f"image_size is {image_size}; it is a side in pixels, such as 224")
