"""Sets of studies in the form in which they are distributed, made small."""

import csv
import gzip
import io
import zipfile
from pathlib import Path

from helpers.set_files import png, put

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites

 FINDINGS:

 There is no focal
 consolidation.
 LUNGS: clear.

 IMPRESSION:

 No acute process.
"""
# patient, study, part, date and time, views of its pictures, report
STUDIES: list[tuple[str, str, str, str, str, list[str], str | None]] = [
    ("10000032", "53911762", "train", "21800723", "80556.875", ["AP"], " WET READ: fine\n IMPRESSION: Worse.\n"),
    ("10000032", "50414267", "train", "21800506", "213014.531", ["PA", "LATERAL"], REPORT),
    (
        "10000032",
        "53189527",
        "train",
        "21800506",
        "165500.312",
        ["LL", "AP", "PA"],
        " FINDINGS AND IMPRESSION:\n Stable.",
    ),
    ("10000764", "57375967", "validate", "21321015", "", ["AP", ""], " HISTORY: x\n CHEST: no heading\n"),
    ("10000898", "50771383", "test", "21880313", "135429.0", ["XTABLE LATERAL"], None),
    ("10000935", "50578979", "test", "21870823", "120000.0", ["", "PA LLD"], " Impression: normal."),
]


def folder_of(patient: str, study: str) -> str:
    return f"p{patient[:2]}/p{patient}/s{study}"


def table(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return gzip.compress(text.getvalue().encode())


def write_mimic(folder: Path, *, packed: bool = False) -> Path:
    """The tables, images and reports of STUDIES; the name of a picture is that of its study with its number."""
    split, metadata = [["dicom_id", "study_id", "subject_id", "split"]], [
        ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime", "ViewCodeSequence_CodeMeaning"]
    ]  # fmt: skip
    reports = {}
    for patient, study, part, date, time, views, report in STUDIES:
        for number, view in enumerate(views):
            name = f"{study}-{number}"
            split.append([name, study, patient, part])
            metadata.append([name, patient, study, view, date, time, "" if view else "postero-anterior"])
            put(folder / "files" / folder_of(patient, study) / f"{name}.jpg", png(9))
        if report is not None:
            reports[f"files/{folder_of(patient, study)}.txt"] = report
    put(folder / "mimic-cxr-2.0.0-split.csv.gz", table(split))
    put(folder / "mimic-cxr-2.0.0-metadata.csv.gz", table(metadata))
    if packed:
        with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w") as file:
            for name, report in reports.items():
                file.writestr(name, report)
    else:
        for name, report in reports.items():
            put(folder / "mimic-cxr-reports" / name, report)
    return folder


def iu_report(name: str, findings: str = "", impression: str = "", pictures: int = 2) -> str:
    images = "".join(f'<parentImage id="{name}_1_IM-{i}"><caption>PA</caption></parentImage>' for i in range(pictures))
    return f"""<?xml version="1.0" encoding="utf-8"?><eCitation><meta type="rr"/><uId id="{name}"/><MedlineCitation>
<Article><Abstract><AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>{images}</eCitation>"""


def write_iu(folder: Path, count: int = 12) -> Path:
    for i in range(1, count + 1):
        put(
            folder / "ecgen-radiology" / f"{i}.xml",
            iu_report(f"CXR{i}", f"Heart {i}\n is normal.", "Normal." * (i % 2)),
        )
    put(folder / "ecgen-radiology" / "90.xml", iu_report("CXR90"))
    put(folder / "ecgen-radiology" / "91.xml", iu_report("CXR91", "Normal.", pictures=0))
    put(folder / "NLMCXR_png" / "CXR1_1_IM-0.png", png(9))
    return folder
