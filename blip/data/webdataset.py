"""Webdataset shards: tar files in a folder or at any address that fsspec reads; a sample is a few files of one name.

    000000012.jpg  000000012.json       the image; {"caption": ..., "image": ..., "source": ..., "round": ...}
    000000013.png  000000013.txt        the image; its caption
    000000014.0.png  000000014.1.png    the pictures of an item of several, in the order of their numbers

`sizes.json` beside them has the number of samples of each; without it they are read through once and counted. Shards
that this package writes have their length and hash in it, too, under "bytes" and "sha256": a shard that was cut short
is found when it is opened, one that was changed when it has been read.
"""

import bisect
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.data.formats import parse_record
from blip.data.image_files import ENDINGS, SCANS
from blip.data.tar_addresses import TARS, expanded, webdataset_package
from blip.data.tar_reader import ContentBehindEnd, Digested, Stored, samples
from blip.data.tar_sizes import SIZES, UNFINISHED, Count, Shard, TarError, check_length, open_address, recorded
from blip.errors import BlipError, InputError
from blip.files import ReadError, parse_json, read_json, whole_file, write_whole

NUMBERED = re.compile(rf"\d{{1,6}}({'|'.join(map(re.escape, ENDINGS))})")  # a picture of several
TEXTS = ("txt", "text", "caption")  # endings of a caption alone
OTHER_SIZES = f"{SIZES} belongs to other shards, or this one is damaged: write them anew, or remove {SIZES}"
MAX_CAPTION = 1_000_000  # characters
RETRIES = 2  # after a broken connection, before the rest of the shard counts as unreadable


class BrokenSample(BlipError):
    """A sample without image or caption, or behind the end of a shard that is cut off."""


@dataclass
class Raw:
    """A sample as stored: the bytes of its `parts` by ending, or the problem that makes it unreadable."""

    number: int  # among the samples of all shards
    key: str
    parts: dict[str, bytes]
    problem: str = ""

    def images(self) -> list[bytes]:
        """The bytes of the image, or of the pictures of an item of several; BrokenSample where there is none."""
        if self.problem:
            raise BrokenSample(self.problem)
        for ending in (*ENDINGS, *SCANS):
            if ending[1:] in self.parts:
                return [self.parts[ending[1:]]]
        numbered = {int(part.split(".")[0]): part for part in self.parts if NUMBERED.fullmatch(part)}
        if numbered:
            return [self.parts[numbered[number]] for number in sorted(numbered)]
        raise BrokenSample(f"has no image; its parts: {', '.join(self.parts)}")

    def image(self) -> bytes:
        """The first of `images`."""
        return self.images()[0]

    def record(self) -> dict[str, Any]:
        """The annotation: `caption` is a list of texts, `image` a path or ""; BrokenSample where there is no text."""
        if self.problem:
            raise BrokenSample(self.problem)
        text = next((self.parts[ending] for ending in TEXTS if ending in self.parts), None)
        if text is None and "json" not in self.parts:
            raise BrokenSample(f"has no caption; its parts: {', '.join(self.parts)}")
        try:
            raw: dict[str, Any] = parse_json(self.parts.get("json", b"{}"), dict[str, Any], "its JSON")
            if text is not None and "caption" not in raw:
                raw["caption"] = text.decode("utf-8").strip()
            # the image is in the shard: what the record calls it, perhaps an address, is a name and no path
            _, captions, image_id = parse_record({**raw, "image": "in the shard"})
            if max(map(len, captions)) > MAX_CAPTION:
                raise InputError(f"its caption has more than {MAX_CAPTION:,} characters")
        except (ReadError, ValueError) as error:  # ValueError: of UTF-8 too
            raise BrokenSample(str(error)) from None
        return {**raw, "caption": captions, "image_id": image_id}


def is_tar_address(path: str) -> bool:
    """Whether training data at `path` are webdataset shards: `TARS`, a folder of them, or a remote address."""
    if "://" in path or path.endswith(TARS):
        return True
    folder = Path(path)
    return folder.is_dir() and any(child.name.endswith(TARS) for child in folder.iterdir())


# ---- reading ---------------------------------------------------------------------------------------------------------


