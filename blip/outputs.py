"""Which paths a command may write, decided before it begins its work.

`claim_output` refuses what exists and is not the command's own, and what is one of its inputs; `Output.writing` records
what was written. `locked`, of `distributed.locks`, keeps a second process out of a folder that is being written.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from blip.distributed.locks import LockedError, locked, locked_file
from blip.errors import BlipError
from blip.files import ReadError, WriteError, hidden_beside, read_json, write_whole
from blip.hashing import Signature, signature

__all__ = [
    "LockedError",
    "Output",
    "OutputError",
    "claim_output",
    "has_record",
    "locked",
    "locked_file",
    "refuse_inputs",
    "writing",
]

RECORD = ".blip.json"
# what a finished or killed run leaves beside its output: records, locks, files that did not get their names
_HIDDEN = re.compile(r"\..*(\.partial|\.progress|\.blip\.json|\.lock|\.lock\.json)|\.blip\.json|\.blip\.lock(\.json)?")


class OutputError(BlipError):
    """An output that a command must not write: it exists and is not the command's own, or it is one of the inputs."""


class _Record(BaseModel):
    """What is kept of an output: in a folder, or beside a file."""

    command: str = ""
    inputs: str = ""  # hash of what the command reads
    files: dict[str, Signature] = {}  # relative to the folder, or to that of the file
    unfinished: bool = False  # it is being written, or its writer was killed


@dataclass
class Output:
    """An output that a command may write; `writing`, or `done`, records it as this command's own."""

    path: Path
    command: str
    inputs: str  # hash of what the command reads
    folder: bool = False
    before: dict[str, Signature] = field(default_factory=dict)  # files of a former run: size and hash
    own: bool = False  # the record names this command and these inputs
    seen: bytes | None = None  # the record, when the output was claimed

    @contextmanager
    def writing(self) -> Iterator[list[str | Path]]:
        """Within this block the output is written; the block adds the files to the list that it gets.

        Without any, that is the output itself. A run that is killed in the block leaves a mark, which a message tells:
        nobody knows which of the files that it left the user has changed since. After an error the record is as before,
        unless files changed.
        """
        record = _record_of(self.path, self.folder)
        if (former := _content(record)) != self.seen:
            raise OutputError(f"{self.path} was written by another process meanwhile: start the command again")
        made = [place for place in (self.place, *self.place.parents) if not place.exists()]
        self._write(self.before, unfinished=True)
        files: list[str | Path] = []
        try:
            yield files
        except BaseException:
            with suppress(OSError, WriteError):
                if former is not None and all(signature(self.place / name) == s for name, s in self.before.items()):
                    write_whole(record, former)
                elif former is None and not self._occupied():
                    record.unlink()
                    for place in made:
                        place.rmdir()
            raise
        self.done(files or (None if not self.folder else []))

    def done(self, files: Iterable[str | Path] | None = None) -> None:
        """Records the finished output: the `files` (relative to the folder, or absolute), or the file itself. Deletes
        those that a former run of the same command recorded and this one did not write."""
        paths = [self.path] if files is None else [self.place / file for file in files]
        written = {os.path.relpath(path, self.place): path for path in paths}
        for name in self.before.keys() - written.keys():
            if signature(self.place / name) == self.before[name]:  # not changed by anyone since
                (self.place / name).unlink()
        _remove_partial(written.values())
        signatures = {name: signature(path) for name, path in written.items()}
        if any(signatures.values()) or self.folder:
            self._write({name: one for name, one in signatures.items() if one is not None})
        else:  # nothing was written, such as for images none of which can be read
            _record_of(self.path, self.folder).unlink(missing_ok=True)

    @property
    def place(self) -> Path:
        """The folder that the names of a record are relative to."""
        return self.path if self.folder else self.path.parent

    def _write(self, files: dict[str, Signature], unfinished: bool = False) -> None:
        record = _Record(command=self.command, inputs=self.inputs, files=files, unfinished=unfinished)
        text = json.dumps(record.model_dump(exclude_defaults=not unfinished), indent=1) + "\n"
        write_whole(_record_of(self.path, self.folder), text)

    def _occupied(self) -> bool:
        return _has_files(self.path) if self.folder else os.path.lexists(self.path)


def claim_output(
    path: str | Path,
    command: str,
    *,
    inputs: Iterable[str | Path] = (),
    folder: bool = False,
    overwrite: bool = False,
    known: bool = False,
    names: Iterable[str | Path] = (),
) -> Output:
    """Decides, before the work begins, whether `command` may write `path`; changes nothing.

    It may where nothing is there (or an empty folder), where the same command wrote it for the same inputs and nobody
    has changed it since, or where the user said so.

    Args:
        path: the file, or with `folder` the folder, to write.
        command: the verb or script, such as "caption".
        inputs: files and folders that the command reads; a name that is no path counts as text.
        overwrite: the option `--overwrite`. It never permits an output to be an input, nor a file inside a folder that
            is an input, unless this command wrote it.
        known: the output's own header says that this command wrote it for the same inputs.
        names: of a file, the others that are written in the same folder; of a folder, patterns of the files that are
            written in it, such as `shard-*.tar`. Files of these names have to be the command's own as well.

    Raises:
        OutputError: it must not be written.
        WriteError: no file can be written there.
    """
    path, inputs, names = Path(path), list(inputs), list(names)
    targets = [path] if folder else [path, *(path.parent / name for name in names)]
    for target in targets:
        _refuse_unwritable(target, folder)
    output = Output(path, command, _hash_of_inputs(inputs), folder)
    output.seen, record = _content(_record_of(path, folder)), _read_record(output)
    own = record.command == command and record.inputs == output.inputs
    ours = {name: kept for name, kept in record.files.items() if folder or name in (path.name, *map(str, names))}
    output.own, output.before = own, ours if own or overwrite else {}
    if folder:
        _refuse_inputs_in(path, inputs)
        foreign = _foreign_in(output, names, own=own)
    else:
        existing = [target for target in targets if os.path.lexists(target)]
        foreign = [t for t in existing if not own or record.files.get(t.name, ()) != signature(t)]
        refuse_inputs(existing, inputs, [] if known else foreign)
    if foreign and not (overwrite or known):
        about = f"{path} is a folder with files" if folder else f"{foreign[0]} is a file"
        shown = f" ({foreign[0].name})" if folder else ""
        stopped = "; a run of it was stopped here" if own and record.unfinished else ""
        raise OutputError(
            f"{about} that this command did not write for the same inputs{shown}{stopped}: choose another name, or "
            "replace it with --overwrite"
        )
    return output


