"""Lines of JSON in numbered shards, each written whole or not at all, by any number of processes.

FOLDER/settings.json        what the lines depend on; a run that continues needs equal settings
FOLDER/shard-00000.jsonl    one JSON object a line

Shard k depends on part k of the input alone: rank r of W processes writes shards r, r+W, ... A shard that has its name
is complete; after a kill each process repeats at most the shard that it was writing.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from blip import distributed
from blip.errors import BlipError
from blip.files import json_text, whole_file, write_whole

SETTINGS = "settings.json"
Line = dict[str, Any]


class ShardError(BlipError):
    """Shards that cannot be written, continued or read; the message has the reason."""


def write_jsonl_shards(
    folder: Path, settings: dict[str, Any], count: int, *, make_lines: Callable[[int], Iterable[Line]]
) -> Iterator[int]:
    """Writes those of `count` shards that are missing and belong to this process; yields the number of each when done.

    Args:
        folder: of the shards; created when absent.
        settings: JSON; what the lines depend on.
        count: shards in all.
        make_lines: number of a shard -> its lines.

    Raises:
        ShardError: the folder holds shards of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _agree(folder, {**settings, "shards": count})
    for number in range(distributed.rank(), count, distributed.world_size()):
        path = shard_path(folder, number)
        if path.exists():
            continue
        write_jsonl(path, make_lines(number))
        yield number


def write_jsonl(path: Path, lines: Iterable[Line]) -> int:
    """Writes a file of JSON lines; returns how many. WriteError as in `whole_file`."""
    count = 0
    with whole_file(path) as file:
        for line in lines:
            file.write(json_text(line, None).encode())
            count += 1
    return count


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.jsonl"


def is_shards(path: str | Path) -> bool:
    """Whether a folder holds shards of JSON lines."""
    return (Path(path) / SETTINGS).is_file()


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a folder of shards; ShardError where it has none."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShardError(f"{folder} holds no shards: {SETTINGS} cannot be read ({error})") from None
    if not isinstance(settings, dict) or "shards" not in settings:
        raise ShardError(f"{folder} holds no shards of this package: {SETTINGS} has no number of shards")
    return settings


def read_lines(folder: Path) -> Iterator[Line]:
    """Each line of all shards, in order; ShardError where one is missing."""
    for number in range(settings_of(folder)["shards"]):
        path = shard_path(folder, number)
        if not path.is_file():
            raise ShardError(f"{path} is missing: let the command that writes {folder} end first")
        with open(path, encoding="utf-8") as file:
            for place, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ShardError(f"{path}, line {place}: {error}; delete the file and make it again") from None


def _agree(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    # settings of a command that failed before its first shard are ignored
    if distributed.is_main() and not (path.exists() and any(folder.glob("shard-*.jsonl"))):
        write_whole(path, json.dumps(settings, indent=1) + "\n")
    distributed.barrier()
    before, now = settings_of(folder), json.loads(json.dumps(settings))
    if other := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        name = other[0]
        raise ShardError(
            f"{folder} was begun with {name} {before.get(name)!r}, now it is {now.get(name)!r}: give another --out, "
            "or the same settings"
        )
