"""What happens to images that cannot be read: each is named once, and too many of them end the run."""

import json
from collections.abc import Iterable
from pathlib import Path

from blip.errors import BlipError

Skipped = tuple[int, str, str]  # index of the record, path of its image, reason


class TooManySkipped(BlipError):
    """More images are unreadable than the run allows."""


def too_many(skipped: Iterable[Skipped], what: str) -> str:
    """The message of TooManySkipped: how many (`what`), the first one, what to do."""
    _, path, reason = next(iter(skipped))
    return (
        f"{what} could not be read, the first being {path} ({reason}). Check image_root, and run "
        f"`blip check-data` to list them all; max_skipped_fraction says how many a run tolerates."
    )


class SkipLog:
    """Names every unreadable image once in a JSONL file and stops the run when there are too many.

    The file outlives restarts. The count is this process's: images that were mended before a restart do not count.
    """

    def __init__(self, path: str | Path, total: int, max_fraction: float = 0.01, world: int = 1):
        """`total` records in the data set; this rank sees one in `world` of them."""
        self.path, self.total, self.max_fraction, self.world = Path(path), total, max_fraction, world
        self.seen: dict[str, Skipped] = {}
        self._written: set[str] = set()
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for line in text.splitlines():
            try:
                self._written.add(json.loads(line)["path"])
            except (ValueError, TypeError, KeyError):
                continue  # a line that a kill cut short
        self._start = "" if text.endswith("\n") or not text else "\n"

    def add(self, skipped: list[Skipped]) -> None:
        """Raises TooManySkipped above the fraction, after writing what is new."""
        self.seen.update({path: (index, path, reason) for index, path, reason in skipped if path not in self.seen})
        new = [note for path, note in self.seen.items() if path not in self._written]
        if new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                for index, path, reason in new:
                    note = {"index": index, "path": path, "reason": reason}
                    file.write(self._start + json.dumps(note, ensure_ascii=False) + "\n")
                    self._start = ""
            self._written.update(path for _, path, _ in new)
        if len(self.seen) * self.world > self.max_fraction * self.total:
            about = f"{len(self.seen)} images" + (f" on one of {self.world} ranks" if self.world > 1 else "")
            raise TooManySkipped(
                too_many(self.seen.values(), f"{about} of {self.total} records (limit {self.max_fraction:.2%})")
            )
