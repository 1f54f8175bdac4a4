"""Volumes: a series in a folder, a DICOM file with frames, a NIfTI file; one slice of them, or several as a list.

Of a volume of N slices n are chosen evenly: the middles of n equal parts; all of them where there are no more. Only
these are decoded. `by=content` decodes CANDIDATES times as many and leaves out the empty ones before it chooses.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from blip.data.decoding_cost import MEMORY
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage, image_stream
from blip.data.scans import nifti
from blip.data.scans.dicom import Grey, open_frame, read_frame, shown
from blip.data.scans.header import read_header
from blip.data.scans.references import Reference, is_folder, is_nifti, reference_of
from blip.data.scans.series import series_in_memory, series_of
from blip.errors import InputError

CANDIDATES = 4
EMPTY = 0.1  # a slice whose grey levels spread less than this share of the widest spread is empty
ReadSlices = Callable[[Sequence[int]], list[Grey]]  # of places, in ascending order


def is_volume(reference: str | Path) -> bool:
    """Whether a reference means the slices of a volume: it says how many, or is a folder of which it names no slice."""
    name = str(reference)
    try:
        found = reference_of(name)
    except InputError:  # which opening it tells
        return True
    if found is not None:
        return found.several or (is_folder(found.path) and found.slice is None)
    return is_folder(name)


def open_slices(reference: str | Path, limits: ImageLimits = LIMITS) -> list[Image.Image]:
    """The slices that a reference means as pictures in RGB, all with one window, in the order of their places.

    Raises:
        UnreadableImage: there is no such volume, or one of the slices cannot be read.
    """
    with _errors(reference):
        asked = reference_of(reference) or Reference(str(reference))
        with _slices(asked, limits) as (count, read):
            return _chosen(count, read, asked, limits=limits)


def open_scans(name: str, files: Sequence[bytes], asked: Reference, limits: ImageLimits = LIMITS) -> list[Image.Image]:
    """The pictures of one scan in memory: of a file its first or middle one, or those that `asked` names; of the files
    of a series the slices, or the one, that it names.

    Raises:
        UnreadableImage: with `name`: they cannot be read, or are no series.
    """
    with _errors(name):
        if len(files) > 1:
            count, read = _of_files(files, asked, limits)
            if asked.slice is None:
                return _chosen(count, read, asked, limits=limits)
            return [shown(read([_in_series(asked.slice, count)]), limits)[0].convert("RGB")]
        file = io.BytesIO(files[0])
        in_nifti = nifti.is_nifti(file.read(nifti.NEEDED))
        file.seek(0)
        if asked.several:
            return _chosen(*_of_file(file, in_nifti, asked, limits=limits), asked, limits=limits)
        if in_nifti:
            return [shown([nifti.read_slice(file, asked, limits)], limits)[0].convert("RGB")]
        return [open_frame(file, asked, limits).convert("RGB")]


def _chosen(count: int, read: ReadSlices, asked: Reference, *, limits: ImageLimits) -> list[Image.Image]:
    """The slices that are asked for, of `count`, as pictures in RGB."""
    wanted = asked.slices or limits.slices
    places = evenly(count, wanted * (CANDIDATES if asked.by == "content" else 1))
    slices = _read_all(read, places)
    if asked.by == "content":
        slices = _with_content(slices, wanted)
    return [picture.convert("RGB") for picture in shown(slices, limits)]


def _in_series(place: int, count: int) -> int:
    if not place < count:
        raise InputError(f"there is no slice {place}: the series has {count}, counted from 0")
    return place


def open_reference(source: str | Path, limits: ImageLimits) -> Image.Image | None:
    """The one picture of a scan that a reference means, mode L or RGB; None for other paths.

    Raises:
        InputError, UnreadableImage: there is no such picture, or it means several.
    """
    asked = reference_of(source)
    if asked is None:
        return None
    if is_volume(source):
        raise InputError("it names several slices: one picture is named by #slice=N")
    if is_folder(asked.path):
        asked.only("slice", "series")
        with _slices(asked, limits) as (count, read):
            return shown(read([_in_series(asked.slice or 0, count)]), limits)[0]
    with image_stream(asked.path, limits) as file:
        if is_nifti(asked.path):
            return shown([nifti.read_slice(file, asked, limits)], limits)[0]
        return open_frame(file, asked, limits)


def evenly(count: int, wanted: int) -> list[int]:
    """The middles of `wanted` equal parts of `count` slices, in ascending order; all of them where there are fewer.

    >>> evenly(100, 4)
    [12, 37, 62, 87]
    """
    wanted = min(count, wanted)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def _read_all(read: ReadSlices, places: Sequence[int]) -> list[Grey]:
    """The slices of these places. InputError where all together, as large as the first, would take too much memory."""
    slices = read(places[:1])
    if slices and slices[0].memory * len(places) > MEMORY:
        most = MEMORY // max(1, slices[0].memory)
        raise InputError(f"{len(places)} of its slices take too much memory, which holds {most}: see #slices=N")
    return slices + read(places[1:])


def _with_content(slices: list[Grey], wanted: int) -> list[Grey]:
    """Some of the slices that are not empty, evenly; all of them are empty where they are alike."""
    spreads = [float(np.nan_to_num(_spread(one))) for one in slices]
    full = [one for one, spread in zip(slices, spreads, strict=True) if spread > EMPTY * max(spreads)] or slices
    return [full[place] for place in evenly(len(full), wanted)]


def _spread(one: Grey) -> float:
    """The standard deviation of a slice's grey levels."""
    values, counts = one.levels.counted()
    finite = np.isfinite(values)
    if not finite.any():
        return 0.0
    weights = None if counts is None else counts[finite]
    with np.errstate(over="ignore", invalid="ignore"):  # of values near the largest that a float holds
        mean = np.average(values[finite], weights=weights)
        return float(np.sqrt(np.average((values[finite] - mean) ** 2, weights=weights)))


