"""All files of pydicom and pydicom-data as pictures, against what highdicom computes for them."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from blip.data.image_bytes import UnreadableImage
from blip.data.images import open_plain
from blip.data.scans.libraries import quietly
from blip.data.scans.windows import usual_range

pytestmark = pytest.mark.slow
pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
PLACE = Path(pydicom.__file__).parent / "data"
OTHER = (".py", ".pyc", ".json", ".dump", ".txt", ".icc", ".gz", ".zip", ".md", ".csv")
# files with pixels that cannot be read, here and by highdicom
REFUSED = {
    "JPEG-lossy.dcm": "pixels cannot be decoded",  # 12 bits in a form that only GDCM decodes
    "JPEG2000-embedded-sequence-delimiter.dcm": "its compressed picture",  # a delimiter stands inside of the stream
    "MR_truncated.dcm": "the file ends before its pixels do: 8,130 bytes of 8,192 are there",
    "badVR.dcm": "gives no NumberOfFrames",  # it is 1A
}
# why highdicom does not open a file: pydicom's own functions are what it is compared with
NOT_BY_HIGHDICOM = (
    "only valid for datasets with little endian",
    "Segmented LUTs are not implemented",
    "No IOD found for SOP Class UID",  # retired ones
    "missing DICOM File Meta Information",
    "has no attribute '(SOPClassUID|ReferencedSOPInstanceUID)'",
)
WRONG_IN_HIGHDICOM = ("mlut_18.dcm",)  # a modality LUT of negative values, which wrap round there
# a file that is cut off within its second frame, which pydicom does not read at all: the whole one
CUT = {"emri_small_jpeg_2k_lossless_too_short.dcm": "emri_small_jpeg_2k_lossless.dcm"}


def places() -> list[Path]:
    roots = [PLACE]
    try:
        import data_store  # pydicom-data

        roots.append(Path(data_store.__file__).parent)
    except ImportError:
        pass
    found = [Path(folder, name) for root in roots for folder, _, names in os.walk(root) for name in sorted(names)]
    return [path for path in sorted(found) if path.suffix not in OTHER and "TINY_ALPHA" not in path.parts]


def as_shown(values: np.ndarray, kind: str, stored: int) -> np.ndarray:
    """What a library gives without a window: colours to 8 bits, greys of up to 8 bits over their whole range."""
    if not kind.startswith("MONOCHROME"):
        bits = max(8, stored) if kind != "PALETTE COLOR" else 16 if values.max() > 255 else 8
        return values.astype(np.int64) >> (bits - 8)
    if stored <= 8:
        return values * (255 / (2**stored - 1))
    return usual_range(values.ravel().astype(float)).shares(values.astype(float)) * 255


def by_highdicom(path: Path) -> np.ndarray:
    import highdicom

    image = highdicom.imread(path)
    stored = int(image.BitsStored)
    parts = [image, *(image.get(f"{of}FunctionalGroupsSequence", [{}])[0] for of in ("Shared", "PerFrame"))]
    windowed = any(key in one for one in parts for key in ("VOILUTSequence", "WindowCenter", "FrameVOILUTSequence"))
    frame = image.get_frame(
        1,
        apply_real_world_transform=False,
        apply_voi_transform=None,
        apply_icc_profile=False,
        voi_output_range=(0.0, 255.0),
    )
    return frame if windowed else as_shown(frame, image.PhotometricInterpretation, stored)


def by_pydicom(path: Path) -> np.ndarray:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_windowing, pixel_array

    header = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in header.file_meta:
        header.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    frame, kind, stored = pixel_array(header, index=0), header.PhotometricInterpretation, int(header.BitsStored)
    if kind == "PALETTE COLOR":
        frame = apply_color_lut(frame, header)
    elif kind.startswith("MONOCHROME"):
        frame = apply_modality_lut(frame, header)
        if "WindowCenter" in header:
            frame = apply_windowing(frame, header).astype(float)
            ends = np.array([0, 2**stored - 1]) - (2 ** (stored - 1) if header.PixelRepresentation else 0)
            ends = ends * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
            frame = (frame - ends[0]) / (ends[1] - ends[0]) * 255
            return frame if kind == "MONOCHROME2" else 255 - frame
    return as_shown(frame, kind, stored)


def test_every_file_of_pydicom_is_the_picture_that_highdicom_computes_or_an_error() -> None:
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    seen = {"read": 0, "refused": 0, "by pydicom": 0}
    for path in places():
        try:
            ours = np.asarray(open_plain(path if path.name.endswith(".dcm") else path.read_bytes()))
        except UnreadableImage as error:
            assert "\n" not in str(error)
            if path.name in REFUSED:
                assert REFUSED[path.name] in error.reason
                seen["refused"] += 1
            else:
                header = pydicom.dcmread(path, force=True, specific_tags=["Rows", "PixelData"])
                assert "PixelData" not in header or "Rows" not in header, f"{path.name}: {error.reason}"
            continue
        with warnings.catch_warnings(), quietly():
            warnings.simplefilter("ignore")
            try:
                whole = path.with_name(CUT.get(path.name, path.name))
                theirs = by_pydicom(path) if path.name in WRONG_IN_HIGHDICOM else by_highdicom(whole)
            except Exception as error:
                assert any(re.search(reason, str(error)) for reason in NOT_BY_HIGHDICOM), f"{path.name}: {error}"
                theirs = by_pydicom(path)
                seen["by pydicom"] += 1
        assert ours.shape == theirs.shape, path.name
        assert np.abs(ours.astype(float) - theirs).max() <= 1, path.name
        seen["read"] += 1
    assert seen["read"] >= 80 and seen["refused"] == len(REFUSED), seen
