"""The series in a folder of DICOM files: its slices in the order of their positions.

Neither names of files nor InstanceNumber give the order, which the positions along the normal of the slices give: from
feet to head, from back to front, from left to right, as in NIfTI files of canonical orientation.
"""

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from blip.data.scans.header import broken, numbers
from blip.data.scans.libraries import pydicom
from blip.data.scans.references import ENDINGS
from blip.errors import InputError
from blip.files import ReadError, open_regular

KEYWORDS = ["SeriesInstanceUID", "SOPInstanceUID", "Modality", "ImagePositionPatient", "ImageOrientationPatient",
            "InstanceNumber", "NumberOfFrames", "Rows"]  # fmt: skip
SHOWN = 10  # series that an error lists
PARALLEL = 0.99  # cosine of the normals of slices that belong together
MOST = 20_000  # files of a folder


@dataclass(frozen=True)
class Slice:
    """A file of a series, and the number of its frames."""

    path: str
    frames: int


@dataclass(frozen=True)
class _Entry:
    path: str
    uid: str
    instance: str
    frames: int
    position: tuple[float, ...] | None
    normal: tuple[float, ...] | None
    number: int


def series_of(folder: str, uid: str | None = None) -> tuple[Slice, ...]:
    """The files of a series in their order.

    Args:
        uid: its SeriesInstanceUID, or its number from 0 in the order of the names of files; needed where the folder
            holds several. No message repeats the UID of a header.

    Raises:
        InputError: the folder holds no such series, or several; or positions give no order.
    """
    pydicom()  # without it, no file would count as a picture
    try:
        changed = os.stat(folder).st_mtime_ns
    except OSError as error:
        raise InputError(f"the folder cannot be read: {error.strerror}") from None
    return _ordered(folder, uid, changed)


@lru_cache(maxsize=256)
def _ordered(folder: str, uid: str | None, changed: int) -> tuple[Slice, ...]:
    return _of_one_series(_entries(folder), uid)


def series_in_memory(files: Sequence[bytes], uid: str | None = None) -> tuple[Slice, ...]:
    """The files of a series in their order; the path of each is its number among `files`. Errors as in `series_of`."""
    named = [(str(number), _entry_of(str(number), io.BytesIO(data))) for number, data in enumerate(files)]
    return _of_one_series([entry for _, entry in named if entry is not None], uid)


def _of_one_series(entries: Sequence[_Entry], uid: str | None) -> tuple[Slice, ...]:
    by_series: dict[str, list[_Entry]] = {}
    for entry in entries:
        by_series.setdefault(entry.uid, []).append(entry)
    if not by_series:
        raise InputError("a folder without DICOM pictures, which a volume needs")
    if uid is not None:
        found = _chosen(by_series, uid)
    elif len(by_series) > 1:
        raise InputError(f"the folder holds several series, of which #series=N chooses one: {_listed(by_series)}")
    else:
        (found,) = by_series.values()
    found = list({entry.instance or entry.path: entry for entry in found}.values())  # copies of a slice count once
    return tuple(Slice(entry.path, entry.frames) for entry in (_by_position(found) if len(found) > 1 else found))


def _chosen(by_series: dict[str, list[_Entry]], uid: str) -> list[_Entry]:
    if uid in by_series:
        return by_series[uid]
    if uid.isascii() and uid.isdigit() and int(uid[:9]) < len(by_series):
        return list(by_series.values())[int(uid[:9])]
    raise InputError(f"the folder holds no series {uid[:70]}; it holds {_listed(by_series)}")


def _by_position(entries: Sequence[_Entry]) -> list[_Entry]:
    """Slices in the order of their positions along their normal, and those of one place by their numbers."""
    if any(entry.position is None or entry.normal is None for entry in entries):
        raise InputError("the files of the series give no positions, so that the order of its slices is unknown")
    normals = np.array([entry.normal for entry in entries])
    normal = normals[0]
    if np.abs(normals @ normal).min() < PARALLEL:
        raise InputError("the slices of the series lie in several directions, such as those of a localizer")
    # positions are to the left, the back and the head
    normal = normal * np.sign((normal * (-1, -1, 1))[np.abs(normal).argmax()])
    places = np.array([entry.position for entry in entries]) @ normal
    order = sorted(range(len(entries)), key=lambda i: (round(float(places[i]), 3), entries[i].number))
    return [entries[i] for i in order]


def _entries(folder: str) -> list[_Entry]:
    """The DICOM files with pictures of a folder, not of those inside it, in the order of their names."""
    with os.scandir(folder) as found:
        paths = sorted(one.path for one in found if not one.name.startswith(".") and one.is_file())
    if len(paths) > MOST:
        raise InputError(f"a folder of {len(paths):,} files; at most {MOST:,} are read")
    return [entry for entry in map(_entry, paths) if entry is not None]


def _entry(path: str) -> _Entry | None:
    """What is known of a file; None for other files, and for those without pictures."""
    if Path(path).name.upper() == "DICOMDIR":
        return None
    try:
        with open_regular(path) as file:
            return _entry_of(path, file)
    except ReadError:
        return None


def _entry_of(path: str, file: BinaryIO) -> _Entry | None:
    """`_entry` of an open file."""
    try:
        with broken("a broken DICOM file"):
            is_dicom = file.read(132)[128:] == b"DICM" or path.lower().endswith(ENDINGS)
            file.seek(0)
            if not is_dicom:
                return None
            header = pydicom().dcmread(file, stop_before_pixels=True, force=True, specific_tags=KEYWORDS)
            if "Rows" not in header:
                return None
            position = numbers(header.get("ImagePositionPatient"), 3)
            return _Entry(
                path,
                uid=_uid(header.get("SeriesInstanceUID")),
                instance=_uid(header.get("SOPInstanceUID")),
                frames=max(1, _whole(header.get("NumberOfFrames"))),
                position=tuple(position) if position else None,
                normal=_normal(numbers(header.get("ImageOrientationPatient"), 6)),
                number=_whole(header.get("InstanceNumber")),
            )
    except InputError:  # one broken file does not hide the others: its slice is missing
        return None


def _uid(value: Any) -> str:
    """A UID, which has digits and points alone; "" for anything else, which is not repeated in messages."""
    return str(value) if re.fullmatch(r"[0-9.]{1,64}", str(value)) else ""


def _whole(value: Any) -> int:
    found = numbers(value, 1)
    return int(found[0]) if found else 0


def _normal(orientation: list[float] | None) -> tuple[float, ...] | None:
    if orientation is None:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    return tuple((normal / length).tolist()) if length > 0.5 else None


def _listed(by_series: dict[str, list[_Entry]]) -> str:
    """The series with their numbers. Their UIDs are left out: messages stand in logs, and UIDs name examinations."""
    shown = [f"{number} ({len(found)} files)" for number, found in enumerate(list(by_series.values())[:SHOWN])]
    more = len(by_series) - SHOWN
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")
