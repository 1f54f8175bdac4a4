"""DICOM files for tests, written by pydicom."""

import io
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
