"""HTTP as public servers wish it: a rate kept by all workers together, patience with errors, whole bodies or none."""

import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from blip.errors import BlipError, InputError

log = logging.getLogger(__name__)
T = TypeVar("T")
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # answers that may be others later


class FetchError(BlipError):
    """A request that did not succeed; the message says why.

    `lasting`: trying again is no use. `shared`: others would fail as well, as the server or the network is at fault.
    """

    def __init__(self, message: str, lasting: bool = False, shared: bool = False) -> None:
        super().__init__(message)
        self.lasting, self.shared = lasting, shared


class Mismatch(FetchError):
    """A body that is not what its checksum promises."""


class Rate:
    """At most so many starts a second over all threads that ask it: one slot every 1 / rate seconds."""

    def __init__(self, per_second: float) -> None:
        if per_second <= 0:
            raise InputError(f"a rate of {per_second} requests a second")
        self.step, self.next, self.lock = 1 / per_second, 0.0, threading.Lock()

    def wait(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Returns when this thread may ask."""
        with self.lock:
            at = max(self.next, time.monotonic())
            self.next = at + self.step
        sleep(max(0.0, at - time.monotonic()))

    def pause(self, seconds: float) -> None:
        """Nobody asks for so long: the server said that it is asked too much."""
        with self.lock:
            self.next = max(self.next, time.monotonic() + seconds)


@dataclass
class Patience:
    """How long to wait and how often to try."""

    tries: int = 6
    first: float = 1.0  # seconds before the second try, doubled before each further one
    longest: float = 120.0
    timeout: float = 30.0  # seconds without a byte

    def before(self, attempt: int) -> float:
        """Seconds before try number `attempt` (from 1), spread so that workers do not come back together."""
        return min(self.longest, self.first * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


class Client:
    """Asks one server. Setting `stop` ends all waiting: every request under way raises FetchError.

    Args:
        rate: requests a second, over all threads.
        agent: what it calls itself, with an address to write to.
    """

    def __init__(self, rate: float, patience: Patience | None = None, agent: str = "blip-pubmed") -> None:
        self.rate, self.patience = Rate(rate), patience or Patience()
        self.http = httpx.Client(timeout=self.patience.timeout, follow_redirects=True, headers={"User-Agent": agent})
        self.requests = 0
        self.stop = threading.Event()

    def close(self) -> None:
        self.http.close()

    def get(self, url: str, params: dict[str, Any] | None = None) -> bytes:
        """The whole body; FetchError when all tries have failed, or at once where trying again is no use."""
        return self.get_tagged(url, params)[0]

    def get_tagged(self, url: str, params: dict[str, Any] | None = None) -> tuple[bytes, str]:
        """The body and the ETag that the server gives it, "" where it gives none."""

        def read(response: httpx.Response) -> tuple[bytes, str]:
            return response.read(), response.headers.get("ETag", "").strip('"')

        return self._try(url, params, read)

    def download(self, url: str, out: Path, md5: str = "") -> str:
        """Writes a body to a file, which has its name only when it is whole; returns its MD5.

        Raises:
            FetchError: all tries failed, or the body is not what `md5` promises.
        """
        partial = out.with_name(out.name + ".partial")

        def write(response: httpx.Response) -> str:
            digest = hashlib.md5(usedforsecurity=False)
            with open(partial, "wb") as file:
                for chunk in response.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if md5 and digest.hexdigest() != md5:
                raise Mismatch(f"{url}: its MD5 is {digest.hexdigest()}, not {md5}")
            return digest.hexdigest()

        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = self._try(url, None, write)
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
        return found

    def _try(self, url: str, params: dict[str, Any] | None, use: Callable[[httpx.Response], T]) -> T:
        error = FetchError(url)
        for attempt in range(1, self.patience.tries + 1):
            self.rate.wait(self.stop.wait)
            if self.stop.is_set():
                raise FetchError(f"{url}: stopped", shared=True)
            with self.rate.lock:
                self.requests += 1
            wait = self.patience.before(attempt)
            try:
                with self.http.stream("GET", url, params=params) as response:
                    if response.status_code == 200:
                        return use(response)
                    said = f"{url}: the server answers {response.status_code} {response.reason_phrase}"
                    error = FetchError(said, lasting=response.status_code in (404, 410), shared=True)
                    if response.status_code not in AGAIN:
                        raise error
                    wait = max(wait, _asked_for(response))
                    if response.status_code in (429, 503):
                        self.rate.pause(wait)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as wrong:
                raise FetchError(f"{url}: no address ({wrong})", lasting=True, shared=True) from None
            except httpx.HTTPError as broken:  # cut short, silent, refused
                error = FetchError(f"{url}: {type(broken).__name__} {broken}".rstrip(), shared=True)
            except Mismatch as wrong:
                error = wrong
            log.info("%s; try %d of %d", error, attempt, self.patience.tries)
            if attempt < self.patience.tries:
                self.stop.wait(wait)
        raise type(error)(f"{error} ({self.patience.tries} tries)", shared=error.shared)


def _asked_for(response: httpx.Response) -> float:
    """Seconds that the server asks us to wait, 0 where it says nothing that we understand, 600 at most."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), 600.0) if text.isdigit() else 0.0
