"""What is done to batches of training images on their device: RandAugment, if it was drawn alone, and normalisation.

The operations are those of `randaugment.py`, with the results of PIL: brightness, contrast, sharpness and translations
bit for bit; of shears and rotations some pixels differ by one of 256 levels, where PIL, which computes in float64, cuts
off another fraction. All of a sample was drawn by its reader, so that neither the batch nor the device changes it.

B images, S their side in pixels, n images of a part of the batch.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from blip.data.batches import Operations
from blip.data.randaugment import FILL, OPERATIONS, Strength
from blip.data.transforms import MEAN, STD
from blip.hardware.transfers import sent
from blip.network.pictures import Pictures

IDENTITY, AUTOCONTRAST, EQUALIZE, BRIGHTNESS, SHARPNESS, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = range(10)
LEVELS = 256
NEARLY = 0.01  # added before fractions of a level are cut off, for sums that rounding has put just below a level


def prepared(batches: Iterator[Any], device: torch.device, magnitude: int) -> Iterator[Any]:
    """Batches whose images are float32, normalised, on the device; those that are already stay as they are."""
    for batch in batches:
        several = isinstance(batch.images, Pictures)
        if (batch.images.tensor if several else batch.images).dtype == torch.uint8:
            images = batch.images.to(device, non_blocking=True)
            flat = images.real() if several else images.flatten(0, -4)
            flat = normalised(augmented(flat, batch.operations, magnitude))
            batch.images = images.with_real(flat) if several else flat.view(images.shape)
            batch.operations = []
        yield batch


def normalised(images: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) -> float32, as `eval_transform` normalises one image."""
    # torchvision's function would wait for a device to get the numbers
    mean, std = (_on(images.device, list(numbers), torch.float32)[:, None, None] for numbers in (MEAN, STD))
    return transforms.to_dtype(images, torch.float32, scale=True).sub_(mean).div_(std)


def augmented(images: Tensor, operations: list[Operations], magnitude: int) -> Tensor:
    """uint8 (B, 3, S, S) after the operations of each image, in their order; `operations` is empty if there are none.

    One round of operations is done for all images at once, in three parts: those that map levels to levels, those that
    move pixels, and sharpness.
    """
    strength = Strength.of(magnitude)
    for numbers in zip(*operations, strict=True):
        images = _round(images, numbers, strength)
    return images


def _round(images: Tensor, numbers: tuple[int, ...], strength: Strength) -> Tensor:
    parts: dict[str, list[int]] = {"levels": [], "places": [], "sharpness": []}
    for row, number in enumerate(map(abs, numbers)):
        unchanged = number in (BRIGHTNESS, SHARPNESS) and strength.factor == 1
        if number and not unchanged:
            kind = "places" if number >= SHEAR_X else "sharpness" if number == SHARPNESS else "levels"
            parts[kind].append(row)
    done = images
    for kind, rows in parts.items():
        if not rows:
            continue
        own = [numbers[row] for row in rows]
        index = _on(images.device, rows)
        chosen = images[index]
        if kind == "levels":
            changed = _relevelled(chosen, own, strength)
        elif kind == "places":
            changed = _moved(chosen, own, strength)
        else:
            changed = _sharpened(chosen, strength.factor)
        done = done.index_copy(0, index, changed)
    return done


