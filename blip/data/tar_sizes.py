"""`sizes.json` beside webdataset shards: how many samples each shard has, how long it is, and its hash.

{"shard-00000.tar": 1000, ..., "bytes": {"shard-00000.tar": 51200000, ...}, "sha256": {...}}

Other tools write and read the counts alone. A shard that was cut short is found by its length, or by the end mark that
every tar file has.
"""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from blip.data.tar_reader import OPENERS
from blip.errors import BlipError
from blip.files import open_regular, parse_json

SIZES = "sizes.json"
UNFINISHED = "unfinished"  # beside shards that are being written
MAX_SIZES = 1 << 28  # bytes
END_MARK = 1024  # zero bytes

Count = Annotated[int, Field(ge=0, lt=1 << 48)]


class TarError(BlipError):
    """Shards that cannot be found, counted or written; the message has the reason."""


class Sizes(BaseModel):
    """`sizes.json`: the samples of each shard by its name; of shards of this package also length and hash."""

    model_config = ConfigDict(strict=True, extra="allow")

    bytes: dict[str, Count] = {}
    sha256: dict[str, str] = {}
    __pydantic_extra__: dict[str, Count]


@dataclass
class Shard:
    """What is known of a shard before it is read."""

    samples: int
    bytes: int | None = None
    sha256: str = ""


def recorded(folder: str) -> dict[str, Shard]:
    """The shards that the `sizes.json` of a folder names, by address; none where there is no such file."""
    place = f"{folder}/" if folder else ""
    content = read_small(f"{place}{SIZES}")
    if content is None:
        if read_small(f"{place}{UNFINISHED}") is not None:
            raise TarError(f"{folder}: these shards are not complete; let the command that writes them end")
        return {}
    sizes = parse_json(content, Sizes, f"{place}{SIZES}")
    return {f"{place}{name}": Shard(count, sizes.bytes.get(name), sizes.sha256.get(name, ""))
            for name, count in sizes.__pydantic_extra__.items()}  # fmt: skip


def check_length(address: str, shard: Shard) -> None:
    """TarError where a shard has another length than recorded; where none is, and it has no end mark or no room for
    its samples."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(address)
        local = os.path.isfile(path) and "://" not in address
        if shard.bytes is None and not local:
            return
        length = system.size(path)
    except Exception as error:  # as in `TarShards.read`
        raise TarError(f"{address}: {error}") from None
    if shard.bytes is not None:
        if length != shard.bytes:
            raise TarError(
                f"{address}: has {length:,} bytes, and {shard.bytes:,} when it was written: it was cut short or "
                "changed; write it anew"
            )
        return
    with open_regular(path) as file:
        head = file.read(6)
        file.seek(max(0, length - END_MARK))
        marked = length >= END_MARK and not file.read().strip(b"\0")
    if head.startswith(tuple(OPENERS)):  # compressed: only reading shows its end
        return
    if not marked:
        raise TarError(f"{address}: ends without the end mark of a tar file: it was cut short; write it anew")
    if shard.samples > length // 512:  # each has a header of that length
        raise TarError(f"{address}: {shard.samples:,} samples are recorded, for which it is too small")


def read_small(address: str) -> bytes | None:
    """A small file, or None where there is none; TarError where it cannot be read."""
    try:
        with open_address(address) as file:
            content = file.read(MAX_SIZES + 1)
    except FileNotFoundError:
        return None
    except Exception as error:  # as in `TarShards.read`
        raise TarError(f"{address}: {error}") from None
    if len(content) > MAX_SIZES:
        raise TarError(f"{address}: has more than {MAX_SIZES:,} bytes")
    return content


def open_address(address: str) -> AbstractContextManager[Any]:
    """A file to read, in bytes: a regular local one, or one at an address that fsspec reads."""
    import fsspec

    if "://" in address:
        return fsspec.open(address, "rb")
    if not os.path.exists(address):
        raise FileNotFoundError(f"{address}: no such file")
    return open_regular(address)
