"""Lines of JSON in numbered shards, each written whole or not at all, by any number of processes.

FOLDER/settings.json        what the lines depend on; a run that continues needs equal settings
FOLDER/shard-00000.jsonl    one JSON object a line; the last is {"end": {"lines": ..., "bytes": ..., "sha256": ...}},
                            of the lines before it, by which a shard that was cut short is found

Shard k depends on part k of the input alone: rank r of W processes writes shards r, r+W, ... A shard that has its name
is complete; after a kill each process repeats at most the shard that it was writing. A lock keeps out other processes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from blip import distributed
from blip.errors import BlipError
from blip.files import ReadError, json_text, open_regular, parse_json, raw_lines, read_json, whole_file, write_whole
from blip.outputs import locked

SETTINGS = "settings.json"
Line = dict[str, Any]
ENDS = {"ends": True}  # in the settings: each shard has a last line that tells its end; those of version 0.1 have none
MAX_END = 300  # bytes of that line
AGAIN = "delete the file and start the command that wrote it again"


class ShardError(BlipError):
    """Shards that cannot be written, continued or read; the message has the reason."""


class Settings(BaseModel):
    """The entries of `settings.json` that every folder of shards has; the others are those of the command."""

    model_config = ConfigDict(strict=True, extra="allow")

    shards: int = Field(ge=0, lt=1 << 24)
    ends: bool = False


class _End(BaseModel):
    """What the last line of a shard tells of the lines before it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    lines: int
    bytes: int
    sha256: str


class _LastLine(BaseModel):
    model_config = ConfigDict(extra="forbid")

    end: _End


def write_jsonl_shards(
    folder: Path,
    settings: dict[str, Any],
    count: int,
    *,
    make_lines: Callable[[int], Iterable[Line]],
    overwrite: bool = False,
) -> Iterator[int]:
    """Writes those of `count` shards that are missing and belong to this process; yields the number of each when done.

    Args:
        folder: of the shards; created when absent.
        settings: JSON; what the lines depend on.
        count: shards in all.
        make_lines: number of a shard -> its lines.
        overwrite: shards of other settings are removed, and those that somebody changed are written again.

    Raises:
        ShardError: the folder holds shards of other settings, shards that somebody changed, or a settings.json of
            another program.
        LockedError: another process, which does not belong to this one, writes to the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if distributed.is_main() else nullcontext():
        _agree(folder, {**settings, "shards": count, **_ends(folder, overwrite)}, overwrite)
        missing = _missing(folder, count, overwrite)  # every process checks every shard: all of them end with an error
        for number in range(distributed.rank(), count, distributed.world_size()):
            if number in missing:
                write_jsonl(shard_path(folder, number), make_lines(number), end=True)
                yield number
        distributed.barrier()  # the main process holds the lock until all have ended


def write_jsonl(path: Path, lines: Iterable[Line], end: bool = False) -> int:
    """Writes a file of JSON lines, with `end` a line that tells its end; returns how many. WriteError as in
    `whole_file`."""
    count, digest = 0, hashlib.sha256()
    with whole_file(path) as file:
        for line in lines:
            text = json_text(line, indent=None).encode()
            file.write(text)
            digest.update(text)
            count += 1
        if end:
            about = _End(lines=count, bytes=file.tell(), sha256=digest.hexdigest())
            file.write(json_text({"end": about.model_dump()}, indent=None).encode())
    return count


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.jsonl"


def _missing(folder: Path, count: int, overwrite: bool) -> set[int]:
    """The shards to write: those that are absent, or were cut short; with `overwrite` also those that were changed.
    ShardError for the latter without it."""
    ends, missing = settings_of(folder).get("ends"), set()
    for number in range(count):
        path = shard_path(folder, number)
        if path.exists() and (not ends or _is_whole(path)):
            continue
        if path.exists() and not overwrite and _has_end(path):
            raise ShardError(
                f"{path} was changed after it had been written: move it away, or replace it with --overwrite"
            )
        missing.add(number)
    return missing


def is_shards(path: str | Path) -> bool:
    """Whether a folder holds shards of JSON lines."""
    return os.path.isfile(os.path.join(path, SETTINGS))


def is_of_a_step(path: str | Path) -> bool:
    """Whether a folder holds shards that a step of CapFilt wrote: its settings name step and model."""
    try:
        settings = settings_of(Path(path))
    except ShardError:
        return False
    return isinstance(settings.get("step"), str) and isinstance(settings.get("model"), str)


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a folder of shards; ShardError where it has none."""
    try:
        read_json(folder / SETTINGS, Settings)
        return read_json(folder / SETTINGS, dict[str, Any])
    except ReadError as error:
        raise ShardError(f"{folder} holds no shards of this package: {SETTINGS}: {error.problem}") from None


