"""The chest X-rays of Indiana University (Demner-Fushman et al. 2016), as Open-i distributes them.

ecgen-radiology/1.xml       of NLMCXR_reports.tgz: one report a file
NLMCXR_png/CXR1_1_IM-0001-3001.png
"""

import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

from blip.data.columns import Columns, without_columns
from blip.data.formats import AnnotationError, Records
from blip.data.sets.studies import SECTIONS, VIEWS, Counted, StudyOptions, annotated, record_of
from blip.errors import InputError
from blip.files import open_regular

MAX_REPORT = 1 << 20  # bytes of a report's file
NAME = re.compile(r"[\w-]+")
# the published files name no parts: of 100 patients, chosen by a checksum of their name, so many are of each
SHARES = {"train": 70, "validation": 10, "test": 20}


def read(path: Path, root: str, columns: Columns, options: StudyOptions) -> Records:
    """The studies of a folder of reports, or of an `annotation.json`."""
    without_columns(path, columns)
    if path.suffix.lower() == ".json":
        yield from annotated(path, options)
        return
    if options.views != VIEWS or options.priors:
        raise InputError("iu_xray has one study of a patient and does not tell its views: leave out views and priors")
    files = sorted(path.glob("*.xml"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise AnnotationError(path, "", "has no reports, such as 1.xml")
    counted = Counted(path, options)
    for file in files:
        name, sections, pictures = _report(file)
        part = part_of(name)
        if options.part not in ("", part):
            continue
        if not pictures:
            counted.without_pictures += 1
        elif text := counted.text(sections):
            yield file.name, record_of(pictures, text, study=name, patient=name, part=part)
    counted.say()


def part_of(patient: str) -> str:
    """The part of the set that a patient is in, always the same one."""
    place = zlib.crc32(patient.encode()) % 100
    if place < SHARES["train"]:
        return "train"
    return "validation" if place < SHARES["train"] + SHARES["validation"] else "test"


def _report(path: Path) -> tuple[str, dict[str, str], list[str]]:
    """(name, section -> text, files of its pictures) of a report."""
    try:
        with open_regular(path, MAX_REPORT) as file:
            root = ElementTree.fromstring(file.read())
    except ElementTree.ParseError as error:
        raise AnnotationError(path, "", f"not a report of XML ({error}); is it cut off?") from None
    named = root.find("uId")
    name = "" if named is None else named.get("id", "")
    pictures = [picture.get("id", "") for picture in root.iter("parentImage")]
    if wrong := [one for one in (name, *pictures) if not NAME.fullmatch(one)]:
        raise AnnotationError(path, "", f"the names of its study and pictures are letters and digits, not {wrong[0]!r}")
    sections = {}
    for part in root.iter("AbstractText"):
        label, text = part.get("Label", "").lower(), " ".join("".join(part.itertext()).split())
        if label in SECTIONS and text:
            sections[label] = text
    return name, sections, [f"{picture}.png" for picture in pictures]