def _on(device: torch.device, values: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:
    """A tensor on the device, without a wait for it."""
    return sent(torch.tensor(values, dtype=dtype), device)


# ---- levels ----------------------------------------------------------------------------------------------------------


def _relevelled(images: Tensor, numbers: list[int], strength: Strength) -> Tensor:
    """Each level of each channel becomes another one: autocontrast, equalize, brightness."""
    n, side = len(images), images.shape[-1]
    flat = images.flatten(2).long()  # (n, 3, S * S)
    counts = torch.zeros(n, 3, LEVELS, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    kinds = _on(images.device, numbers)[:, None, None]
    brighter = (torch.arange(LEVELS, device=images.device) * torch.tensor(strength.factor, dtype=torch.float32)).trunc()
    table = torch.where(kinds == AUTOCONTRAST, _stretched(counts), brighter.clamp(0, LEVELS - 1).long())
    table = torch.where(kinds == EQUALIZE, _equalised(counts), table)
    return table.gather(2, flat).to(torch.uint8).view(n, 3, side, side)


def _stretched(counts: Tensor) -> Tensor:
    """(n, 3, 256) numbers of pixels -> the level that each becomes: the darkest 0, the brightest 255."""
    levels = torch.arange(LEVELS, device=counts.device)
    there = counts > 0
    low = torch.where(there, levels, LEVELS).amin(-1, keepdim=True).double()
    high = torch.where(there, levels, -1).amax(-1, keepdim=True).double()
    scale = torch.full_like(low, LEVELS - 1) / (high - low).clamp(min=1)  # number / tensor would round twice
    table = (levels * scale - low * scale).trunc().clamp(0, LEVELS - 1).long()
    return torch.where(high > low, table, levels)


def _equalised(counts: Tensor) -> Tensor:
    """(n, 3, 256) numbers of pixels -> the level that each becomes, so that all are about equally frequent."""
    levels = torch.arange(LEVELS, device=counts.device)
    last = torch.where(counts > 0, levels, -1).amax(-1, keepdim=True).clamp(min=0)
    step = (counts.sum(-1, keepdim=True) - counts.gather(-1, last)) // (LEVELS - 1)
    before = counts.cumsum(-1) - counts + step // 2
    table = (before // step.clamp(min=1)).clamp(max=LEVELS - 1)
    return torch.where(step > 0, table, levels)


# ---- places ----------------------------------------------------------------------------------------------------------


def _moved(images: Tensor, numbers: list[int], strength: Strength) -> Tensor:
    """Shears, translations and rotations, between four pixels each; what lies outside becomes grey."""
    side = images.shape[-1]
    matrices = [source_matrix(number, strength, side) for number in numbers]
    matrix = _on(images.device, matrices, torch.float64)  # (n, 2, 3)
    centres = torch.arange(side, device=images.device, dtype=torch.float64) + 0.5
    x, y = centres[None, None, :], centres[None, :, None]
    from_x, from_y = (row[:, 0, None, None] * x + row[:, 1, None, None] * y + row[:, 2, None, None]
                      for row in (matrix[:, 0], matrix[:, 1]))  # fmt: skip
    inside = (from_x >= 0) & (from_x < side) & (from_y >= 0) & (from_y < side)  # (n, S, S)
    grid = (torch.stack([from_x, from_y], dim=-1) * 2 / side - 1).float()
    with torch.autocast(images.device.type, enabled=False):
        values = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(inside[:, None], values + NEARLY, FILL).to(torch.uint8)


def source_matrix(number: int, strength: Strength, side: int) -> list[list[float]]:
    """[[a, b, c], [d, e, f]]: the pixel at x, y of the result is at a x + b y + c, d x + e y + f of the image, counted
    from the corner of the top-left pixel."""
    sign, kind = (-1 if number < 0 else 1), OPERATIONS[abs(number)]
    slope, shift = sign * strength.slope, sign * strength.shift
    if kind == "shear_x":
        return [[1.0, slope, -slope / 2], [0.0, 1.0, 0.0]]
    if kind == "shear_y":
        return [[1.0, 0.0, 0.0], [slope, 1.0, -slope / 2]]
    if kind == "translate_x":
        return [[1.0, 0.0, -float(shift)], [0.0, 1.0, 0.0]]
    if kind == "translate_y":
        return [[1.0, 0.0, 0.0], [0.0, 1.0, -float(shift)]]
    angle, centre = torch.deg2rad(torch.tensor(sign * strength.angle, dtype=torch.float64)), side / 2 + 0.5
    cosine, sine = angle.cos().item(), angle.sin().item()
    return [[cosine, sine, centre * (1 - cosine - sine)], [-sine, cosine, centre * (1 + sine - cosine)]]


# ---- sharpness -------------------------------------------------------------------------------------------------------


def _sharpened(images: Tensor, factor: float) -> Tensor:
    """Away from the smoothed image, or towards it where the factor is below 1; the outermost pixels stay."""
    whole = images.int()
    rows = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * whole[..., 1:-1, 1:-1]
    smooth = whole.clone()
    smooth[..., 1:-1, 1:-1] = (2 * sums + 13) // 26  # weights of 1, and 5 in the middle, over 13; rounded
    mixed = smooth + torch.tensor(factor, dtype=torch.float32) * (whole - smooth)
    return mixed.trunc().clamp(0, LEVELS - 1).to(torch.uint8)
