"""A frame of a DICOM file as it is stored, decoded by pydicom. What it would cost is checked before.

H, W: rows and columns of a frame.
"""

import io
from typing import Any, BinaryIO

import numpy as np

from blip.data.decoding_cost import MEMORY, check_size
from blip.data.scans.codestreams import stream_size
from blip.data.scans.header import Header, broken, size_of
from blip.data.scans.libraries import INSTALL, pydicom
from blip.errors import InputError

OF_DEEP = 30  # bytes of memory for a value of more than 16 bits, as measured: percentiles are taken in 64 bits
WORDS = (8, 16)  # bits of samples that are looked up in a table, unused bits included


def stored_frame(header: Header, frame: int, max_pixels: int) -> np.ndarray:
    """A frame as it is stored: (H, W), or (H, W, 3) in RGB; of grey levels the unused bits may hold anything, which
    `is_raw` tells.

    Raises:
        InputError: there is no such frame, or it is too large, cut off, broken, or compressed in a way that no library
            at hand decodes.
    """
    if frame >= header.frames:
        raise InputError(f"there is no frame {frame}: it has {header.frames}, counted from 0")
    check_size((header.columns, header.rows), max_pixels)
    _check_memory(header)
    pydicom_ = pydicom()
    source: Any
    with broken("a broken DICOM file: its pixels cannot be decoded"):
        try:
            decoder = pydicom_.pixels.get_decoder(header.syntax)
        except NotImplementedError:
            raise InputError("its transfer syntax is none that pydicom decodes, such as a video") from None
        if not decoder.is_available:
            raise InputError(f"it is compressed as {header.syntax.name}, which needs more: {INSTALL}")
        if header.syntax.is_encapsulated:
            source, frame, frames = _one_frame(header, frame), 0, 1
        else:
            source, frames = _native(header, frame), header.frames
        options = _options(header, frames)
        return np.asarray(decoder.as_array(source, index=frame, **options)[0])


def is_raw(header: Header) -> bool:
    """Whether unused bits of what `stored_frame` gives may hold anything."""
    return not header.syntax.is_encapsulated and header.samples == 1 and header.allocated in WORDS


def _options(header: Header, frames: int) -> dict[str, Any]:
    """What the decoder is told; see pydicom's guide to decoding options."""
    options: dict[str, Any] = {
        "transfer_syntax_uid": header.syntax,
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": header.samples,
        "bits_allocated": header.allocated,
        "bits_stored": header.stored,
        "pixel_representation": int(header.signed),
        "photometric_interpretation": header.photometric,
        "planar_configuration": header.whole("PlanarConfiguration", 0),
        "number_of_frames": frames,
        "pixel_keyword": header.keyword,
        "pixel_vr": header.vr,
    }
    if is_raw(header):
        options |= {"correct_unused_bits": False, "view_only": True}  # without a copy
    return options


def _check_memory(header: Header) -> None:
    """InputError where a frame would need too much memory: what is stored, the decoder's 32 bits, and copies."""
    sample = OF_DEEP if header.allocated > max(WORDS) else 4 + 3 * -(-header.allocated // 8)
    if header.rows * header.columns * header.samples * sample > MEMORY:
        raise InputError(
            f"it has {header.columns} x {header.rows} pixels of {header.samples} times {header.allocated} bits, which "
            "take too much memory to decode"
        )


def _native(header: Header, frame: int) -> memoryview | BinaryIO:
    """The value of uncompressed pixels; the file itself, at their place, where it is not in memory."""
    bits = header.rows * header.columns * header.samples * header.allocated
    if header.photometric == "YBR_FULL_422":
        bits = bits // 3 * 2
    there = size_of(header.file) - header.start
    length = min(there, there if header.length is None else header.length)
    if -(-bits * (frame + 1) // 8) > length:
        at_all = "the file ends before its pixels do" if there else "it has no pixels"
        raise InputError(f"{at_all}: {length:,} bytes of {-(-bits * header.frames // 8):,} are there")
    if isinstance(header.file, io.BytesIO):
        return header.file.getbuffer()[header.start : header.start + length]
    header.file.seek(header.start)
    return header.file


def _one_frame(header: Header, frame: int) -> bytes:
    """A compressed frame alone, in the form in which files hold it. Its stream's own size is checked."""
    encaps = pydicom().encaps
    header.file.seek(header.start)
    offsets = tuple(header.get(f"ExtendedOffsetTable{part}") for part in ("", "Lengths"))
    data = encaps.get_frame(
        header.file, frame, number_of_frames=header.frames, extended_offsets=offsets if all(offsets) else None
    )
    size = stream_size(data)
    if size is not None and size != (header.columns, header.rows, header.samples):
        raise InputError(
            f"its header gives {header.columns} x {header.rows} pixels of {header.samples}, its compressed picture "
            f"{size[0]} x {size[1]} of {size[2]}"
        )
    return bytes(encaps.encapsulate([data], has_bot=False))
