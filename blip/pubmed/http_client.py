"""A rate-limited HTTP client with retries, for public servers. A download is a whole file or none."""

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from blip.errors import BlipError, InputError
from blip.files import whole_file

log = logging.getLogger(__name__)
T = TypeVar("T")
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # status codes after which a request may succeed later
OVERLOADED = (429, 503)  # status codes after which all threads wait
LONGEST_RETRY_AFTER = 600.0  # seconds


class FetchError(BlipError):
    """A request that did not succeed.

    Attributes:
        lasting: another attempt would fail too.
        shared: requests for other addresses may fail too, because the server or the network is at fault.
    """

    def __init__(self, message: str, *, lasting: bool = False, shared: bool = False) -> None:
        super().__init__(message)
        self.lasting, self.shared = lasting, shared


class Mismatch(FetchError):
    """A body whose checksum is wrong."""


class RateLimit:
    """At most so many requests a second over all threads: one slot every 1 / rate seconds."""

    def __init__(self, per_second: float) -> None:
        if per_second <= 0:
            raise InputError(f"a rate of {per_second} requests a second")
        self.step, self.next, self.lock = 1 / per_second, 0.0, threading.Lock()

    def wait(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Waits for the next free slot."""
        with self.lock:
            at = max(self.next, time.monotonic())
            self.next = at + self.step
        sleep(max(0.0, at - time.monotonic()))

    def pause(self, seconds: float) -> None:
        """Delays the next slot, because the server is overloaded."""
        with self.lock:
            self.next = max(self.next, time.monotonic() + seconds)


@dataclass
class RetryPolicy:
    """How often to try, and how long to wait."""

    tries: int = 6
    first_delay: float = 1.0  # seconds before the second attempt, doubled before each further one
    longest_delay: float = 120.0  # seconds
    timeout: float = 30.0  # seconds without a byte

    def delay(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` (from 1), randomised so that workers do not retry at once."""
        return min(self.longest_delay, self.first_delay * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


class Client:
    """Sends requests to one server. Setting `stop` ends all waiting: every request in progress raises FetchError.

    Args:
        rate: requests a second, over all threads.
        retry: how often to try; the defaults of `RetryPolicy` without.
        agent: the User-Agent, with an address for questions.
    """

    def __init__(self, rate: float, retry: RetryPolicy | None = None, agent: str = "blip-pubmed") -> None:
        self.rate, self.retry = RateLimit(rate), retry or RetryPolicy()
        self.http = httpx.Client(timeout=self.retry.timeout, follow_redirects=True, headers={"User-Agent": agent})
        self.requests = 0
        self.stop = threading.Event()

    def close(self) -> None:
        self.http.close()

    def get(self, url: str, params: dict[str, Any] | None = None) -> bytes:
        """The whole body. FetchError after the last attempt, or at once where another attempt would fail too."""
        return self.get_tagged(url, params)[0]

    def get_tagged(self, url: str, params: dict[str, Any] | None = None) -> tuple[bytes, str]:
        """The body and its ETag, "" where the server sends none. FetchError as in `get`."""

        def read(response: httpx.Response) -> tuple[bytes, str]:
            return response.read(), response.headers.get("ETag", "").strip('"')

        return self._request(url, params, read)

    def download(self, url: str, out: Path, md5: str = "") -> str:
        """Writes a body to a file, which gets its name when it is complete; returns the MD5 of the body.

        Args:
            md5: the expected MD5, if it is known.

        Raises:
            FetchError: all attempts failed, or the MD5 is not the expected one.
            WriteError: the file cannot be written.
        """

        def write(response: httpx.Response) -> str:
            digest = hashlib.md5(usedforsecurity=False)
            with whole_file(out) as file:
                for chunk in response.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
                if md5 and digest.hexdigest() != md5:
                    raise Mismatch(f"{url}: its MD5 is {digest.hexdigest()}, not {md5}")
            return digest.hexdigest()

        out.parent.mkdir(parents=True, exist_ok=True)
        return self._request(url, None, write)

    def _request(self, url: str, params: dict[str, Any] | None, use: Callable[[httpx.Response], T]) -> T:
        """What `use` returns for the response with status 200."""
        error = FetchError(url)
        for attempt in range(1, self.retry.tries + 1):
            self.rate.wait(self.stop.wait)
            if self.stop.is_set():
                raise FetchError(f"{url}: stopped", shared=True)
            with self.rate.lock:
                self.requests += 1
            delay = self.retry.delay(attempt)
            try:
                with self.http.stream("GET", url, params=params) as response:
                    if response.status_code == 200:
                        return use(response)
                    answer = f"{url}: the server answers {response.status_code} {response.reason_phrase}"
                    error = FetchError(answer, lasting=response.status_code in (404, 410), shared=True)
                    if response.status_code not in TEMPORARY:
                        raise error
                    delay = max(delay, _retry_after(response))
                    if response.status_code in OVERLOADED:
                        self.rate.pause(delay)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as wrong:
                raise FetchError(f"{url}: no address ({wrong})", lasting=True, shared=True) from None
            except httpx.HTTPError as broken:  # the body was cut short, the server is silent or refuses
                error = FetchError(f"{url}: {type(broken).__name__} {broken}".rstrip(), shared=True)
            except Mismatch as wrong:
                error = wrong
            log.info("%s; try %d of %d", error, attempt, self.retry.tries)
            if attempt < self.retry.tries:
                self.stop.wait(delay)
        raise type(error)(f"{error} ({self.retry.tries} tries)", shared=error.shared)


def _retry_after(response: httpx.Response) -> float:
    """The seconds of the header Retry-After, limited; 0 where it is absent or a date."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), LONGEST_RETRY_AFTER) if text.isdigit() else 0.0
