"""The files of a run as they were before it was resumed, which are restored where that fails before its first step."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from blip.errors import BlipError
from blip.files import write_whole
from blip.train.record import RECORD, Record

EVENTS = "tensorboard/events.out.tfevents.*"
MOST = 64 << 20  # bytes of a file that are kept in memory; a larger one, of results, stays as the run left it


class Before:
    """Contents of the run's own small files, such as its configuration and its log; checkpoints are never replaced.

    Only the main process uses it. What is not the run's own is neither read nor changed.
    """

    def __init__(self, output: Path, names: Iterable[str] = ()):
        """`names`: files of a run of an earlier version, which kept no record. ReadError where a record is damaged."""
        self.output = output
        self._there = {path.name for path in output.iterdir()} if output.is_dir() else set()
        self._events = set(output.glob(EVENTS))
        record = Record(output)
        names = {RECORD, *(record.files if record.exists else names)} & self._there
        files = [path for path in map(output.joinpath, names) if path.is_file() and path.stat().st_size <= MOST]
        self._contents: dict[str, bytes] | None = {file.name: file.read_bytes() for file in files}

    def forget(self) -> None:
        """The run has gone on: nothing is restored any more."""
        self._contents = None

    def restore(self) -> None:
        """Puts everything back; what cannot be put back stays as it is."""
        if self._contents is None:
            return
        with suppress(OSError, BlipError):
            written = Record(self.output).files
            for path in (*(self.output / name for name in written if name not in self._there), *self._new_events()):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            for name, content in self._contents.items():
                if not (self.output / name).is_file() or (self.output / name).read_bytes() != content:
                    write_whole(self.output / name, content)
            if RECORD not in self._there:
                (self.output / RECORD).unlink(missing_ok=True)
        self.forget()

    def _new_events(self) -> list[Path]:
        new = [path for path in self.output.glob(EVENTS) if path not in self._events]
        return new if "tensorboard" in self._there or not new else [self.output / "tensorboard"]
