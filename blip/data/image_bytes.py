"""The bytes of an image: of a regular file up to a size, of a row of a parquet or arrow file, or of a shard.

An image inside a parquet or arrow file has the reference FILE#ROW in place of a path, or FILE#ROW:COLUMN where its
column is not called image, which is resolved when the image is read. Arrow files are mapped into memory: a row costs
its own bytes. Parquet is compressed by row groups, and one image costs its whole group (the hub's sets have 100 to
1,000 rows in one): the groups read last stay in memory, which helps reading in order. Training reads in random order:
unpack such images once into files, or write shards of them by `blip data shard`: an image inside a shard has the
reference SHARD.tar#OFFSET+LENGTH, and costs its own bytes; see `tar_members`.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from blip.data import hub, tar_members
from blip.data.scans.references import is_scan_reference
from blip.data.scans.windows import check_view
from blip.data.tables import NEEDS_PYARROW
from blip.errors import BlipError, InputError
from blip.files import ReadError, open_regular

# 1 GiB / 4 / 3, the number above which Pillow warns of a decompression bomb: 256 MiB as RGB. Here it is an error.
MAX_PIXELS = 89_478_485
MAX_MB = 512  # MiB of a file: more than the largest allowed image takes in 32 bits without compression
AT_ONCE = 16 << 20  # bytes up to which a file is read at once; decoders read larger ones part by part
REFERENCE = re.compile(
    r"(?P<file>.+\.(?P<kind>parquet|arrow))#(?P<row>\d+)(:(?P<column>.+))?", re.DOTALL | re.IGNORECASE
)


@dataclass(frozen=True)
class ImageLimits:
    """How images are read: what one may cost, larger ones are unreadable; how many pictures are read,
    see `pictures.py`; and how scans (DICOM, NIfTI) are shown.

    Raises:
        InputError: `window` or `channels` name no windows; see `check_view`.
    """

    max_bytes: int = MAX_MB << 20  # of its file
    max_pixels: int = MAX_PIXELS  # width times height
    max_pictures: int = 16  # of an item
    frames: int = 8  # of a video whose reference does not say
    slices: int = 16  # of a volume whose reference does not say
    window: str = ""  # of scans: a name such as lung, or LEVEL/WIDTH; "": the window that the scan itself names
    channels: tuple[str, ...] = ()  # of scans: three windows that become red, green and blue

    def __post_init__(self) -> None:
        check_view(self.window, self.channels)

    @classmethod
    def of_mb(cls, max_image_mb: int, **others: Any) -> "ImageLimits":
        """The limits for the option max_image_mb, MiB of a file; `others` are fields of this class."""
        return cls(max_bytes=max_image_mb << 20, **others)


LIMITS = ImageLimits()  # unless a caller gives others


class UnreadableImage(BlipError):
    """An image that cannot be used: its `path`, and the `reason`."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read image {self.path}: {self.reason}"


@contextmanager
def image_stream(path: str | Path, limits: ImageLimits = LIMITS) -> Iterator[BinaryIO]:
    """The bytes of an image file or, where there is no such file, of the reference FILE#ROW or SHARD.tar#OFFSET+LENGTH;
    rows count from 0.

    Raises:
        UnreadableImage: there is no such file or row, it is not regular, empty or too large. Errors of the block pass
            through.
    """
    reference = REFERENCE.fullmatch(str(path))
    if reference and os.path.isfile(reference["file"]) and not os.path.lexists(path):
        yield io.BytesIO(_row(str(path), reference, limits))
        return
    inside = tar_members.REFERENCE.fullmatch(str(path))
    if inside and not os.path.lexists(path):
        yield io.BytesIO(_member(str(path), inside, limits))
        return
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            _check_size(str(path), size, limits)
            yield io.BytesIO(_read(path, file, size)) if size <= AT_ONCE else file
    except ReadError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        raise UnreadableImage(str(path), _no_file(str(path)) if missing else error.problem) from None


def _no_file(path: str) -> str:
    if "\\" in path and os.path.isfile(path.replace("\\", "/")):
        return "no such file, but there is one with / in place of \\: write paths with / in the annotation file"
    file, _, part = path.rpartition("#")
    if file and os.path.isfile(file):
        return f"no such file; {os.path.basename(file)} is there, and such a file has no part #{part[:40]}"
    return "no such file"


