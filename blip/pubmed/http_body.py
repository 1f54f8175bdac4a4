"""Bodies of HTTP answers, read up to a limit of bytes and of decompression."""

import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx

from blip.errors import InputError
from blip.pubmed.failures import FetchError

PIECE = 1 << 20  # bytes that are decompressed at once
SMALL = 1 << 20  # bytes up to which no ratio of decompression is too high


class TooLarge(FetchError):
    """A body above a limit of bytes, or of decompression."""


@dataclass(frozen=True)
class Limits:
    """Of one exchange with a server: a request, the redirections that follow and the whole answer."""

    seconds: float = 600.0
    file_mb: float = 512.0  # 10^6 bytes of a file
    answer_mb: float = 32.0  # the same of a listing, of metadata or of a page of results
    ratio: float = 200.0  # bytes after decompression for each byte that was sent
    longest_wait: float = 600.0  # seconds to wait because the server asks for it (Retry-After)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < 1e9:
                raise InputError(f"{name} {value}: a limit of an exchange is above 0 and below 10^9")


async def pieces(response: httpx.Response, most: float, ratio: float) -> AsyncIterator[bytes]:
    """The body of an answer, decompressed.

    Args:
        most: bytes.
        ratio: bytes after decompression for each byte before it.

    Raises:
        TooLarge: one of these is exceeded. FetchError: it is compressed in another way than gzip, or damaged.
    """
    # the query may hold the key of a user
    where = str(response.url.copy_with(query=None, fragment=None))
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    declared = response.headers.get("Content-Length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 15 or int(declared) > most):
        raise _too_large(where, most)
    if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise FetchError(f"{where}: its compression {coding[:40]!r} was not asked for", lasting=True)
    unpacker = Unpacker() if coding not in ("", "identity") else None
    sent = size = 0
    async for chunk in response.aiter_raw():
        sent += len(chunk)
        for piece in unpacker.feed(chunk, where) if unpacker else (chunk,):
            size += len(piece)
            if size > most:
                raise _too_large(where, most)
            if size > max(SMALL, ratio * sent):
                raise TooLarge(f"{where}: {sent} bytes become more than {size}: a ratio above {ratio:g}", lasting=True)
            yield piece
    if unpacker and not unpacker.complete:
        raise FetchError(f"{where}: its compressed body is cut short", shared=True)


def _too_large(where: str, most: float) -> TooLarge:
    return TooLarge(f"{where}: larger than the limit of {most / 1e6:g} MB; raise --max_mb (files) or --max_answer_mb",
                    lasting=True)  # fmt: skip


class Unpacker:
    """Decompresses gzip (also of several members) and zlib, at most a megabyte at once."""

    def __init__(self) -> None:
        self.stream = zlib.decompressobj(wbits=47)  # 47: the header says which
        self.begun = False

    @property
    def complete(self) -> bool:
        """Whether nothing is missing; an empty body is complete."""
        return self.stream.eof or not self.begun

    def feed(self, data: bytes, where: str = "") -> Iterator[bytes]:
        """What the next bytes decompress to. FetchError where they are damaged."""
        piece = b""
        while data or len(piece) == PIECE:
            if self.stream.eof:
                self.stream = zlib.decompressobj(wbits=47)
            self.begun = True
            try:
                piece = self.stream.decompress(data, PIECE)
            except zlib.error as error:
                raise FetchError(f"{where}: its compressed body is damaged ({error})", shared=True) from None
            data = self.stream.unused_data if self.stream.eof else self.stream.unconsumed_tail
            if piece:
                yield piece
