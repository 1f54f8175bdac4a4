"""One image to the bytes that a shard holds: upright, 8 bits, its shorter side at most a given length."""

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from blip.data.crops import ORIENTATION
from blip.data.decoding_cost import JPEGS
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import Source, eight_bits, opened, stored_source, upright
from blip.data.pictures import sources_of
from blip.errors import InputError

FORMATS = ("auto", "jpeg", "png")
FINE = 4  # a JPEG is decoded at a fraction of its size where this many times the pixels that are kept remain a side


@dataclass(frozen=True)
class ImageForm:
    """How images are stored."""

    image_size: int = 512  # of the shorter side at most [pixels]
    form: str = "auto"  # auto: JPEG for images that are JPEG, PNG for all others
    quality: int = 92  # of JPEG, 1 to 100
    limits: ImageLimits = field(default=LIMITS)  # of the images that are read

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise InputError(f"image_size is {self.image_size}; it is a side in pixels, such as 512")
        if self.form not in FORMATS:
            raise InputError(f"format is {self.form!r}; it can be {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality is {self.quality}; that of JPEG is a number from 1 to 100")


@dataclass(frozen=True)
class Stored:
    """The bytes of an image with the ending of its format; or the `problem` that makes it unreadable, and its path."""

    ending: str = ""
    content: bytes = b""
    problem: str = ""
    path: str = ""


def stored_item(paths: Sequence[str], form: ImageForm, *, resized: bool = True) -> list[Stored]:
    """The pictures of an item as they are stored, all of them; where one cannot be read, that one alone.

    Of videos and volumes as many pictures are stored as their references say, or else the limits of the form.
    """
    try:
        sources = sources_of(paths, replace(form.limits, max_pictures=sys.maxsize))
    except UnreadableImage as error:
        return [Stored(problem=error.reason, path=error.path)]
    pictures = []
    for source in sources:
        pictures.append(stored(source, form, resized=resized))
        if pictures[-1].problem:
            return [replace(pictures[-1], path=str(source) if isinstance(source, str) else paths[0])]
    return pictures


def stored(source: Source, form: ImageForm, *, resized: bool = True) -> Stored:
    """An image, a path or an opened one, as it is stored. Not `resized`, it keeps its size.

    A JPEG or PNG that needs no change keeps its bytes. Images of 16 bits and more are windowed as a whole, as training
    does with the original, before they are resized; transparency is laid on white; grey images stay grey.
    """
    try:
        data = stored_source(source, form.limits) if isinstance(source, str) else source
        with opened(data, form.limits) as image:
            kind = "JPEG" if image.format in JPEGS else image.format or ""
            side = form.image_size if resized else max(image.size)
            if isinstance(data, bytes) and _is_ready(image, kind, side) and form.form in ("auto", kind.lower()):
                image.load()  # a damaged one is found here
                return Stored("jpg" if kind == "JPEG" else "png", data)
            if kind == "JPEG" and min(image.size) >= FINE * side:
                image.draft(image.mode, (FINE * side // 2, FINE * side // 2))
            small = shrunk(eight_bits(upright(image)), side)
        as_jpeg = form.form == "jpeg" or (form.form == "auto" and kind == "JPEG")
        return _encoded(small, form.quality if as_jpeg else None)
    except UnreadableImage as error:
        return Stored(problem=error.reason)


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """An image whose shorter side has `side` pixels, with its aspect; a smaller one as it is."""
    if min(image.size) <= side:
        return image
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _is_ready(image: Image.Image, kind: str, side: int) -> bool:
    """Whether the bytes of an image can stay as they are: its header alone has been read."""
    plain = image.mode in ("L", "RGB") and "transparency" not in image.info
    return kind in ("JPEG", "PNG") and plain and min(image.size) <= side and _is_upright(image)


def _is_upright(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) == 1
    except Exception:  # a broken EXIF block, which `upright` ignores; it is left out
        return False


def _encoded(image: Image.Image, quality: int | None) -> Stored:
    """As JPEG of this quality, its colours at half the resolution as cameras store them; None: as PNG."""
    file = io.BytesIO()
    if quality is None:
        image.save(file, "PNG")
        return Stored("png", file.getvalue())
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return Stored("jpg", file.getvalue())
