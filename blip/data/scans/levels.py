"""Stored values of a DICOM frame to grey levels of its modality, and to pictures of 8 bits.

The order is that of the standard (PS3.3 C.7.6.3 and C.11): modality LUT, or slope and intercept; VOI LUT, or window;
then MONOCHROME1 is inverted, so that dense tissue is bright.

H, W: rows and columns of a frame.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from blip.data.grey_levels import STRIP
from blip.data.scans.header import Header, numbers
from blip.data.scans.pixels import is_raw
from blip.data.scans.windows import Function, Window, between, eight_bits
from blip.errors import InputError

FUNCTIONS: tuple[Function, ...] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class LookUp:
    """A look-up table of a header: the entry of a value, of which the first stands for `first` and all below."""

    entries: np.ndarray
    first: int
    bits: int  # of an entry

    def values(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape, float -> entries, float64."""
        places = np.nan_to_num(np.round(values) - self.first).clip(0, len(self.entries) - 1)
        return self.entries[places.astype(np.intp)].astype(np.float64)

    def shares(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape, float -> shares of white, 0 to 1: the range of the bits, or of entries beyond it."""
        return self.values(values) / max(2**self.bits - 1, int(self.entries.max()))


Presentation = Window | LookUp


@dataclass
class Levels:
    """Grey levels of a slice: `words` (H, W) point into `values`; without words the values are (H, W) themselves."""

    values: np.ndarray  # float64 (256,) or (65536,), or any number type (H, W)
    words: np.ndarray | None = None  # uint8 or uint16 (H, W)

    def counted(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(values, how often each occurs), for `usual_range`."""
        if self.words is None:
            return self.values.ravel().astype(np.float64), None
        counts = np.zeros(len(self.values), np.int64)
        for part in _strips(self.words):
            counts += np.bincount(part.ravel(), minlength=len(self.values))
        return self.values, counts

    def shown(self, presentation: Presentation, inverted: bool = False) -> np.ndarray:
        """uint8 (H, W)."""

        def grey(values: np.ndarray) -> np.ndarray:
            shares = presentation.shares(values.astype(np.float64, copy=False))
            return eight_bits(1 - shares if inverted else shares)

        if self.words is None:
            return np.concatenate([grey(part) for part in _strips(self.values)])
        return looked_up(grey(self.values), self.words)


def looked_up(table: np.ndarray, words: np.ndarray) -> np.ndarray:
    """`table[words]`, (H, W) or (H, W, 3), strip by strip: NumPy makes 64 bits of each index."""
    if table.ndim > 1:
        return np.stack([looked_up(np.ascontiguousarray(column), words) for column in table.T], axis=-1)
    out = np.empty(words.shape, table.dtype)
    rows = max(1, (1 << 16) // max(1, words.shape[1]))
    for top in range(0, len(words), rows):
        np.take(table, words[top : top + rows], out=out[top : top + rows], mode="clip")
    return out


def levels_of(stored: np.ndarray, header: Header, frame: int) -> Levels:
    """The grey levels of a stored frame (H, W), in the units of its modality; InputError for a slope that is none."""
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        return Levels(_of_modality(stored, header, frame))
    kind = stored.dtype.newbyteorder("=")
    words = stored.astype(kind, copy=False).view(f"u{kind.itemsize}")
    values = np.arange(1 << (8 * kind.itemsize), dtype=np.uint32).astype(words.dtype).view(kind)
    if is_raw(header) and header.allocated > header.stored:  # unused bits may hold anything
        unused = header.allocated - header.stored
        values = values << unused >> unused
    values = _of_modality(values, header, frame)
    return Levels(values, words) if words.size > len(values) else Levels(values[words])


def _of_modality(stored: np.ndarray, header: Header, frame: int) -> np.ndarray:
    """Stored values to those of the modality, float64; as they are where the header has no rule."""
    table = _look_up(header.get("ModalityLUTSequence"))
    if table is not None:
        return table.values(stored.astype(np.float64))
    for group in header.groups(frame):
        part = _inside(group, "PixelValueTransformationSequence")
        slope, intercept = part.get("RescaleSlope"), part.get("RescaleIntercept")
        if slope in (None, "") and intercept in (None, ""):
            continue
        slope, intercept = (numbers(one) for one in (slope or 1, intercept or 0))
        if slope is None or intercept is None:
            raise InputError("its slope or intercept is no number")
        return stored * slope[0] + intercept[0]
    return stored


def presentation_of(header: Header, frame: int) -> Presentation | None:
    """The VOI LUT of a frame, or its window, the first of several; None where it has neither."""
    table = _look_up(header.get("VOILUTSequence"))
    if table is not None:
        return table
    for group in header.groups(frame):
        if window := window_of(_inside(group, "FrameVOILUTSequence")):
            return window
    return _whole_range(header) if header.stored <= 8 and header.keyword == "PixelData" else None


def window_of(group: Any) -> Window | None:
    """The first window of a part of a header, if it can be used."""
    levels, widths = (numbers(group.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if levels is None or widths is None:
        return None
    given = str(group.get("VOILUTFunction") or "LINEAR").upper()
    function: Function = next((one for one in FUNCTIONS if one == given), "LINEAR")
    usable = widths[0] >= 1 if function == "LINEAR" else widths[0] > 0
    return Window(levels[0], widths[0], function) if usable else None


def is_inverted(header: Header) -> bool:
    """Whether low values are bright: MONOCHROME1, unless the header says it explicitly."""
    shape = header.get("PresentationLUTShape")
    return str(shape) == "INVERSE" if shape else header.photometric == "MONOCHROME1"


def _whole_range(header: Header) -> Window:
    """From black to white over all that up to 8 bits can hold, in the units of the modality."""
    low = -(2 ** (header.stored - 1)) if header.signed else 0
    ends = _of_modality(np.array([low, low + 2**header.stored - 1], np.float64), header, 0)
    return between(*sorted(map(float, ends))) if ends[0] != ends[1] else between(float(ends[0]), float(ends[0]) + 1)


def _inside(group: Any, keyword: str) -> Any:
    """The first item of a sequence of functional groups; the group itself, as in files of one frame, without it."""
    items = group.get(keyword)
    return items[0] if items else group


def _look_up(sequence: Any) -> LookUp | None:
    """The look-up table of a sequence's first item, if it has a whole one."""
    if not sequence:
        return None
    item = sequence[0]
    descriptor, data = numbers(item.get("LUTDescriptor"), 3), item.get("LUTData")
    if descriptor is None or data is None:
        return None
    count, first, bits = (int(one) for one in descriptor)
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2")
        # entries of 8 bits may stand two in a word
        entries = np.frombuffer(data, np.uint8) if bits <= 8 and len(words) < (count or 1 << 16) else words
    else:
        entries = np.asarray(data if hasattr(data, "__len__") else [data], dtype=np.int64)
    entries = entries[: count or 1 << 16]
    return LookUp(entries.astype(np.uint16), first, bits) if len(entries) and 1 <= bits <= 16 else None


def _strips(values: np.ndarray) -> list[np.ndarray]:
    """An array (H, W) in strips of rows."""
    rows = max(1, STRIP // max(1, values.shape[1]))
    return [values[top : top + rows] for top in range(0, len(values), rows)]
