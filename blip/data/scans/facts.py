"""What `blip check-data` reports about scans: what it is asked for, and nothing else that stands in their headers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from blip.data.image_bytes import ImageLimits, UnreadableImage, image_stream
from blip.data.scans import nifti
from blip.data.scans.header import Header, broken, numbers, read_header
from blip.data.scans.levels import window_of
from blip.data.scans.references import Reference, has_dicom_name, is_folder, reference_of
from blip.data.scans.series import series_of
from blip.errors import InputError

# of PS3.3 C.7.3.1.1.1; other values are not repeated
MODALITIES = ("CR", "CT", "DX", "ECG", "ES", "GM", "IO", "IVOCT", "MG", "MR", "NM", "OCT", "OP", "OPT", "OT", "PT",
              "PX", "RF", "RG", "RTDOSE", "RTIMAGE", "SC", "SEG", "SM", "TG", "US", "XA", "XC")  # fmt: skip
OTHER = "other"


@dataclass(frozen=True)
class ScanFacts:
    """A scan: `spacing` in mm between columns, rows and slices, as far as known; windows as LEVEL/WIDTH."""

    modality: str  # of MODALITIES, NIfTI, or OTHER
    frames: int
    spacing: tuple[float, ...] = ()
    windows: tuple[str, ...] = ()
    has_pixels: bool = True


@dataclass
class ScanSummary:
    """The scans of a data set, counted."""

    modalities: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    windows: dict[str, int] = field(default_factory=dict)  # as LEVEL/WIDTH, or "none"
    spacings: dict[str, int] = field(default_factory=dict)  # in mm
    without_pixels: list[str] = field(default_factory=list)  # paths

    def __bool__(self) -> bool:
        return bool(self.modalities)

    def lines(self) -> Iterable[str]:
        """The summary for the screen."""
        if not self:
            return
        yield f"scans: {_counted(self.modalities)}; {self.frames:,} frames or slices"
        yield f"windows of scans: {_counted(self.windows)}"
        if self.spacings:
            yield f"spacing of scans in mm: {_counted(self.spacings)}"
        if self.without_pixels:
            yield f"scans without pixels: {len(self.without_pixels):,}"


def summary_of(scans: Iterable[tuple[str, ScanFacts]]) -> ScanSummary:
    """The summary of paths and facts."""
    modalities, windows, spacings, summary = Counter[str](), Counter[str](), Counter[str](), ScanSummary()
    for path, facts in scans:
        modalities[facts.modality] += 1
        summary.frames += facts.frames
        if not facts.has_pixels:
            summary.without_pixels.append(path)
            continue
        windows.update(facts.windows or ["none"])
        spacings.update([" x ".join(f"{one:.4g}" for one in facts.spacing)] if facts.spacing else [])
    summary.modalities, summary.windows, summary.spacings = (dict(one.most_common()) for one in
                                                             (modalities, windows, spacings))  # fmt: skip
    return summary


def facts_of(path: str, limits: ImageLimits) -> ScanFacts | None:
    """What is known of a file, of the file of a reference, or of the series in a folder; None for other files, and for
    files whose header cannot be read."""
    try:
        reference = reference_of(path) or Reference(path)
        if is_folder(reference.path):
            files = series_of(reference.path, reference.series)
            first = facts_of(files[0].path, limits)
            return first and replace(first, frames=sum(one.frames for one in files))
        with image_stream(reference.path, limits) as file:
            start = file.read(nifti.NEEDED)
            file.seek(0)
            if start[128:132] == b"DICM" or has_dicom_name(reference.path):
                return _of_dicom(file, limits)
            return _of_nifti(file, limits) if nifti.is_nifti(start) else None
    except (InputError, UnreadableImage, OSError):
        return None


def _of_dicom(file: BinaryIO, limits: ImageLimits) -> ScanFacts:
    try:
        header = read_header(file, limits.max_bytes)
    except InputError as error:
        if "without pixels" not in str(error):
            raise
        return ScanFacts(OTHER, frames=0, has_pixels=False)
    with broken("a broken DICOM file"):
        modality = str(header.get("Modality"))
        return ScanFacts(
            modality if modality in MODALITIES else OTHER,
            header.frames,
            spacing=_spacing(header),
            windows=tuple(dict.fromkeys(_windows(header))),
        )


def _spacing(header: Header) -> tuple[float, ...]:
    for group in header.groups(0):
        items = group.get("PixelMeasuresSequence")
        part = items[0] if items else group
        plane = numbers(part.get("PixelSpacing") or part.get("ImagerPixelSpacing"), 2)
        if plane:
            between = numbers(part.get("SpacingBetweenSlices") or part.get("SliceThickness"), 1) or []
            return (plane[1], plane[0], *between)
    return ()


def _windows(header: Header) -> Iterable[str]:
    if header.get("VOILUTSequence"):
        yield "table"
    for group in header.groups(0):
        items: Any = group.get("FrameVOILUTSequence")
        part = items[0] if items else group
        levels, widths = (numbers(part.get(keyword)) or [] for keyword in ("WindowCenter", "WindowWidth"))
        if window_of(part):
            yield from (f"{level:g}/{width:g}" for level, width in zip(levels, widths, strict=False))


def _of_nifti(file: BinaryIO, limits: ImageLimits) -> ScanFacts:
    volume = nifti.Volume(file, limits)
    return ScanFacts("NIfTI", frames=len(volume), spacing=volume.spacing)


def _counted(counts: dict[str, int], most: int = 8) -> str:
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:most]]
    return ", ".join(shown) + (f" and {len(counts) - most:,} more" if len(counts) > most else "")
