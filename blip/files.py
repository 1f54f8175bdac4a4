"""Writing files so that a kill at any instant leaves the old file or the new one, never a part.

Everything that the package writes under a final name goes through here: written beside it, flushed to disk, renamed.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from blip.errors import BlipError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a used up quota, a file that may not grow


class WriteError(BlipError):
    """A file that could not be written, such as on a full disk; files written before it are whole."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write, in bytes, that gets its name when the block has ended and all of it is on disk.

    Raises:
        WriteError: the file cannot be written. Errors of files that the block reads pass through.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.filename not in (None, str(partial)):  # of a file that is read meanwhile
            raise
        raise write_error(path, error) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a small file at once: text in UTF-8, or bytes. WriteError as in `whole_file`."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_one_of_many(path: Path, content: bytes) -> None:
    """Writes one of many small files, such as the pieces of pictures, under its final name, whole or not at all.

    Unlike `write_whole` it does not wait for the disk, which would take longer than the writing: a kill leaves no part
    of a file, a power failure may. Several processes may write the same file at once. WriteError as in `whole_file`.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise write_error(path, error) from error


def rename_whole(partial: Path, path: Path) -> None:
    """Gives a file that was written under another name, perhaps by several runs, its final one, once it is on disk."""
    flush(partial)
    os.replace(partial, path)


@contextmanager
def whole_folder(final: str | Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `final` when the block ends, whole or not at all."""
    final = Path(final)
    temporary = final.with_name(f".{final.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for path in temporary.iterdir():
        flush(path)
    flush(temporary)
    before = set_aside(final) if final.exists() else None
    temporary.rename(final)
    if before is not None:
        shutil.rmtree(before)


def remove_folder(folder: Path) -> None:
    """Deletes a folder under another name, so that a kill leaves no incomplete folder under its name."""
    shutil.rmtree(set_aside(folder))


def set_aside(folder: Path) -> Path:
    """Renames a folder that is to be deleted -> its new name."""
    doomed = folder.with_name(f".{folder.name}.old.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    return doomed


def partial_path(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f"{path.name}.partial")


def write_error(path: Path, error: OSError) -> WriteError:
    """The message for a file that could not be written."""
    advice = ": finished files are whole; make room and start the same command again" if error.errno in NO_ROOM else ""
    return WriteError(f"{path} could not be written ({error.strerror or error}){advice}")


def flush(path: Path) -> None:
    """Waits until a file's, or a folder's, contents are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
