"""Unreadable images: each is noted once in a file, and too many of them end the run."""

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from blip.errors import BlipError
from blip.files import ReadError, json_text, parse_json, write_error

Skipped = tuple[int, str, str]  # index of the record, path of its image, reason


class Note(TypedDict):
    """A line of the file of unreadable images."""

    index: int
    path: str
    reason: str


class TooManySkipped(BlipError):
    """More images are unreadable than the run allows."""


def too_many(skipped: Iterable[Skipped], what: str) -> str:
    """The message of TooManySkipped: how many images (`what`), the first one, what to do."""
    _, path, reason = next(iter(skipped))
    return (
        f"{what} could not be read, the first being {path} ({reason}). Check image_root, and run "
        f"`blip check-data` to list them all; max_skipped_fraction sets how many a run tolerates."
    )


class SkipLog:
    """Writes each unreadable image once to a JSONL file and ends the run when there are too many.

    The file is continued after a restart. The count starts anew in every process, so that images repaired before a
    restart do not count. It is compared with the number of records that this process has read so far, but at least
    with its share of the data set: among several ranks, each reads other records in every epoch.
    """

    def __init__(self, path: str | Path, total: int, max_fraction: float = 0.01, *, world: int = 1):
        """`total` records in the data set; this rank reads one in `world` of them."""
        self.path, self.total, self.max_fraction, self.world = Path(path), total, max_fraction, world
        self.seen: dict[str, Skipped] = {}
        self.records_read = 0

    def noted(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, each after `add` of its `skipped`."""
        for batch in batches:
            self.add(batch.skipped, len(batch))
            yield batch

    def add(self, skipped: list[Skipped], samples: int = 0) -> None:
        """Adds the notes of a batch of so many `samples`; writes new ones; TooManySkipped above the fraction."""
        self.records_read += samples + len(skipped)
        new = {path: (index, path, reason) for index, path, reason in skipped if path not in self.seen}
        self.seen.update(new)
        if new:
            self._write(new)
        share = min(self.total, max(self.total / self.world, self.records_read))
        if len(self.seen) > self.max_fraction * share:
            about = f"{len(self.seen)} images" + (f" on one of {self.world} ranks" if self.world > 1 else "")
            raise TooManySkipped(
                too_many(self.seen.values(), f"{about} of {self.total} records (limit {self.max_fraction:.2%})")
            )

    def _write(self, new: dict[str, Skipped]) -> None:
        """Appends the notes that no process has written yet. WriteError such as on a full disk."""
        try:
            self._append(new)
        except OSError as error:
            raise write_error(self.path, error) from error

    def _append(self, new: dict[str, Skipped]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            written = set()
            for line in text.splitlines():
                with suppress(ReadError):  # a line that a kill cut short
                    written.add(parse_json(line, Note, self.path)["path"])
            if text and not text.endswith("\n"):
                file.write("\n")
            for index, path, reason in new.values():
                if path not in written:
                    note = {"index": index, "path": path, "reason": reason}
                    file.write(json_text(note, indent=None))
