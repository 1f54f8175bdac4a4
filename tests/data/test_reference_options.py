"""Options behind # of references to scans and videos: one that means nothing ends in a line, which says what may be."""

from pathlib import Path

import numpy as np
import pytest
from helpers.dicom import write_scans, written
from helpers.videos import write_video

from blip.data.image_bytes import UnreadableImage
from blip.data.pictures import open_pictures
from blip.data.reference_options import number, whole_number
from blip.data.scans.references import reference_of
from blip.errors import InputError

pytest.importorskip("pydicom", reason="pydicom is not installed")
nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 20 frames; DICOM files, one with 3 frames and one without an ending; a series; a NIfTI file."""
    folder = tmp_path_factory.mktemp("references")
    write_video(folder / "clip.mp4", 20)
    write_scans(folder)
    frames = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    (folder / "echo.dcm").write_bytes(written(frames, NumberOfFrames=3))
    (folder / "bare").write_bytes(written(frames[0]))
    (folder / "a.png").write_bytes(b"x")
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), folder / "brain.nii")
    return folder


WRONG = [
    # videos
    ("clip.mp4#", "nothing stands behind #: there can be frames=N, N frames spread evenly, from 1 to 1,024, or rate=R"),
    ("clip.mp4#8", "'8' is no option of a video: there can be frames=N"),
    ("clip.mp4#frame=8", "'frame' is no option of a video (did you mean 'frames'?): there can be frames=N"),
    ("clip.mp4#slices=8", "'slices' is no option of a video: there can be frames=N"),
    ("clip.mp4#frames", "frames is ''; it has to be a whole number from 1 to 1,024"),
    ("clip.mp4#frames=", "frames is ''; it has to be a whole number from 1 to 1,024"),
    ("clip.mp4#frames=0", "frames is '0'; it has to be a whole number from 1 to 1,024"),
    ("clip.mp4#frames=-3", "frames is '-3'; it has to be a whole number from 1 to 1,024"),
    ("clip.mp4#frames=2.5", "frames is '2.5'; it has to be a whole number"),
    ("clip.mp4#frames=1025", "frames is '1025'; it has to be a whole number from 1 to 1,024"),
    ("clip.mp4#frames=" + "9" * 5000, "it has to be a whole number from 1 to 1,024"),
    ("clip.mp4#frames=1_0", "frames is '1_0'; it has to be a whole number"),
    ("clip.mp4#frames=\u0663", "it has to be a whole number from 1 to 1,024"),  # an Arabic digit
    ("clip.mp4#frames=4&frames=8", "frames stands twice, as '4' and '8': leave one out"),
    ("clip.mp4#frames=4&rate=1", "frames and rate exclude each other"),
    ("clip.mp4#frames=4&", "'' is no option of a video"),
    ("clip.mp4#rate=0", "rate is '0'; it has to be a number from 0.001 to 1000, frames a second"),
    ("clip.mp4#rate=1e-9", "rate is '1e-9'; it has to be a number from 0.001 to 1000, frames a second"),
    ("clip.mp4#rate=-1", "rate is '-1'; it has to be a number from 0.001 to 1000"),
    ("clip.mp4#rate=1001", "rate is '1001'; it has to be a number from 0.001 to 1000"),
    ("clip.mp4#rate=nan", "rate is 'nan'; it has to be a number from 0.001 to 1000"),
    ("clip.mp4#rate=1e999", "rate is '1e999'; it has to be a number from 0.001 to 1000"),
    ("clip.mp4#rate=", "rate is ''; it has to be a number from 0.001 to 1000"),
    # scans
    ("ct.dcm#", "nothing stands behind #: there can be frame=N, slice=N, slices=N, time=N, axis=axial|coronal|sag"),
    ("ct.dcm#3", "'3' is no option of a scan: there can be frame=N"),
    ("ct.dcm#Frame=3", "'Frame' is no option of a scan (did you mean 'frame'?)"),
    ("ct.dcm#frmae=0", "'frmae' is no option of a scan (did you mean 'frame'?): there can be frame=N"),
    ("echo.dcm#frame=1&frame=2", "frame stands twice, as '1' and '2': leave one out"),
    ("echo.dcm#frame=3", "there is no frame 3: it has 3, counted from 0"),
    ("echo.dcm#frame=-1", "frame is '-1'; it has to be a whole number from 0 to 10,000,000"),
    ("echo.dcm#frame=", "frame is ''; it has to be a whole number from 0 to 10,000,000"),
    ("echo.dcm#frame=99999999", "frame is '99999999'; it has to be a whole number from 0 to 10,000,000"),
    ("echo.dcm#frame=" + "0" * 20 + "1" * 5000, "it has to be a whole number from 0 to 10,000,000"),
    ("echo.dcm#slice=1", "slice has no meaning here: a reference to it takes frame"),
    ("echo.dcm#slices=0", "slices is '0'; it has to be a whole number from 1 to 10,000,000"),
    ("echo.dcm#frame=1&slices=2", "frame has no meaning here: a reference to it takes slices, by"),
    ("bare#frame=1", "there is no frame 1: it has 1, counted from 0"),
    ("bare#frmae=1", "'frmae' is no option of a scan"),
    ("brain.nii#axis=oblique", "axis is 'oblique'; it can be axial, coronal, sagittal"),
    ("brain.nii#axis=", "axis is ''; it can be axial, coronal, sagittal"),
    ("brain.nii#slice=5", "there is no axial slice 5: it has 5, counted from 0"),
    ("brain.nii#slice=x", "slice is 'x'; it has to be a whole number from 0"),
    ("brain.nii#axis=coronal&slice=4", "there is no coronal slice 4: it has 4, counted from 0"),
    ("brain.nii#axis=coronal&axis=axial", "axis stands twice, as 'coronal' and 'axial': leave one out"),
    ("brain.nii#time=1", "there is no time 1: it has 1, counted from 0"),
    ("ct/#slice=5", "there is no slice 5: the series has 5, counted from 0"),
    ("ct/#slice=1&slices=2", "slice and slices exclude each other: slice=N is one picture, slices=N several"),
    ("ct/#slice=1&by=content", "slice and by exclude each other"),
    ("ct/#frame=1", "frame has no meaning here: a reference to it takes slice, slices, by, series"),
    ("ct/#by=size", "by is 'size'; it can be place, content"),
    ("ct/#series=", "series is ''; it is the number of a series, from 0, or its SeriesInstanceUID"),
    ("ct/#series=1", "the folder holds no series 1; it holds 0 (5 files)"),
    ("ct/#slcies=4", "'slcies' is no option of a scan (did you mean 'slices'?)"),
    ("ct#4", "'4' is no option of a scan"),
    # other files
    ("a.png#frame=1", "no such file; a.png is there, and such a file has no part #frame=1"),
]  # fmt: skip


@pytest.mark.parametrize("reference, message", WRONG, ids=[case[0][:30] for case in WRONG])
def test_options_that_mean_nothing_end_in_one_line(folder: Path, reference: str, message: str) -> None:
    path = f"{folder}/{reference}"
    with pytest.raises(UnreadableImage) as caught:
        open_pictures([path])
    assert caught.value.path == path and message in caught.value.reason
    assert "\n" not in caught.value.reason and len(caught.value.reason) < 300


@pytest.mark.parametrize("reference, count", [
    ("clip.mp4#frames=007", 7), ("clip.mp4#rate=0.001", 1), ("clip.mp4#rate=4e0", 8), ("clip.mp4#rate=.5", 1),
    ("echo.dcm#frame=2", 1), ("echo.dcm#slices=100", 3), ("ct/#slices=3&by=place", 3), ("ct#slice=00000000004", 1),
    ("brain.nii#slice=0&axis=sagittal", 1), ("ct/#series=0&slices=2", 2),
])  # fmt: skip
def test_options_that_mean_pictures(folder: Path, reference: str, count: int) -> None:
    assert len(open_pictures([f"{folder}/{reference}"])) == count


def test_the_slowest_rate_takes_the_first_frame(folder: Path) -> None:
    (slow,), (first, *_) = (open_pictures([f"{folder}/clip.mp4#{how}"]) for how in ("rate=0.001", "frames=20"))
    assert np.array_equal(slow, first)


def test_names_with_a_mark_are_files_first(tmp_path: Path) -> None:
    (tmp_path / "ct.dcm#frame=7").write_bytes(written(np.zeros((2, 3), np.uint8)))
    assert reference_of(tmp_path / "ct.dcm#frame=7") is None
    for other in ("studies/#1/a.png", "table.parquet#3", "shard.tar#0+9", "none#3", "a.png#frame=1"):
        assert reference_of(f"{tmp_path}/{other}") is None


def test_numbers_have_limits() -> None:
    assert whole_number("n", "0010", 0, 10) == 10 and whole_number("n", "000", 0, 10) == 0
    assert number("n", "2.", 0, 10, unit="x") == 2
    for text in ("", "+1", " 1", "1e0", "11", "\u00b2"):
        with pytest.raises(InputError, match="whole number from 0 to 10"):
            whole_number("n", text, 0, 10)
    for text in ("", ".", "e5", "inf", "1_0", "0x1", "-1"):
        with pytest.raises(InputError, match="a number from 0 to 10, x"):
            number("n", text, 0, 10, unit="x")
