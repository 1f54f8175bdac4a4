"""The lines of a text file in UTF-8, each of bounded length; which line is not UTF-8."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from blip.files import MAX_LINE, ReadError, open_regular, raw_lines


def iter_lines(path: Path) -> Iterator[tuple[str, str]]:
    """("line 3", its text) of each line that is not blank, without its line end."""
    for number, line in enumerate(whole_lines(path), 1):
        if line.strip():
            yield f"line {number}", line.rstrip("\r\n")


def whole_lines(path: Path, newline: str | None = None) -> Iterator[str]:
    """Each line with its end, "\\n" unless `newline` is "", which keeps it as it is.

    Raises:
        ReadError: as in `open_regular`; or a line is too long. UnicodeDecodeError: the text is not UTF-8.
    """
    with open_regular(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", newline=newline)
        for number, line in enumerate(iter(partial(text.readline, MAX_LINE), ""), 1):
            if len(line) == MAX_LINE:
                raise ReadError(path, f"line {number}", f"has {MAX_LINE:,} characters or more")
            yield line


def not_utf8(path: Path) -> ReadError:
    """The message for a file that is not UTF-8, with the line."""
    for number, line, _ in raw_lines(path):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            problem = (
                f"not UTF-8 text (the byte 0x{line[error.start]:02x}); save it as UTF-8. A file whose name is not "
            )
            return ReadError(path, f"line {number}", problem + 'UTF-8 can be named in JSON, as in "scan\\udce9.png"')
    return ReadError(path, "", "not UTF-8 text; save it as UTF-8")
