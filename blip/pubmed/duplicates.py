"""The same picture twice: perceptual hashes find candidates, small copies decide.

Hashes are DCT hashes of 64 bits (imagehash). Two that differ in at most 4 bits share one of five pieces of their bits,
so that candidates are looked up, not compared with all. Plots on white paper have like hashes without being alike:
the 16 x 16 copies must be alike as well.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from blip.data.images import plain

BITS = 4  # by which hashes of one picture may differ
PIECES = [(0, 13), (13, 26), (26, 39), (39, 52), (52, 64)]
SIDE = 16  # pixels of the copies
ALIKE = 8.0  # grey levels that copies of one picture differ by, on average
ASPECT = 1.1  # by which width to height may differ


@dataclass
class Look:
    """What is remembered of a picture: 64 bits, 256 grey levels, its size."""

    bits: int
    copy: bytes
    size: tuple[int, int]


def look(image: Image.Image) -> Look:
    import imagehash

    gray = image.convert("L")
    gray.thumbnail((256, 256), Image.Resampling.BOX)
    bits = int(str(imagehash.phash(gray)), 16)
    return Look(bits, gray.resize((SIDE, SIDE), Image.Resampling.BOX).tobytes(), image.size)


class Seen:
    """Pictures seen so far; memory grows by some 1,200 bytes a picture."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self.names: list[str] = []
        self.pieces: list[dict[int, list[int]]] = [{} for _ in PIECES]

    def find(self, one: Look) -> str | None:
        """The name of a picture that is the same, or None."""
        tried: set[int] = set()
        for place, table in zip(PIECES, self.pieces, strict=True):
            for at in table.get(_piece(one.bits, place), ()):
                if at not in tried and _same(one, self.looks[at]):
                    return self.names[at]
                tried.add(at)
        return None

    def add(self, one: Look, name: str) -> None:
        for place, table in zip(PIECES, self.pieces, strict=True):
            table.setdefault(_piece(one.bits, place), []).append(len(self.looks))
        self.looks.append(one)
        self.names.append(name)


def _piece(bits: int, place: tuple[int, int]) -> int:
    return (bits >> place[0]) & ((1 << (place[1] - place[0])) - 1)


def _same(a: Look, b: Look) -> bool:
    if (a.bits ^ b.bits).bit_count() > BITS:
        return False
    ratio = a.size[0] * b.size[1] / (a.size[1] * b.size[0])
    if not 1 / ASPECT < ratio < ASPECT:
        return False
    copies = (np.frombuffer(one.copy, np.uint8).astype(np.int16) for one in (a, b))
    first, second = copies
    return float(np.abs(first - second).mean()) < ALIKE


def look_at(path: str) -> Look | str:
    """A look at a file, or why there is none."""
    try:
        with Image.open(path) as image:
            size = image.size
            image.draft("L", (256, 256))  # JPEG is read at a fraction of its size
            found = look(plain(image))
            return Look(found.bits, found.copy, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path}: {type(error).__name__} {error}"