class TarShards:
    """All shards of a data set, in the order of their names, and the number of samples of each."""

    def __init__(self, addresses: Sequence[str], counts: Sequence[int], hashes: Sequence[str] = ()):
        """`counts` of each address; numbers of samples run through all of them. `hashes`: "" where none is known."""
        self.addresses, self.counts = list(addresses), list(counts)
        self.ends = list(itertools.accumulate(counts))
        self.hashes = list(hashes) or [""] * len(self.addresses)  # SHA-256 of those that were not read through yet

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

        Raises:
            TarError: the shard holds more samples or fewer than its count, or has another hash than it was written
                with.
        """
        address, first, count, place, tries = self.addresses[shard], self.first(shard), self.counts[shard], start, 0
        problem = ""
        while place < count and tries <= RETRIES:
            digest = hashlib.sha256() if place == 0 and self.hashes[shard] else None
            try:
                found = _samples(address, place, digest)
                for sample in itertools.islice(found, count - place):
                    if place == count - 1:  # before it is given away: the reader may not ask for more
                        self._check_end(shard, found, digest)
                    yield Raw(first + place, sample.key, sample.parts, sample.problem)
                    place, tries = place + 1, 0
            except TarError:  # of `_check_end`; or a package is not installed
                raise
            except Exception as error:  # the libraries behind fsspec raise errors of many kinds
                problem = f"the shard cannot be read ({error or type(error).__name__})"
                tries += 1
            else:
                if place < count:
                    raise TarError(f"{address}: holds {place} samples, not {count} as recorded; {OTHER_SIZES}")
        for number in range(place, count):
            yield Raw(first + number, "", {}, problem)

    def _check_end(self, shard: int, found: Iterator[Stored], digest: Any) -> None:
        """TarError unless a shard has no more samples than its count, nothing behind its end mark, and its hash."""
        address = self.addresses[shard]
        try:
            more = next(found, None)
        except TarError:
            raise
        except Exception:  # what follows the last sample does not matter
            return
        if more is not None:
            raise TarError(f"{address}: holds more than the {self.counts[shard]} samples as recorded; {OTHER_SIZES}")
        if digest is not None and digest.hexdigest() != self.hashes[shard]:
            raise TarError(f"{address}: has changed since it was written, or is damaged: write it anew")
        if digest is not None:
            self.hashes[shard] = ""  # once is enough


def open_shards(addresses: Sequence[str], known: Path | None = None) -> TarShards:
    """The shards at these addresses: folders, .tar files, patterns (`*`, `{00..12}`), local or remote.

    Args:
        addresses: each as fsspec reads it, such as /data/pairs, /data/p-{000..099}.tar, s3://bucket/pairs/*.tar.
        known: a file that keeps the counts of shards without `sizes.json`, so that they are counted once.

    Raises:
        TarError: there are none, or one is empty, cut short or cannot be read.
        ReadError: `sizes.json` or `known` is damaged.
    """
    found: list[str] = []
    for address in addresses:
        found += expanded(address)
    if twice := [address for address, count in Counter(found).items() if count > 1]:
        raise TarError(f"{twice[0]} is given twice")
    shards = _known(found, known)
    for address in found:
        check_length(address, shards[address])
    listed = [shards[address] for address in found]
    return TarShards(found, [shard.samples for shard in listed], [shard.sha256 for shard in listed])


def _known(addresses: list[str], known: Path | None) -> dict[str, Shard]:
    """What is known of each shard: from `sizes.json` in its folder, from `known`, or counted."""
    before = read_json(known, dict[str, Count]) if known and known.is_file() else {}
    shards = {address: Shard(count) for address, count in before.items()}
    for folder in dict.fromkeys(address.rpartition("/")[0] for address in addresses if address not in shards):
        shards |= recorded(folder)
    counted = [address for address in addresses if address not in shards]
    for address in counted:
        try:
            shards[address] = Shard(sum(1 for _ in _samples(address)))
        except TarError:  # a package is not installed
            raise
        except Exception as error:  # as in `TarShards.read`
            raise TarError(f"{address}: cannot be read ({error}); download it again, or remove it") from None
    if known and counted:
        write_whole(known, json.dumps({address: shards[address].samples for address in addresses}, indent=1) + "\n")
    if empty := [address for address in addresses if not shards[address].samples > 0]:
        raise TarError(f"{empty[0]}: holds no samples")
    return shards


def _samples(address: str, start: int | None = None, digest: Any = None) -> Iterator[Stored]:
    """The samples of a shard from `start` on, None: without their content; `digest` gets all bytes of the shard.

    TarError where it goes on behind its end mark.
    """
    with open_address(address) as file:
        whole = Digested(file, digest)
        try:
            yield from samples(whole if digest else file, start)
        except ContentBehindEnd as error:
            raise TarError(f"{address}: {error}") from None
        whole.finish()


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_tar_shards(folder: Path, samples: Iterator[dict[str, Any]], shard_size: int) -> list[int]:
    """Writes `shard-00000.tar`, ... and `sizes.json`; returns the number of samples of each.

    Shards of an earlier run, which its `sizes.json` names, are removed where this one has fewer.

    Args:
        samples: ending -> content: an image, and `json` (an object) or `txt`.
        shard_size: samples in a shard; the last may have fewer.

    Raises:
        WriteError: such as on a full disk.
    """
    writer, counts = webdataset_package().TarWriter, list[int]()
    about: dict[str, dict[str, Any]] = {"bytes": {}, "sha256": {}}
    ours = {*_names_in(folder / SIZES), *_names_in(folder / UNFINISHED)}
    while first := next(samples, None):
        path, count, digest = folder / shard_name(len(counts)), 0, hashlib.sha256()
        ours.add(path.name)
        write_whole(folder / UNFINISHED, json.dumps(sorted(ours)) + "\n")
        (folder / SIZES).unlink(missing_ok=True)
        with whole_file(path) as file, writer(Digested(file, digest), mtime=0) as tar:
            for sample in itertools.chain([first], itertools.islice(samples, shard_size - 1)):
                tar.write({"__key__": f"{len(counts):05d}{count:06d}", **sample})
                count += 1
        about["bytes"][path.name], about["sha256"][path.name] = path.stat().st_size, digest.hexdigest()
        counts.append(count)
    sizes = {shard_name(number): count for number, count in enumerate(counts)}
    for name in ours - sizes.keys():
        (folder / name).unlink(missing_ok=True)
    write_whole(folder / SIZES, json.dumps({**sizes, **about}, indent=1) + "\n")
    (folder / UNFINISHED).unlink(missing_ok=True)
    return counts


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def _names_in(file: Path) -> list[str]:
    """The names of shards as this package gives, or gave, them in a `sizes.json` or in the mark of unfinished ones."""
    try:
        names: object = read_json(file, object)
    except ReadError:
        return []
    if names is True:  # the mark of earlier versions
        return [path.name for path in file.parent.glob("shard-?????.tar")]
    listed = names if isinstance(names, dict | list) else []
    return [name for name in listed if isinstance(name, str) and re.fullmatch(r"(shard-)?\d+\.tar", name)]
