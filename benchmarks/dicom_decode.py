"""How long a DICOM file takes from the disk to a picture of 8 bits, beside pydicom's own decoding to an array.

    python benchmarks/dicom_decode.py [--repeats 5]

`ours` is `open_plain`: decoding, modality, window, inversion, 8 bits. `theirs` is `pydicom.dcmread(path).pixel_array`,
which stops before all of that. The files are those of pydicom and, where it is installed, of pydicom-data: plain, JPEG,
JPEG 2000 and RLE, of up to 2000 x 1800 pixels; of files with frames both sides decode the first. `ratio` is the seconds
of pydicom over ours for all files together, above 1 where ours is faster; `ratios` are those by kind of coding. No
model is computed: --precision is accepted, as by the other benchmarks, and changes nothing.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pydicom
from pydicom.pixels import pixel_array

from benchmarks import harness
from blip.data.images import open_plain

FOLDER = Path(pydicom.__file__).parent / "data/test_files"
FILES = {
    "plain": ["CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "examples_palette.dcm", "examples_overlay.dcm"],
    "jpeg": ["examples_ybr_color.dcm", "SC_rgb_jpeg_dcmtk.dcm"],
    "jpeg2000": ["693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "examples_jpeg2k.dcm"],
    "rle": ["MR_small_RLE.dcm", "SC_rgb_rle.dcm", "rtdose_rle.dcm"],
}
LARGE = {
    "plain": ["RG1_UNCR.dcm", "RG3_UNCI.dcm", "MR2_UNCR.dcm", "693_UNCR.dcm", "emri_small.dcm"],
    "jpeg": ["JPEG-LL.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm"],
    "jpeg2000": ["RG1_J2KR.dcm", "RG3_J2KR.dcm", "MR2_J2KI.dcm"],
    "rle": ["OBXXXX1A_rle.dcm"],
}


def files(size: str) -> dict[str, list[Path]]:
    """The files by kind of coding; tiny: the small ones alone."""
    found = {kind: [FOLDER / name for name in names] for kind, names in FILES.items()}
    try:
        import data_store  # pydicom-data
    except ImportError:
        return found
    more = Path(data_store.__file__).parent / "data"
    if size == "base":
        for kind, names in LARGE.items():
            found[kind] += [path for name in names if (path := more / name).is_file()]
    return found


def theirs(path: Path) -> np.ndarray:
    """The first frame as pydicom gives it."""
    header = pydicom.dcmread(path)
    return pixel_array(header, index=0) if int(header.get("NumberOfFrames", 1) or 1) > 1 else header.pixel_array


def main() -> None:
    args = harness.options(__doc__, repeats=5).parse_args()
    harness.start(args)
    seconds: dict[str, dict[str, float]] = {}
    sizes: dict[str, bool] = {}
    for kind, paths in files(args.size).items():
        seconds[kind] = {"ours": 0.0, "theirs": 0.0}
        for path in paths:
            runs = {"ours": partial(open_plain, path), "theirs": partial(theirs, path)}
            found = harness.medians(harness.alternate(runs, args.repeats, harness.clock("cpu")))
            seconds[kind] = {side: seconds[kind][side] + found[side] for side in found}
            sizes[path.name] = theirs(path).shape[:2] == open_plain(path).size[::-1]
    total = {side: sum(one[side] for one in seconds.values()) for side in ("ours", "theirs")}
    result = {
        "ratio": total["theirs"] / total["ours"],
        "ratios": {kind: one["theirs"] / one["ours"] for kind, one in seconds.items()},
        "seconds": seconds,
        "files": {kind: [path.name for path in paths] for kind, paths in files(args.size).items()},
        "agreement": {"sizes_equal": all(sizes.values())},
        "pydicom": pydicom.__version__,
    }
    harness.report(args, "dicom_decode", result)


if __name__ == "__main__":
    main()
