"""Locks, which keep processes that do not belong together out of one another's folders."""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field

from blip.errors import BlipError
from blip.files import ReadError, WriteError, hidden_beside, read_json, write_error, write_whole

LOCK = ".blip.lock"
OWNER_BYTES = 4096  # of the file with the name of a lock's holder
OWNER_SECONDS = 2.0  # how long that name is waited for


class LockedError(BlipError):
    """A folder that another process is writing to."""


@contextmanager
def locked(folder: str | Path, *, name: str = LOCK, place: Path | None = None) -> Iterator[None]:
    """Within this block no other process can enter a `locked` block of the same folder, which is made if absent.

    The lock ends with the process, however it ends: processes that it forked, such as workers, do not keep it.

    Args:
        name: of the lock's file, where one folder has several.
        place: what is written, for messages; the folder unless given.

    Raises:
        LockedError: another process is writing there; the message names host and process.
        WriteError: the folder cannot be made or written to.
    """
    folder, lasts = Path(folder), os.path.lexists(Path(folder) / name)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(folder / name, place or folder)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield
        lasts = True
    finally:
        with suppress(OSError):  # the folder may be gone
            _owner_file(folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            if not lasts or (made and set(os.listdir(folder)) <= {name}):  # an error, or nothing was written
                (folder / name).unlink(missing_ok=True)  # while it is held: nobody else can hold a file without a name
                for place in made:
                    place.rmdir()
        lock.release()


def locked_file(path: Path) -> AbstractContextManager[None]:
    """`locked` for one file that is written over time."""
    return locked(path.parent, name=hidden_beside(path, ".lock").name, place=path)


class _Owner(BaseModel):
    """The process that holds a lock."""

    host: str
    process: int = Field(gt=0, lt=1 << 31, strict=True)


def _acquired(path: Path, place: Path) -> FileLock:
    """The lock, which only the system can take from its holder: what lies beside it about its owner may be outdated."""
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # some versions of filelock empty what they lock
            raise WriteError(f"{path}, a lock, is a link to another file or no file: remove it")
    lock, end = FileLock(str(path)), time.monotonic() + OWNER_SECONDS
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=0)
            break
        owner = _owner(path)
        ended = owner is not None and owner.host == socket.gethostname() and not _alive(owner.process)
        if (owner and not ended) or time.monotonic() > end:
            name = f"process {owner.process} on {owner.host}" if owner else "a process that left no name"
            about = f"a process that belonged to {name}, which has ended" if ended else name
            raise LockedError(f"{place} is being written by {about}: wait for it, or choose another output")
        time.sleep(0.1)  # the holder writes its name a moment after it has the lock
    try:
        write_whole(_owner_file(path), json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
    except BaseException:
        lock.release()
        raise
    return lock


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _owner(path: Path) -> _Owner | None:
    with suppress(ReadError):
        return read_json(_owner_file(path), _Owner, OWNER_BYTES)
    return None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
