"""DICOM files as pictures: windows, inversion, frames, colours; how they are opened."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.dicom import written
from PIL import Image

from blip.data.crops import Crop, open_crop
from blip.data.image_bytes import ImageLimits, UnreadableImage
from blip.data.images import image_format, open_image, open_plain, open_reduced
from blip.data.scans.levels import LookUp
from blip.data.scans.windows import NAMED, Window, parse_window, usual_range
from blip.errors import InputError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
FILES = Path(pydicom.__file__).parent / "data/test_files"
RAMP = np.arange(-1024, 1024, dtype=np.int16).reshape(32, 64)


def greys(data: bytes | Path | str, **view: Any) -> np.ndarray:
    return np.asarray(open_plain(data, ImageLimits(**view)))


def test_order_is_modality_then_window_then_inversion() -> None:
    data = written((RAMP + 1024).astype(np.uint16), RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=0,
                   WindowWidth=513, Modality="CT")  # fmt: skip
    values = (RAMP.astype(float) + 1024) * 2 - 1024
    expected = ((values + 256.5) / 512).clip(0, 1) * 255
    assert np.abs(greys(data) - expected).max() <= 1
    dark = written((RAMP + 1024).astype(np.uint16), RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=0,
                   WindowWidth=513, PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    assert np.array_equal(greys(dark), 255 - greys(data))


def test_monochrome1_is_bright_where_it_should_be() -> None:
    path = FILES / "dicomdirtests/77654033/CR1/6154"
    header = pydicom.dcmread(path)
    assert header.PhotometricInterpretation == "MONOCHROME1"
    shown = greys(path.read_bytes()).astype(float)
    assert np.corrcoef(shown.ravel(), header.pixel_array.ravel())[0, 1] < -0.5
    assert np.array_equal(greys(written(RAMP, PresentationLUTShape="INVERSE")), 255 - greys(written(RAMP)))


@pytest.mark.parametrize("level", [0, 7, 4000])
def test_a_constant_picture_without_a_window_is_black(level: int) -> None:
    pixels = np.full((4, 5), level, np.uint16)
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        assert not greys(written(pixels, PhotometricInterpretation=photometric)).any()
    wide = greys(written(pixels, PhotometricInterpretation="MONOCHROME1", WindowCenter=5000, WindowWidth=10001))
    assert np.abs(wide - 255 * (1 - level / 10_000)).max() <= 1, "a window says what is white"
    assert (greys(written(np.full((4, 5), 7, np.uint8), PhotometricInterpretation="MONOCHROME1")) == 248).all()


def test_windows_by_name_are_those_of_ct_alone() -> None:
    scan = written(RAMP, Modality="CT", WindowCenter=40, WindowWidth=400)
    for name, (level, width) in NAMED.items():
        expected = ((RAMP - (level - width / 2)) / width).clip(0, 1) * 255
        assert np.abs(greys(scan, window=name) - expected).max() <= 0.5
        assert np.array_equal(greys(scan, window=f"{level}/{width}"), greys(scan, window=name))
    other = written(RAMP, Modality="MR", WindowCenter=40, WindowWidth=400)
    assert np.array_equal(greys(other, window="lung"), greys(scan))
    assert np.array_equal(greys(other, window="-600/1600"), greys(scan, window="lung"))
    of_units = written(RAMP, Modality="OT", RescaleType="HU", RescaleSlope=1, RescaleIntercept=0)
    assert np.array_equal(greys(of_units, window="lung"), greys(scan, window="lung"))


def test_three_windows_are_the_channels() -> None:
    scan, channels = written(RAMP, Modality="CT"), ("lung", "soft", "bone")
    shown = greys(scan, channels=channels)
    for place, name in enumerate(channels):
        assert np.array_equal(shown[..., place], greys(scan, window=name))
    other = written(RAMP, Modality="MR", WindowCenter=40, WindowWidth=400)
    assert greys(other, channels=channels).ndim == 2  # grey: these windows mean nothing there


@pytest.mark.parametrize("view", [{"window": "lungs"}, {"window": "40/0"}, {"window": "1.2.3/4"}, {"window": "40"},
                                  {"channels": ("lung", "soft")}, {"channels": ("lung", "soft", "x")},
                                  {"window": "lung", "channels": ("lung", "soft", "bone")}])  # fmt: skip
def test_windows_that_are_none_are_refused(view: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"window|channels"):
        ImageLimits(**view)


def test_functions_of_windows_are_those_of_the_standard() -> None:
    values = np.array([-1e9, -0.51, 0.0, 0.49, 0.5, 1.0, 2.0, 1e9])
    assert Window(1, 1, "LINEAR").shares(values).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert Window(2, 4, "LINEAR").shares(np.array([0.0, 1.5, 3.0])).tolist() == [0, 0.5, 1]
    assert Window(2, 4).shares(np.array([0.0, 2.0, 4.0])).tolist() == [0, 0.5, 1]
    assert np.allclose(Window(0, 4, "SIGMOID").shares(np.array([-1e6, 0.0, 1e6])), [0, 0.5, 1])
    assert parse_window("-600/1600") == Window(-600, 1600) == parse_window("lung")
    table = LookUp(np.array([0, 10, 255], np.uint16), -1, 8)
    assert (table.shares(np.array([-9.0, -1.0, 0.4, 5.0])) * 255).tolist() == [0, 0, 10, 255]


def test_percentiles_from_counts_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(0, 300, 5000).astype(np.int16)
    distinct, counts = np.unique(values, return_counts=True)
    assert usual_range(distinct.astype(float), counts) == usual_range(values.astype(float))
    assert (usual_range(np.full(5, 7.0)).shares(np.full(3, 7.0)) == 0).all()
    assert (usual_range(np.full(5, np.nan)).shares(np.zeros(3)) <= 1).all()


def test_unused_bits_may_hold_anything() -> None:
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    noisy = stored | 0xF000
    more = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(greys(written(noisy, **more)), greys(written(stored, **more)))
    signed = (stored.astype(np.int32) - 2048).astype(np.int16)
    more["WindowCenter"] = 0
    assert np.array_equal(greys(written(signed & 0x0FFF, **more)), greys(written(signed, **more)))
    for bits in (8, 16):  # the whole range of the bits where nothing names a window, and percentiles
        assert greys(written(stored.astype(f"u{bits // 8}"))).max() == 255


def test_frames_and_colours() -> None:
    path = FILES / "examples_ybr_color.dcm"
    frames = [greys(f"{path}#frame={n}") for n in (0, 29)]
    assert frames[0].shape == (240, 320, 3) and not np.array_equal(*frames)
    assert np.array_equal(greys(path), frames[0])
    with pytest.raises(UnreadableImage, match="there is no frame 30: it has 30, counted from 0"):
        greys(f"{path}#frame=30")
    colours = np.random.default_rng(0).integers(0, 65536, (4, 6, 3)).astype(np.uint16)
    data = written(colours, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert np.array_equal(greys(data), colours >> 8)
    deep = np.arange(0, 2**32, 2**26, dtype=np.uint64).astype(np.uint32).reshape(8, 8)
    assert np.abs(greys(written(deep)).ravel() - np.linspace(0, 255, 64)).max() <= 3


def test_every_way_to_open_an_image_opens_dicom(tmp_path: Path) -> None:
    path = tmp_path / "x.png"  # the content decides, not the name
    path.write_bytes(written(RAMP, Modality="CT"))
    whole = np.asarray(open_image(path))
    assert whole.shape == (32, 64, 3) and image_format(path) == "SCAN"
    assert np.array_equal(np.asarray(open_image(io.BytesIO(path.read_bytes()))), whole)
    assert np.array_equal(np.asarray(open_reduced(path, 8)[0].convert("RGB")), whole)
    image, box = open_crop(path, Crop(None, np.empty((0, 4))), 16)
    assert np.array_equal(np.asarray(image.convert("RGB")), whole) and box == (0, 0, 64, 32)
    named = tmp_path / "jpeg.dcm"  # and an image with the name of a DICOM file is an image
    Image.new("RGB", (9, 7), "red").save(named, "JPEG")
    assert open_image(named).size == (9, 7)
    bare = tmp_path / "bare.dcm"  # DICOM without its mark
    bare.write_bytes(path.read_bytes()[132:])
    assert np.array_equal(np.asarray(open_image(bare)), whole)


def test_files_are_named_where_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from blip.data.scans import libraries

    def missing() -> None:
        raise InputError(f"a DICOM file, which pydicom reads: {libraries.INSTALL}")

    data = written(RAMP)
    monkeypatch.setattr("blip.data.scans.header.pydicom", missing)
    with pytest.raises(UnreadableImage, match=r"a DICOM file, which pydicom reads: pip install 'blip\[dicom\]'"):
        open_image(data)
