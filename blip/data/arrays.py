"""Arrays of numbers as images, by the rules that files follow.

H, W: height and width in pixels; C: channels.
"""

from typing import Any

import numpy as np
from PIL import Image

from blip.data.grey_levels import window
from blip.errors import InputError

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with alpha
SHAPES = "(H, W), or (H, W, C) with 1, 3 or 4 channels"


def is_image(array: np.ndarray) -> bool:
    """Whether an array has the shape of one image."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS)


def array_image(array: np.ndarray) -> Image.Image:
    """An array (H, W) or (H, W, C) as an image of 8 bits: grey, RGB or RGB with alpha.

    uint8 is taken as it is, booleans are black and white, floats from 0 to 1 are black to white. All other numbers are
    windowed, as those of files are: see `blip.data.grey_levels.window`; the colours of a pixel by one window.

    Raises:
        InputError: the array has another shape, no pixels, or holds no numbers.
    """
    if not is_image(array):
        raise InputError(f"an array of shape {array.shape} is not one image: one is {SHAPES}")
    if not array.size:
        raise InputError(f"an array of shape {array.shape} has no pixels")
    if array.dtype.kind not in "buif":
        raise InputError(f"an array of {array.dtype} is no image: it needs numbers, such as uint8, uint16 or float32")
    values = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if values.ndim == 3 and values.shape[2] == 4 and values.dtype != np.uint8:
        colours, alpha = _eight_bits(values[:, :, :3]), _whole_range(values[:, :, 3])
        return Image.fromarray(np.dstack([colours, alpha]))
    return Image.fromarray(_eight_bits(values))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) of any number type -> uint8."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind == "f" and _from_0_to_1(values):
        return np.round(np.nan_to_num(values.astype(np.float64)) * 255).astype(np.uint8)
    flat = values.reshape(len(values), -1)  # one window for all colours
    return window(flat.astype(np.float32) if values.dtype == np.float16 else flat).reshape(values.shape)


def _from_0_to_1(values: np.ndarray) -> bool:
    if np.isnan(values).all():
        return True
    return bool(np.nanmin(values) >= 0 and np.nanmax(values) <= 1)


def _whole_range(alpha: np.ndarray) -> np.ndarray:
    """An alpha channel by the range of its type: 0 is transparent, the greatest value (of floats: 1) opaque."""
    kind: Any = alpha.dtype
    most = 1.0 if kind.kind in "bf" else float(np.iinfo(kind).max)
    return np.round(np.nan_to_num(alpha.astype(np.float64) / most).clip(0, 1) * 255).astype(np.uint8)
