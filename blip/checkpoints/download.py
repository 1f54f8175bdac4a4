"""One file of an address, in the cache of this package: BLIP_CACHE, else `blip` in XDG_CACHE_HOME or ~/.cache.

A download that was interrupted continues where it ended, by this process or a later one. The file gets its name when
it is complete; its address, size and SHA-256 are kept beside it.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import httpx
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from blip.checkpoints.exchange import About, Passing, beside, digest, part, read_about, write_about
from blip.errors import InputError, note
from blip.files import rename_whole
from blip.hub.names import Address, RemoteError

ENDINGS = (".pth", ".pt", ".bin")  # of files of weights; a safetensors file needs the others of its folder
TRIES, UNREACHED = 6, 3  # tries in a row that bring nothing; the same where the server is not reached
FIRST_DELAY, SILENCE = 1.0, 30.0  # seconds before the second try, doubled for each further one; seconds without a byte


def cache() -> Path:
    """The folder of fetched files."""
    place = os.environ.get("BLIP_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(place) if place else Path(base) / "blip").expanduser()


def fetch(address: Address, similar: Callable[[str], str] = lambda _: "") -> tuple[Path, str]:
    """(the file of an address in the cache, its SHA-256); it is not fetched again while it is there.

    Args:
        similar: the end of a message about a file that the server does not have, from its name.

    Raises:
        RemoteError: it cannot be had, or is not the file of the given hash.
        InputError: it is no file of weights.
    """
    path = _place(address)
    if (known := _known(path, address)) is None:
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            raise RemoteError(f"{address} is not in {cache()}, and HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            known = _known(path, address) or _download(address, path, similar)
    return path, known.sha256


def _place(address: Address) -> Path:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", unquote(address.file)).lstrip(".")[-100:]
    if not name.endswith(ENDINGS):
        raise InputError(f"{address.url}: a file of weights ends in {', '.join(ENDINGS)}; {name or 'this'} does not")
    return cache() / "weights" / hashlib.sha256(address.url.encode()).hexdigest()[:16] / name


def _known(path: Path, address: Address) -> About | None:
    """What is known of the file in the cache; None where it is absent, was changed, or is not the wanted one."""
    about = read_about(path)
    if about is None or not path.is_file() or about.url != address.url:
        return None
    found = path.stat()
    touched = (found.st_size, found.st_mtime_ns) != (about.size, about.modified)
    if touched and (found.st_size != about.size or digest(path).hexdigest() != about.sha256):
        return None
    return about if address.sha256 in ("", about.sha256) else None


class _alone:
    """Within this block no other process fetches the same file; one that does is waited for."""

    def __init__(self, path: Path) -> None:
        self.lock, self.name = FileLock(str(path.with_name(f"{path.name}.lock"))), path.name

    def __enter__(self) -> None:
        try:
            self.lock.acquire(timeout=1)
        except Timeout:
            note(f"another process is fetching {self.name}: waiting for it")
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _download(address: Address, path: Path, similar: Callable[[str], str]) -> About:
    """Fetches the file in as many tries as it takes, as long as each brings something."""
    partial, failures = path.with_name(f"{path.name}.partial"), 0
    note(f"fetching {address.url}")
    with _progress() as progress, _client() as client:
        bar = progress.add_task(path.name, total=None)

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total if total >= 0 else None)

        while True:
            before = _size(partial)
            try:
                about = part(client, address, partial, similar=similar, show=show)
                break
            except (httpx.TransportError, Passing) as error:
                if isinstance(error, Passing) and error.fresh:
                    partial.unlink(missing_ok=True)
                now = _size(partial)
                failures = 1 if now > before else failures + 1
                if failures >= (UNREACHED if isinstance(error, httpx.ConnectError) else TRIES):
                    kept = f"; {now:,} bytes have arrived and are kept" if now else ""
                    kind = "" if isinstance(error, Passing) else f"{type(error).__name__}: "
                    raise RemoteError(
                        f"{address.url} could not be fetched ({kind}{error}){kept}: start the command again, or fetch "
                        "the file by other means and give its path"
                    ) from error
                time.sleep(FIRST_DELAY * 2 ** (failures - 1))
            except httpx.InvalidURL as error:
                raise InputError(f"{address.url} is no address: {error}") from error
    return _finish(address, partial, path, about)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _finish(address: Address, partial: Path, path: Path, about: About) -> About:
    """Checks the complete file and gives it its name."""
    about.sha256, about.size = digest(partial).hexdigest(), partial.stat().st_size
    if address.sha256 and about.sha256 != address.sha256:
        partial.unlink()
        raise RemoteError(
            f"{address.url} is another file than before: its sha256 is {about.sha256}, expected was "
            f"{address.sha256}; to take this one, give the address without #sha256="
        )
    rename_whole(partial, path)
    about.modified = path.stat().st_mtime_ns
    write_about(path, about)
    beside(partial).unlink(missing_ok=True)
    note(f"{about.size:,} bytes, sha256 {about.sha256}: {path}")
    return about


def _client() -> httpx.Client:
    head = {"User-Agent": "blip", "Accept-Encoding": "identity"}
    return httpx.Client(timeout=SILENCE, follow_redirects=False, headers=head)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
