"""The formats of images that Pillow opens here, and the messages about files of other formats."""

import contextlib
from collections.abc import Iterator
from typing import BinaryIO

# the plugins that Pillow loads only where it tries every format
from PIL import Image, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from blip.errors import InputError

# Pillow's names of the formats that are read, whatever a file's name says. Others are never tried: some of them start
# programs (PostScript starts Ghostscript), and their decoders are little tested.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
try:
    from PIL import AvifImagePlugin  # noqa: F401
except ImportError:  # Pillow has it since 11.3
    FORMATS = FORMATS[:-1]
# what files that are no images of these formats begin with, to name it in messages
SIGNATURES = (
    (0, b"%!PS", "PostScript"), (0, b"\xc5\xd0\xd3\xc6", "PostScript"), (0, b"%PDF", "PDF"), (0, b"DDS ", "DDS"),
    (0, b"<svg", "SVG"), (0, b"\x89HDF", "HDF5"), (4, b"ftyphei", "HEIC"),
)  # fmt: skip


def identified(file: BinaryIO, start: bytes) -> Image.Image:
    """The image of a file, its header alone read; `start`: its first bytes. InputError where it is none of FORMATS."""
    try:
        return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        kind = next((kind for at, mark, kind in SIGNATURES if start[at : at + len(mark)] == mark), "")
        if kind:
            raise InputError(f"not an image that is read but {kind}: convert it to PNG or JPEG") from None
        known = ", ".join(FORMATS)
        raise InputError(f"not an image, or a broken one, or of a kind that is not read ({known})") from None
    except Image.DecompressionBombError as error:
        size = next(_sizes(file, start), None)
        raise InputError(f"it has {size[0]} x {size[1]} pixels: make it smaller" if size else str(error)) from None


def _sizes(file: BinaryIO, start: bytes) -> Iterator[tuple[int, int]]:
    """The size of an image that Pillow does not open because of its size, which the error does not name."""
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        with contextlib.suppress(Exception):
            if accept is not None and accept(start[:16]) is True:
                file.seek(0)
                yield factory(file, "").size
