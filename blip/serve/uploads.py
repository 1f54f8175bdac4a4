"""The images of open pages, in memory; the files of uploads are removed once they are read.

Nothing that is uploaded stays on the disk: gradio writes a file into the server's temporary folder, which is read and
removed before anything else happens. The bytes of an image stay in memory for as long as its page is open and used,
and within the limits of `Limits`.
"""

import contextlib
import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from blip.data.image_bytes import UnreadableImage, read_image
from blip.errors import InputError, visible
from blip.files import ReadError, open_regular
from blip.serve.items import Item, Picture
from blip.serve.limits import Limits

LONGEST_NAME = 80
ABANDONED = 600  # seconds after which a file of an upload that no request has read is removed


@dataclass
class _Kept:
    item: Item
    number: int  # of all images that were kept, this one included
    used: float = field(default_factory=time.monotonic)


class Uploads:
    """What pages have uploaded. Pages are told apart by gradio's `session_hash`."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        """`folder` is the temporary folder into which gradio writes uploads."""
        self.folder, self.limits = folder.resolve(), limits
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    # ---- files

    def read(self, file: dict[str, Any]) -> Picture:
        """The image or video of an uploaded file, which is removed.

        Args:
            file: it has `path` and `orig_name`, as gradio's `FileData`.

        Raises:
            InputError: it is no upload of this server, or too large.
        """
        path, name = Path(str(file.get("path") or "")), shown_name(str(file.get("orig_name") or "the file"))
        if not path.is_absolute() or not path.resolve().is_relative_to(self.folder):
            raise InputError(f"{name} was not uploaded here: choose it again")
        try:
            with open_regular(path, self.limits.of_file(name).max_bytes) as opened:
                return Picture(name, opened.read())
        except ReadError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise InputError(f"{name} is not there any more: choose it again") from None
            raise InputError(f"{name} {error.problem}") from None
        finally:
            _remove(path)

    def forget(self, files: Sequence[dict[str, Any]]) -> None:
        """Removes the files of an upload that were not read."""
        for file in files:
            path = Path(str(file.get("path") or ""))
            if path.is_absolute() and path.resolve().is_relative_to(self.folder):
                _remove(path)

    # ---- images of pages

    def keep(self, page: str, item: Item, slot: str = "") -> None:
        """Keeps what a page is about, in the place of what was there; a page may have several slots."""
        with self._lock:
            self._kept.pop((page, slot), None)
            self._kept[page, slot] = _Kept(item, next(self._numbers))
            total = sum(kept.item.size for kept in self._kept.values())
            while total > self.limits.memory_mb << 20 and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                total -= oldest.item.size

    def of(self, page: str, slot: str = "") -> Item:
        """The image of a page, or its item of several pictures.

        Raises:
            InputError: none was chosen, or it was dropped since.
        """
        with self._lock:
            kept = self._kept.get((page, slot))
            if kept is None:
                which = f"{slot} image" if slot else "image"
                raise InputError(
                    f"there is no {which}: choose one first; an image that is not used for long is dropped"
                )
            kept.used = time.monotonic()
            self._kept.move_to_end((page, slot))
            return kept.item

    def numbers(self, page: str) -> set[int]:
        """A number for each image of a page; an image that is chosen later has a number of its own."""
        with self._lock:
            return {kept.number for key, kept in self._kept.items() if key[0] == page}

    def drop(self, page: str) -> None:
        """Forgets everything of a page, as when it is closed."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == page]:
                del self._kept[key]

    def sweep(self, abandoned: float = ABANDONED) -> None:
        """Drops images that were not used for long, and removes files of uploads that no request has read."""
        with self._lock:
            oldest = time.monotonic() - self.limits.keep_seconds
            for key in [key for key, kept in self._kept.items() if kept.used < oldest]:
                del self._kept[key]
        for path in self._files():
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < time.time() - abandoned:
                    _remove(path)

    def on_disk(self) -> int:
        """Bytes of the files of uploads that no request has read yet."""
        total = 0
        for path in self._files():
            with contextlib.suppress(OSError):
                total += path.lstat().st_size
        return total

    def _files(self) -> list[Path]:
        """All files in the folder; `os.walk` goes on where folders vanish meanwhile."""
        return [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]


def picture_of(path: Path, name: str, limits: Limits) -> Picture:
    """The file of an image or a video in the operator's folder; InputError as in `Picture.open`."""
    try:
        return Picture(name, read_image(path, limits.of_file(name)))
    except UnreadableImage as error:
        raise InputError(f"{name} cannot be read: {error.reason}") from None


def shown_name(name: str) -> str:
    """The name of a file without its folder, in a form that can be shown."""
    last = PureWindowsPath(PurePosixPath(name).name).name or "the file"
    shown = visible(last)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 12]}...{shown[-9:]}"


def _remove(path: Path) -> None:
    """Removes a file and the folder that gradio made for it."""
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # fails, rightly, where other files are in it
