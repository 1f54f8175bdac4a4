"""What to do about files that people often get wrong: paths that do not exist, and texts that are not UTF-8."""

import codecs
import difflib
import os
import shlex
from pathlib import Path

PROBE = 1 << 16  # bytes that are read to tell the encoding of a text
BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MOST_NAMES = 10_000  # of a folder, among which the nearest is looked for


def missing(path: str | Path) -> str:
    """That a path does not exist, and which existing one has the nearest name; the end of a sentence about it.

    Example: `does not exist (no such file or folder); did you mean data/captions.json?`
    """
    whole = Path(path)
    said = "does not exist (no such file or folder)"
    if "\\" in str(path) and os.path.exists(forward := str(path).replace("\\", "/")):
        return f"{said}; {forward} does: folders are separated by / here"
    folder, name = whole.parent, whole.name
    while not folder.is_dir() and folder != folder.parent:  # the first folder that is missing
        name, folder = folder.name, folder.parent
    where = "" if folder == whole.parent else f"; {folder} has no {name}"
    try:
        names = sorted(os.listdir(folder))[:MOST_NAMES]
    except OSError:
        return said + where
    near = _nearest(name, names)
    return f"{said}{where}; did you mean {folder / near}?" if near else said + where


def _nearest(name: str, names: list[str]) -> str:
    """The name that is nearest, or "": whatever its case, or that of a file with another ending."""
    cased = {one.casefold(): one for one in names}
    found = difflib.get_close_matches(name.casefold(), cased, n=1, cutoff=0.7)
    if not found:
        stems = {Path(one).stem.casefold(): one for one in names}
        found = [stem for stem in (Path(name).stem.casefold(),) if stem and stem in stems]
        cased = stems
    return cased[found[0]] if found else ""


def encoding(path: str | Path) -> str:
    """The encoding of a text that is not UTF-8 with the command that converts it, as the end of a message, or ""."""
    try:
        with open(path, "rb") as file:
            start = file.read(PROBE)
    except OSError:
        return ""
    if start.startswith(BYTE_ORDER_MARKS) or start[:200].count(0) > len(start[:200]) // 4:
        kind, of = "UTF-16", "UTF-16" if start.startswith(BYTE_ORDER_MARKS) else "UTF-16LE"
        if not start.startswith(BYTE_ORDER_MARKS) and start[:1] == b"\0":
            of = "UTF-16BE"
    else:
        kind, of = "an encoding of Windows, such as CP1252", "CP1252"
    new = Path(path).with_name(f"{Path(path).stem}_utf8{Path(path).suffix}")
    return f"it seems to be {kind}: iconv -f {of} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
