"""The image files of folders: which are read, and which are not, so that a person hears of them."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from blip.data import hints
from blip.errors import BlipError, visible
from blip.files import ReadError, open_regular

# of image files; where one image is there in several forms, the first of these is taken
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif", ".webp", ".bmp", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
           ".avif")  # fmt: skip
DICOM = (".dcm", ".dicom", ".ima", "")  # endings of DICOM files; those of many scanners have none
CONVERT = "DICOM is not read yet; convert them to PNG"


class NoImages(BlipError):
    """A path that is neither a file nor a folder with images."""


def to_stderr(line: str) -> None:
    """Prints a line to standard error, where control characters are shown and not obeyed."""
    with suppress(OSError, ValueError):
        print(visible(line), file=sys.stderr, flush=True)


def find_images(places: Sequence[str | Path], tell: Callable[[str], None] = to_stderr) -> list[Path]:
    """Files as they are given, and all images below the folders among them, in the order of their names.

    Args:
        tell: called with a line about the DICOM files of a folder, which are left out.

    Raises:
        NoImages: a place does not exist, is no regular file, or is a folder without images.
    """
    paths: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            paths += _inside(place, tell)
        elif place.is_file():
            paths.append(place)
        else:
            raise NoImages(f"{place}: {'not a regular file' if place.exists() else hints.missing(place)}")
    return paths


def _inside(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """The images below a folder."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    inside = [path for path in files if path.suffix.lower() in ENDINGS]
    dicom = [path for path in files if path.suffix.lower() in DICOM and is_dicom(path)]
    named = (
        f"{len(dicom):,} DICOM file{'s' * (len(dicom) != 1)}, such as {dicom[0].relative_to(folder)}" if dicom else ""
    )
    if not inside:
        has = f"; it has {named}: {CONVERT}" if dicom else ""
        raise NoImages(f"{folder} is a folder without images; looked for {', '.join(sorted(ENDINGS))}{has}")
    if dicom:
        tell(f"{folder}: {len(inside):,} images; left out: {named}: {CONVERT}")
    return inside


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first bytes; not an index of such files."""
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    with suppress(ReadError, OSError), open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"
    return False
