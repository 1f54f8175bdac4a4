"""Webdataset shards: tar files in a folder or at any address that fsspec reads; a sample is a few files of one name.

    000000012.jpg  000000012.json       the image; {"caption": ..., "image": ..., "source": ..., "round": ...}
    000000013.png  000000013.txt        the image; its caption

`sizes.json` beside them has the number of samples of each; without it they are read through once and counted.
"""

import bisect
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.data.formats import parse_record
from blip.data.images import ENDINGS
from blip.errors import BlipError, InputError
from blip.files import whole_file, write_whole

SIZES = "sizes.json"
UNFINISHED = "unfinished"  # beside shards that are being written
TEXTS = ("txt", "text", "caption")  # endings of a caption alone
RETRIES = 2  # after a broken connection, before the rest of the shard counts as unreadable
NEEDS_WEBDATASET = "reading and writing webdataset shards needs webdataset: pip install -e '.[webdataset]'"


class TarError(BlipError):
    """Shards that cannot be found, counted or written; the message has the reason."""


class BrokenSample(BlipError):
    """A sample without image or caption, or behind the end of a shard that is cut off."""


@dataclass
class Raw:
    """A sample as stored: the bytes of its `parts` by ending, or the problem that makes it unreadable."""

    number: int  # among the samples of all shards
    key: str
    parts: dict[str, bytes]
    problem: str = ""

    def image(self) -> bytes:
        """The bytes of the image; BrokenSample where there is none."""
        if self.problem:
            raise BrokenSample(self.problem)
        for ending in ENDINGS:
            if ending[1:] in self.parts:
                return self.parts[ending[1:]]
        raise BrokenSample(f"has no image; its parts: {', '.join(self.parts)}")

    def record(self) -> dict[str, Any]:
        """The annotation: `caption` is a list of texts, `image` a path or ""; BrokenSample where there is no text."""
        if self.problem:
            raise BrokenSample(self.problem)
        text = next((self.parts[ending] for ending in TEXTS if ending in self.parts), None)
        if text is None and "json" not in self.parts:
            raise BrokenSample(f"has no caption; its parts: {', '.join(self.parts)}")
        try:
            raw = json.loads(self.parts.get("json", b"{}"))
            if not isinstance(raw, dict):
                raise InputError("its JSON is not an object")
            if text is not None and "caption" not in raw:
                raw["caption"] = text.decode("utf-8").strip()
            # the image is in the shard: what the record calls it, perhaps an address, is a name and no path
            _, captions, image_id = parse_record({**raw, "image": "in the shard"})
        except ValueError as error:  # of UTF-8 and of JSON too
            raise BrokenSample(str(error)) from None
        return {**raw, "caption": captions, "image_id": image_id}


def is_tar_address(path: str) -> bool:
    """Whether training data at `path` are webdataset shards: .tar files, a folder of them, or a remote address."""
    if "://" in path or re.search(r"\.tar(\.gz)?$", path):
        return True
    folder = Path(path)
    return folder.is_dir() and any(folder.glob("*.tar"))


# ---- reading ---------------------------------------------------------------------------------------------------------


class TarShards:
    """All shards of a data set, in the order of their names, and the number of samples of each."""

    def __init__(self, addresses: Sequence[str], counts: Sequence[int]):
        """`counts` of each address; numbers of samples run through all of them."""
        self.addresses, self.counts = list(addresses), list(counts)
        self.ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        """N, the samples."""
        return self.ends[-1]

    def first(self, shard: int) -> int:
        """The number of a shard's first sample."""
        return self.ends[shard] - self.counts[shard]

    def name(self, number: int) -> str:
        """The address of sample `number`, for messages."""
        shard = bisect.bisect_right(self.ends, number)
        return f"{self.addresses[shard]}#{number - self.first(shard)}"

    def read(self, shard: int, start: int = 0) -> Iterator[Raw]:
        """The samples of a shard from `start` on, always as many as its count.

        Where the shard is cut off or absent, the unreadable ones have a `problem` and no parts.
        """
        first, count, place, tries = self.first(shard), self.counts[shard], start, 0
        problem = ""
        while place < count and tries <= RETRIES:
            try:
                for key, parts in itertools.islice(_samples(self.addresses[shard]), place, count):
                    yield Raw(first + place, key, parts)
                    place, tries = place + 1, 0
                problem = f"the shard holds {place} samples, not {count}"
                break
            except TarError:  # webdataset is not installed
                raise
            except Exception as error:  # the libraries behind fsspec raise errors of many kinds
                problem = f"the shard cannot be read ({error or type(error).__name__})"
                tries += 1
        for number in range(place, count):
            yield Raw(first + number, "", {}, problem)