def _check_size(name: str, size: int, limits: ImageLimits) -> None:
    if size == 0:
        raise UnreadableImage(name, "the file is empty")
    if size > limits.max_bytes:
        raise UnreadableImage(
            name, f"has {size:,} bytes; at most {limits.max_bytes:,} are read, a limit that max_image_mb sets"
        )


def _read(path: str | Path, file: BinaryIO, size: int) -> bytes:
    try:
        return file.read(size)
    except OSError as error:  # of the disk or the network
        raise UnreadableImage(str(path), error.strerror or str(error)) from None


def read_image(path: str | Path, limits: ImageLimits = LIMITS) -> bytes:
    """All bytes of an image, a file or a reference; UnreadableImage as in `image_stream`."""
    with image_stream(path, limits) as file:
        try:
            return file.read()
        except OSError as error:
            raise UnreadableImage(str(path), error.strerror or str(error)) from None


def is_reference(path: str | Path) -> bool:
    """Whether a path has the form FILE#ROW, a row of a parquet or arrow file, or SHARD.tar#OFFSET+LENGTH, or that of a
    part of a scan, such as FILE.dcm#frame=3."""
    forms = (REFERENCE, tar_members.REFERENCE)
    return any(form.fullmatch(str(path)) for form in forms) or is_scan_reference(path)


def _member(name: str, reference: re.Match[str], limits: ImageLimits) -> bytes:
    """The bytes of an image inside of a shard; UnreadableImage."""
    file, member = tar_members.parsed(reference)
    _check_size(name, member.length, limits)
    try:
        return tar_members.read_member(file, member)
    except ReadError as error:
        raise UnreadableImage(name, f"{file}: {error.problem}") from None
    except (InputError, OSError) as error:
        raise UnreadableImage(name, str(error)) from None


# ---- rows of parquet and arrow files ---------------------------------------------------------------------------------


def _row(name: str, reference: re.Match[str], limits: ImageLimits) -> bytes:
    """The bytes of a row's image; UnreadableImage."""
    file, row, column = reference["file"], int(reference["row"]), reference["column"] or "image"
    read_value = _parquet_value if reference["kind"].lower() == "parquet" else _arrow_value
    try:
        # the process is part of the caches' keys: pyarrow does not promise that an open file can be used after a fork
        value = read_value(file, row, column, os.getpid())
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        # `datasets` saves {"bytes", "path"}; the bytes are null where only the path was kept
        data, other = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is None and other:
            named = Path(file).parent / other
            if not hub.may_name(file, named):
                raise InputError(f"row {row} names {other}, a file outside of its data set, which is not read")
            return read_image(named, limits)
        if not isinstance(data, bytes):
            raise InputError(f"row {row} of {file} holds no image")
    except UnreadableImage as error:
        raise UnreadableImage(name, error.reason) from None
    except Exception as error:  # pyarrow has errors of many kinds
        raise UnreadableImage(name, str(error) or type(error).__name__) from error
    _check_size(name, len(data), limits)
    return data


def _parquet_value(file: str, row: int, column: str, process: int) -> Any:
    _, ends = _parquet_file(file, process)
    group = int(np.searchsorted(ends, row, side="right"))
    if group == len(ends):
        raise InputError(f"it has {ends[-1] if len(ends) else 0} rows")
    first = int(ends[group - 1]) if group else 0
    return _row_group(file, group, column, process)[row - first].as_py()


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
def _row_group(file: str, group: int, column: str, process: int) -> Any:
    opened = _parquet_file(file, process)[0]
    if column not in opened.schema_arrow.names:
        raise InputError(f"it has no column {column}")
    # no threads: loader workers are forked, and there is one process per core already
    return opened.read_row_group(group, columns=[column], use_threads=False).column(column)


def _arrow_value(file: str, row: int, column: str, process: int) -> Any:
    images = _arrow_table(file, process).column(column)
    if row >= len(images):
        raise InputError(f"it has {len(images)} rows")
    return images[row].as_py()


@lru_cache(maxsize=256)
def _arrow_table(file: str, process: int) -> Any:
    try:
        import pyarrow
        from pyarrow import ipc
    except ImportError:
        raise InputError(NEEDS_PYARROW) from None
    return ipc.open_stream(pyarrow.memory_map(file)).read_all()
