"""One request for a file of an address: the whole, or the rest of a part that has arrived."""

import hashlib
import re
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from blip.files import ReadError, json_text, read_json, write_error, write_whole
from blip.hub.names import Address, RemoteError, check_scheme

MAX_BYTES = 64 << 30
REDIRECTIONS = 5
PASSING = (408, 425, 429, 500, 502, 503, 504)  # status codes after which a request may succeed later


class About(BaseModel):
    """What is known of a file in the cache, or of a part of one."""

    url: str
    size: int = -1  # bytes of the whole; -1: not known
    sha256: str = ""
    version: str = ""  # what the server calls this content: a strong ETag
    modified: int = 0  # nanoseconds, of the file in the cache


class Passing(Exception):
    """A failure after which another try may succeed; `fresh`: what has arrived is of no use."""

    def __init__(self, text: str, *, fresh: bool = False) -> None:
        super().__init__(text)
        self.fresh = fresh


def beside(path: Path) -> Path:
    """Where it is written what is known of a file, or of a part of one."""
    return path.with_name(f"{path.name}.json")


def read_about(path: Path) -> About | None:
    """What is known of a file; None where nothing is."""
    try:
        return read_json(beside(path), About, 1 << 16)
    except ReadError:
        return None


def write_about(path: Path, about: About) -> None:
    write_whole(beside(path), json_text(about.model_dump()))


def digest(path: Path, kind: str = "sha256") -> Any:
    """The hash of a file, of `hashlib`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=kind == "sha256"))


def part(
    client: httpx.Client, address: Address, partial: Path, *, similar: Callable[[str], str], show: Callable
) -> About:
    """One request: the file from where the last one ended, or all of it. Passing where another try may help."""
    about = read_about(partial)
    start = partial.stat().st_size if partial.is_file() and about and about.url == address.url and about.version else 0
    head = {"Range": f"bytes={start}-", "If-Range": about.version} if start and about else {}
    if start and about and start == about.size:  # ended between the last byte and the name
        return about
    with _answer(client, address, head) as response:
        status = response.status_code
        if status == 416:
            raise Passing("the server refuses to continue (416)", fresh=True)
        if status not in (200, 206):
            raise _refusal(address, response, similar)
        if status == 206:
            about = about or About(url=address.url)
            total = _continued(response, start, about)
        else:
            start, total = 0, int(length) if (length := response.headers.get("Content-Length", "")).isdecimal() else -1
        _check_content(address, response, total, total - start, partial.parent)
        tag = response.headers.get("ETag", "")
        version = tag if tag.startswith('"') and tag.isascii() else ""
        about = About(url=address.url, size=total, version=version)
        write_about(partial, about)
        _store(response, partial, start, lambda done: show(done, total), address)
        if total >= 0 and partial.stat().st_size != total:
            raise Passing(f"the connection ended after {partial.stat().st_size:,} of {total:,} bytes")
        _check_md5(response, partial)
        return about


@contextmanager
def _answer(client: httpx.Client, address: Address, head: dict[str, str]) -> Iterator[httpx.Response]:
    """The answer to a request, after redirections, none of which may lead to an address without encryption."""
    request = client.build_request("GET", address.url, headers=head)
    for _ in range(REDIRECTIONS + 1):
        response = client.send(request, stream=True)
        try:
            if response.next_request is None:
                yield response
                return
            check_scheme(str(response.next_request.url), address.sha256)
            request = response.next_request
        finally:
            response.close()
    raise RemoteError(f"{address.url} leads through more than {REDIRECTIONS} redirections")


def _continued(response: httpx.Response, start: int, about: About) -> int:
    """The size of the whole file, of which a part follows; Passing where the part is not the one asked for."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", ""))
    if not start or not match or int(match[1]) != start or about.size not in (-1, int(match[3])):
        raise Passing("the server sends another part than asked for", fresh=True)
    return int(match[3])


def _check_content(address: Address, response: httpx.Response, total: int, rest: int, folder: Path) -> None:
    if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise RemoteError(f"{address.url}: the server sends it compressed, which was not asked for")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise RemoteError(f"{address.url} is a web page, not a file of weights: give the address of the file itself")
    if total > MAX_BYTES:
        raise RemoteError(f"{address.url} has {total:,} bytes; at most {MAX_BYTES:,} are fetched")
    if rest > (free := shutil.disk_usage(folder).free):
        raise RemoteError(
            f"{address.url}: {rest:,} bytes are to come, and {folder} has room for {free:,}: set BLIP_CACHE"
        )


def _store(response: httpx.Response, partial: Path, start: int, show: Callable, address: Address) -> None:
    try:
        with open(partial, "r+b" if start else "wb") as file:
            file.seek(start)
            for piece in response.iter_raw():
                start += len(piece)
                if start > MAX_BYTES:
                    raise RemoteError(f"{address.url} has more than {MAX_BYTES:,} bytes")
                file.write(piece)
                show(start)
    except OSError as error:
        raise write_error(partial, error) from error


def _check_md5(response: httpx.Response, partial: Path) -> None:
    """Passing where the server states another MD5 of the whole file, as Google's storage does."""
    stated = re.search(r"\bmd5=([A-Za-z0-9+/]{22}==)", response.headers.get("x-goog-hash", ""))
    if stated and b64encode(digest(partial, "md5").digest()).decode() != stated[1]:
        raise Passing("what arrived is damaged: its MD5 is not the stated one", fresh=True)


def _refusal(address: Address, response: httpx.Response, similar: Callable[[str], str]) -> Exception:
    status = response.status_code
    if status in PASSING:
        return Passing(f"the server answers {status}")
    reason = {
        401: "it asks for a password: download the file with a browser and give its path",
        403: "access is forbidden: download the file with a browser and give its path",
        404: f"there is no such file{similar(address.file)}",
        410: f"the file is gone{similar(address.file)}",
    }.get(status, "give another address")
    return RemoteError(f"{address.url}: the server answers {status}: {reason}")
