"""MIMIC-CXR-JPG 2.0 (Johnson et al. 2019) with the reports of MIMIC-CXR, as PhysioNet distributes both.

mimic-cxr-2.0.0-split.csv.gz, mimic-cxr-2.0.0-metadata.csv.gz     packed or not
files/p10/p10000032/s50414267/DICOM_ID.jpg
mimic-cxr-reports/files/p10/p10000032/s50414267.txt, or mimic-cxr-reports.zip
"""

import csv
import gzip
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blip.data.columns import Columns, without_columns
from blip.data.formats import AnnotationError, Records
from blip.data.sets.studies import (
    FRONTAL,
    LATERAL,
    OTHER,
    Counted,
    StudyOptions,
    annotated,
    in_views,
    record_of,
    sections_of,
)
from blip.files import read_text

SPLIT, METADATA = "mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-metadata.csv"
REPORTS = ("mimic-cxr-reports/files", "mimic-cxr-reports", "reports/files", "files")
PACKED = "mimic-cxr-reports.zip"
PARTS = {"train": "train", "validate": "validation", "test": "test"}
PROBED = 200  # studies whose reports tell which folder holds them
SIDES = {"AP": FRONTAL, "PA": FRONTAL, "LL": LATERAL, "LATERAL": LATERAL}
NAMED = {"antero-posterior": FRONTAL, "postero-anterior": FRONTAL, "lateral": LATERAL, "left lateral": LATERAL}


@dataclass(slots=True)
class Study:
    """A study of the tables: its part, when it was made, and (view, name) of its pictures."""

    patient: str
    name: str
    part: str
    when: tuple[str, float] = ("", 0.0)  # YYYYMMDD and HHMMSS
    pictures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def folder(self) -> str:
        return f"p{self.patient[:2]}/p{self.patient}/s{self.name}"


def read(path: Path, root: str, columns: Columns, options: StudyOptions) -> Records:
    """The studies of a split table, or of an `annotation.json`; `root` is the folder of the images, `files`."""
    without_columns(path, columns)
    if path.suffix.lower() == ".json":
        yield from annotated(path, options)
        return
    studies, counted = _studies(path), Counted(path, options)
    before = _earlier(studies) if options.priors else {}
    asked = [one for one in studies.values() if not options.part or PARTS.get(one.part) == options.part]
    report_of = _reports(path, asked)
    prefix = "files/" if os.path.isdir(os.path.join(root, "files")) else ""
    for study in asked:
        each = 1 if options.priors else None
        earlier = [one for one in before.get(study.name, []) if in_views(one.pictures, options)]
        made = [study, *earlier[: options.priors]]
        pictures = [
            f"{prefix}{one.folder}/{name}.jpg"
            for one in reversed(made)
            for name in in_views(one.pictures, options, each=each)
        ]
        if not in_views(study.pictures, options):
            counted.without_pictures += 1
            continue
        report = report_of(study)
        if text := counted.text(None if report is None else sections_of(report)):
            yield (
                f"study {study.name}",
                record_of(pictures, text, study=f"s{study.name}", patient=f"p{study.patient}", part=study.part),
            )
    counted.say()


# ---- tables ----------------------------------------------------------------------------------------------------------


def _studies(path: Path) -> dict[str, Study]:
    """Name -> study, in the order of the split table, with views and dates of the table of metadata."""
    studies: dict[str, Study] = {}
    pictures: dict[str, str] = {}  # picture -> study
    for place, row in _table(path, ("dicom_id", "study_id", "subject_id", "split")):
        name, patient, picture = row["study_id"], row["subject_id"], row["dicom_id"]
        if not (name.isdecimal() and patient.isdecimal() and re.fullmatch(r"[\w-]+", picture)):
            raise AnnotationError(path, place, "study_id and subject_id are numbers, and dicom_id letters and digits")
        study = studies.setdefault(name, Study(patient, name, row["split"]))
        if (study.patient, study.part) != (patient, row["split"]):
            raise AnnotationError(path, place, f"study {name} has pictures of two patients or parts")
        pictures[picture] = name
    metadata = _beside(path, METADATA)
    for place, row in _table(metadata, ("dicom_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")):
        if row["dicom_id"] in pictures:
            study = studies[pictures[row["dicom_id"]]]
            study.pictures.append((_view(row), row["dicom_id"]))
            study.when = _when(metadata, place, row)
    if unknown := pictures.keys() - {name for study in studies.values() for _, name in study.pictures}:
        raise AnnotationError(metadata, "", f"lacks {len(unknown):,} pictures of {path.name}, such as {min(unknown)}")
    return studies


