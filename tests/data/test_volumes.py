"""NIfTI files and volumes: directions, the order of slices, which are chosen, one window for all."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom import written

from blip.data.image_bytes import ImageLimits, UnreadableImage
from blip.data.images import open_image, open_plain
from blip.data.scans import volumes
from blip.data.scans.volumes import evenly, is_volume, open_slices
from blip.errors import InputError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
SIDES = (5, 6, 7)  # voxels to the right, to the front, to the head
# where a corner is in a picture: rows from the top, columns from the left
TOP, LEFT, BOTTOM, RIGHT = 0, 0, -1, -1


def nifti(path: Path, voxels: np.ndarray, codes: str = "RAS") -> str:
    """A NIfTI file whose axes have other directions than those of `voxels`, which are RAS."""
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    turned = nibabel.apply_orientation(voxels, turn)
    affine = nibabel.orientations.inv_ornt_aff(turn, voxels.shape[:3])
    oblique = np.eye(4)
    angle = 0.2
    oblique[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nibabel.save(nibabel.Nifti1Image(turned, oblique @ affine), path)
    return str(path)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR", "SPL", "PIR", "LAI"])
def test_pictures_of_nifti_files_are_the_right_way_up(tmp_path: Path, codes: str) -> None:
    voxels = np.zeros(SIDES, np.int16)
    right, front, head = -1, -1, -1
    voxels[right, front, head] = 100  # the corner at the patient's right, front and head
    path = nifti(tmp_path / "x.nii.gz", voxels, codes)
    for axis, last, size in (("axial", 6, (5, 6)), ("coronal", 5, (5, 7)), ("sagittal", 4, (6, 7))):
        image = open_plain(f"{path}#axis={axis}&slice={last}")
        pixels = np.asarray(image)
        assert image.size == size and pixels[TOP, LEFT] == 255 and pixels.sum() == 255
        assert not np.asarray(open_plain(f"{path}#axis={axis}&slice=0")).any()
    voxels = np.zeros(SIDES, np.int16)
    voxels[0, 0, :] = 100  # left and back
    voxels[0, 0, 0] = 200  # and feet
    path = nifti(tmp_path / "y.nii", voxels, codes)
    axial = np.asarray(open_plain(path))
    assert axial[BOTTOM, RIGHT] == 255 and axial.sum() == 255
    coronal = np.asarray(open_plain(f"{path}#axis=coronal&slice=0"))
    assert coronal[BOTTOM, RIGHT] == 255 and 0 < coronal[TOP, RIGHT] < 255 and not coronal[:, LEFT].any()
    sagittal = np.asarray(open_plain(f"{path}#axis=sagittal&slice=0"))
    assert sagittal[BOTTOM, RIGHT] == 255 and not sagittal[:, LEFT].any()


def test_times_of_nifti_files_and_what_they_lack(tmp_path: Path) -> None:
    voxels = np.zeros((4, 5, 6, 3), np.float32)
    voxels[0, 0, :, 1] = 1
    path = nifti(tmp_path / "x.nii", voxels)
    assert not np.asarray(open_plain(path)).any() and np.asarray(open_plain(f"{path}#time=1")).any()
    for option, reason in (("time=3", "there is no time 3: it has 3"), ("slice=6", "no axial slice 6: it has 6"),
                           ("axis=left", "it can be axial, coronal, sagittal"), ("frame=1", "takes axis, slice"),
                           ("slice=-1", "whole number from 0"), ("slice=x", "whole number")):  # fmt: skip
        with pytest.raises(UnreadableImage, match=reason):
            open_image(f"{path}#{option}")
    flat = nifti(tmp_path / "flat.nii", np.arange(20, dtype=np.uint8).reshape(4, 5, 1))
    assert open_image(flat).size == (4, 5)
    hounsfield = nifti(tmp_path / "ct.nii.gz", np.full(SIDES, 50, np.int16))
    assert np.asarray(open_plain(hounsfield, ImageLimits(window="soft"))).mean() == pytest.approx(127.5, abs=1)


def test_other_scales_of_nifti_files(tmp_path: Path) -> None:
    stored = np.arange(210, dtype=np.int16).reshape(SIDES)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(2, -100)
    image.to_filename(tmp_path / "x.nii")
    shown = np.asarray(open_plain(f"{tmp_path}/x.nii#slice=3", ImageLimits(window="100/200"))).astype(float)
    values = nibabel.load(tmp_path / "x.nii").get_fdata()[:, :, 3][::-1, ::-1].T
    assert np.abs(shown - (values / 200).clip(0, 1) * 255).max() <= 0.5
    colours = np.zeros(SIDES, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = 77
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii")
    assert open_image(tmp_path / "rgb.nii").getpixel((0, 0)) == (0, 77, 0)


# ---- series ----------------------------------------------------------------------------------------------------------


def series(folder: Path, order: Sequence[int], **elements: object) -> str:
    """A folder of slices, one for each place: its grey level is the place, and its name has nothing to do with it."""
    folder.mkdir(exist_ok=True)
    for name, place in zip(random.Random(str(elements)).sample(range(1000), len(order)), order, strict=True):
        usual = {
            "ImagePositionPatient": [0, 0, 2.5 * place],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "SeriesInstanceUID": "1.2.3",
            "SOPInstanceUID": f"1.2.3.{name}",
            "InstanceNumber": 1000 - name,
            "Modality": "CT",
        }
        data = written(np.full((4, 4), place, np.int16), **{**usual, **elements})
        (folder / f"{name:04}").write_bytes(data)
    return str(folder)


def levels(reference: str, window: str = "127.5/255", **more: int) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in open_slices(reference, ImageLimits(window=window, **more))]


def test_slices_of_a_series_are_in_the_order_of_their_positions(tmp_path: Path) -> None:
    order = random.Random(1).sample(range(40), 40)
    folder = series(tmp_path / "s", order)
    (tmp_path / "s/DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "s/readme.txt").write_text("hello")
    assert levels(f"{folder}/#slices=40") == list(range(40)) == levels(f"{folder}#slices=100")
    assert levels(f"{folder}/", slices=4) == [5, 15, 25, 35] == levels(f"{folder}/#slices=4")
    assert open_image(f"{folder}/#slice=7", ImageLimits(window="127.5/255")).getpixel((0, 0)) == (7, 7, 7)
    # turned over, from right to left and from the front to the back: the order of places stays
    for row, column, position in (([1, 0, 0], [0, -1, 0], (0, 0, 1)), ([0, 1, 0], [0, 0, -1], (-1, 0, 0)),
                                  ([1, 0, 0], [0, 0, -1], (0, -1, 0))):  # fmt: skip
        shutil.rmtree(folder)
        for place in range(5):
            series(Path(folder), [place], ImageOrientationPatient=[*row, *column], SOPInstanceUID=f"1.2.{place}",
                   ImagePositionPatient=[one * 3.0 * place for one in position])  # fmt: skip
            (Path(folder) / next(iter(sorted(p.name for p in Path(folder).iterdir() if p.name.isdigit())))).rename(
                Path(folder) / f"x{9 - place}")  # fmt: skip
        assert levels(f"{folder}/#slices=5") == list(range(5))


def test_order_of_pydicoms_series_after_shuffling_names(tmp_path: Path) -> None:
    files = sorted((Path(pydicom.__file__).parent / "data/test_files/dicomdirtests/98892001/CT5N").iterdir())
    expected = [pydicom.dcmread(path).pixel_array.tolist() for path in
                sorted(files, key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])]  # fmt: skip
    pictures = None
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        for path, name in zip(files, random.Random(seed).sample("abcde", 5), strict=True):
            shutil.copy(path, folder / name)
        found = [np.asarray(image)[..., 0] for image in open_slices(f"{folder}/")]
        assert len(found) == 5 and (pictures is None or np.array_equal(found, pictures))
        pictures = found
    for shown, stored in zip(pictures or [], expected, strict=True):
        assert np.corrcoef(shown.ravel().astype(float), np.clip(np.ravel(stored), 824, 1264))[0, 1] > 0.95


def test_several_series_in_a_folder_are_listed(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", range(3))
    series(tmp_path / "s", [9, 8], SeriesInstanceUID="1.2.4", SOPInstanceUID="9.9")
    with pytest.raises(UnreadableImage, match=r"several series.*#series=N chooses one: 0 \(\d files\), 1 \(\d") as told:
        open_slices(f"{folder}/")
    assert "1.2" not in told.value.reason  # no UID is repeated
    by_uid = {uid: levels(f"{folder}/#series={uid}&slices=5") for uid in ("1.2.3", "1.2.4")}
    assert by_uid["1.2.4"][-1] in (8, 9)
    assert sorted(levels(f"{folder}/#series={number}&slices=5") for number in (0, 1)) == sorted(by_uid.values())
    with pytest.raises(UnreadableImage, match=r"no series 7; it holds 0 \(\d files\), 1 \(\d files\)"):
        open_slices(f"{folder}/#series=7")


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"ImagePositionPatient": None}, "give no positions"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "give no positions"),
    ],
)
def test_series_without_an_order_are_refused(tmp_path: Path, elements: dict[str, object], reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        open_slices(series(tmp_path / "s", range(3), **elements) + "/")


def test_slices_in_several_directions_are_refused(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", range(3))
    series(tmp_path / "s", [7], ImageOrientationPatient=[0, 1, 0, 0, 0, 1], SOPInstanceUID="5")
    with pytest.raises(UnreadableImage, match="several directions"):
        open_slices(folder + "/")
    with pytest.raises(UnreadableImage, match="without DICOM pictures"):
        (tmp_path / "empty").mkdir()
        open_slices(f"{tmp_path}/empty/")
    with pytest.raises(UnreadableImage, match="names several slices: one picture is named by #slice=N"):
        open_image(f"{folder}/#slices=2")


# ---- which slices ----------------------------------------------------------------------------------------------------


def test_slices_are_chosen_evenly() -> None:
    for count in (1, 2, 5, 16, 17, 333):
        for wanted in (1, 2, 5, 16, 400):
            chosen = evenly(count, wanted)
            assert len(chosen) == min(count, wanted) == len(set(chosen)) and chosen == sorted(chosen)
            assert chosen[0] == count - 1 - chosen[-1] or abs(chosen[0] - (count - 1 - chosen[-1])) <= 1
            gaps = np.diff(chosen)
            assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_which_references_are_volumes(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", range(2))
    yes = (folder, f"{folder}/", f"{folder}/#slices=2", f"{folder}#by=content", "x.dcm#slices=3", "x.nii.gz#slices=0")
    no = ("a.png", "x.dcm", "x.nii.gz", "x.dcm#frame=2", f"{folder}/#slice=1", "a.parquet#3", "clip.mp4#frames=8",
          "clip.mp4#slices=2", "none", "hub:a/b")  # fmt: skip
    assert all(map(is_volume, yes)) and not any(map(is_volume, no))


def test_names_of_folders_may_have_dots(tmp_path: Path) -> None:
    folder = series(tmp_path / "St. Mary v1.b", range(4))
    for name in (f"{folder}/", folder, f"{folder}#slices=4", f"{folder}/#slices=4"):  # paths lose their last slash
        assert is_volume(name) and levels(name) == levels(f"{folder}/#slices=4")
    one = open_image(f"{folder}#slice=1", ImageLimits(window="127.5/255"))
    assert one.getpixel((0, 0))[0] == levels(f"{folder}/#slices=4")[1]


def test_a_folder_says_that_pydicom_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise InputError("a DICOM file, which pydicom reads")

    folder = series(tmp_path / "s", range(2))
    monkeypatch.setattr("blip.data.scans.series.pydicom", missing)
    with pytest.raises(UnreadableImage, match="which pydicom reads"):
        open_slices(f"{folder}/")


def test_only_the_chosen_slices_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, decoded = series(tmp_path / "s", range(20)), []
    read = volumes.read_frame
    monkeypatch.setattr(volumes, "read_frame", lambda *given: decoded.append(1) or read(*given))
    open_slices(f"{folder}/#slices=3")
    assert len(decoded) == 3


def test_empty_slices_are_left_out_by_content(tmp_path: Path) -> None:
    voxels = np.zeros((8, 8, 40), np.int16)
    voxels[2:6, 2:6, 20:30] = 100
    path = nifti(tmp_path / "x.nii.gz", voxels)
    by_place, by_content = (open_slices(f"{path}#slices=4{by}") for by in ("", "&by=content"))
    assert sum(bool(np.asarray(one).any()) for one in by_place) == 1
    assert len(by_content) == 4 and all(np.asarray(one).any() for one in by_content)
    assert len(open_slices(nifti(tmp_path / "y.nii", np.zeros(SIDES, np.int16)) + "#slices=3&by=content")) == 3


def test_all_slices_share_one_window(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", range(0, 200, 10))
    shown = levels(f"{folder}/#slices=4", window="")
    assert shown == sorted(shown) and shown[0] < 50 and shown[-1] > 200  # one by one, each would be black
    frames = np.repeat(np.arange(6, dtype=np.uint16) * 100, 16).reshape(6, 4, 4)
    (tmp_path / "m.dcm").write_bytes(written(frames, NumberOfFrames=6))
    shown = levels(f"{tmp_path}/m.dcm#slices=6", window="")
    assert shown == [0, 51, 102, 153, 204, 255]
    middle = series(tmp_path / "w", range(3), WindowCenter=1, WindowWidth=3)
    assert levels(f"{middle}/", window="") == [64, 191, 255]


def test_one_broken_slice_makes_the_volume_unreadable(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", range(3))
    path = next(Path(folder).iterdir())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UnreadableImage, match=rf"{path.name}: the file ends before its pixels do"):
        open_slices(folder + "/")


def test_slices_that_take_too_much_memory_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = series(tmp_path / "s", range(8))
    monkeypatch.setattr(volumes, "MEMORY", 4 * 16 * 38)  # bytes of four slices, whose values are not looked up
    assert len(open_slices(f"{folder}/#slices=4")) == 4
    with pytest.raises(UnreadableImage, match=r"5 of its slices take too much memory, which holds 4: see #slices=N"):
        open_slices(f"{folder}/#slices=5")


def test_volumes_in_colour() -> None:
    frames = open_slices(Path(pydicom.__file__).parent / "data/test_files/examples_ybr_color.dcm#slices=3")
    assert [frame.size for frame in frames] == [(320, 240)] * 3
