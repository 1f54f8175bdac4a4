"""Writes docs/assets/scans.png: files of pydicom and nibabel as this package shows them.

python docs/make_contact_sheet.py

The DICOM files are pydicom's and pydicom-data's own, under the MIT licence; the NIfTI file is nibabel's, under the MIT
licence. They hold no patient's name in their pixels.
"""

import os
from pathlib import Path

import data_store
import nibabel
import pydicom
from PIL import Image, ImageDraw

from blip.data.image_bytes import ImageLimits
from blip.data.images import open_image
from blip.data.scans.volumes import open_slices

SHEET = Path(__file__).resolve().parent / "assets/scans.png"
PYDICOM = Path(pydicom.__file__).parent / "data/test_files"
MORE = Path(data_store.__file__).parent / "data"
NIFTI = os.path.join(os.path.dirname(nibabel.__file__), "tests/data")
SIDE, TITLE, COLUMNS = 200, 30, 5  # pixels of a picture and of the title below it; pictures in a row
CT = MORE / "693_UNCR.dcm"
PICTURES: list[tuple[str, str | Path, dict]] = [
    ("X-ray, MONOCHROME1, JPEG 2000", MORE / "RG1_J2KR.dcm", {}),
    ("X-ray, MONOCHROME1", MORE / "RG3_UNCR.dcm", {}),
    ("MRI, slope 3.77", MORE / "MR2_UNCR.dcm", {}),
    ("MRI, its own window", PYDICOM / "examples_overlay.dcm", {}),
    ("ultrasound, palette", PYDICOM / "examples_palette.dcm", {}),
    ("CT, its own window", CT, {}),
    ("CT, window: brain", CT, {"window": "brain"}),
    ("CT, window: bone", CT, {"window": "bone"}),
    ("CT, window: 40/400", CT, {"window": "40/400"}),
    ("CT, brain, soft, bone", CT, {"channels": ("brain", "soft", "bone")}),
    ("ultrasound, YBR, #frame=0", f"{PYDICOM}/examples_ybr_color.dcm#frame=0", {}),
    ("the same, #frame=20", f"{PYDICOM}/examples_ybr_color.dcm#frame=20", {}),
    ("NIfTI, axial", f"{NIFTI}/anatomical.nii", {}),
    ("NIfTI, #axis=coronal", f"{NIFTI}/anatomical.nii#axis=coronal", {}),
    ("NIfTI, #axis=sagittal", f"{NIFTI}/anatomical.nii#axis=sagittal", {}),
]
VOLUME = MORE / "emri_small.dcm"  # 10 frames, of which 5 are shown


def main() -> None:
    shown = [(title, open_image(source, ImageLimits(**view))) for title, source, view in PICTURES]
    slices = open_slices(f"{VOLUME}#slices={COLUMNS}")
    shown += [(f"MRI, #slices=5: number {number + 1}", picture) for number, picture in enumerate(slices)]
    rows = -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + TITLE)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(shown):
        left, top = number % COLUMNS * SIDE, number // COLUMNS * (SIDE + TITLE)
        scale = (SIDE - 6) / max(picture.size)
        picture = picture.resize([max(1, round(one * scale)) for one in picture.size], Image.Resampling.BICUBIC)
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
        draw.text((left + SIDE // 2, top + SIDE + TITLE // 2), title, fill="black", anchor="mm")
    sheet.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(SHEET, optimize=True)


if __name__ == "__main__":
    main()