def _view(row: Mapping[str, str]) -> str:
    """The side that a picture is from, by its position or else by the name of its view."""
    position = row["ViewPosition"].strip().upper()
    first, last = (position.split() or [""])[0], (position.split() or [""])[-1]
    named = NAMED.get((row.get("ViewCodeSequence_CodeMeaning") or "").strip().lower(), OTHER)
    return SIDES.get(last) or SIDES.get(first) or named


def _when(path: Path, place: str, row: Mapping[str, str]) -> tuple[str, float]:
    date, time = row["StudyDate"].strip(), row["StudyTime"].strip()
    try:
        return f"{int(float(date)):08d}", float(time or 0)
    except ValueError:
        raise AnnotationError(
            path, place, f"its StudyDate and StudyTime are {date!r} and {time!r}, not numbers"
        ) from None


def _earlier(studies: Mapping[str, Study]) -> dict[str, list[Study]]:
    """Study -> the patient's studies before it, the newest first."""
    of_patient: dict[str, list[Study]] = {}
    for study in studies.values():
        of_patient.setdefault(study.patient, []).append(study)
    found = {}
    for several in of_patient.values():
        several.sort(key=lambda study: study.when)
        for study in several:
            found[study.name] = [one for one in reversed(several) if one.when < study.when]
    return found


def _beside(path: Path, name: str) -> Path:
    """The table of this name beside another, packed or not; AnnotationError where there is none."""
    places = [path.with_name(name + ending) for ending in (".gz", "")]
    if found := next((place for place in places if place.is_file()), None):
        return found
    raise AnnotationError(path, "", f"views and dates are looked for in {places[0].name} beside it, which is absent")


def _table(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(line, row) of a CSV file, which may be packed by gzip."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if missing := [name for name in needed if name not in (rows.fieldnames or [])]:
                found = ", ".join(rows.fieldnames or [])
                raise AnnotationError(path, "line 1", f"needs the column {missing[0]}; found: {found or 'none'}")
            for row in rows:
                if None in row or None in row.values():
                    raise AnnotationError(path, f"line {rows.line_num}", f"has not {len(rows.fieldnames or [])} fields")
                yield f"line {rows.line_num}", row
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(path, "", f"cannot be read: {error}; is it cut off?") from None


# ---- reports ---------------------------------------------------------------------------------------------------------


def _reports(path: Path, studies: list[Study]) -> Callable[[Study], str | None]:
    """What returns the report of a study, None where there is none."""
    folders = [path.parent / name for name in REPORTS]
    for folder in folders:
        if any((folder / f"{study.folder}.txt").is_file() for study in studies[:PROBED]):
            return lambda study: _text(folder / f"{study.folder}.txt")
    packed = path.with_name(PACKED)
    if packed.is_file():
        return _Packed(packed)
    problem = f"its reports are looked for in {REPORTS[0]} or {PACKED} beside it: they are part of MIMIC-CXR"
    raise AnnotationError(path, "", f"{problem}, not of MIMIC-CXR-JPG")


def _text(path: Path) -> str | None:
    return read_text(path) if path.is_file() else None


class _Packed:
    """The reports in `mimic-cxr-reports.zip`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise AnnotationError(path, "", f"cannot be read: {error}; is it cut off?") from None
        self.names = set(self.file.namelist())

    def __call__(self, study: Study) -> str | None:
        name = f"files/{study.folder}.txt"
        if name not in self.names:
            return None
        try:
            return self.file.read(name).decode("utf-8", "replace")
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise AnnotationError(self.path, name, f"cannot be read: {error}") from None
