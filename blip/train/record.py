"""What a run has written: the names of its files and checkpoints, so that nothing else is replaced or deleted; and
size and hash of its results, so that those that somebody has changed since are not replaced either."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from blip.files import ReadError, json_text, read_json, write_whole
from blip.hashing import Signature, signature
from blip.outputs import OutputError

RECORD = ".blip.run.json"  # in the run's folder
ONE_AT_A_TIME = threading.RLock()  # a checkpoint may be written in a thread of its own, and changes records meanwhile
CHANGED = "was changed after the run wrote it: rename it, or replace it with --overwrite when the run is resumed"


class _Content(BaseModel):
    format_version: int = 1
    files: list[str] = []
    checkpoints: list[str] = []
    signatures: dict[str, Signature] = {}  # of results; none of a file that is being written


class Record:
    """The record of a run's folder; changes are written at once. Only the main process uses it."""

    def __init__(self, output: str | Path):
        """Reads it where there is one.

        Raises:
            ReadError: it is damaged.
        """
        self.path = Path(output) / RECORD
        self._content = self._read()

    def _read(self) -> _Content:
        self.exists = os.path.lexists(self.path)
        try:
            return read_json(self.path, _Content) if self.exists else _Content()
        except ReadError as error:
            advice = (
                "it lists what the run wrote. Remove it and start the same command again: every checkpoint and result "
                "in the folder then counts as the run's own, so rename copies of your own first"
            )
            raise ReadError(error.path, error.place, f"{error.problem}; {advice}") from error

    @property
    def files(self) -> list[str]:
        """Names of files and folders of the run, besides checkpoints."""
        return self._content.files

    @property
    def checkpoints(self) -> list[str]:
        """Names of its checkpoints, such as step-00001000; some may be deleted."""
        return self._content.checkpoints

    def add(self, files: list[str] | None = None, checkpoints: list[str] | None = None) -> None:
        """Adds names. WriteError where the record cannot be written."""
        with self._changes() as content:
            content.files = sorted({*content.files, *(files or [])})
            content.checkpoints = sorted({*content.checkpoints, *(checkpoints or [])})

    def forget(self, checkpoints: list[str]) -> None:
        """Takes out the names of deleted checkpoints."""
        with self._changes() as content:
            content.checkpoints = [name for name in content.checkpoints if name not in checkpoints]

    def sign(self, name: str) -> None:
        """Keeps size and hash of a result as it is now."""
        if (now := signature(self.path.parent / name)) is not None:
            with self._changes() as content:
                content.signatures[name] = now

    def unsign(self, name: str) -> None:
        """Forgets them, before the file is written anew: a kill then leaves no file that seems changed."""
        with self._changes() as content:
            content.signatures.pop(name, None)

    def changed(self, name: str) -> bool:
        """Whether a result is another than the run wrote."""
        kept = self._content.signatures.get(name)
        return kept is not None and signature(self.path.parent / name) not in (None, kept)

    @contextmanager
    def _changes(self) -> Iterator[_Content]:
        """Within this block the content, as it is on disk now, is changed; then it is written."""
        with ONE_AT_A_TIME:
            self._content = self._read()
            before = self._content.model_copy(deep=True)
            yield self._content
            if not self.exists or self._content != before:
                write_whole(self.path, json_text(self._content.model_dump()))
                self.exists = True


def own(output: Path, name: str) -> Path:
    """The path of a file or folder that a run is about to write to its folder, recorded as the run's own.

    Raises:
        OutputError: it exists and is not the run's, or was changed since the run wrote it.
    """
    record = Record(output)
    if record.changed(name):
        raise OutputError(f"{output / name} {CHANGED}")
    if name not in record.files:
        if os.path.lexists(output / name):
            raise OutputError(
                f"{output / name} was not written by this run: rename it, or replace it with --overwrite when the run "
                "is resumed"
            )
        record.add([name])
    return output / name


def write_result(output: Path, name: str, content: Any) -> None:
    """Writes a JSON file of a run's results, and records it. OutputError as in `own`."""
    path = own(output, name)
    Record(output).unsign(name)
    write_whole(path, json_text(content))
    Record(output).sign(name)
