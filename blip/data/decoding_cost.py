"""What decoding an image costs, judged by its header before it begins: pixels, memory, and scans of a JPEG."""

import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from blip.errors import InputError

MEMORY = 1_000_000_000  # bytes that an image may take while it is decoded and brought to RGB, on the largest path
# Peak bytes for each pixel, as measured with Pillow 12, of the formats whose decoders hold several copies; the others
# need at most 10. The greatest of any mode, except where the number of bands (B) decides: JPEG 2000 takes 5 + 5 B.
BYTES_PER_PIXEL = {"WEBP": 17, "AVIF": 20}
OTHERS, OF_FOUR_INKS = 10, 12  # the latter for a progressive JPEG in CMYK
JPEGS = ("JPEG", "MPO")
SCANS = 500  # of a JPEG, each of which passes over all pixels; encoders write some ten
SCAN = b"\xff\xda"  # the mark of a scan, which compressed data cannot contain
SHORTEST = 10  # bytes of a scan
QUICK = 40_000_000_000  # pixels times scans that take some seconds at most
BLOCK = 1 << 20  # bytes


def check_size(size: tuple[int, int], most: int) -> None:
    """InputError for an image without pixels, or with more than `most`."""
    width, height = size
    if width == 0 or height == 0:
        raise InputError(f"it has {width} x {height} pixels")
    if width * height > most:
        raise InputError(f"it has {width} x {height} pixels, more than {most:,}: make it smaller")


def check_cost(image: Image.Image, file: BinaryIO) -> None:
    """InputError for an image of a file whose decoding would take too much memory or time.

    Args:
        image: its header alone has been read.
        file: its bytes, read from the beginning and left at the same place.
    """
    kind = image.format or ""
    most = MEMORY // _bytes_per_pixel(kind, image.mode)
    if image.width * image.height > most:
        raise InputError(
            f"it has {image.width} x {image.height} pixels; of {kind}, which takes much memory to decode, at most "
            f"{most:,} are read: make it smaller, or save it as PNG"
        )
    if kind in JPEGS and _may_take_long(image, file) and sum(_scans(file)) > SCANS:
        raise InputError(f"it has more than {SCANS} scans, each of which takes as long as an image: save it anew")


def _bytes_per_pixel(kind: str, mode: str) -> int:
    if kind == "JPEG2000":
        return 5 + 5 * Image.getmodebands(mode)
    return BYTES_PER_PIXEL.get(kind, OF_FOUR_INKS if kind in JPEGS and mode == "CMYK" else OTHERS)


def _may_take_long(image: Image.Image, file: BinaryIO) -> bool:
    """Whether a JPEG is so large that its scans have to be counted, which takes a tenth of the time of decoding."""
    place = file.tell()
    most = file.seek(0, os.SEEK_END) // SHORTEST
    file.seek(place)
    return image.width * image.height * most > QUICK


def _scans(file: BinaryIO) -> Iterator[int]:
    """How many scans begin in each block of a JPEG file."""
    place = file.tell()
    file.seek(0)
    last = b""
    while block := file.read(BLOCK):
        values = np.frombuffer(last + block, np.uint8)
        behind = values[1:] == SCAN[1]  # five times as fast as `bytes.count`, which took 6 % of reading a crop
        yield int(np.count_nonzero(values[:-1][behind] == SCAN[0]))
        last = block[-1:]
    file.seek(place)
