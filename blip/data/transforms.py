"""The transforms of training and evaluation: PIL RGB images to normalised tensors.

S: side in pixels of the square that the network takes.
"""

import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from blip.data.randaugment import RandAugment as RandAugment
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
    check_size(image_size)
    steps: list[nn.Module] = [_resize(image_size)]
    check_crop(crop_scale)
    if crop_scale is not None:
        steps = [
            v2.RandomResizedCrop(image_size, scale=crop_scale, interpolation=InterpolationMode.BICUBIC, antialias=True)
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
    check_size(image_size)
    return v2.Compose([_resize(image_size), *_to_tensor()])


def _resize(image_size: int) -> v2.Resize:
    return v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def _to_tensor() -> list[nn.Module]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def check_size(image_size: int) -> None:
    """InputError unless there is a pixel."""
    if image_size < 1:
        raise InputError(f"image_size is {image_size}; it is a side in pixels, such as 224")


def check_crop(crop_scale: tuple[float, float] | None) -> None:
    """InputError unless the shares of an image's area that a crop keeps can be used."""
    if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise InputError(f"crop_scale is {crop_scale}; it needs 0 < smallest <= largest <= 1, or None for no crop")
