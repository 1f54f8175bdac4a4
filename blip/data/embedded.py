"""Images that lie inside parquet and arrow files: the reference FILE#ROW, resolved when the image is wanted.

Arrow files are mapped into memory: any row costs its own bytes. Parquet is compressed by row groups, and one image
costs its whole group (the hub's sets have 100 to 1,000 rows in one): groups that were read last stay in memory, which
helps reading in order. For training, which reads in random order, unpack the images once into files.
"""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from blip.data.formats import NEEDS_PYARROW

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
        raise ValueError(f"row {row} of {file} holds no image")
    return data


def _parquet_value(file: str, row: int, process: int) -> Any:
    _, ends = _parquet_file(file, process)
    group = int(np.searchsorted(ends, row, side="right"))
    if group == len(ends):
        raise ValueError(f"it has {ends[-1] if len(ends) else 0} rows")
    first = int(ends[group - 1]) if group else 0
    return _row_group(file, group, process)[row - first].as_py()


@lru_cache(maxsize=32)
def _parquet_file(file: str, process: int) -> tuple[Any, np.ndarray]:
    """The opened file, and where its row groups end."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(NEEDS_PYARROW) from None
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
        raise ValueError(f"it has {len(column)} rows")
    return column[row].as_py()


@lru_cache(maxsize=256)
def _arrow_column(file: str, process: int) -> Any:
    try:
        import pyarrow
        from pyarrow import ipc
    except ImportError:
        raise ValueError(NEEDS_PYARROW) from None
    return ipc.open_stream(pyarrow.memory_map(file)).read_all().column("image")
