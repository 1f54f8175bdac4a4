"""Sets of studies in the files in which they are distributed, made small: pictures, sections, dates, patients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.set_files import put
from helpers.study_files import REPORT, folder_of, iu_report, table, write_iu, write_mimic

from blip.data.formats import AnnotationError
from blip.data.sets.captions import CAPTION_SETS
from blip.data.sets.iu_xray import part_of
from blip.data.sets.layout import open_set
from blip.data.sets.studies import StudyOptions, sections_of
from blip.errors import BlipError


def raw(dataset: str, path: Path, split: str = "all", **options: Any) -> dict[str, dict[str, Any]]:
    """Records by the name of their study."""
    found = {}
    for file in open_set(CAPTION_SETS, dataset, str(path), split=split, study=StudyOptions(**options)):
        for _, record in file.raw():
            found[record["image_id"]] = record
    return found


def pictures(record: dict[str, Any]) -> list[str]:
    """Names of a record's pictures without folder and ending."""
    return [Path(one).stem for one in record.get("images", [record.get("image")])]


# ---- MIMIC-CXR -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_mimic_cxr(packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_mimic(tmp_path, packed=packed)
    found = raw("mimic_cxr", folder, "train")
    assert found.keys() == {"s53911762", "s50414267", "s53189527"}
    assert {one["patient"] for one in found.values()} == {"p10000032"}
    assert found["s50414267"]["caption"] == "There is no focal consolidation. LUNGS: clear. No acute process."
    assert found["s53189527"]["caption"] == "Stable." and found["s53911762"]["caption"] == "Worse."
    assert found["s53911762"]["image"] == f"{folder_of('10000032', '53911762')}/53911762-0.jpg"
    assert pictures(found["s50414267"]) == ["50414267-0", "50414267-1"]
    assert pictures(found["s53189527"]) == ["53189527-1", "53189527-2", "53189527-0"]  # the sides in order
    (file,) = open_set(CAPTION_SETS, "mimic_cxr", str(folder), split="train")
    assert all((Path(file.root) / one).is_file() for record in found.values() for one in record.get("images", []))
    assert "3 train studies; 1 without findings" in capsys.readouterr().err


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_mimic(tmp_path)
    assert raw("mimic_cxr", folder, "test").keys() == {"s50578979"}
    assert "1 test studies; left out: 1 with no report; 1 without findings" in capsys.readouterr().err
    with pytest.raises(AnnotationError, match="no records of the split validation"):
        raw("mimic_cxr", folder, "validation")
    assert "0 validation studies; left out: 1 with no findings and no impression" in capsys.readouterr().err
    assert raw("mimic_cxr", folder, "train", views=("lateral",)).keys() == {"s50414267", "s53189527"}
    assert "left out: 1 with no picture of the views lateral" in capsys.readouterr().err


def test_sections_and_views_are_chosen(tmp_path: Path) -> None:
    folder = write_mimic(tmp_path)
    found = raw("mimic_cxr", folder, sections=("impression",), views=("lateral", "frontal"))
    assert found["s50414267"]["caption"] == "No acute process." and found["s50578979"]["caption"] == "normal."
    assert pictures(found["s50414267"]) == ["50414267-1", "50414267-0"]
    assert pictures(found["s50578979"]) == ["50578979-0", "50578979-1"]  # by the name of the view, and by its position


def test_earlier_studies_precede_and_the_current_one_is_last(tmp_path: Path) -> None:
    folder = write_mimic(tmp_path)
    for priors, last in ((1, ["50414267-0", "53911762-0"]), (5, ["53189527-1", "50414267-0", "53911762-0"])):
        found = raw("mimic_cxr", folder, "train", views=("frontal",), priors=priors)
        assert pictures(found["s53911762"]) == last
        assert pictures(found["s50414267"]) == ["53189527-1", "50414267-0"]  # of the same day, by the time
        assert pictures(found["s53189527"]) == ["53189527-1"]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (REPORT, {"findings": "There is no focal consolidation. LUNGS: clear.", "impression": "No acute process."}),
        ("FINDINGS/IMPRESSION: a\nb", {"findings": "a b", "impression": "a b"}),
        ("FINDINGS: a\nRECOMMENDATION(S): b\nCONCLUSION: c", {"findings": "a", "impression": "c"}),
        ("FINDINGS: a\nIMPRESSION:\n", {"findings": "a"}),
        ("Findings: a\r\nImpression: b", {"findings": "a", "impression": "b"}),
        ("the findings: a", {}),
        ("FINDINGS: a\nFINDINGS: b", {"findings": "a b"}),
        ("", {}),
    ],
)
def test_sections_of_reports(report: str, expected: dict[str, str]) -> None:
    assert sections_of(report) == expected


