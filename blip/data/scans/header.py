"""The header of a DICOM file: what is needed of it, checked. Numbers of a header are never part of a message, except
the size of the picture.
"""

import io
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import unpack
from typing import Any, BinaryIO

from blip.data.scans.libraries import pydicom, quietly
from blip.errors import InputError

DEFLATED = b"1.2.840.10008.1.2.1.99"
META = 132  # bytes before the first element of a file's meta information
LONG = (b"OB", b"OW", b"UN", b"UT", b"SQ", b"UC", b"UR")  # whose length takes four bytes
PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
EXPLICIT = (b"OB\0\0", b"OW\0\0", b"OF\0\0", b"OD\0\0", b"UN\0\0")  # types of pixels, and what follows them
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
GREYS = ("MONOCHROME1", "MONOCHROME2")
PALETTES = [f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue")
            for part in ("Descriptor", "Data")]  # fmt: skip
KEYWORDS = [
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "ImageType", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness"),
    *("ImagerPixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *PALETTES,
    *(f"Segmented{name}" for name in PALETTES if name.endswith("Data")),
]


@contextmanager
def broken(what: str) -> Iterator[None]:
    """Every error of the block that is no message for people becomes one, without the text of the error, in which
    values of the header may stand."""
    try:
        with quietly():
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of broken files the libraries raise nearly every kind of exception
        raise InputError(f"{what} ({type(error).__name__})") from None


@dataclass
class Header:
    """What the header of a DICOM file with pixels says, and where these are in its file.

    Attributes:
        dataset: the elements of KEYWORDS.
        file: the bytes; those of a deflated file are inflated.
        start, length: of the value of the pixels, in bytes; the length is None where it is compressed.
        keyword: PixelData, FloatPixelData or DoubleFloatPixelData.
    """

    dataset: Any
    file: BinaryIO
    syntax: Any
    start: int
    length: int | None
    keyword: str
    vr: str

    def __post_init__(self) -> None:
        self.rows, self.columns = self.whole("Rows"), self.whole("Columns")
        self.samples = self.whole("SamplesPerPixel", 1)
        self.allocated = self.whole("BitsAllocated")
        self.stored = self.whole("BitsStored", self.allocated)
        self.signed = bool(self.whole("PixelRepresentation", 0))
        self.frames = max(1, self.whole("NumberOfFrames", 1))
        self.photometric = self._photometric()
        if self.samples not in (1, 3) or (self.samples == 3) != (self.photometric in COLOURS):
            raise InputError(f"its header gives {self.samples} samples a pixel, which does not fit its kind of colour")
        if self.allocated not in (1, 8, 16, 32, 64) or not 1 <= self.stored <= self.allocated:
            raise InputError(f"its header gives {self.stored} of {self.allocated} bits a sample, which is not read")

    @property
    def is_grey(self) -> bool:
        return self.photometric in GREYS

    @property
    def is_hounsfield(self) -> bool:
        """Whether its grey levels are in HU, so that windows of CT make sense."""
        return str(self.get("Modality")) == "CT" or any(str(one.get("RescaleType")) == "HU" for one in self.groups(0))

    def get(self, keyword: str) -> Any:
        """The value of an element, or None; also of one that cannot be read."""
        try:
            with quietly():
                return self.dataset.get(keyword)
        except Exception:
            return None

    def whole(self, keyword: str, usual: int | None = None) -> int:
        """A whole number of the header, at least 0; InputError where there is none."""
        value = self.get(keyword)
        if value in (None, "") and usual is not None:
            return usual
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise InputError(f"its header gives no {keyword}") from None
        if number < 0:
            raise InputError(f"its header gives a negative {keyword}")
        return number

    def groups(self, frame: int) -> Iterator[Any]:
        """Where properties of a frame stand, the most general first: the header, what all frames share, the frame."""
        yield self.dataset
        for keyword, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
            items = self.get(keyword)
            if items and len(items) > index:
                yield items[index]

    def _photometric(self) -> str:
        kind = str(self.get("PhotometricInterpretation"))
        if kind in (*GREYS, *COLOURS, PALETTE):
            return kind
        raise InputError(f"its pixels are of a kind that is not read ({', '.join((*GREYS, PALETTE, *COLOURS))} are)")


def read_header(file: BinaryIO, most: int) -> Header:
    """The header of a DICOM file with pixels.

    Args:
        file: read from its beginning.
        most: bytes that a deflated file may have, inflated.

    Raises:
        InputError: pydicom is not installed, the file is broken, or has no pixels.
    """
    pydicom()
    with broken("a broken DICOM file: its header cannot be read"):
        file, syntax = _inflated(file, most)
        file.seek(0)
        dataset = pydicom().dcmread(file, stop_before_pixels=True, force=True, specific_tags=KEYWORDS)
        explicit_meta = dataset.file_meta.get("TransferSyntaxUID")
        syntax = syntax or explicit_meta or _guessed(dataset)
        found = _pixels_at(file, syntax)
    if found is None:
        kind = "" if "Rows" in dataset or explicit_meta else "not a DICOM file, or "
        raise InputError(f"{kind}a DICOM file without pixels, such as a report or a plan")
    keyword, vr, length = found
    return Header(dataset, file, syntax, file.tell(), length, keyword, vr)


def numbers(value: Any, count: int = 0) -> list[float] | None:
    """The finite numbers of an element, or None; `count`: so many of them, otherwise None."""
    try:
        found = [float(one) for one in (value if hasattr(value, "__len__") and not isinstance(value, str) else [value])]
    except (TypeError, ValueError):
        return None
    return found if found and all(map(math.isfinite, found)) and count in (0, len(found)) else None


def _guessed(dataset: Any) -> Any:
    """The syntax of a file that does not name it: pixels as they are, elements in the way that they could be read."""
    uid = pydicom().uid
    implicit, little = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _pixels_at(file: BinaryIO, syntax: Any) -> tuple[str, str, int | None] | None:
    """Keyword, type and length of the pixels, from the element at which the file stands; None where there is none."""
    order = "<" if syntax.is_little_endian else ">"
    head = file.read(8)
    if len(head) < 8:
        return None
    group, element = unpack(f"{order}HH", head[:4])
    keyword = PIXELS.get(group << 16 | element)
    if keyword is None:
        return None
    # what the file does counts, not its syntax, as when pydicom reads elements; lengths like these types would be odd
    if head[4:8] in EXPLICIT:
        vr, (length,) = head[4:6].decode("ascii"), unpack(f"{order}L", file.read(4))
    else:
        vr, (length,) = "OW", unpack(f"{order}L", head[4:])
    return keyword, vr, None if length == 0xFFFFFFFF else length


def _inflated(file: BinaryIO, most: int) -> tuple[BinaryIO, Any]:
    """A file as it is, and None; or the elements of a deflated file alone, and their syntax."""
    file.seek(0)
    head = file.read(2048)
    if head[128:META] != b"DICM" or DEFLATED not in head:
        return file, None
    place = META
    while head[place : place + 2] == b"\2\0":
        if head[place + 4 : place + 6] in LONG:
            place += 12 + int(unpack("<I", head[place + 8 : place + 12])[0])
        else:
            place += 8 + int(unpack("<H", head[place + 6 : place + 8])[0])
    file.seek(place)
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), most + 1)
    if len(inflated) > most:
        raise InputError(f"has more than {most:,} bytes when it is inflated, a limit that max_image_mb sets")
    return io.BytesIO(inflated), pydicom().uid.ExplicitVRLittleEndian


def size_of(file: BinaryIO) -> int:
    """Bytes of a file, which stays at its place."""
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size