@contextmanager
def _slices(asked: Reference, limits: ImageLimits) -> Iterator[tuple[int, ReadSlices]]:
    """How many slices a volume has, and what reads them."""
    if is_folder(asked.path):
        asked.only("slice", "slices", "by", "series")
        yield _of_series(asked, limits)
        return
    with image_stream(asked.path, limits) as file:
        yield _of_file(file, is_nifti(asked.path), asked, limits=limits)


def _of_file(file: BinaryIO, in_nifti: bool, asked: Reference, *, limits: ImageLimits) -> tuple[int, ReadSlices]:
    if in_nifti:
        asked.only("axis", "slices", "by", "time")
        volume, axis = nifti.Volume(file, limits), asked.axis or "axial"
        return volume.count(axis), lambda places: [volume.slice(axis, at, asked.time or 0) for at in places]
    asked.only("slices", "by")
    header = read_header(file, limits.max_bytes)
    return header.frames, lambda places: [read_frame(header, at, limits) for at in places]


def _of_files(files: Sequence[bytes], asked: Reference, limits: ImageLimits) -> tuple[int, ReadSlices]:
    asked.only("slice", "slices", "by", "series")
    found = series_in_memory(files, asked.series)
    places = [(int(one.path), frame) for one in found for frame in range(min(one.frames, 10_000))]

    def read(wanted: Sequence[int]) -> list[Grey]:
        opened = ((io.BytesIO(files[number]), frame) for number, frame in (places[at] for at in wanted))
        return [read_frame(read_header(file, limits.max_bytes), frame, limits) for file, frame in opened]

    return len(places), read


def _of_series(asked: Reference, limits: ImageLimits) -> tuple[int, ReadSlices]:
    files = series_of(asked.path, asked.series)
    places = [(one.path, frame) for one in files for frame in range(min(one.frames, 10_000))]

    def read(wanted: Sequence[int]) -> list[Grey]:
        return [_of_path(*places[at], limits=limits) for at in wanted]

    return len(places), read


def _of_path(path: str, frame: int, *, limits: ImageLimits) -> Grey:
    try:
        with image_stream(path, limits) as file:
            return read_frame(read_header(file, limits.max_bytes), frame, limits)
    except UnreadableImage as error:
        raise InputError(f"{os.path.basename(path)}: {error.reason}") from None
    except InputError as error:
        raise InputError(f"{os.path.basename(path)}: {error}") from None


@contextmanager
def _errors(reference: str | Path) -> Iterator[None]:
    """Errors of the block as those of a reference."""
    try:
        yield
    except UnreadableImage as error:
        raise UnreadableImage(str(reference), error.reason) from None
    except InputError as error:
        raise UnreadableImage(str(reference), str(error)) from None
    except MemoryError:
        raise UnreadableImage(str(reference), "takes more memory than this process can have") from None


def open_scan(file: BinaryIO, start: bytes, limits: ImageLimits) -> Image.Image | None:
    """The first frame of a DICOM file, or the middle axial slice of a NIfTI file, as their first bytes tell; None for
    other files. InputError where it cannot be read."""
    if start[128:132] == b"DICM":
        return open_frame(file, None, limits)
    if nifti.is_nifti(start):
        return shown([nifti.read_slice(file, None, limits)], limits)[0]
    return None


def open_named(file: BinaryIO, limits: ImageLimits) -> Image.Image:
    """The first frame of a file with the name of a DICOM file, which need not have the mark of one."""
    file.seek(0)
    return open_frame(file, None, limits)
