"""Pictures that are the same: perceptual hashes find candidates, small copies decide.

Hashes are DCT hashes of 64 bits (imagehash). Two that differ in at most 4 bits share one of five groups of bits, so
candidates are looked up instead of compared with all. Plots on white paper have similar hashes without being similar:
therefore the 16 x 16 copies have to be similar too.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import open_reduced

BITS = 4  # by which hashes of one picture may differ
GROUPS = [(0, 13), (13, 26), (26, 39), (39, 52), (52, 64)]  # first bit, bit behind the last
SIDE = 16  # pixels of the copies
MAX_DIFFERENCE = 8.0  # grey levels that copies of one picture differ by, on average
ASPECT = 1.1  # factor by which their ratios of width to height may differ


@dataclass
class Signature:
    """What is stored of a picture: 64 bits, a copy of 256 grey levels, width and height in pixels."""

    bits: int
    copy: bytes
    size: tuple[int, int]


def signature(image: Image.Image) -> Signature:
    """The signature of an opened picture."""
    import imagehash

    gray = image.convert("L")
    gray.thumbnail((256, 256), Image.Resampling.BOX)
    bits = int(str(imagehash.phash(gray)), 16)
    return Signature(bits, gray.resize((SIDE, SIDE), Image.Resampling.BOX).tobytes(), image.size)


def read_signature(path: str, limits: ImageLimits = LIMITS) -> Signature | str:
    """The signature of an image file, upright, or a message why it cannot be read."""
    try:
        image, size = open_reduced(path, 256, limits)
    except UnreadableImage as error:
        return str(error)
    reduced = signature(image)
    return Signature(reduced.bits, reduced.copy, size)


class PictureIndex:
    """Signatures by the groups of their bits; memory grows by about 1,200 bytes for each picture."""

    def __init__(self) -> None:
        self.signatures: list[Signature] = []
        self.names: list[str] = []
        self.tables: list[dict[int, list[int]]] = [{} for _ in GROUPS]

    def find(self, picture: Signature) -> str | None:
        """The name of a picture in the index that is the same, or None."""
        tried: set[int] = set()
        for group, table in zip(GROUPS, self.tables, strict=True):
            for at in table.get(_bits_of(picture, group), ()):
                if at not in tried and _same(picture, self.signatures[at]):
                    return self.names[at]
                tried.add(at)
        return None

    def add(self, picture: Signature, name: str) -> None:
        for group, table in zip(GROUPS, self.tables, strict=True):
            table.setdefault(_bits_of(picture, group), []).append(len(self.signatures))
        self.signatures.append(picture)
        self.names.append(name)


def _bits_of(picture: Signature, group: tuple[int, int]) -> int:
    first, end = group
    return (picture.bits >> first) & ((1 << (end - first)) - 1)


def _same(a: Signature, b: Signature) -> bool:
    if (a.bits ^ b.bits).bit_count() > BITS:
        return False
    ratio = a.size[0] * b.size[1] / (a.size[1] * b.size[0])
    if not 1 / ASPECT < ratio < ASPECT:
        return False
    first, second = (np.frombuffer(one.copy, np.uint8).astype(np.int16) for one in (a, b))
    return float(np.abs(first - second).mean()) < MAX_DIFFERENCE