def writing(output: Output | None) -> AbstractContextManager[list[str | Path]]:
    """`Output.writing` of an output, nothing where there is none."""
    return nullcontext([]) if output is None else output.writing()


def has_record(path: Path, *, folder: bool = False) -> bool:
    """Whether some command recorded an output here."""
    return os.path.lexists(_record_of(path, folder))


def _foreign_in(output: Output, names: list[str | Path], *, own: bool) -> list[Path]:
    """Files in a folder that keep the command from writing there: any, or beside its own those that have been changed,
    or would be replaced."""
    folder = output.path
    if not _has_files(folder):
        return []
    if not own:
        return [next(path for path in sorted(folder.iterdir()) if not _HIDDEN.fullmatch(path.name))]
    changed = [folder / name for name, kept in output.before.items() if signature(folder / name) not in (None, kept)]
    replaced = [path for name in names for path in folder.glob(str(name))]
    kept = output.before.keys()
    return changed + [p for p in replaced if not (_HIDDEN.fullmatch(p.name) or os.path.relpath(p, folder) in kept)]


def _has_files(folder: Path) -> bool:
    """Whether a folder holds anything but records, locks, and files that a killed run could not finish."""
    return folder.is_dir() and not all(_HIDDEN.fullmatch(entry.name) for entry in os.scandir(folder))


def refuse_inputs(
    outputs: Iterable[Path], inputs: Iterable[str | Path], not_own: Iterable[Path] = (), *, what: str = "an input"
) -> None:
    """OutputError where a file to write is an input, or one of `not_own` lies in a folder that is an input."""
    files = {_identity(path): path for path in outputs if os.path.exists(path)}
    if not files:
        return
    inside = [(path, Path(os.path.realpath(path)).parents) for path in not_own]
    for source in inputs:
        if (same := _identity(source)) in files:
            raise OutputError(f"{files[same]} is {what} of this command: choose another output")
        if inside and os.path.isdir(source):
            real = Path(os.path.realpath(source))
            if found := next((path for path, parents in inside if real in parents), None):
                raise OutputError(
                    f"{found} lies in {source}, an input of this command, which did not write it: choose another output"
                )


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What is equal for two names of one file; None where there is no such file."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return None
    return about.st_dev, about.st_ino


def _refuse_inputs_in(folder: Path, inputs: list[str | Path]) -> None:
    """OutputError where a folder to write is an input, or holds one."""
    if not folder.is_dir():
        return
    target, identity = os.path.realpath(folder), _identity(folder)
    for source in inputs:
        if not os.path.exists(source):
            continue
        if _identity(source) == identity:
            raise OutputError(f"{folder} is an input of this command: choose another output")
        if os.path.realpath(source).startswith(os.path.join(target, "")):
            raise OutputError(f"{folder} holds {source}, an input of this command: choose another output folder")


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
    longest = os.pathconf(place, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in path.parts):
        raise WriteError(f"{path} cannot be written: a name has at most {longest} bytes")


def _record_of(path: Path, folder: bool) -> Path:
    """Where the record of an output lies: inside a folder, beside a file."""
    return path / RECORD if folder else hidden_beside(path, RECORD)


def _content(record: Path) -> bytes | None:
    return record.read_bytes() if os.path.isfile(record) else None


def _read_record(output: Output) -> _Record:
    """The record of an output, an empty one where there is none that can be used."""
    real = os.path.realpath(output.place)
    try:
        record = read_json(_record_of(output.path, output.folder), _Record)
        places = [os.path.realpath(os.path.join(real, name)) for name in record.files]
    except (ReadError, ValueError):  # ValueError: what cannot be the name of a file
        return _Record()
    return record if all(os.path.commonpath([real, place]) == real for place in places) else _Record()


def _hash_of_inputs(inputs: list[str | Path]) -> str:
    names = [os.path.abspath(one) if os.path.exists(one) else str(one) for one in inputs]
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _remove_partial(files: Iterable[Path]) -> None:
    """Removes what killed runs left of these files under hidden names."""
    names: dict[Path, set[str]] = {}
    for path in files:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, written in names.items():
        for entry in os.scandir(folder) if folder.is_dir() else ():
            of = re.fullmatch(r"\.(.+?)(\.\d+)?\.partial", entry.name)
            if of and of[1] in written and not entry.is_dir():
                with suppress(OSError):
                    os.unlink(entry.path)
