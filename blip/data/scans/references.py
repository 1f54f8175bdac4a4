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
from blip.data.reference_options import one_of, options_of, whole_number
from blip.errors import InputError

AXES = ("axial", "coronal", "sagittal")
ENDINGS = (".dcm", ".dicom", ".ima")  # of DICOM files; those of many scanners have none
NIFTI = (".nii", ".nii.gz")
NUMBERS = ("frame", "slice", "slices", "time")
VALUES = {"axis": AXES, "by": ("place", "content")}
KEYS = (*NUMBERS, *VALUES, "series")
OPTIONS = {key: f"{key}=N" for key in NUMBERS} | {key: f"{key}={'|'.join(values)}" for key, values in VALUES.items()}
OPTIONS["series"] = "series=N or series=UID"
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
    """The reference that a path is, where no file has this name and what stands in front of # may hold scans; None
    otherwise.

    Raises:
        InputError: there is an option that scans do not have, one twice, or a value that an option cannot have.
    """
    found = _divided(str(source))
    if found is None:
        return None
    path, options = found
    return _reference(path, options_of(options, OPTIONS, "a scan"))


def parts_of(text: str) -> Reference:
    """What the options of a reference, such as slices=16, mean of a scan that is named elsewhere. InputError."""
    return _reference("", options_of(text, OPTIONS, "a scan") if text.strip() else {})


def _reference(path: str, options: dict[str, str]) -> Reference:
    """The reference of options as they are written. InputError for a value that an option cannot have."""
    values: dict[str, str | int] = {}
    for key, value in options.items():
        if key in NUMBERS:
            values[key] = whole_number(key, value, 1 if key == "slices" else 0, LARGEST)
        else:
            values[key] = one_of(key, value, VALUES[key]) if key in VALUES else value
    if "series" in values and not values["series"]:
        raise InputError("series is ''; it is the number of a series, from 0, or its SeriesInstanceUID")
    found = Reference(path, **values)  # type: ignore[arg-type]
    if found.several and found.slice is not None:
        raise InputError(f"slice and {'by' if found.slices is None else 'slices'} exclude each other: slice=N is one "
                         "picture, slices=N several")  # fmt: skip
    return found


def is_scan_reference(source: str | Path) -> bool:
    """Whether a path has the form of a reference to pictures of a scan; its options may be without meaning."""
    return _divided(str(source)) is not None


def _divided(name: str) -> tuple[str, str] | None:
    """What stands in front of # and behind it, of a reference to pictures of a scan.

    In front of unknown options there has to be the name of a scan, or a file or folder without an ending that is there:
    other references have # too, such as FILE.parquet#ROW.
    """
    path, mark, options = name.rpartition("#")
    if not mark or not path or "/" in options or os.path.lexists(name):
        return None
    if path.endswith(("/", os.sep)) or is_nifti(path) or has_dicom_name(path):
        return path, options
    keys = {part.partition("=")[0] for part in options.split("&")}
    if "=" in options and keys <= set(KEYS):
        return (path, options) if is_folder(path) or is_bare(path) else None
    return (path, options) if is_bare(path) and os.path.exists(path) else None


def is_nifti(path: str | Path) -> bool:
    """Whether a path has the name of a NIfTI file."""
    return str(path).lower().endswith(NIFTI)


def is_folder(path: str) -> bool:
    """Whether a path is a folder. Names of image files are not looked up: each record of a data set asks this."""
    return path.endswith(("/", os.sep)) or (not path.lower().endswith((*IMAGES, *SCANS)) and os.path.isdir(path))


def has_dicom_name(path: str | Path) -> bool:
    """Whether a path has the name of a DICOM file; names without ending do not count."""
    return str(path).lower().endswith(ENDINGS)


def is_bare(path: str) -> bool:
    """Whether a path has no ending, or one of digits alone, as DICOM UIDs have: a file of a scanner, or a folder."""
    return re.fullmatch(r"(\.\d+)?", os.path.splitext(path)[1]) is not None
