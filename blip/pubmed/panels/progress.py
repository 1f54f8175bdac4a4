"""A file of lines that is written over several runs: each continues after the last figure that is finished.

.OUT.partial             the lines so far
.OUT.partial.progress    JSON: a line with the settings, then a line for each finished figure: the length of
                         .OUT.partial behind it, and its counts

After a kill the last lines of either file may be missing or incomplete. The next run removes what follows the last
figure that both files have.
"""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from blip.files import (
    MAX_LINE,
    ReadError,
    hidden_beside,
    json_text,
    open_regular,
    parse_json,
    partial_path,
    rename_whole,
    whole_file,
    write_error,
)
from blip.outputs import OutputError

Line = dict[str, Any]


class _Finished(TypedDict):
    """A line of the record: the length of the lines behind a figure, and its counts."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    length: Annotated[int, Field(ge=0)]
    counts: dict[str, Any]


class Progress:
    """Opens the files of a run, or those that an earlier run with the same settings left.

    Args:
        out: name of the complete file.
        settings: JSON; what the lines depend on.
        restart: replace the files that a run with other settings left.

    Attributes:
        begun: figures that an earlier run finished.

    Raises:
        OutputError: a run with other settings was stopped, and `restart` is not given.
        WriteError: the files cannot be written.
    """

    def __init__(self, out: Path, settings: dict[str, Any], *, restart: bool = False) -> None:
        self.out, self.partial = out, partial_path(out)
        self.record = hidden_beside(out, ".partial.progress")
        for path in (self.partial, self.record):
            _keep_apart(path)
        self.begun, length, place = 0, 0, 0
        if self.partial.exists() and self.record.exists():
            self.begun, length, place = self._read_record(settings, restart)
        with self._writing():
            if self.begun:
                os.truncate(self.partial, length)
                os.truncate(self.record, place)
            else:
                self.partial.write_bytes(b"")
                self.record.write_bytes(_header(settings))
            self.lines = open(self.partial, "ab")  # noqa: SIM115 (closed by `close`)
            self.counts = open(self.record, "ab")  # noqa: SIM115

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """An error of this block is that of the complete file, by the name that the user gave."""
        try:
            yield
        except OSError as error:
            raise write_error(self.out, error) from error

    def _read_record(self, settings: dict[str, Any], restart: bool) -> tuple[int, int, int]:
        """Finished figures, and the lengths of both files behind the last one; zeros where the settings differ."""
        header, most = _header(settings), self.partial.stat().st_size
        with open_regular(self.record) as file:
            if (begun := file.readline(MAX_LINE)) != header:
                if restart or not file.read(1):  # without a finished figure there is nothing to go on with
                    return 0, 0, 0
                raise OutputError(
                    f"{self.out}: a run with other settings, or for other figures, was stopped there "
                    f"({self._differences(begun, settings)}): continue with these, or start again with --overwrite"
                )
            figures, length, place = 0, 0, len(header)
            while raw := file.readline(MAX_LINE):
                try:
                    entry = parse_json(raw, _Finished, self.record)
                except ReadError:  # cut short by a kill, or damaged: what follows is made again
                    break
                if not raw.endswith(b"\n") or not length <= entry["length"] <= most:
                    break
                figures, length, place = figures + 1, entry["length"], place + len(raw)
        return figures, length, place

    def finished(self) -> Iterator[dict[str, Any]]:
        """The counts of each figure that an earlier run finished, read one at a time: there may be millions."""
        with open_regular(self.record) as file:
            file.readline(MAX_LINE)
            for _ in range(self.begun):
                yield parse_json(file.readline(MAX_LINE), _Finished, self.record)["counts"]

    def add(self, lines: list[Line], counts: dict[str, Any]) -> None:
        """Writes the lines and the counts of one figure. WriteError where that is not possible."""
        with self._writing():
            self.lines.write("".join(json_text(line, None) for line in lines).encode())
            self.lines.flush()  # before the record, which gives the length of what is there
            entry = {"length": self.lines.tell(), "counts": counts}
            self.counts.write(json.dumps(entry).encode() + b"\n")
            self.counts.flush()

    def _differences(self, begun: bytes, settings: dict[str, Any]) -> str:
        """The settings of an earlier run, as far as they are not the present ones."""
        try:
            before = parse_json(begun, dict[str, Any], self.record)
        except ReadError:
            return "they cannot be read"
        other = {name: value for name, value in before.items() if settings.get(name) != value}
        return json.dumps(other or {name: None for name in settings.keys() - before.keys()})[:300]

    def complete(self) -> None:
        """Gives the file its name."""
        self.close()
        with self._writing():
            rename_whole(self.partial, self.out)
            self.record.unlink()

    def discard(self) -> None:
        """Removes the files, so that the next run starts from the beginning."""
        self.close()
        self.partial.unlink()
        self.record.unlink()

    def close(self) -> None:
        for file in (self.lines, self.counts):
            with suppress(OSError):  # of what `add` could not write, and told
                file.close()


def _header(settings: dict[str, Any]) -> bytes:
    return json.dumps(settings).encode() + b"\n"


def _keep_apart(path: Path) -> None:
    """Makes what is written to `path` change no other file: removes a link, and makes a copy of a file of two names."""
    try:
        about = os.lstat(path) if os.path.lexists(path) else None
        if about is None or (stat.S_ISREG(about.st_mode) and about.st_nlink == 1):
            return
        if stat.S_ISREG(about.st_mode):
            with open_regular(path) as source, whole_file(path) as target:
                shutil.copyfileobj(source, target)
        else:
            path.unlink()
    except OSError as error:  # a folder, or one without permission
        raise write_error(path, error) from error
