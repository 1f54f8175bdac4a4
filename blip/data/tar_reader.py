"""The samples of a tar file, read once from front to back, in bounded memory whatever the file holds.

A sample is all files of one name that follow one another; it is known by that name, its parts by their endings. A file
that cannot be used costs its sample alone. Where the next header cannot be found, the rest of the tar file is lost.
"""

import bz2
import gzip
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

MAX_PART = 1 << 28  # bytes of a file that is read
MAX_PASSED = 1 << 32  # bytes of a file that is passed over; behind a larger one, nothing is looked for
MAX_END = 1 << 30  # bytes of zeros behind the end mark; tar programs write some thousand
MAX_HEADER = 1 << 20  # bytes that describe one file
CHUNK = 1 << 20  # bytes
NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # folders and name, endings
HIDDEN = re.compile(r"__[^/]*__(/|$)")  # facts about the tar file, as webdataset writes them
OPENERS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class ContentBehindEnd(tarfile.ReadError):
    """A tar file that goes on behind its end mark."""


@dataclass
class Stored:
    """The files of a sample by their endings, or the problem that makes it unreadable."""

    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""


def samples(file: Any, start: int | None = 0) -> Iterator[Stored]:
    """The samples of a tar file, which may be compressed, from `start` on; None: of no sample the content is read.

    `file` is open for reading bytes, and can go back to its start.

    Raises:
        tarfile.TarError: the file ends before its end mark, goes on behind it, or holds something else than files
            with their headers.
        OSError, EOFError, ValueError and others: the compression is damaged, or the connection is.
    """
    stream = _Forward(_uncompressed(file))
    number, current = -1, Stored("")
    for member, name in _members(stream):
        if not (match := NAME.fullmatch(name)):
            continue
        key, ending = match[1], match[2].lower()
        if key != current.key or number < 0:
            if start is not None and number >= start:
                yield current
            elif start is None and number >= 0:
                yield Stored(current.key)
            number, current = number + 1, Stored(key)
        if problem := _problem(member, ending in current.parts):
            current.problem = current.problem or f"{name} {problem}"
        elif start is not None and number >= start:
            current.parts[ending] = _content(stream, member)
        else:
            current.parts[ending] = b""
    if number >= 0 and (start is None or number >= start):
        yield current


def _problem(member: tarfile.TarInfo, twice: bool) -> str:
    if member.issparse():
        return "is a sparse file, which no image is"
    if member.size > MAX_PART:
        return f"has {member.size:,} bytes; at most {MAX_PART:,} are read"
    return "occurs twice" if twice else ""


def _members(stream: "_Forward") -> Iterator[tuple[tarfile.TarInfo, str]]:
    """(a file's header, its name) of each file; `stream` is at its content."""
    stream.budget = MAX_HEADER
    tar = tarfile.TarFile(fileobj=stream, encoding="utf-8")  # type: ignore[arg-type]
    while member := tar.next():
        if member.size < 0 or tar.offset < stream.tell():
            raise tarfile.ReadError(f"{member.name}: a header with impossible sizes")
        if member.isreg() and not HIDDEN.match(member.name):
            yield member, member.name
        if tar.offset - stream.tell() > MAX_PASSED:
            raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes; nothing is looked for behind it")
        tar.members = []  # type: ignore[attr-defined]  # it would list all of them
        stream.budget = MAX_HEADER
    if stream.last.strip(b"\0") or len(stream.last) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without the end mark of a tar file: it is cut short or damaged")
    _check_rest(stream)


def _content(stream: "_Forward", member: tarfile.TarInfo) -> bytes:
    stream.budget = MAX_PART
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    if len(content) < member.size:
        raise tarfile.ReadError(f"it ends within {member.name}: it is cut short")
    return content


def _check_rest(stream: "_Forward") -> None:
    """ContentBehindEnd unless zeros alone follow the end mark: files behind it would be left out unnoticed."""
    end = stream.tell() + MAX_END
    while True:
        stream.budget = CHUNK
        piece = stream.read(CHUNK)
        if piece.strip(b"\0") or stream.tell() > end:
            raise ContentBehindEnd(
                "more follows the end mark of a tar file, as after joining two of them by `cat`: give the two as "
                "shards of their own, or join them by `tar --concatenate`"
            )
        if not piece:
            return


class _Forward:
    """A file that `tarfile` reads from front to back, a limited number of bytes at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.position = file, 0
        self.budget = 0  # bytes that may still be read
        self.last = b""  # what was read last

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.budget:
            raise tarfile.ReadError("a header that is too long")
        self.budget -= max(size, 1)  # at the end of the file, too: some loops of `tarfile` wait for bytes
        found = []
        while size > 0 and (piece := self.file.read(min(size, CHUNK))):  # remote files give less than asked for
            found.append(piece)
            size -= len(piece)
        self.last = b"".join(found)
        self.position += len(self.last)
        return self.last

    def seek(self, position: int) -> None:
        """Passes over the bytes before `position`, which lies ahead."""
        if position < self.position:
            raise tarfile.ReadError("a header that points back")
        while self.position < position and (piece := self.file.read(min(position - self.position, CHUNK))):
            self.position += len(piece)


class Digested:
    """A file that is read or written from front to back, whose bytes go into a hash on the way."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self.file, self.digest = file, digest
        self.position = self.done = 0  # bytes that were read, and those that are in the hash

    def read(self, size: int) -> bytes:
        piece = self.file.read(size)
        self.position += len(piece)
        if new := self.position - self.done:
            self.digest.update(piece[-new:])
            self.done = self.position
        return piece

    def seek(self, position: int) -> None:
        """Back to what was read before, as for the first bytes, which show the kind of a file."""
        self.position = self.file.seek(position)

    def write(self, piece: bytes) -> int:
        self.digest.update(piece)
        return self.file.write(piece)

    def finish(self) -> None:
        """Reads the rest."""
        while self.digest and self.read(CHUNK):
            pass


def _uncompressed(file: Any) -> Any:
    """The file, or its content where it is compressed as its first bytes show."""
    head = file.read(6)
    file.seek(0)
    for mark, opener in OPENERS.items():
        if head.startswith(mark):
            return opener(file)
    return file
