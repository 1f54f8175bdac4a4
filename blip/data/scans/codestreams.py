"""The size that a compressed picture itself gives, read before it is decoded: headers of DICOM files may say less."""

from struct import error as struct_error
from struct import unpack_from

JPEG, JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"  # how streams begin; the second one also inside of a JP2 file
JP2 = b"\x00\x00\x00\x0cjP  "
# the marks of a JPEG's frame header: SOF0 to SOF15 without DHT, JPG and DAC, and SOF55 of JPEG-LS
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
ALONE = {0x01, *range(0xD0, 0xD8)}  # marks without a length
SEARCHED = 1 << 20  # bytes of a stream in which its frame header has to stand
LONGEST_BOXES = 1 << 16  # bytes of a JP2 file before its stream


def stream_size(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, samples of a pixel) of a JPEG, JPEG-LS or JPEG 2000 stream; None for other data, and where no
    size is found."""
    try:
        start = data.find(JPEG_2000, 0, LONGEST_BOXES) if data.startswith((JPEG_2000, JP2)) else -1
        if start >= 0:
            right, bottom, left, top = unpack_from(">4I", data, start + 8)
            return right - left, bottom - top, unpack_from(">H", data, start + 40)[0]
        return _jpeg_size(data) if data.startswith(JPEG) else None
    except struct_error:  # the data ends before
        return None


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    place = 2
    while place < min(len(data), SEARCHED):
        if data[place] != 0xFF:
            return None
        mark = data[place + 1] if place + 1 < len(data) else 0
        if mark == 0xFF or mark in ALONE:  # bytes that fill, and marks without content
            place += 1 if mark == 0xFF else 2
            continue
        if mark in FRAMES:
            height, width, samples = unpack_from(">2HB", data, place + 5)
            return width, height, samples
        (length,) = unpack_from(">H", data, place + 2)
        place += 2 + length
    return None