def open_shards(addresses: Sequence[str], known: Path | None = None) -> TarShards:
    """The shards at these addresses: folders, .tar files, patterns (`*`, `{00..12}`), local or remote.

    Args:
        addresses: each as fsspec reads it, such as /data/pairs, /data/p-{000..099}.tar, s3://bucket/pairs/*.tar.
        known: a file that keeps the counts of shards without `sizes.json`, so that they are counted once.

    Raises:
        TarError: there are none, or one is empty or cannot be read.
    """
    found: list[str] = []
    for address in addresses:
        found += _expand(address)
    if twice := [address for address, count in Counter(found).items() if count > 1]:
        raise TarError(f"{twice[0]} is given twice")
    sizes = _sizes(found, known)
    return TarShards(found, [sizes[address] for address in found])


def _expand(address: str) -> list[str]:
    import fsspec
    from fsspec.core import url_to_fs

    braces = _webdataset().shardlists.expand_urls(address) if "{" in address else [address]
    found: list[str] = []
    for one in braces:
        try:
            system, path = url_to_fs(one)
            if system.isdir(path):
                paths = sorted(p for p in system.glob(f"{path.rstrip('/')}/*") if p.endswith((".tar", ".tar.gz")))
            else:
                paths = sorted(system.glob(path)) if "*" in path else [path] if system.exists(path) else []
        except (OSError, ValueError, ImportError) as error:
            raise TarError(f"{one}: {error}") from None
        if not paths:
            raise TarError(f"{one}: there are no .tar files")
        local = isinstance(system, fsspec.implementations.local.LocalFileSystem)
        found += [path if local else system.unstrip_protocol(path) for path in paths]
    return found


def _sizes(addresses: list[str], known: Path | None) -> dict[str, int]:
    """Samples of each shard: from `sizes.json` in its folder, from `known`, or counted."""
    sizes: dict[str, int] = json.loads(known.read_text()) if known and known.is_file() else {}
    folders = dict.fromkeys(address.rpartition("/")[0] for address in addresses if address not in sizes)
    for folder in folders:
        own = _read(f"{folder}/{SIZES}" if folder else SIZES)
        if own is None and _read(f"{folder}/{UNFINISHED}" if folder else UNFINISHED) is not None:
            raise TarError(f"{folder}: these shards are not complete; let the command that writes them end")
        if own is None:
            continue
        if not isinstance(own, dict) or not all(isinstance(count, int) for count in own.values()):
            raise TarError(f"{folder}/{SIZES}: is not a JSON object of names and numbers of samples")
        sizes |= {f"{folder}/{name}" if folder else name: int(count) for name, count in own.items()}
    counted = [address for address in addresses if address not in sizes]
    for address in counted:
        try:
            sizes[address] = sum(1 for _ in _samples(address))
        except TarError:  # webdataset is not installed
            raise
        except Exception as error:  # as in `TarShards.read`
            raise TarError(f"{address}: cannot be read ({error}); download it again, or remove it") from None
    if known and counted:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_whole(known, json.dumps({address: sizes[address] for address in addresses}, indent=1) + "\n")
    if empty := [address for address in addresses if not sizes[address] > 0]:
        raise TarError(f"{empty[0]}: holds no samples")
    return {address: sizes[address] for address in addresses}


def _read(address: str) -> Any:
    """A JSON file, or None where there is none that can be read."""
    import fsspec

    try:
        with fsspec.open(address) as file:
            return json.loads(file.read())
    except Exception:  # as in `TarShards.read`
        return None


def _samples(address: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, parts by ending) of each sample of a shard."""
    import fsspec

    tar = _webdataset().tariterators
    with fsspec.open(address, "rb") as stream:
        files = ({**file, "__url__": address} for file in tar.tar_file_iterator(stream))
        for sample in tar.group_by_keys(files):
            yield sample["__key__"], {name: part for name, part in sample.items() if not name.startswith("__")}


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError:
        raise TarError(NEEDS_WEBDATASET) from None
    return webdataset


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_tar_shards(folder: Path, samples: Iterator[dict[str, Any]], shard_size: int) -> list[int]:
    """Writes `shard-00000.tar`, ... and `sizes.json`; returns the number of samples of each.

    Args:
        samples: ending -> content: an image, and `json` (an object) or `txt`.
        shard_size: samples in a shard; the last may have fewer.

    Raises:
        WriteError: such as on a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / UNFINISHED, "true\n")
    (folder / SIZES).unlink(missing_ok=True)
    counts: list[int] = []
    writer = _webdataset().TarWriter
    while first := next(samples, None):
        path, count = folder / f"shard-{len(counts):05d}.tar", 0
        with whole_file(path) as file, writer(file, mtime=0) as tar:
            for sample in itertools.chain([first], itertools.islice(samples, shard_size - 1)):
                tar.write({"__key__": f"{len(counts):05d}{count:06d}", **sample})
                count += 1
        counts.append(count)
    for path in sorted(folder.glob("shard-*.tar"))[len(counts) :]:  # of an earlier run with more shards
        path.unlink()
    write_whole(folder / SIZES, json.dumps({f"shard-{n:05d}.tar": c for n, c in enumerate(counts)}, indent=1) + "\n")
    (folder / UNFINISHED).unlink()
    return counts
