"""What `check_data` reports about scans."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom import write_scans, written
from rich.console import Console

from blip.data.check import check_data
from blip.data.check_report import print_report
from blip.data.image_bytes import ImageLimits
from blip.data.scans.facts import ScanFacts, facts_of

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
FILES = Path(pydicom.__file__).parent / "data/test_files"
LIMITS = ImageLimits()


def test_facts_of_scans(tmp_path: Path) -> None:
    write_scans(tmp_path)
    assert facts_of(str(FILES / "J2K_pixelrep_mismatch.dcm"), LIMITS) == ScanFacts(
        "CT", 1, (0.431, 0.431, 5.0), ("40/100", "40/200")
    )
    assert facts_of(str(FILES / "rtplan.dcm"), LIMITS) == ScanFacts("other", 0, has_pixels=False)
    assert facts_of(f"{FILES}/examples_ybr_color.dcm#frame=3", LIMITS) == ScanFacts("US", 30)
    assert facts_of(f"{tmp_path}/ct/#slices=2", LIMITS) == ScanFacts("CT", 5)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5)), np.diag([-2, 3, 4, 1])), tmp_path / "x.nii.gz")
    assert facts_of(f"{tmp_path}/x.nii.gz", LIMITS) == ScanFacts("NIfTI", 5, (2, 3, 4))
    (tmp_path / "a.png").write_bytes(b"no scan")
    assert facts_of(f"{tmp_path}/a.png", LIMITS) is None is facts_of(f"{tmp_path}/none.dcm", LIMITS)


def test_the_report_of_a_set_of_scans(tmp_path: Path) -> None:
    write_scans(tmp_path)
    (tmp_path / "x.dcm").write_bytes(written(np.zeros((4, 4), np.uint8), Modality="PATIENT", WindowCenter=1,
                                             WindowWidth=9, PixelSpacing=[0.5, 0.25]))  # fmt: skip
    (tmp_path / "plan.dcm").write_bytes((FILES / "rtplan.dcm").read_bytes())
    records = json.loads((tmp_path / "scans.json").read_text())
    records += [{"image": image, "caption": "x"} for image in ("x.dcm", "plan.dcm", "ct/#slices=3", "ct/0.dcm")]
    (tmp_path / "scans.json").write_text(json.dumps(records))
    report = check_data([str(tmp_path / "scans.json")], num_workers=0, report_file=tmp_path / "r.json")
    assert [(Path(path).name, "without pixels" in reason) for path, reason in report.broken_images] == [
        ("plan.dcm", True)
    ]
    assert report.scans.modalities == {"CT": 5, "other": 2} and report.scans.windows == {"none": 5, "1/9": 1}
    assert report.scans.spacings == {"0.25 x 0.5": 1} and report.scans.frames == 18
    assert [Path(path).name for path in report.scans.without_pixels] == ["plan.dcm"]
    assert report.duplicate_images == 0  # two references to one series are different pictures
    report.save(tmp_path / "r.json")
    saved = (tmp_path / "r.json").read_text()
    assert json.loads(saved)["scans"]["modalities"] == {"CT": 5, "other": 2} and "PATIENT" not in saved
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(report, console)
    text = console.export_text()
    assert "scans: CT (5), other (2); 18 frames or slices" in text and "scans without pixels: 1" in text
