"""A frame of a DICOM file as a picture of 8 bits, in grey or RGB: windowed, MONOCHROME1 bright where tissue is dense.

What is drawn into the pixels stays there, names of patients among it. Overlays and ICC profiles are left out, and
pixels that are not square stay as they are.

H, W: rows and columns of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from PIL import Image

from blip.data.image_bytes import ImageLimits
from blip.data.scans.header import PALETTE, PALETTES, Header, broken, read_header
from blip.data.scans.levels import Levels, Presentation, is_inverted, levels_of, looked_up, presentation_of
from blip.data.scans.libraries import pydicom
from blip.data.scans.pixels import OF_DEEP, stored_frame
from blip.data.scans.references import Reference
from blip.data.scans.windows import NAMED, parse_window, usual_range
from blip.errors import InputError

NOTHING = Levels(np.empty((0, 0)))  # of a picture in colour
BROKEN = "a broken DICOM file: its grey levels or colours cannot be computed"


@dataclass
class Grey:
    """A slice in grey, of DICOM or NIfTI, before it is shown."""

    levels: Levels
    presentation: Presentation | None = None  # that its file names
    inverted: bool = False
    is_hounsfield: bool = False  # otherwise the windows of NAMED mean nothing
    colour: Image.Image | None = field(default=None, repr=False)  # of a picture that is not grey: all that there is

    @property
    def memory(self) -> int:
        """Bytes that it takes with its picture, for the limit of a volume."""
        if self.colour is not None:
            return 6 * self.colour.width * self.colour.height
        words = self.levels.words
        return self.levels.values.size * (OF_DEEP + 8) if words is None else 5 * words.size


def open_frame(file: BinaryIO, reference: Reference | None, limits: ImageLimits) -> Image.Image:
    """A frame of a DICOM file, mode L or RGB; InputError where it cannot be read."""
    if reference is not None:
        reference.only("frame")
    header = read_header(file, limits.max_bytes)
    return shown([read_frame(header, (reference and reference.frame) or 0, limits)], limits)[0]


def read_frame(header: Header, frame: int, limits: ImageLimits) -> Grey:
    """A frame, decoded, before a window is chosen."""
    stored = stored_frame(header, frame, limits.max_pixels)
    with broken(BROKEN):
        if not header.is_grey:
            return Grey(NOTHING, colour=_colours(stored, header))
        levels = levels_of(stored, header, frame)
        return Grey(levels, presentation_of(header, frame), is_inverted(header), header.is_hounsfield)


def shown(slices: Sequence[Grey], limits: ImageLimits) -> list[Image.Image]:
    """Slices of one volume as pictures, all with the same window: that of `limits`, else that of the middle slice, else
    the usual percentiles of all of them."""
    with broken(BROKEN):
        return [_marked(one.colour if one.colour is not None else _picture(one, slices, limits)) for one in slices]


def _picture(one: Grey, slices: Sequence[Grey], limits: ImageLimits) -> Image.Image:
    if limits.channels and (one.is_hounsfield or not any(name in NAMED for name in limits.channels)):
        planes = [one.levels.shown(parse_window(name), one.inverted) for name in limits.channels]
        return Image.fromarray(np.stack(planes, axis=-1))
    if limits.window and (one.is_hounsfield or limits.window not in NAMED):
        return Image.fromarray(one.levels.shown(parse_window(limits.window), one.inverted))
    presentation = slices[len(slices) // 2].presentation or _usual(slices, one.inverted)
    return Image.fromarray(one.levels.shown(presentation, one.inverted))


def _usual(slices: Sequence[Grey], inverted: bool) -> Presentation:
    """The window of the percentiles of all slices together, for a slice that is `inverted` or not."""
    parts = [one.levels.counted() for one in slices if one.colour is None]
    if all(counts is None for _, counts in parts):
        return usual_range(np.concatenate([values for values, _ in parts]), inverted=inverted)
    counted = [(values, np.ones(len(values), np.int64) if counts is None else counts) for values, counts in parts]
    return usual_range(*(np.concatenate(column) for column in zip(*counted, strict=True)), inverted=inverted)


def _marked(image: Image.Image) -> Image.Image:
    image.format = "SCAN"
    return image


def _colours(stored: np.ndarray, header: Header) -> Image.Image:
    """A frame with a palette (H, W), or in RGB (H, W, 3) of any depth, as a picture in RGB."""
    if header.photometric == PALETTE:
        if stored.dtype.itemsize > 2:
            raise InputError("its palette has indices of more than 16 bits")
        words = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        words = words.view(f"u{words.dtype.itemsize}")
        every = np.arange(1 << (8 * words.dtype.itemsize)).astype(words.dtype)
        colours = _palette(every[None], header)
        if words.dtype.itemsize > 1:
            return Image.fromarray(looked_up(colours, words))
        indexed = Image.fromarray(words)
        indexed.putpalette(colours.tobytes())
        return indexed.convert("RGB")
    if header.stored > 8:
        stored = (stored >> (header.stored - 8)).clip(0, 255)
    return Image.fromarray(np.ascontiguousarray(stored.astype(np.uint8, copy=False)))


def _palette(indices: np.ndarray, header: Header) -> np.ndarray:
    """The colours of indices (1, N): uint8 (N, 3). Entries of 16 bits whose high bytes are all 0 have 8 bits."""
    found = np.asarray(pydicom().pixels.apply_color_lut(indices, header.dataset))[0, :, :3]
    if found.dtype.itemsize > 1 and not header.syntax.is_little_endian and header.get(PALETTES[1]) is not None:
        found = found.byteswap()  # pydicom reads them as little endian
    return (found >> 8 if found.max() > 255 else found).astype(np.uint8)
