"""Which paths a command may write, decided before it begins its work, and which process writes to a folder.

`claim_output` refuses what exists and is not the command's own, and what is one of its inputs. `locked` keeps a second
process out of a folder that is being written.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from blip.errors import BlipError
from blip.files import WriteError, write_error, write_whole

LOCK = ".blip.lock"
Signature = list  # size and hash of a file


class OutputError(BlipError):
    """An output that a command must not write: it exists and is not the command's own, or it is one of the inputs."""


class LockedError(BlipError):
    """A folder that another process is writing to."""


# ---- what may be written ---------------------------------------------------------------------------------------------


@dataclass
class Output:
    """An output that a command may write; `done` records it as this command's own."""

    path: Path
    command: str
    inputs: str  # hash of what the command reads
    before: dict[str, list] = field(default_factory=dict)  # files of a former run of the same command: size and hash

    def done(self, files: Iterable[str | Path] | None = None) -> None:
        """Records the finished output; of a folder, the `files` in it (relative or absolute), and deletes those that a
        former run of the same command recorded and this one did not write."""
        if files is None:
            written = {self.path.name: self.path}
        else:
            written = {os.path.relpath(self.path / file, self.path): self.path / file for file in files}
            for name in self.before.keys() - written.keys():
                if _signature(self.path / name) == self.before[name]:  # not changed by anyone since
                    (self.path / name).unlink()
        files_now = {name: _signature(path) for name, path in written.items()}
        entry = {"command": self.command, "inputs": self.inputs, "files": files_now}
        write_whole(_record_of(self.path), json.dumps(entry, indent=1) + "\n")


def claim_output(
    path: str | Path,
    command: str,
    *,
    inputs: Iterable[str | Path] = (),
    folder: bool = False,
    overwrite: bool = False,
    known: bool = False,
) -> Output:
    """Decides, before the work begins, whether `command` may write `path`; changes nothing.

    It may where nothing is there (or an empty folder), where the same command wrote it for the same inputs and nobody
    has changed it since, or where the user said so.

    Args:
        path: the file, or with `folder` the folder, to write.
        command: the verb or script, such as "caption".
        inputs: files and folders that the command reads; a name that is no path counts as text.
        overwrite: the option `--overwrite`. It never permits an output to be an input.
        known: the output's own header says that this command wrote it for the same inputs.

    Raises:
        OutputError: it must not be written.
        WriteError: no file can be written there.
    """
    path, inputs = Path(path), list(inputs)
    _refuse_inputs(path, inputs, folder)
    _refuse_unwritable(path, folder)
    output = Output(path, command, _hash_of_inputs(inputs))
    entry = _read_record(path)
    if entry.get("command") == command and entry.get("inputs") == output.inputs:
        output.before = entry.get("files", {})
        place = path if folder else path.parent
        known = known or all(_signature(place / name) in (None, kept) for name, kept in output.before.items())
    occupied = (folder and any(os.scandir(path))) if path.is_dir() else os.path.lexists(path)
    if occupied and not (overwrite or known):
        kind = "a folder with files that" if folder else "a file that"
        raise OutputError(
            f"{path} is {kind} this command did not write for the same inputs: choose another name, or replace it with "
            "--overwrite"
        )
    return output


def _refuse_inputs(path: Path, inputs: list, folder: bool) -> None:
    """OutputError where an output is an input, or a folder that holds one."""
    target = Path(os.path.realpath(path))
    for source in inputs:
        if not os.path.exists(source):
            continue
        real = Path(os.path.realpath(source))
        if real == target or (os.path.exists(path) and os.path.samefile(path, source)):
            raise OutputError(f"{path} is an input of this command: choose another output")
        if folder and target in real.parents:
            raise OutputError(f"{path} holds {source}, an input of this command: choose another output folder")


def _refuse_unwritable(path: Path, folder: bool) -> None:
    """OutputError or WriteError where no such file or folder can be made."""
    if os.path.lexists(path) and (path.is_dir() != folder or not (path.is_dir() or path.is_file())):
        kind = "a folder" if path.is_dir() else "a file" if path.is_file() else "neither a file nor a folder"
        raise OutputError(f"{path} is {kind}, and the output is {'a folder' if folder else 'a file'}: choose another")
    place = path if folder else path.parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise WriteError(f"{path} cannot be written: {place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise WriteError(f"{path} cannot be written: {place} gives no permission to write")


def _record_of(path: Path) -> Path:
    """Where `Output.done` keeps its record: inside a folder, beside a file."""
    return path / ".blip.json" if path.is_dir() else path.with_name(f".{path.name}.blip.json")


def _read_record(path: Path) -> dict[str, Any]:
    """The record of an output, or {} where there is none that can be used."""
    with suppress(OSError, ValueError, RecursionError):
        entry = json.loads(_record_of(path).read_text(encoding="utf-8"))
        if isinstance(entry, dict) and isinstance(entry.get("files"), dict):
            return entry
    return {}


def _signature(path: Path) -> list | None:
    """Size and hash of a file, or None where there is no such file; of a large file, of its first and last 8 MiB."""
    if not path.is_file():
        return None
    size, part, digest = path.stat().st_size, 8 << 20, hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(part))
        file.seek(max(0, size - part))
        digest.update(file.read(part))
    return [size, digest.hexdigest()[:16]]


def _hash_of_inputs(inputs: list) -> str:
    names = [os.path.abspath(one) if os.path.exists(one) else str(one) for one in inputs]
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


# ---- who writes ------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Within this block no other process can enter a `locked` block of the same folder, which is made if absent.

    The lock ends with the process, however it ends; of a process of this host that is dead it is taken over.

    Raises:
        LockedError: another process is writing there; the message names host and process.
        WriteError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(folder / LOCK)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield
    finally:
        owner = _owner_file(folder / LOCK)
        with suppress(OSError):  # the folder may be gone
            owner.unlink(missing_ok=True)
        lock.release()


def _acquired(path: Path) -> FileLock:
    for last in (False, True):
        lock = FileLock(str(path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            host, process = _owner(path)
            if last or host != socket.gethostname() or _alive(process):
                raise LockedError(
                    f"{path.parent} is being written by process {process} on {host}: wait for it, or choose another "
                    "folder"
                ) from None
            path.unlink(missing_ok=True)  # a worker of the dead process holds the old file
        else:
            write_whole(_owner_file(path), json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
            return lock
    raise AssertionError("the second attempt returns or raises")


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _owner(path: Path) -> tuple[str, int]:
    """(host, process) of a lock; its holder writes them a moment after it has the lock."""
    for _ in range(20):
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(_owner_file(path).read_text())
            return str(about["host"]), int(about["process"])
        time.sleep(0.1)
    return "an unknown host", 0


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
