"""Images: finding their files, opening them, bringing any kind to RGB, reading those inside parquet and arrow files.

An image inside a parquet or arrow file has the reference FILE#ROW in place of a path, which is resolved when the image
is read. Arrow files are mapped into memory: a row costs its own bytes. Parquet is compressed by row groups, and one
image costs its whole group (the hub's sets have 100 to 1,000 rows in one): the groups read last stay in memory, which
helps reading in order. Training reads in random order: unpack such images once into files.

H, W: height and width of an image in pixels.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from blip.data.formats import NEEDS_PYARROW
from blip.errors import BlipError, InputError

# of image files; where one image is there in several forms, the first of these is taken
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif", ".webp", ".bmp", ".jp2", ".ppm", ".pgm")
# 1 GiB / 4 / 3, the number above which Pillow warns of a decompression bomb: 256 MiB as RGB. Here it is an error.
MAX_PIXELS = 89_478_485
HIGH_DEPTH = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16 bits, 32 bits and floats
WINDOW = (0.5, 99.5)  # percentiles that become black and white
Item = TypeVar("Item")
REFERENCE = re.compile(r"(?P<file>.+\.(?P<kind>parquet|arrow))#(?P<row>\d+)", re.DOTALL | re.IGNORECASE)

# ---- finding files ---------------------------------------------------------------------------------------------------


class NoImages(BlipError):
    """A path that is neither a file nor a folder with images."""


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Files as they are given, and all images below the folders among them, in the order of their names."""
    paths: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in ENDINGS)
            if not inside:
                raise NoImages(f"{place} is a folder without images; looked for {', '.join(sorted(ENDINGS))}")
            paths += inside
        elif place.is_file():
            paths.append(place)
        else:
            raise NoImages(f"{place}: no such file or folder")
    return paths


# ---- opening ---------------------------------------------------------------------------------------------------------


class UnreadableImage(BlipError):
    """An image that cannot be used: its `path`, and the `reason`."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.path}: {self.reason}"


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Reads a path, a row of a parquet or arrow file (FILE#ROW), bytes or a PIL image as 8-bit RGB, upright.

    Raises:
        UnreadableImage: missing, empty, truncated, not an image, without pixels, or of more than `MAX_PIXELS`.
    """
    name = str(source) if isinstance(source, (str, Path)) else "(in memory)"
    try:
        if isinstance(source, Image.Image):
            return _checked_rgb(source)
        data = source if isinstance(source, bytes) else read_image(source)
        if not data:
            raise InputError("the file is empty")
        with Image.open(io.BytesIO(data)) as image:
            return _checked_rgb(image)
    except FileNotFoundError:
        raise UnreadableImage(name, "no such file") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImage(name, "not an image, or of a kind that Pillow cannot open") from None
    except MemoryError:
        raise
    except Exception as error:  # on broken files Pillow's decoders raise nearly every kind of exception
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def open_or_problem(source: str | Path | bytes | Image.Image) -> tuple[Image.Image | None, str]:
    """An image as `open_image` gives it and "", or None and the message about an image that cannot be read."""
    try:
        return open_image(source), ""
    except UnreadableImage as error:
        return None, str(error)


def readable_batches(
    items: Sequence[Item], batch_size: int, image_of: Callable[[Item], Any] = lambda item: item
) -> Iterator[tuple[list[Item], list[Image.Image], list[str]]]:
    """Batches of items with their opened images; unreadable images are left out and described.

    Args:
        items: paths, or records that have an image.
        batch_size: items tried at once. A batch holds fewer where images are unreadable, down to none.
        image_of: gives the image of an item, as `open_image` takes it; the item itself unless given.

    Yields:
        (items whose image was opened, these images, messages about the other images of the batch)
    """
    for start in range(0, len(items), batch_size):
        kept: list[Item] = []
        images: list[Image.Image] = []
        problems: list[str] = []
        for item in items[start : start + batch_size]:
            image, problem = open_or_problem(image_of(item))
            if image is None:
                problems.append(problem)
            else:
                kept.append(item)
                images.append(image)
        yield kept, images, problems


