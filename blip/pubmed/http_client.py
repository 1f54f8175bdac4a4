"""A rate-limited HTTP client with retries, for public servers. A download is a whole file or none.

Exchanges run in an event loop of their own thread, where a deadline or Ctrl-C ends each of them at any point: during
the connection, headers that never end, or a body of one byte a second.
"""

import asyncio
import concurrent.futures
import contextlib
import hashlib
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar

import httpx

from blip.errors import InputError
from blip.files import whole_file
from blip.pubmed.failures import Absent, FetchError
from blip.pubmed.http_body import Limits, pieces

log = logging.getLogger(__name__)
T = TypeVar("T")
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # status codes after which a request may succeed later
ABSENT = (404, 410)  # status codes of what does not exist
OVERLOADED = (429, 503)  # status codes after which all threads wait
REDIRECTIONS = 5
CLOSING = 5.0  # seconds for the connections to close


class Mismatch(FetchError):
    """A body whose checksum is wrong."""


class TooSlow(FetchError):
    """An exchange that exceeded its total time."""


@lru_cache
def _certificates() -> ssl.SSLContext:
    """What httpx trusts, read once for all clients: it takes a tenth of a second."""
    return httpx.create_ssl_context()


class RateLimit:
    """At most so many requests a second over all threads: one slot every 1 / rate seconds."""

    def __init__(self, per_second: float) -> None:
        if not 1e-6 <= per_second <= 1e6:
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
    """Sends requests to one server. Several threads may use it; `abort` ends whatever they wait for with a FetchError.

    Args:
        rate: requests a second, over all threads.
        retry: how often to try; the defaults of `RetryPolicy` without.
        agent: the User-Agent, with an address for questions.
        limits: of each exchange; the defaults of `Limits` without.
    """

    def __init__(self, rate: float, retry: RetryPolicy | None = None, agent: str = "blip-pubmed", *,
                 limits: Limits | None = None) -> None:  # fmt: skip
        self.rate, self.retry, self.limits = RateLimit(rate), retry or RetryPolicy(), limits or Limits()
        self.http = httpx.AsyncClient(
            verify=_certificates(),
            timeout=self.retry.timeout,
            follow_redirects=True,
            max_redirects=REDIRECTIONS,
            headers={"User-Agent": agent.encode("ascii", "replace").decode(), "Accept-Encoding": "identity"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept
        )
        self.requests = 0
        self.stop = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="blip-pubmed-http", daemon=True)
        self.thread.start()

    def abort(self) -> None:
        """Ends every exchange and every wait for the next one."""
        self.stop.set()
        self.loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

    def close(self) -> None:
        """Ends all exchanges and closes the connections."""
        if self.loop.is_closed():
            return
        self.abort()
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._finish(), self.loop).result(CLOSING)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(CLOSING)
        if not self.thread.is_alive():
            self.loop.close()

    async def _finish(self) -> None:
        """Closes the connections, and bodies that were not read to their end: asyncio prints those that are left."""
        await self.http.aclose()
        await self.loop.shutdown_asyncgens()
        others = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    def get(self, url: str, params: dict[str, Any] | None = None) -> bytes:
        """The whole body. FetchError after the last attempt, or at once where another attempt would fail too."""
        return self.get_tagged(url, params)[0]

    def get_tagged(self, url: str, params: dict[str, Any] | None = None) -> tuple[bytes, str]:
        """The body and its ETag, "" where the server sends none of a usual form. FetchError as in `get`."""

        def read(send: "Send") -> tuple[bytes, str]:
            body = bytearray()
            response = send(body.extend, self.limits.answer_mb * 1e6)
            etag = response.headers.get("ETag", "").strip('"')
            return bytes(body), etag if len(etag) <= 200 and etag.isascii() and etag.isprintable() else ""

        return self._request(url, params, read)

    def download(self, url: str, out: Path, md5: str = "", *, most: float | None = None) -> str:
        """Writes a body to a file, which gets its name when it is complete; returns the MD5 of the body.

        Args:
            md5: the expected MD5, if it is known.
            most: bytes at most; without, the limit of files.

        Raises:
            FetchError: all attempts failed, or the MD5 is not the expected one.
            WriteError: the file cannot be written.
        """
        bound = self.limits.file_mb * 1e6 if most is None else most

        def write(send: "Send") -> str:
            digest = hashlib.md5(usedforsecurity=False)
            with whole_file(out) as file:

                def take(piece: bytes) -> None:
                    digest.update(piece)
                    file.write(piece)

                send(take, bound)
                if md5 and digest.hexdigest() != md5:
                    raise Mismatch(f"{url}: its MD5 is {digest.hexdigest()}, not {md5}")
            return digest.hexdigest()

        out.parent.mkdir(parents=True, exist_ok=True)
        return self._request(url, None, write)

    def _request(self, url: str, params: dict[str, Any] | None, use: Callable[["Send"], T]) -> T:
        """What `use` returns, which is handed a function that sends the request and reads the answer once."""
        error = FetchError(url)
        for attempt in range(1, self.retry.tries + 1):
            self.rate.wait(self.stop.wait)
            if self.stop.is_set():
                raise FetchError(f"{url}: stopped", shared=True)
            with self.rate.lock:
                self.requests += 1
            delay = self.retry.delay(attempt)
            try:
                return use(lambda take, most: self._exchange(url, params, take, most=most))
            except _Refused as refused:
                kind = Absent if refused.status in ABSENT else FetchError
                error = kind(str(refused), lasting=kind is Absent, shared=True)
                if refused.status not in TEMPORARY:
                    raise error from None
                delay = max(delay, refused.wait)
                if refused.status in OVERLOADED:
                    self.rate.pause(delay)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as wrong:
                raise FetchError(f"{url}: no address ({wrong})", lasting=True, shared=True) from None
            except httpx.HTTPError as broken:  # the body was cut short, the server is silent or refuses
                error = FetchError(f"{url}: {type(broken).__name__} {broken}".rstrip(), shared=True)
            except TooSlow:  # repeated, it would take as long again
                raise
            except FetchError as wrong:
                if wrong.lasting or self.stop.is_set():
                    raise
                error = wrong
            log.info("%s; try %d of %d", error, attempt, self.retry.tries)
            if attempt < self.retry.tries:
                self.stop.wait(delay)
        raise type(error)(f"{error} ({self.retry.tries} tries)", shared=error.shared)

    def _exchange(self, url: str, params: dict[str, Any] | None, take: Callable[[bytes], object], *,
                  most: float) -> httpx.Response:  # fmt: skip
        """Runs one exchange in the event loop and waits for it; its body goes to `take`."""
        future = asyncio.run_coroutine_threadsafe(self._answer(url, params, take, most=most), self.loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise FetchError(f"{url}: stopped", shared=True) from None
        except BaseException:  # also Ctrl-C during the wait
            future.cancel()
            raise

    async def _answer(self, url: str, params: dict[str, Any] | None, take: Callable[[bytes], object], *,
                      most: float) -> httpx.Response:  # fmt: skip
        """One request and its whole answer, within the time of an exchange."""
        if self.stop.is_set():
            raise FetchError(f"{url}: stopped", shared=True)
        try:
            async with asyncio.timeout(self.limits.seconds), AsyncExitStack() as stack:
                response = await self._sent(url, params, stack)
                if response.status_code != 200:
                    raise _Refused(url, response, self.limits.longest_wait)
                async for piece in pieces(response, most, self.limits.ratio):
                    take(piece)
                return response
        except TimeoutError:
            raise TooSlow(f"{url}: not complete after {self.limits.seconds:g} seconds", shared=True) from None

    async def _sent(self, url: str, params: dict[str, Any] | None, stack: AsyncExitStack) -> httpx.Response:
        """The head of an answer, after redirections.

        Raises:
            FetchError: an address is one that the layers below httpx cannot use, for which they have any exception.
        """
        try:
            return await stack.enter_async_context(self.http.stream("GET", url, params=params))
        except (httpx.HTTPError, httpx.InvalidURL):
            raise
        except Exception as error:
            odd: BaseException = error
            while isinstance(odd, BaseExceptionGroup):
                odd = odd.exceptions[0]
            problem = f"it, or where it leads to, is no address ({type(odd).__name__}: {odd})"
            raise FetchError(f"{url}: {problem}", lasting=True, shared=True) from error


Send = Callable[[Callable[[bytes], object], float], httpx.Response]  # (what takes the body, bytes at most)


class _Refused(Exception):
    """An answer with another status than 200."""

    def __init__(self, url: str, response: httpx.Response, longest_wait: float) -> None:
        self.status = response.status_code
        super().__init__(f"{url}: the server answers {self.status} {response.reason_phrase}")
        self.wait = retry_after(response.headers.get("Retry-After", ""), longest_wait)


def retry_after(header: str, longest: float) -> float:
    """The seconds that a Retry-After asks for, as a number or a date, at most `longest`; 0 for anything else."""
    text = header.strip()
    if re.fullmatch(r"\d+(\.\d*)?", text, re.ASCII):
        return longest if len(text) > 15 else min(float(text), longest)
    try:
        date = parsedate_to_datetime(text[:100])
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), longest)