# ---- IU X-ray --------------------------------------------------------------------------------------------------------


def test_iu_xray(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_iu(tmp_path)
    found = raw("iu_xray", folder)
    assert list(found) == [f"CXR{i}" for i in range(1, 13)]
    assert found["CXR1"]["caption"] == "Heart 1 is normal. Normal." and found["CXR2"]["caption"] == "Heart 2 is normal."
    assert found["CXR1"]["images"] == ["CXR1_1_IM-0.png", "CXR1_1_IM-1.png"] and found["CXR1"]["patient"] == "CXR1"
    (file,) = open_set(CAPTION_SETS, "iu_xray", str(folder), split="all")
    assert Path(file.root) == folder / "NLMCXR_png"
    said = capsys.readouterr().err
    assert "12 studies; left out: 1 with no findings and no impression, 1 with no picture" in said
    assert "6 without impression" in said


def test_parts_of_iu_xray_share_no_patient_and_stay(tmp_path: Path) -> None:
    folder = write_iu(tmp_path)
    parts = {part: set(raw("iu_xray", folder, part)) for part in ("train", "validation", "test")}
    assert set.union(*parts.values()) == {f"CXR{i}" for i in range(1, 13)}
    assert sum(map(len, parts.values())) == 12
    assert [part_of(f"CXR{i}") for i in (1, 2, 3)] == ["validation", "train", "test"]
    shares = [part_of(f"CXR{i}") for i in range(1, 4001)]
    assert 0.67 < shares.count("train") / 4000 < 0.73 and 0.17 < shares.count("test") / 4000 < 0.23


# ---- annotation.json -------------------------------------------------------------------------------------------------

IU_ITEM = {
    "id": "CXR2_IM-1",
    "report": "the heart is\n normal .",
    "image_path": ["CXR2_IM-1/0.png", "CXR2_IM-1/1.png"],
}
MIMIC_ITEM = {
    "id": "a-b",
    "study_id": 50414267,
    "subject_id": 10000032,
    "report": "normal",
    "image_path": ["p10/a-b.jpg"],
}


def test_annotation_json(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = {"train": [IU_ITEM, {**IU_ITEM, "report": " "}], "val": [], "test": [{**IU_ITEM, "id": "CXR3_IM-1"}]}
    file = put(tmp_path / "annotation.json", content)
    found = raw("iu_xray", file, "train")
    assert found["CXR2_IM-1"] == {
        "images": IU_ITEM["image_path"], "caption": "the heart is normal .", "image_id": "CXR2_IM-1",
        "patient": "CXR2", "split": "train",
    }  # fmt: skip
    assert "left out: 1 with no report" in capsys.readouterr().err
    assert raw("iu_xray", tmp_path, "test").keys() == {"CXR3_IM-1"}
    put(tmp_path / "annotation.json", {"train": [MIMIC_ITEM], "val": [], "test": []})
    assert raw("mimic_cxr", tmp_path, "train") == {
        "50414267": {"image": "p10/a-b.jpg", "caption": "normal", "image_id": "50414267", "patient": "10000032",
                     "split": "train"}
    }  # fmt: skip


# ---- what people get wrong -------------------------------------------------------------------------------------------


def mimic(change: Callable[[Path], Any], **options: Any) -> Callable[[Path], Any]:
    def trigger(folder: Path) -> None:
        write_mimic(folder)
        change(folder)
        raw("mimic_cxr", folder, **options)

    return trigger


def iu(name: str, content: Any, **options: Any) -> Callable[[Path], Any]:
    def trigger(folder: Path) -> None:
        write_iu(folder, 1)
        put(folder / "ecgen-radiology" / name, content)
        raw("iu_xray", folder, **options)

    return trigger


def listed(content: Any, **options: Any) -> Callable[[Path], Any]:
    return lambda folder: raw("iu_xray", put(folder / "annotation.json", content), **options)


def nothing(_: Path) -> None:
    pass


SPLIT, METADATA = "mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.0.0-metadata.csv.gz"
HEAD = ["dicom_id", "study_id", "subject_id", "split"]
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no metadata": (mimic(lambda f: (f / METADATA).unlink()), "views and dates are looked for in mimic-"),
    "no reports": (mimic(lambda f: (f / "mimic-cxr-reports").rename(f / "texts")), "part of MIMIC-CXR, "),
    "cut off": (mimic(lambda f: put(f / SPLIT, (f / SPLIT).read_bytes()[:60])), "is it cut off"),
    "not packed": (mimic(lambda f: put(f / SPLIT, b"dicom_id")), r"split.csv.gz: cannot be read: "),
    "no column": (
        mimic(lambda f: put(f / SPLIT, table([["dicom_id", "split"]]))),
        "line 1: needs the column study_id; found: dicom_id, split",
    ),
    "too few fields": (mimic(lambda f: put(f / SPLIT, table([HEAD, ["a", "1"]]))), "line 2: has not 4 f"),
    "outside": (
        mimic(lambda f: put(f / SPLIT, table([HEAD, ["../a", "1", "1", "train"]]))),
        "line 2: study_id and subject_id are numbers, and dicom_id letters and digits",
    ),
    "letters": (mimic(lambda f: put(f / SPLIT, table([HEAD, ["a", "s1", "1", "train"]]))), "are numbers"),
    "two patients": (
        mimic(lambda f: put(f / SPLIT, table([HEAD, ["a", "1", "1", "train"], ["b", "1", "2", "train"]]))),
        "line 3: study 1 has pictures of two patients or parts",
    ),
    "other metadata": (
        mimic(lambda f: put(f / SPLIT, table([HEAD, ["a", "1", "1", "train"]]))),
        "lacks 1 pictures of mimic-cxr-2.0.0-split.csv.gz, such as a",
    ),
    "broken zip": (
        mimic(lambda f: ((f / "mimic-cxr-reports").rename(f / "x"), put(f / "mimic-cxr-reports.zip", b"PK"))),
        "mimic-cxr-reports.zip: cannot be read",
    ),
    "report in another encoding": (
        mimic(lambda f: put(f / "mimic-cxr-reports/files/p10/p10000032/s50414267.txt", b"FINDINGS: \xe9t\xe9")),
        "s50414267.txt: not UTF-8 text",
    ),
    "unknown section": (mimic(nothing, sections=("findings", "history")), "sections is .*can be some of findings"),
    "no section": (mimic(nothing, sections=()), "sections is "),
    "unknown view": (mimic(nothing, views=("oblique",)), "views is .oblique.; it can be some of frontal"),
    "a view twice": (mimic(nothing, views=("frontal", "frontal")), "each once"),
    "no split": (lambda f: raw("mimic_cxr", write_mimic(f), ""), "set split to train, validation, test"),
    "another set": (lambda f: raw("mimic_cxr", write_iu(f)), "folder without files of 'mimic_cxr'"),
    "sections of captions": (
        lambda f: raw("json", put(f / "x.json", [{"image": "a", "caption": "b"}]), priors=1),
        "sections, views and priors are for mimic_cxr, iu_xray; dataset is json",
    ),
    "broken report": (iu("5.xml", "<eCitation><uId"), "5.xml: not a report of XML"),
    "no report inside": (iu("5.xml", "<eCitation/>"), "5.xml: the names of its study .* not ''"),
    "picture outside": (iu("5.xml", iu_report("../CXR5", "x")), "letters and digits, not '../CXR5'"),
    "priors of IU": (iu("5.xml", iu_report("CXR5", "x"), priors=1), "has one study of a patient"),
    "empty folder": (
        lambda f: raw("iu_xray", put(f / "ecgen-radiology" / "a.txt", "x").parent.parent),
        "has no reports, such as 1.xml",
    ),
    "no lists": (listed({"images": [1]}), "has none of the lists train, val and test"),
    "no pictures": (listed({"train": [{**IU_ITEM, "image_path": []}]}), "train 1: its image_path is no"),
    "no text": (listed({"train": [{**IU_ITEM, "report": 3}]}), "train 1: has no text as report"),
    "a number": (listed({"train": [3]}), "train 1: a study is an object"),
    "sections of whole reports": (listed({"train": [IU_ITEM]}, sections=("impression",)), "has whole reports"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(case: str, tmp_path: Path) -> None:
    trigger, message = BAD[case]
    with pytest.raises(BlipError, match=message) as caught:
        trigger(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bomb_of_entities_is_refused(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(12))
    bomb = f'<!DOCTYPE x [<!ENTITY a0 "x">{entities}]>' + iu_report("CXR1", "&a12;").split("?>", 1)[1]
    put(tmp_path / "ecgen-radiology" / "1.xml", bomb)
    with pytest.raises(AnnotationError, match="not a report of XML"):
        raw("iu_xray", tmp_path)
