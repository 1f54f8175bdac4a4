"""Images: opening them, bringing any kind to 8 bits, upright. Their files are found in `image_files.py`.

`opened` is the one place of the package where an image is opened: a regular file, or bytes, of limited size, in one of
the formats of FORMATS, or a scan: DICOM or NIfTI, which `scans` reads. Whatever is wrong with it becomes an
UnreadableImage.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from PIL import Image, ImageOps

from blip.data.decoding_cost import check_cost, check_size
from blip.data.grey_levels import HIGH_DEPTH, STRIP, whole_range, window
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage, image_stream, read_image
from blip.data.image_files import ENDINGS as ENDINGS
from blip.data.image_files import NoImages as NoImages
from blip.data.image_files import find_images as find_images
from blip.data.image_formats import FORMATS as FORMATS
from blip.data.image_formats import identified
from blip.data.scans.nifti import NEEDED
from blip.data.scans.references import has_dicom_name, is_scan_reference
from blip.data.scans.volumes import open_named, open_reference, open_scan
from blip.errors import InputError

# what Pillow says of odd entries and broken headers: a file that cannot be used has a message here, and others are fine
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")  # modes with an alpha channel
Source = str | Path | bytes | BinaryIO | Image.Image
Item = TypeVar("Item")

# ---- opening ---------------------------------------------------------------------------------------------------------


def open_image(source: Source, limits: ImageLimits = LIMITS) -> Image.Image:
    """Reads a path, a row of a parquet or arrow file (FILE#ROW), bytes, an open file or a PIL image as 8-bit RGB,
    upright; see `to_rgb`.

    Raises:
        UnreadableImage: missing, not a regular file, empty, truncated, not an image of FORMATS, without pixels, or
            larger than `limits` allow.
    """
    with opened(source, limits) as image:
        return _rgb(upright(image))


def open_plain(source: Source, limits: ImageLimits = LIMITS) -> Image.Image:
    """An image in grey or RGB of 8 bits, upright; see `plain`. Arguments and errors as in `open_image`."""
    with opened(source, limits) as image:
        return _plain(upright(image))


def open_reduced(source: Source, side: int, limits: ImageLimits = LIMITS) -> tuple[Image.Image, tuple[int, int]]:
    """(an image as `open_plain` gives it, its full width and height). A JPEG is decoded at a fraction of its size, with
    at least `side` pixels on either side if it has as many, which takes less time. Errors as in `open_image`."""
    with opened(source, limits) as image:
        full = image.size
        image.draft("L", (side, side))
        reduced = image.size
        made = _plain(upright(image))
        if reduced == full:
            return made, made.size
        return made, full if made.size == reduced else full[::-1]


def image_format(source: Source, limits: ImageLimits = LIMITS) -> str:
    """Pillow's name of an image's format, such as JPEG, from its first bytes alone; errors as in `open_image`."""
    with opened(source, limits) as image:
        return image.format or ""


def open_or_problem(source: Source, limits: ImageLimits = LIMITS) -> tuple[Image.Image | None, str]:
    """An image as `open_image` gives it and "", or None and the message about an image that cannot be read."""
    try:
        return open_image(source, limits), ""
    except UnreadableImage as error:
        return None, str(error)


def readable_batches(
    items: Sequence[Item],
    batch_size: int,
    image_of: Callable[[Item], Any] = lambda item: item,
    *,
    limits: ImageLimits = LIMITS,
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
            image, problem = open_or_problem(image_of(item), limits)
            if image is None:
                problems.append(problem)
            else:
                kept.append(item)
                images.append(image)
        yield kept, images, problems


@contextmanager
def opened(source: Source, limits: ImageLimits = LIMITS) -> Iterator[Image.Image]:
    """The image of a source, its header read and its size checked; every error of the block is the image's.

    Of scans a frame or slice has been decoded and shown as `limits` say; its `format` is SCAN.
    """
    name = str(source) if isinstance(source, (str, Path)) else "(in memory)"
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(source, Image.Image):
                check_size(source.size, limits.max_pixels)
                yield source.copy()
                return
            if isinstance(source, (str, Path)) and (picture := open_reference(source, limits)) is not None:
                yield picture
                return
            if not isinstance(source, str | Path | bytes) and not hasattr(source, "read"):
                raise InputError(
                    f"a picture is a path, bytes, an open file or an image of PIL, not {type(source).__name__}"
                )
            if isinstance(source, bytes):
                file: BinaryIO = io.BytesIO(_not_too_large(source, limits))
            else:
                file = stack.enter_context(image_stream(source, limits)) if isinstance(source, (str, Path)) else source
            start = file.read(NEEDED)
            file.seek(0)
            if (picture := open_scan(file, start, limits)) is not None:
                yield picture
                return
            try:
                image = stack.enter_context(identified(file, start))
            except InputError:
                if not has_dicom_name(name):
                    raise
                yield open_named(file, limits)  # a DICOM file without its mark
                return
            check_size(image.size, limits.max_pixels)
            check_cost(image, file)
            yield image
    except UnreadableImage as error:
        raise UnreadableImage(name, error.reason) from None
    except MemoryError:
        raise UnreadableImage(name, "takes more memory than this process can have") from None
    except Exception as error:  # on broken files Pillow's decoders raise nearly every kind of exception
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def stored_source(path: str, limits: ImageLimits = LIMITS) -> Source:
    """What an image is opened from where its bytes may be kept: these, or a path that means a part of a scan."""
    return path if is_scan_reference(path) else read_image(path, limits)


def _not_too_large(data: bytes, limits: ImageLimits) -> bytes:
    if not data:
        raise InputError("the file is empty")
    if len(data) > limits.max_bytes:
        raise InputError(f"has {len(data):,} bytes; at most {limits.max_bytes:,} are read")
    return data


# ---- any kind of image to 8 bits -------------------------------------------------------------------------------------


def upright(image: Image.Image) -> Image.Image:
    """The same image, its pixels read and turned by its EXIF entry."""
    image.load()  # before the block below: of broken pixels Pillow tells once, and a second `load` gives black ones
    with contextlib.suppress(Exception):  # a broken EXIF block does not mean broken pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB, turned upright by its EXIF entry.

    16-bit, 32-bit and float images are windowed (see `window`), never clipped. Transparency is laid on white: such
    files are figures made for white pages, whose black letters and lines would vanish on black; scans have none. Of
    several frames or pages the first is taken.
    """
    return _rgb(upright(image.copy()))


def plain(image: Image.Image) -> Image.Image:
    """An image of 8 bits in grey or RGB: grey stays grey, 16 bits and floats are scaled from their whole range,
    transparent pixels become white. Unlike `to_rgb` it neither turns the image nor cuts off extreme values."""
    return _plain(image.copy())


def _rgb(image: Image.Image) -> Image.Image:
    """`image` may be changed, and is the result where it is RGB already: large images are not copied."""
    image = eight_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Any Pillow mode by the rules of `to_rgb`, in one channel where the image is grey, else in RGB; it is not turned.

    `image` may be changed, and is the result where nothing needs to be done.
    """
    if image.mode in HIGH_DEPTH:
        values = window(image)
        image.close()  # its memory is not needed any longer
        return Image.fromarray(values)
    if image.mode in TRANSPARENT or (image.mode == "P" and "transparency" in image.info):
        if _is_clear(image):  # a broken alpha channel, not an empty picture
            return _in_strips(image, lambda part: _with_alpha(part).convert("RGB"))
        return _in_strips(image, _on_white)
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _plain(image: Image.Image) -> Image.Image:
    """As in `_rgb`."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith(("I", "F")):
        values = whole_range(image)
        image.close()
        return Image.fromarray(values)
    if image.mode in TRANSPARENT or "transparency" in image.info:
        return _in_strips(image, _on_white)
    return image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        return image
    # Pillow converts the premultiplied modes La and RGBa only to LA and RGBA
    return image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGBA")).convert("RGBA")


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), _with_alpha(image)).convert("RGB")


def _is_clear(image: Image.Image) -> bool:
    """Whether every pixel is transparent."""
    parts = (part if image.mode in TRANSPARENT else _with_alpha(part) for _, part in _strips(image))
    return not any(part.getchannel(len(part.getbands()) - 1).getextrema()[1] for part in parts)  # the last is alpha


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An image converted to RGB strip by strip: what conversion needs beside the result stays small."""
    if image.width * image.height <= STRIP:
        return convert(image)
    out = Image.new("RGB", image.size)
    for top, part in _strips(image):
        out.paste(convert(part), (0, top))
    return out


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, strip) of an image; an image of one strip is not copied."""
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))
