"""What a run has written: the names of its files and checkpoints, so that nothing else is replaced or deleted."""

import os
from pathlib import Path

from pydantic import BaseModel

from blip.files import json_text, read_json, write_whole
from blip.outputs import OutputError

RECORD = ".blip.run.json"  # in the run's folder


class _Content(BaseModel):
    format_version: int = 1
    files: list[str] = []
    checkpoints: list[str] = []


class Record:
    """The record of a run's folder; changes are written at once. Only the main process uses it."""

    def __init__(self, output: str | Path):
        """Reads it where there is one.

        Raises:
            ReadError: it is damaged.
        """
        self.path = Path(output) / RECORD
        self.exists = os.path.lexists(self.path)
        self._content = read_json(self.path, _Content) if self.exists else _Content()

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
        before = self._content.model_copy(deep=True)
        self._content.files = sorted({*self.files, *(files or [])})
        self._content.checkpoints = sorted({*self.checkpoints, *(checkpoints or [])})
        if not self.exists or self._content != before:
            self._write()

    def forget(self, checkpoints: list[str]) -> None:
        """Takes out the names of deleted checkpoints."""
        self._content.checkpoints = [name for name in self.checkpoints if name not in checkpoints]
        self._write()

    def _write(self) -> None:
        write_whole(self.path, json_text(self._content.model_dump()))
        self.exists = True


def own(output: Path, name: str) -> Path:
    """The path of a file or folder that a run is about to write to its folder, recorded as the run's own.

    Raises:
        OutputError: it exists and is not the run's.
    """
    record = Record(output)
    if name not in record.files:
        if os.path.lexists(output / name):
            raise OutputError(
                f"{output / name} was not written by this run: rename it, or replace it with --overwrite when the run "
                "is resumed"
            )
        record.add([name])
    return output / name