def read_lines(folder: Path, kind: type = dict[str, Any]) -> Iterator[Line]:
    """Each line of all shards, in order.

    Args:
        kind: what a line has to be, a type of dictionaries.

    Raises:
        ShardError: a shard is missing, cut short or damaged, or a line is of another kind.
    """
    settings = settings_of(folder)
    for number in range(settings["shards"]):
        path = shard_path(folder, number)
        if not path.is_file():
            raise ShardError(f"{path} is missing: let the command that writes {folder} end first")
        try:
            yield from _lines_of(path, kind, bool(settings.get("ends")))
        except ReadError as error:
            raise ShardError(f"{error}; {AGAIN}") from None


def _lines_of(path: Path, kind: type, ends: bool) -> Iterator[Line]:
    """The lines of a shard, which must tell its end where it `ends`; ReadError as in `read_lines`."""
    found, digest, end, before = 0, hashlib.sha256(), None, 0
    for number, raw, position in raw_lines(path):
        if end is not None:
            raise ReadError(path, f"line {number}", "follows the line that ends the shard")
        if raw.startswith(b'{"end": {') and raw.endswith(b"\n") and len(raw) <= MAX_END:
            end = parse_json(raw, _LastLine, path, place=f"line {number}").end
            continue
        yield parse_json(raw, kind, path, place=f"line {number}")
        digest.update(raw)
        found, before = number, position
    if end is None and ends:
        raise ReadError(path, "", f"is cut short: it ends after {found} lines, without the line that ends a shard")
    if end is not None and (end.lines, end.bytes, end.sha256) != (found, before, digest.hexdigest()):
        raise ReadError(path, "", f"has changed since it was written, with {end.lines} lines")


def _is_whole(path: Path) -> bool:
    """Whether the last line of a shard tells length and hash of the lines before it; these are not parsed."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_END))
            last = b"".join(file.read().splitlines(keepends=True)[-1:])
            end, left, digest = parse_json(last, _LastLine, path).end, size - len(last), hashlib.sha256()
            if not last.endswith(b"\n") or end.bytes != left:
                return False
            file.seek(0)
            while block := file.read(min(left, 1 << 20)):
                digest.update(block)
                left -= len(block)
    except ReadError:
        return False
    return digest.hexdigest() == end.sha256


def _has_end(path: Path) -> bool:
    """Whether any line of a shard is one that ends it, such as before lines that somebody added."""
    with open_regular(path) as file:
        return any(line.startswith(b'{"end": {') and line.endswith(b"\n") for line in file)


def _ends(folder: Path, overwrite: bool) -> dict[str, bool]:
    """`ENDS` for the settings of a folder, unless version 0.1 began it; to `overwrite` they may be damaged."""
    if not ((folder / SETTINGS).is_file() and any(folder.glob("shard-*.jsonl"))):
        return ENDS
    try:
        return ENDS if settings_of(folder).get("ends") else {}
    except ShardError:
        if overwrite:
            return ENDS
        raise


def _agree(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Writes the settings, or compares them with those that the folder was begun with."""
    path = folder / SETTINGS
    lost = not (overwrite or path.exists()) and any(folder.glob("shard-*.jsonl"))
    distributed.barrier()  # every process has looked before the main one writes
    if lost:
        raise ShardError(
            f"{folder} holds shards without their {SETTINGS}, so that nobody knows what made them: put it back, give "
            "another --out, or replace them with --overwrite"
        )
    if distributed.is_main() and (overwrite or not path.exists()):
        _start(folder, settings, overwrite)
    distributed.barrier()
    before, now = settings_of(folder), json.loads(json.dumps(settings))
    other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    begun = (before.keys() ^ now.keys()) <= ENDS.keys()  # another program's file has other entries
    if other and begun and not any(folder.glob("shard-*.jsonl")):  # of a command that failed before its first shard
        distributed.barrier()
        if distributed.is_main():
            write_whole(path, json.dumps(settings, indent=1) + "\n")
        distributed.barrier()
    elif other:
        name = other[0]
        raise ShardError(
            f"{folder} was begun with {name} {before.get(name)!r}, now it is {now.get(name)!r}: give another --out, "
            "the same settings, or replace what is there with --overwrite"
        )


def _start(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Writes the settings of new shards; with `overwrite` in place of those of others, which are removed."""
    path = folder / SETTINGS
    now = json.loads(json.dumps(settings))
    counts = [now["shards"]]
    if path.exists():
        try:
            before = settings_of(folder)
        except ShardError:
            before = {}
        if before == now:
            return
        counts.append(before.get("shards", 0))
    if overwrite:
        for number in range(max(count for count in counts if isinstance(count, int))):
            shard_path(folder, number).unlink(missing_ok=True)
    write_whole(path, json.dumps(settings, indent=1) + "\n")
