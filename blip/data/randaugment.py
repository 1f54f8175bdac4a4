"""RandAugment (Cubuk et al. 2020) as in BLIP, on PIL images; `augment.py` has the same on batches of tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from blip.data.batches import Operations
from blip.errors import InputError

OPERATIONS = (
    "identity", "autocontrast", "equalize", "brightness", "sharpness",
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
)  # fmt: skip
GEOMETRIC = OPERATIONS[5:]  # these have a direction
FILL = 128  # grey of areas that are empty after a geometric operation
CHANCE = 0.5  # of an operation that was drawn to be applied, and of either direction


@dataclass(frozen=True)
class Strength:
    """What the operations do at a magnitude, 0 to 10."""

    factor: float  # of brightness and sharpness; 1: no change, at the published magnitude of 5
    slope: float  # of shears
    shift: int  # of translations [pixels]
    angle: float  # of rotations [degrees]

    @classmethod
    def of(cls, magnitude: int) -> "Strength":
        level = magnitude / 10
        return cls(0.1 + 1.8 * level, 0.3 * level, round(10 * level), 30.0 * level)


class RandAugment(nn.Module):
    """`count` operations, drawn with replacement, each then applied with probability one half. PIL to PIL, RGB or grey.

    Ten operations, none of which inverts or posterises, translations of at most 10 pixels, empty areas filled with
    grey, a magnitude on a scale of 0 to 10. Shears keep the centre of the top-left pixel in place, and rotations turn
    about the point half a pixel right of and below the image's centre, as published. torchvision's own has other
    operations and translates by up to 45 % of the width.
    """

    OPERATIONS = OPERATIONS

    def __init__(self, count: int = 2, magnitude: int = 5):
        super().__init__()
        if count < 0 or not 0 <= magnitude <= 10:
            raise InputError(f"randaugment is ({count}, {magnitude}); it needs a count >= 0 and a magnitude of 0 to 10")
        self.count = count
        self.magnitude = magnitude
        self.strength = Strength.of(magnitude)

    def forward(self, image: Image.Image) -> Image.Image:
        for operation in torch.randint(len(self.OPERATIONS), (self.count,)).tolist():
            if torch.rand(()) < CHANCE:
                image = self.apply_one(image, self.OPERATIONS[operation])
        return image

    def draw(self, generator: np.random.Generator) -> Operations:
        """The operations of a sample, of the same distribution as those of `forward`."""
        drawn = []
        for _ in range(self.count):
            number = int(generator.integers(len(OPERATIONS))) if generator.random() < CHANCE else 0
            backwards = OPERATIONS[number] in GEOMETRIC and generator.random() < CHANCE
            drawn.append(-number if backwards else number)
        return tuple(drawn)

    def apply_drawn(self, image: Image.Image, operations: Operations) -> Image.Image:
        """The operations that were drawn, in their order."""
        for number in operations:
            image = self.changed(image, OPERATIONS[abs(number)], backwards=number < 0)
        return image

    def apply_one(self, image: Image.Image, operation: str) -> Image.Image:
        """One operation at the magnitude, geometric ones in a random direction."""
        backwards = operation in GEOMETRIC and bool(torch.rand(()) < CHANCE)
        return self.changed(image, operation, backwards=backwards)

    def changed(self, image: Image.Image, operation: str, *, backwards: bool) -> Image.Image:
        """One operation at the magnitude; `backwards` turns a geometric one round."""
        if operation == "identity":
            return image
        if operation == "autocontrast":
            return F.autocontrast(image)
        if operation == "equalize":
            return F.equalize(image)
        if operation == "brightness":
            return F.adjust_brightness(image, self.strength.factor)
        if operation == "sharpness":
            return F.adjust_sharpness(image, self.strength.factor)
        sign = -1 if backwards else 1
        shear = sign * np.degrees(np.arctan(self.strength.slope)).item()
        shift = sign * self.strength.shift
        # published coordinates count from the centre of the top-left pixel, torchvision's from its corner
        center = [0.5, 0.5] if operation != "rotate" else [image.width / 2 + 0.5, image.height / 2 + 0.5]
        return F.affine(
            image,
            angle=sign * self.strength.angle if operation == "rotate" else 0.0,
            translate=[shift if operation == "translate_x" else 0, shift if operation == "translate_y" else 0],
            scale=1.0,
            shear=[shear if operation == "shear_x" else 0.0, shear if operation == "shear_y" else 0.0],
            interpolation=InterpolationMode.BILINEAR,
            fill=[float(FILL)] * len(image.getbands()),
            center=center,
        )
