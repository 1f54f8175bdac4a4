"""References to pictures of scans: PATH#KEY=VALUE&KEY=VALUE. All numbers count from 0.

chest.dcm#frame=3                     a frame of a DICOM file; the first unless given
volume.nii.gz#axis=coronal&slice=40   a slice of a NIfTI file; the middle axial one unless given
volume.nii.gz#time=2                  of a file with several volumes, such as fMRI; the first unless given
series/#slice=12                      a slice of the series in a folder
series/#slices=16                     16 slices, evenly over the series; of files with frames or slices likewise
series/#slices=16&by=content          the same without empty slices
series/#series=1                      of a folder with several series, the second, in the order of the names of files
series/#series=1.2.840.1              the one with this SeriesInstanceUID
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from blip.data.image_files import ENDINGS as IMAGES
from blip.data.image_files import SCANS
from blip.errors import InputError

AXES = ("axial", "coronal", "sagittal")
ENDINGS = (".dcm", ".dicom", ".ima")  # of DICOM files; those of many scanners have none
NIFTI = (".nii", ".nii.gz")
FORM = re.compile(r"(?P<path>.+?)#(?P<options>[a-z]+=[^#]*)", re.DOTALL)
NUMBERS = ("frame", "slice", "slices", "time")
KEYS = (*NUMBERS, "axis", "by", "series")
VALUES = {"axis": AXES, "by": ("place", "content")}
LARGEST = 10_000_000  # a number above this is a mistake


@dataclass(frozen=True)
class Reference:
    """The pictures of a scan that are meant; None where a reference does not say it."""

    path: str
    frame: int | None = None
    slice: int | None = None
    slices: int | None = None
    time: int | None = None
    axis: str | None = None
    by: str | None = None
    series: str | None = None

    @property
    def several(self) -> bool:
        """Whether it means the slices of a volume."""
        return self.slices is not None or self.by is not None

    def only(self, *keys: str) -> None:
        """InputError for a key that this kind of scan does not have."""
        other = [key for key in KEYS if key not in keys and getattr(self, key) is not None]
        if other:
            raise InputError(f"{other[0]} has no meaning here: a reference to it takes {', '.join(keys)}")


def reference_of(source: str | Path) -> Reference | None:
    """The reference that a path is, where no file has this name and the options are of scans; None otherwise.

    Raises:
        InputError: an option has a value that it cannot have.
    """
    found = _options(str(source))
    if found is None:
        return None
    return _reference(*found)


def parts_of(text: str) -> Reference:
    """What the options of a reference, such as slices=16, mean of a scan that is named elsewhere. InputError."""
    options = dict(part.partition("=")[::2] for part in text.strip().split("&")) if text.strip() else {}
    if unknown := [key for key in options if key not in KEYS]:
        raise InputError(f"{unknown[0][:40]!r} is no part of a scan; parts are named by {', '.join(KEYS)}: slices=16")
    return _reference("", options)


def _reference(path: str, options: dict[str, str]) -> Reference:
    """The reference of options as they are written. InputError for a value that an option cannot have."""
    values: dict[str, str | int] = {}
    for key, value in options.items():
        if key in VALUES and value not in VALUES[key]:
            raise InputError(f"{key} is {value[:40]!r}; it can be {', '.join(VALUES[key])}")
        values[key] = _number(key, value) if key in NUMBERS else value
    return Reference(path, **values)  # type: ignore[arg-type]


def is_scan_reference(source: str | Path) -> bool:
    """Whether a path has the form of a reference to pictures of a scan; its options may have values without meaning."""
    return _options(str(source)) is not None


def _options(name: str) -> tuple[str, dict[str, str]] | None:
    """The path and the options of a reference."""
    found = FORM.fullmatch(name) if "#" in name else None
    if found is None or os.path.lexists(name):
        return None
    options = dict(part.partition("=")[::2] for part in found["options"].split("&"))
    return (found["path"], options) if set(options) <= set(KEYS) and _may_hold_scans(found["path"]) else None


def is_nifti(path: str | Path) -> bool:
    """Whether a path has the name of a NIfTI file."""
    return str(path).lower().endswith(NIFTI)


def is_folder(path: str) -> bool:
    """Whether a path is a folder. Names of image files are not looked up: each record of a data set asks this."""
    return path.endswith(("/", os.sep)) or (not path.lower().endswith((*IMAGES, *SCANS)) and os.path.isdir(path))


def has_dicom_name(path: str | Path) -> bool:
    """Whether a path has the name of a DICOM file; names without ending do not count."""
    return str(path).lower().endswith(ENDINGS)


def _may_hold_scans(path: str) -> bool:
    """No for paths that other references have: videos, tables."""
    return is_folder(path) or is_nifti(path) or has_dicom_name(path) or is_bare(path)


def is_bare(path: str) -> bool:
    """Whether a path has no ending, or one of digits alone, as DICOM UIDs have: a file of a scanner, or a folder."""
    return re.fullmatch(r"(\.\d+)?", os.path.splitext(path)[1]) is not None


def _number(key: str, value: str) -> int:
    least = 1 if key == "slices" else 0
    if not value.isascii() or not value.isdigit() or not least <= int(value[:10]) <= LARGEST:
        raise InputError(f"{key} is {value[:40]!r}; it has to be a whole number from {least}")
    return int(value)
