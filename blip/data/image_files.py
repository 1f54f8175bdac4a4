"""The image files of folders: which are read, and which are not, so that a person hears of them."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from blip.data import hints
from blip.errors import BlipError
from blip.files import ReadError, open_regular

# of image files; where one image is there in several forms, the first of these is taken
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif", ".webp", ".bmp", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
           ".avif")  # fmt: skip
SCANS = (".dcm", ".dicom", ".ima", ".nii", ".nii.gz")  # of DICOM and NIfTI files


class NoImages(BlipError):
    """A path that is neither a file nor a folder with images."""


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Files as they are given, and all images below the folders among them, in the order of their names.

    DICOM and NIfTI files are images too; DICOM files without an ending are known by their first bytes.

    Raises:
        NoImages: a place does not exist, is no regular file, or is a folder without images.
    """
    paths: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            paths += _inside(place)
        elif place.is_file():
            paths.append(place)
        else:
            raise NoImages(f"{place}: {'not a regular file' if place.exists() else hints.missing(place)}")
    return paths


def _inside(folder: Path) -> list[Path]:
    """The images below a folder."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    inside = [path for path in files if path.name.lower().endswith((*ENDINGS, *SCANS)) or is_dicom(path)]
    if not inside:
        wanted = ", ".join(sorted((*ENDINGS, *SCANS)))
        raise NoImages(f"{folder} is a folder without images; looked for {wanted}")
    return inside


def is_dicom(path: Path) -> bool:
    """Whether a file without ending is DICOM, by its first bytes; not an index of such files."""
    if path.name.startswith(".") or path.suffix or path.name.upper() == "DICOMDIR":
        return False
    with suppress(ReadError, OSError), open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"
    return False
