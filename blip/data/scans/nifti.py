"""A slice of a NIfTI file as a picture of 8 bits, the right way up.

Axes are those of the closest canonical orientation, in which indices grow to the right, to the front and to the head.
Slices are shown as radiologists see them: front or head at the top, the patient's right on the left; of sagittal slices
the front is on the left.

X, Y, Z: voxels to the right, to the front and to the head.
"""

import gzip
import zlib
from struct import unpack_from
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from blip.data.decoding_cost import MEMORY, check_size
from blip.data.image_bytes import ImageLimits
from blip.data.scans.dicom import NOTHING, Grey
from blip.data.scans.header import broken, size_of
from blip.data.scans.levels import Levels
from blip.data.scans.libraries import nibabel
from blip.data.scans.pixels import OF_DEEP
from blip.data.scans.references import AXES, Reference
from blip.errors import InputError

BROKEN = "a broken NIfTI file: it cannot be read"
GZIP = b"\x1f\x8b"
NEEDED = 1024  # bytes from which `is_nifti` tells
# where the mark stands, what it is, and where the place of the voxels stands, in which form
FORMS = ((344, b"n+1\0", 108, "f"), (4, b"n+2\0", 168, "q"))
FURTHEST = 8_000_000_000  # bytes before the end of a volume, which have to be decompressed to reach it
EXTENSIONS = 16 << 20  # bytes between a header and its voxels


def is_nifti(start: bytes) -> bool:
    """Whether the first NEEDED bytes are those of a NIfTI file, which may be compressed by gzip."""
    return _form(_decompressed(start)) is not None


class Volume:
    """A NIfTI file whose voxels are read slice by slice."""

    def __init__(self, file: BinaryIO, limits: ImageLimits):
        """Reads the header. InputError where it is broken, or where a volume takes too much memory."""
        nibabel_ = nibabel()
        with broken(BROKEN):
            start = file.read(NEEDED)
            file.seek(0)
            header = _decompressed(start)
            form = _form(header)
            if form is None:
                raise InputError("not a NIfTI file of one part (.nii or .nii.gz), or a broken one")
            _check_extensions(header, form)
            packed = start.startswith(GZIP)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            kind = nibabel_.Nifti1Image if form[0] == 344 else nibabel_.Nifti2Image
            image = kind.from_stream(stream)
            self.voxels = image.dataobj
            self.shape = tuple(int(side) for side in self.voxels.shape)
            self._check(limits, None if packed else size_of(file))
            # of each axis of the file: the canonical axis, and 1 or -1
            turned = nibabel_.io_orientation(image.affine)
            if not np.isfinite(turned).all():
                raise InputError("a NIfTI file whose affine gives no directions")
            zooms = [float(one) for one in image.header.get_zooms()[:3]]
            by_axis = dict(zip(turned[:, 0].astype(int).tolist(), zooms, strict=False))
            self.spacing = tuple(by_axis[axis] for axis in sorted(by_axis))  # in mm, of canonical axes
            self.axes, self.signs = turned[:, 0].astype(int).tolist(), turned[:, 1].astype(int).tolist()

    def __len__(self) -> int:
        return self.count("axial")

    def count(self, axis: str) -> int:
        """Slices along an axis."""
        return self._side(self.axes.index(_canonical(axis)))

    def slice(self, axis: str, place: int, time: int = 0) -> Grey:
        """A slice as it is shown, before a window is chosen; InputError where there is none."""
        if not place < self.count(axis):
            raise InputError(f"there is no {axis} slice {place}: it has {self.count(axis)}, counted from 0")
        times = self.shape[3] if len(self.shape) > 3 else 1
        if not time < times:
            raise InputError(f"there is no time {time}: it has {times}, counted from 0")
        cut = self.axes.index(_canonical(axis))
        at: list[int | slice] = [slice(None)] * min(3, len(self.shape))
        if cut < len(at):
            at[cut] = place if self.signs[cut] > 0 else self.count(axis) - 1 - place
        at += [time, *([0] * (len(self.shape) - 4))] if len(self.shape) > 3 else []
        with broken(BROKEN):
            plane = np.asarray(self.voxels[tuple(at)])
            left = [one for one in range(3) if one != cut]
            plane = plane.reshape([self._side(one) for one in left])
            plane = plane[tuple(slice(None, None, self.signs[one]) for one in left)]
            if self.axes[left[0]] > self.axes[left[1]]:
                plane = plane.T
            return _grey(plane[::-1, ::-1].T)  # the higher axis downwards from its end, the lower one from the right

    def _side(self, axis: int) -> int:
        return self.shape[axis] if axis < len(self.shape) else 1

    def _check(self, limits: ImageLimits, size: int | None) -> None:
        """InputError where slices are too large, or where the voxels are not there; `size`: bytes of a plain file."""
        if not self.shape or min(self.shape) < 1:
            raise InputError("a NIfTI file without voxels")
        sides = sorted((self._side(axis) for axis in range(3)), reverse=True)
        check_size((sides[0], sides[1]), limits.max_pixels)
        one = int(np.prod(sides, dtype=object)) * self.voxels.dtype.itemsize
        whole = one * int(np.prod(self.shape[3:], dtype=object))
        if max(one, OF_DEEP * sides[0] * sides[1]) > MEMORY or whole > FURTHEST:
            raise InputError(f"it has {' x '.join(map(str, self.shape))} voxels, which take too much memory")
        if size is not None and whole > size:
            raise InputError(f"the file ends before its voxels do: {size:,} bytes of {whole:,} are there")


def read_slice(file: BinaryIO, reference: Reference | None, limits: ImageLimits) -> Grey:
    """A slice of a NIfTI file: the middle axial one of the first volume unless a reference says another."""
    reference = reference or Reference("")
    reference.only("axis", "slice", "time", "slices", "by")
    volume, axis = Volume(file, limits), reference.axis or "axial"
    place = volume.count(axis) // 2 if reference.slice is None else reference.slice
    return volume.slice(axis, place, reference.time or 0)


def _canonical(axis: str) -> int:
    """The axis of canonical orientation, 0 to 2, across which slices lie."""
    return 2 - AXES.index(axis)


def _grey(plane: np.ndarray) -> Grey:
    if plane.dtype.names:  # RGB24 and RGBA32
        colours = np.stack([plane[name] for name in plane.dtype.names[:3]], axis=-1)
        return Grey(NOTHING, colour=Image.fromarray(np.ascontiguousarray(colours.astype(np.uint8))))
    if plane.dtype.kind == "c":
        raise InputError("a NIfTI file of complex numbers, which have no grey levels")
    return Grey(Levels(np.ascontiguousarray(plane)), is_hounsfield=True)


def _decompressed(start: bytes) -> bytes:
    if not start.startswith(GZIP):
        return start
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, NEEDED)
    except zlib.error:
        return b""


def _form(header: bytes) -> tuple[int, bytes, int, str] | None:
    return next((form for form in FORMS if header[form[0] : form[0] + len(form[1])] == form[1]), None)


def _check_extensions(header: bytes, form: tuple[int, bytes, int, str]) -> None:
    """InputError where the voxels begin so late that what is before them takes much memory."""
    size = 348 if form[0] == 344 else 540
    order = "<" if unpack_from("<i", header)[0] == size else ">"
    (place,) = unpack_from(f"{order}{form[3]}", header, form[2])
    if not 0 <= place <= EXTENSIONS:
        raise InputError("a broken NIfTI file: its header gives no place of its voxels")
