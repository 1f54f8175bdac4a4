"""DICOM files for tests, written by pydicom."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from blip.data.scans.libraries import quietly


def written(pixels: np.ndarray, **elements: Any) -> bytes:
    """A DICOM file of pixels (H, W), (frames, H, W) with `NumberOfFrames`, or (H, W, 3) with SamplesPerPixel=3."""
    import pydicom

    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = elements.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    header.Rows, header.Columns = pixels.shape[1:3] if "NumberOfFrames" in elements else pixels.shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(header, keyword, value)
    header.HighBit = header.BitsStored - 1
    header.PixelData = pixels.tobytes()
    with quietly():
        header["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
        buffer = io.BytesIO()
        header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_scans(folder: Path) -> None:
    """A CT slice `ct.dcm`, a series in `ct/`, and `scans.json`, records of both."""
    ramp = np.arange(-1024, 1024, dtype=np.int16).reshape(32, 64)
    (folder / "ct").mkdir()
    for place in range(5):
        where = {"ImagePositionPatient": [0, 0, place], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        data = written(ramp + place, Modality="CT", SeriesInstanceUID="1.2.3", SOPInstanceUID=f"1.2.{place}", **where)
        (folder / "ct" / f"{place}.dcm").write_bytes(data)
    (folder / "ct.dcm").write_bytes(data)
    records = [{"image": image, "caption": "a skull"} for image in ("ct.dcm", "ct/#slices=4", "ct/#slice=1")]
    (folder / "scans.json").write_text(json.dumps(records))
