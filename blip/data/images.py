"""Images: finding them, opening them, and bringing any kind to RGB.

An image may lie inside a parquet or arrow file; the reference FILE#ROW is resolved when the image is wanted. Arrow
files are mapped into memory: any row costs its own bytes. Parquet is compressed by row groups, and one image costs its
whole group (the hub's sets have 100 to 1,000 rows in one): groups that were read last stay in memory, which helps
reading in order. For training, which reads in random order, unpack the images once into files.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from blip.data.formats import NEEDS_PYARROW
from blip.errors import BlipError, InputError

REFERENCE = re.compile(r"(?P<file>.+\.(?P<kind>parquet|arrow))#(?P<row>\d+)", re.DOTALL | re.IGNORECASE)


def is_reference(path: str | Path) -> bool:
    """Whether it reads as FILE#ROW of a parquet or arrow file."""
    return REFERENCE.fullmatch(str(path)) is not None


def read_image(path: str | Path) -> bytes:
    """The bytes of an image file or, where there is no such file, of the reference FILE#ROW; rows count from 0.

    Raises:
        FileNotFoundError: neither a file nor a row of one.
        OSError, ValueError: says what is wrong with the file or the row.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        reference = REFERENCE.fullmatch(str(path))
        if reference is None or not os.path.isfile(reference["file"]):
            raise
    file, row = reference["file"], int(reference["row"])
    # the process is part of the key: pyarrow promises nothing for an open file on the other side of a fork
    find = _parquet_value if reference["kind"].lower() == "parquet" else _arrow_value
    value = find(file, row, os.getpid())
    # `datasets` saves {"bytes", "path"}; the bytes are null where only the path was kept
    data, other = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is None and other:
        return (Path(file).parent / other).read_bytes()
    if not isinstance(data, bytes):
        raise InputError(f"row {row} of {file} holds no image")
    return data


def _parquet_value(file: str, row: int, process: int) -> Any:
    _, ends = _parquet_file(file, process)
    group = int(np.searchsorted(ends, row, side="right"))
    if group == len(ends):
        raise InputError(f"it has {ends[-1] if len(ends) else 0} rows")
    first = int(ends[group - 1]) if group else 0
    return _row_group(file, group, process)[row - first].as_py()


@lru_cache(maxsize=32)
def _parquet_file(file: str, process: int) -> tuple[Any, np.ndarray]:
    """The opened file, and where its row groups end."""
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
            raise InputError("the file is empty")
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
        raise InputError(f"it has {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise InputError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}: make it smaller")
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


# of image files; where a figure has several, the first of these is taken
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif", ".webp", ".bmp", ".jp2", ".ppm", ".pgm")


class NoImages(BlipError):
    """Nothing to look at."""


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Files as they are given, and all images below the folders among them, in the order of their names."""
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in ENDINGS)
            if not inside:
                raise NoImages(f"{place} is a folder without images; looked for {', '.join(sorted(ENDINGS))}")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise NoImages(f"{place}: no such file or folder")
    return found


def readable(paths: Sequence[Path], batch_size: int) -> Iterator[tuple[list[Path], list[Any], list[str]]]:
    """Batches of (paths, their images, messages about those that cannot be read)."""
    for start in range(0, len(paths), batch_size):
        kept, images, problems = [], [], []
        for path in paths[start : start + batch_size]:
            try:
                images.append(open_image(path))
                kept.append(path)
            except UnreadableImage as error:
                problems.append(str(error))
        yield kept, images, problems


def plain(image: Image.Image) -> Image.Image:
    """Grey stays grey, 16 bits and floats become 8 bits over their own range, clear pixels white, the rest RGB."""
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
