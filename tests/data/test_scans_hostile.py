"""Broken and hostile scans end in one line; nothing of a header is printed, logged or repeated in messages."""

import gzip
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom import written

from blip.data.image_bytes import ImageLimits, UnreadableImage
from blip.data.images import open_image
from blip.data.scans.codestreams import stream_size
from blip.data.scans.facts import facts_of
from blip.data.scans.volumes import open_named, open_slices

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
FILES = Path(pydicom.__file__).parent / "data/test_files"
UID = pydicom.uid
GREY = np.arange(4096, dtype=np.uint16).reshape(64, 64)
PLAIN = written(GREY)
J2K = (FILES / "MR_small_jp2klossless.dcm").read_bytes()
RLE = (FILES / "MR_small_RLE.dcm").read_bytes()
JPEG = (FILES / "SC_rgb_jpeg_dcmtk.dcm").read_bytes()
CT = FILES / "CT_small.dcm"
LIMITS = ImageLimits(max_bytes=64 << 20, max_pixels=10_000_000)


def changed(**elements: object) -> bytes:
    """PLAIN with other elements; those that are None are left out."""
    header = pydicom.dcmread(io.BytesIO(PLAIN))
    for keyword, value in elements.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    return saved(header)


def saved(header: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    header.save_as(buffer)
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    """A sequence inside of a sequence, and so on, none of which has a length."""
    one = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    at = PLAIN.index(struct.pack("<HH", 0x0028, 0x0002))
    return PLAIN[:at] + one * depth + PLAIN[at:]


def bomb() -> bytes:
    """A deflated file of 70 KB that would have 70 MB."""
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID.DeflatedExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    meta = buffer.getvalue()
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = b"".join(packer.compress(bytes(1 << 20)) for _ in range(70))
    end = meta.rindex(UID.DeflatedExplicitVRLittleEndian.encode()) + 22
    return meta[:end] + zeros + packer.flush()


def nifti(**fields: object) -> bytes:
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    data = bytearray(image.to_bytes())
    header = np.frombuffer(data, nibabel.nifti1.header_dtype, 1).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + bytes(data[348:])


def nan_affine() -> dict[str, object]:
    rows = {f"srow_{axis}": [np.nan] * 4 for axis in "xyz"}
    return {**rows, "sform_code": 1, "qform_code": 0}


BROKEN: dict[str, Callable[[], bytes]] = {
    "mark alone": lambda: bytes(128) + b"DICM",
    "noise behind the mark": lambda: bytes(128) + b"DICM" + bytes(range(256)) * 8,
    "cut in the meta information": lambda: PLAIN[:150],
    "cut in the header": lambda: PLAIN[: len(PLAIN) - GREY.nbytes - 100],
    "cut before the pixels": lambda: PLAIN[: -GREY.nbytes],
    "cut in the pixels": lambda: PLAIN[:-1000],
    "no pixels": lambda: changed(PixelData=None),
    "empty pixels": lambda: changed(PixelData=b""),
    "no rows": lambda: changed(Rows=None),
    "0 rows": lambda: changed(Rows=0),
    "0 columns": lambda: changed(Columns=0),
    "huge": lambda: changed(Rows=65535, Columns=65535),
    "large for the limit": lambda: changed(Rows=4000, Columns=4000),
    "more frames than there are": lambda: changed(NumberOfFrames=10**9, PixelData=b"\1\2"),
    "frames that are no number": lambda: raw_frames(b"1A"),
    "no bits": lambda: changed(BitsAllocated=None, BitsStored=None),
    "odd bits": lambda: changed(BitsAllocated=13),
    "more bits stored than there are": lambda: changed(BitsStored=63),
    "two samples": lambda: changed(SamplesPerPixel=2),
    "65535 samples": lambda: changed(SamplesPerPixel=65535, PhotometricInterpretation="RGB"),
    "no kind of colour": lambda: changed(PhotometricInterpretation=None),
    "unknown kind of colour": lambda: changed(PhotometricInterpretation="HSV"),
    "palette without entries": lambda: changed(PhotometricInterpretation="PALETTE COLOR"),
    "slope NaN": lambda: changed(RescaleSlope=7, RescaleIntercept=0).replace(b"DS\4\x007.0 ", b"DS\4\0nan "),
    "slope of infinity": lambda: changed(RescaleSlope="1e999", RescaleIntercept="0"),
    "wrong syntax: JPEG 2000": lambda: PLAIN.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4"),
    "wrong syntax: big endian": lambda: PLAIN.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"),
    "unknown syntax": lambda: PLAIN.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"),
    "a video": lambda: J2K.replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.102"[:22]),
    "element of 4 GB": lambda: PLAIN[: PLAIN.index(b"\x28\0\x10\0")] + b"\x28\0\x10\0UN\0\0\xf0\xff\xff\xff" + bytes(9),
    "sequences in sequences": lambda: nested(5000),
    "bomb of deflate": bomb,
    "not deflated": lambda: PLAIN.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"),
    "JPEG 2000 of another size": lambda: J2K.replace(b"\xff\x4f\xff\x51", b"\xff\x4f\xff\x51", 1).replace(
        J2K[J2K.index(b"\xff\x4f\xff\x51") + 8 :][:8], struct.pack(">2I", 60000, 60000), 1),
    "JPEG 2000 cut": lambda: J2K[: J2K.index(b"\xff\x4f\xff\x51") + 120],
    "JPEG of noise": lambda: JPEG[:-6000] + bytes(range(250)) * 24,
    "RLE of noise": lambda: RLE[:-2000] + b"\x7f" * 2000,
    "RLE without offsets": lambda: RLE[: RLE.index(b"\xfe\xff\x00\xe0") + 8],
    "NIfTI cut": lambda: nifti()[:360],
    "NIfTI without sides": lambda: nifti(dim=[0] * 8),
    "NIfTI of negative sides": lambda: nifti(dim=[3, -3, 4, 5, 1, 1, 1, 1]),
    "NIfTI of huge sides": lambda: nifti(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
    "NIfTI of seven huge sides, packed": lambda: gzip.compress(nifti(dim=[7] + [32767] * 7)),
    "NIfTI of an unknown type": lambda: nifti(datatype=9999),
    "NIfTI whose voxels begin at NaN": lambda: nifti(vox_offset=np.nan),
    "NIfTI whose voxels begin late": lambda: nifti(vox_offset=2e9),
    "NIfTI without directions": lambda: nifti(**nan_affine()),
    "NIfTI packed and cut": lambda: gzip.compress(nifti())[:60],
    "gzip of something else": lambda: gzip.compress(b"hello" * 100),
}  # fmt: skip


def raw_frames(value: bytes) -> bytes:
    return changed(NumberOfFrames=11).replace(b"IS\2\x0011", b"IS\2\0" + value)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_end_in_one_line(
    name: str, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    data = BROKEN[name]()
    with pytest.raises(UnreadableImage) as error, warnings.catch_warnings():
        warnings.simplefilter("error")
        open_image(data, LIMITS)
    assert error.value.reason and "\n" not in str(error.value) and len(str(error.value)) < 300
    assert "Traceback" not in str(error.value) and not caplog.records
    assert capfd.readouterr() == ("", "")


def test_broken_files_are_many_and_break_what_they_should() -> None:
    assert len(BROKEN) >= 30
    for name, reason in (("bomb of deflate", "bytes when it is inflated"), ("huge", "65535 x 65535 pixels"),
                         ("JPEG 2000 of another size", "60000 x 60000"), ("slope NaN", "slope"),
                         ("more frames than there are", "the file ends before its pixels do"),
                         ("sequences in sequences", "RecursionError"),
                         ("palette without entries", "colours")):  # fmt: skip
        with pytest.raises(UnreadableImage, match=reason):
            open_image(BROKEN[name](), LIMITS)


def test_lies_that_do_no_harm() -> None:
    whole = np.asarray(open_image(PLAIN))
    for data in (PLAIN[:140] + b"\xff\xff\xff\xff" + PLAIN[144:], PLAIN[132:],
                 PLAIN.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"), PLAIN + b"more"):  # fmt: skip
        file = io.BytesIO(data)
        assert np.array_equal(np.asarray(open_named(file, LIMITS).convert("RGB")), whole)


def test_folders_and_odd_files_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").mkdir()
    (tmp_path / "y.dcm").write_bytes(b"")
    (tmp_path / "z.dcm").write_bytes(b"hello" * 100)
    for name in ("x.dcm", "y.dcm", "z.dcm", "x.dcm#frame=0", "none.dcm#frame=1", "x.dcm#slices=2", "z.dcm#slices=2"):
        with pytest.raises(UnreadableImage) as error:
            (open_slices if "slices" in name else open_image)(f"{tmp_path}/{name}")
        assert "\n" not in str(error.value)


def test_sizes_of_streams() -> None:
    assert stream_size(JPEG[JPEG.index(b"\xff\xd8\xff") :]) == (100, 100, 3)
    assert stream_size(J2K[J2K.index(b"\xff\x4f\xff\x51") :]) == (64, 64, 1)
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\xff\xd8" + b"\xff" * 50, b"\xff\x4f\xff\x51", RLE):
        assert stream_size(data) is None


# ---- what stands in headers stays there ------------------------------------------------------------------------------

MARK = "ZZMARKER"


def marked() -> pydicom.Dataset:
    """A CT slice whose every element of text holds MARK, one of whose numbers is none, and with private elements."""
    header = pydicom.dcmread(CT)
    for element in list(header.iterall()):
        if element.VR in ("PN", "LO", "SH", "ST", "LT", "UT", "CS", "AE", "UC") and element.keyword not in (
            "PhotometricInterpretation",
        ):
            element.value = MARK
    for keyword in ("PatientName", "PatientID", "PatientComments", "WindowCenterWidthExplanation", "BurnedInAnnotation",
                    "ImageComments", "PresentationLUTShape", "VOILUTFunction", "RescaleType"):  # fmt: skip
        setattr(header, keyword, MARK)
    return header


VARIANTS: dict[str, Callable[[pydicom.Dataset], None]] = {
    "whole": lambda header: None,
    "cut": lambda header: setattr(header, "PixelData", header.PixelData[:-100]),
    "no rows": lambda header: delattr(header, "Rows"),
    "unknown colour": lambda header: setattr(header, "PhotometricInterpretation", MARK),
    "window of text": lambda header: header.__setitem__(
        0x00281050, pydicom.DataElement(0x00281050, "LO", MARK)),
    "slope of text": lambda header: header.__setitem__(
        0x00281053, pydicom.DataElement(0x00281053, "LO", MARK)),
    "rows of text": lambda header: header.__setitem__(0x00280010, pydicom.DataElement(0x00280010, "LO", MARK)),
    "frames of text": lambda header: header.__setitem__(0x00280008, pydicom.DataElement(0x00280008, "LO", MARK)),
    "position of text": lambda header: header.__setitem__(0x00200032, pydicom.DataElement(0x00200032, "LO", MARK)),
    "series of text": lambda header: header.__setitem__(0x0020000E, pydicom.DataElement(0x0020000E, "LO", MARK)),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_no_value_of_a_header_is_repeated(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "series"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = marked()
        VARIANTS[name](header)
        data = saved(header)
    caplog.clear()
    capfd.readouterr()
    for number in range(2):
        (folder / f"{number}.dcm").write_bytes(data)
    said: list[str] = []
    for opened in (
        lambda: open_image(data),
        lambda: open_image(folder / "0.dcm"),
        lambda: open_slices(f"{folder}/#slices=2"),
        lambda: open_slices(f"{folder}/#series=1.2"),
        lambda: open_slices(f"{folder}/0.dcm#slices=2"),
        lambda: facts_of(str(folder / "0.dcm"), LIMITS),
    ):
        try:
            with warnings.catch_warnings(record=True) as warned:
                said.append(repr(opened()))
            said += [str(one.message) for one in warned]
        except UnreadableImage as error:
            said.append(str(error))
            assert error.__cause__ is None or MARK not in repr(error.__cause__)
    printed = capfd.readouterr()
    assert MARK not in " ".join([*said, printed.out, printed.err, caplog.text])
    assert MARK.encode() in data


def test_programs_that_use_pydicom_themselves_hear_of_it(caplog: pytest.LogCaptureFixture) -> None:
    open_image(CT)
    logging.getLogger("pydicom").warning("of the program")
    assert "of the program" in caplog.text