# ---- any kind of image to RGB ----------------------------------------------------------------------------------------


def _checked_rgb(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width == 0 or height == 0:
        raise InputError(f"it has {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise InputError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}: make it smaller")
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB, turned upright by its EXIF entry.

    16-bit, 32-bit and float images are windowed (see `window`), never clipped. Transparency is laid on white: such
    files are figures made for white pages, whose black letters and lines would vanish on black; scans have none. Of
    several frames or pages the first is taken.
    """
    # a broken EXIF block does not mean broken pixels; if those are broken, converting raises
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode in HIGH_DEPTH:
        return Image.fromarray(window(np.asarray(image))).convert("RGB")
    if (image.mode == "P" and "transparency" in image.info) or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        # Pillow converts the premultiplied modes La and RGBa only to LA and RGBA
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


def plain(image: Image.Image) -> Image.Image:
    """An image of 8 bits in grey or RGB: grey stays grey, 16 bits and floats are scaled from their whole range,
    transparent pixels become white. Unlike `to_rgb` it neither turns the image nor cuts off extreme values."""
    if image.mode in ("L", "RGB"):
        return image.copy()
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        low, high = np.nanmin(values), np.nanmax(values)
        return Image.fromarray(np.nan_to_num((values - low) * 255 / max(1e-9, high - low)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


# ---- the bytes of an image, of a file or inside a parquet or arrow file ----------------------------------------------


def read_image(path: str | Path) -> bytes:
    """The bytes of an image file or, where there is no such file, of the reference FILE#ROW; rows count from 0.

    Raises:
        FileNotFoundError: neither a file nor a row of one.
        OSError, ValueError: what is wrong with the file or the row.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        reference = REFERENCE.fullmatch(str(path))
        if reference is None or not os.path.isfile(reference["file"]):
            raise
    file, row = reference["file"], int(reference["row"])
    read_value = _parquet_value if reference["kind"].lower() == "parquet" else _arrow_value
    # the process is part of the caches' keys: pyarrow does not promise that an open file can be used after a fork
    value = read_value(file, row, os.getpid())
    # `datasets` saves {"bytes", "path"}; the bytes are null where only the path was kept
    data, other = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is None and other:
        return (Path(file).parent / other).read_bytes()
    if not isinstance(data, bytes):
        raise InputError(f"row {row} of {file} holds no image")
    return data


def is_reference(path: str | Path) -> bool:
    """Whether a path has the form FILE#ROW, a row of a parquet or arrow file."""
    return REFERENCE.fullmatch(str(path)) is not None


def _parquet_value(file: str, row: int, process: int) -> Any:
    _, ends = _parquet_file(file, process)
    group = int(np.searchsorted(ends, row, side="right"))
    if group == len(ends):
        raise InputError(f"it has {ends[-1] if len(ends) else 0} rows")
    first = int(ends[group - 1]) if group else 0
    return _row_group(file, group, process)[row - first].as_py()


@lru_cache(maxsize=32)
def _parquet_file(file: str, process: int) -> tuple[Any, np.ndarray]:
    """The opened file, and the row at which each of its row groups ends."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(NEEDS_PYARROW) from None
    opened = parquet.ParquetFile(file)
    groups = range(opened.metadata.num_row_groups)
    return opened, np.cumsum([opened.metadata.row_group(i).num_rows for i in groups], dtype=np.int64)


@lru_cache(maxsize=2)
def _row_group(file: str, group: int, process: int) -> Any:
    # no threads: loader workers are forked, and there is one process per core already
    return _parquet_file(file, process)[0].read_row_group(group, columns=["image"], use_threads=False).column("image")


def _arrow_value(file: str, row: int, process: int) -> Any:
    column = _arrow_column(file, process)
    if row >= len(column):
        raise InputError(f"it has {len(column)} rows")
    return column[row].as_py()


@lru_cache(maxsize=256)
def _arrow_column(file: str, process: int) -> Any:
    try:
        import pyarrow
        from pyarrow import ipc
    except ImportError:
        raise InputError(NEEDS_PYARROW) from None
    return ipc.open_stream(pyarrow.memory_map(file)).read_all().column("image")
