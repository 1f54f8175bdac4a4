"""Servers that answer without end, too much, too slowly or with nonsense: each exchange ends, with a message."""

import gzip
import itertools
import socket
import socketserver
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from helpers.running import ROOT

pytest.importorskip("httpx")
pytest.importorskip("lxml")

from blip.errors import InputError
from blip.pubmed.failures import FetchError
from blip.pubmed.http_body import Limits, TooLarge, Unpacker
from blip.pubmed.http_client import Client, RetryPolicy, TooSlow, retry_after
from blip.pubmed.search import Server as Where
from blip.pubmed.search import search

pytestmark = pytest.mark.slow  # all of them together

LIMITS = Limits(seconds=1.0, file_mb=1.0, answer_mb=1.0, ratio=50.0, longest_wait=0.2)
QUICK = RetryPolicy(tries=2, first_delay=0.01, longest_delay=0.02, timeout=0.8)
OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(30_000_000))


def answer(body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return OK + f"{lines}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body


def forever(head: bytes, more: bytes, every: float = 0.0) -> Callable[[], Iterator[bytes]]:
    """A head and then the same bytes, each after so many seconds, for longer than any test may take."""

    def produce() -> Iterator[bytes]:
        yield head
        end = time.monotonic() + 30.0
        while time.monotonic() < end:
            time.sleep(every)
            yield more

    return produce


ANSWERS: dict[str, Callable[[], Iterator[bytes]]] = {
    "endless-body": forever(OK + b"\r\n", bytes(100_000)),
    "endless-chunks": forever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"fff0\r\n" + bytes(0xFFF0) + b"\r\n"),
    "endless-continue": forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless-hints": forever(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"),
    "endless-headers": forever(OK, b"X: " + b"x" * 1000 + b"\r\n"),
    "slow-headers": forever(OK, b"X: y\r\n", 0.1),
    "slow-status": forever(b"HTTP/1.1 2", b"0", 0.1),
    "slow-body": forever(OK + b"Content-Length: 100000\r\n\r\n", b"x", 0.1),
    "slow-gzip": forever(OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10], b"", 0.1),
    "slow-continue": forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.1),
    "silent": forever(b"", b"", 0.1),
    "half": forever(OK + b"Content-Length: 9\r\n\r\nhalf", b"", 0.1),
    "declared": lambda: iter([OK + b"Content-Length: 999999999999\r\n\r\nx"]),
    "declared-long": lambda: iter([OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx"]),
    "negative": lambda: iter([OK + b"Content-Length: -1\r\n\r\nx"]),
    "bomb": lambda: iter([answer(BOMB, "Content-Encoding: gzip")]),
    "members": lambda: iter([answer(gzip.compress(bytes(900_000)) * 50, "Content-Encoding: gzip")]),
    "deflate-bomb": lambda: iter([answer(zlib.compress(bytes(30_000_000)), "Content-Encoding: deflate")]),
    "twice": lambda: iter([answer(gzip.compress(BOMB), "Content-Encoding: gzip, gzip")]),
    "brotli": lambda: iter([answer(b"x", "Content-Encoding: br")]),
    "odd-coding": lambda: iter([answer(b"x", "Content-Encoding: \x1b[31m")]),
    "no-gzip": lambda: iter([answer(b"plain", "Content-Encoding: gzip")]),
    "cut-gzip": lambda: iter([answer(gzip.compress(b"x" * 99)[:-9], "Content-Encoding: gzip")]),
    "nothing": lambda: iter([]),
    "no-http": lambda: iter([b"\x00\xff\x1b[31m nonsense\r\n\r\n"]),
    "status": lambda: iter([b"HTTP/1.1 2000000 OK\r\n\r\n"]),
    "reason": lambda: iter([b"HTTP/1.1 404 \x1b[31mred\r\nContent-Length: 0\r\n\r\n"]),
    "partial": lambda: iter([b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx"]),
    "switching": forever(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", b"x", 0.1),
    "loop": lambda: iter([b"HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n"]),
    "to-file": lambda: iter([b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"]),
    "to-nowhere": lambda: iter([b"HTTP/1.1 302 Found\r\nLocation: http://[::/\r\nContent-Length: 0\r\n\r\n"]),
    "to-port": lambda: iter([b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:99999/\r\n\r\n"]),
    "to-label": lambda: iter([b"HTTP/1.1 302 Found\r\nLocation: http://" + b"x" * 70 + b".org/\r\n\r\n"]),
    "to-odd": lambda: iter([b"HTTP/1.1 302 Found\r\nLocation: http://\xff\x00:999999/\r\nContent-Length: 0\r\n\r\n"]),
}
WAITS = {
    "huge": b"9" * 5000,
    "negative": b"-5",
    "power": b"\xc2\xb2",
    "word": b"later",
    "nan": b"nan",
    "infinite": b"inf",
    "exponent": b"1e400",
    "date": b"Wed, 21 Oct 2099 07:28:00 GMT",
    "odd-date": b"Wed, 99 Oct 99999999999 07:28:00 GMT",
    "empty": b"",
}
for name, header in WAITS.items():
    refused = b"HTTP/1.1 503 No\r\nRetry-After: " + header + b"\r\nContent-Length: 0\r\n\r\n"
    ANSWERS[f"wait-{name}"] = lambda refused=refused: iter([refused])
TOO_LARGE = ("endless-body", "endless-chunks", "declared", "bomb", "members", "deflate-bomb")
TOO_SLOW = ("endless-continue", "endless-hints", "slow-headers", "slow-status", "slow-body", "slow-continue")


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (some := self.request.recv(65536)):
                return
            request += some
        name = request.split(b" ")[1].decode().strip("/").partition("?")[0].partition("/")[0]
        self.server.asked.append(name)  # type: ignore[attr-defined]
        try:
            for some in self.server.answers[name]():  # type: ignore[attr-defined]
                self.request.sendall(some)
                if self.server.closed:  # type: ignore[attr-defined]
                    return
        except OSError:  # the client has ended the exchange
            pass


class Hostile(socketserver.ThreadingTCPServer):
    """Answers the address /NAME with ANSWERS[NAME]."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, answers: dict[str, Callable[[], Iterator[bytes]]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked, self.closed = answers, list[str](), False
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    with Hostile(ANSWERS) as server:
        yield server
        server.closed = True
        server.shutdown()


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client(1000.0, QUICK, limits=LIMITS)
    yield client
    begin = time.monotonic()
    client.close()
    assert time.monotonic() - begin < 1.0


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("download", [False, True])
def test_every_exchange_ends(hostile: Hostile, client: Client, name: str, download: bool, tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(FetchError) as caught:
        if download:
            client.download(hostile.url + name, tmp_path / "file.jpg")
        else:
            client.get(hostile.url + name)
    assert time.monotonic() - begin < 3.0
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1100
    assert name in str(caught.value)
    assert isinstance(caught.value, TooLarge) == (name in TOO_LARGE), caught.value
    assert isinstance(caught.value, TooSlow) == (name in TOO_SLOW), caught.value
    assert not list(tmp_path.iterdir()), "no part of a file stays"


def test_what_is_within_the_limits_arrives(client: Client) -> None:
    body = bytes(range(256)) * 3000
    answers = {"plain": answer(body), "gzip": answer(gzip.compress(body), "Content-Encoding: gzip"),
               "members": answer(gzip.compress(body[:9]) + gzip.compress(body[9:]), "Content-Encoding: x-gzip"),
               "deflate": answer(zlib.compress(body), "Content-Encoding: deflate")}  # fmt: skip
    with Hostile({name: lambda some=some: iter([some]) for name, some in answers.items()}) as server:
        assert all(client.get(server.url + name) == body for name in answers)
        server.shutdown()


@pytest.mark.parametrize("etag", ["", "x" * 5000, "\xff\xfe", '"abc"'])
def test_odd_headers_are_not_kept(client: Client, etag: str) -> None:
    """Cookies are not sent back, and an ETag of another form counts as none."""
    some = answer(b"x", f"ETag: {etag}", *(f"Set-Cookie: a{n}=b" for n in range(20)))
    with Hostile({"a": lambda: iter([some])}) as server:
        assert client.get_tagged(server.url + "a") == (b"x", "abc" if "abc" in etag else "")
        server.shutdown()
    assert not list(client.http.cookies.jar)


def test_what_would_fail_again_is_asked_once(client: Client) -> None:
    with Hostile(ANSWERS) as server:
        for name in ("bomb", "declared", "slow-body", "reason", "brotli"):
            with pytest.raises(FetchError):
                client.get(server.url + name)
            assert server.asked.count(name) == 1
        server.closed = True
        server.shutdown()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("", 0), ("5", 5), ("1.5", 1.5), (" 7 ", 7), ("0", 0), ("9999999", 600), ("9" * 5000, 600), ("-5", 0),
     ("\u00b2", 0), ("nan", 0), ("inf", 0), ("1e9", 0), ("0x10", 0), ("later", 0), ("5, 6", 0), ("\u0665", 0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2099 07:28:00 GMT", 600), ("Wed, 99 Oct 2099 07:28:00 GMT", 0),
     ("Wed, 21 Oct 99999999 07:28:00 GMT", 0), ("Wed, 21 Oct 2099 07:28:00 +9999999999", 0), ("2099", 600)],
)  # fmt: skip
def test_retry_after(header: str, seconds: float) -> None:
    assert retry_after(header, 600.0) == seconds


def test_retry_after_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < retry_after(soon, 600.0) <= 100


@pytest.mark.parametrize("name", ["seconds", "file_mb", "answer_mb", "ratio", "longest_wait"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_numbers(name: str, value: float) -> None:
    with pytest.raises(InputError, match="a limit of an exchange"):
        Limits(**{name: value})


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e-300])
def test_rates_are_numbers(rate: float) -> None:
    with pytest.raises(InputError, match="a rate of"):
        Client(rate)


@pytest.mark.parametrize(
    "url", ["no address", "http://", "ftp://h/x", "http://\ud800/", "http://h:99999999/", "http://[/"]
)
def test_addresses_that_are_none(client: Client, url: str) -> None:
    with pytest.raises(FetchError):
        client.get(url)


def test_the_ratio_of_decompression_has_a_limit() -> None:
    """Below the limit of bytes: zeros are refused, text that compresses well is not."""
    packed = {"zeros": gzip.compress(bytes(5_000_000)), "text": gzip.compress(b"%d " * 50_000 + bytes(range(256)) * 99)}
    answers = {name: lambda body=body: iter([answer(body, "Content-Encoding: gzip")]) for name, body in packed.items()}
    client = Client(1000.0, QUICK, limits=Limits(seconds=10.0))
    with Hostile(answers) as server:
        with pytest.raises(TooLarge, match="a ratio above 200"):
            client.get(server.url + "zeros")
        assert len(client.get(server.url + "text")) == 150_000 + 256 * 99
        server.shutdown()
    client.close()


def test_a_bomb_is_unpacked_in_small_pieces() -> None:
    sizes = [len(piece) for piece in itertools.islice(Unpacker().feed(BOMB), 5)]
    assert sizes == [1 << 20] * 5


@pytest.mark.parametrize("name", ["endless-body", "endless-continue", "no-http", "bomb"])
def test_a_search_ends(hostile: Hostile, name: str, tmp_path: Path) -> None:
    where = Where("me@lab.org", eutils=hostile.url + name, openi=hostile.url + name, retry=QUICK, limits=LIMITS)
    for source in ("pmc", "openi"):
        with pytest.raises(FetchError, match=name):
            search(tmp_path, "brain", 10, server=where, source=source)


@pytest.mark.parametrize("name", ["twice", "bomb", "no-gzip", "repeats", "refuses", "to-port"])
def test_no_message_shows_the_key_of_a_user(name: str, tmp_path: Path) -> None:
    more = {"repeats": lambda: iter([answer(b"<a>API key invalid: SECRET</a>")]),
            "refuses": lambda: iter([b"HTTP/1.1 400 no SECRET\r\nContent-Length: 0\r\n\r\n"])}  # fmt: skip
    with Hostile(ANSWERS | more) as server:
        where = Where("me@lab.org", "SECRET", server.url + name, retry=QUICK, limits=LIMITS)
        with pytest.raises(FetchError) as caught:
            search(tmp_path, "brain", 10, server=where)
        server.shutdown()
    assert "SECRET" not in str(caught.value) and len(str(caught.value)) > 40


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------

FETCH = """
import sys
from pathlib import Path
from blip.pubmed.catalogue import Catalogue
from blip.pubmed.fetch import Wanted, fetch
catalogue = Catalogue(Path(sys.argv[1]), create=True)
catalogue.add_page("pmc", "brain", 9, total=9, pmcids=[f"PMC{at}" for at in range(1, 10)])
catalogue.close()
fetch(Path(sys.argv[1]), Wanted(bucket=sys.argv[2], rate=100))
"""
SEARCH = """
import sys
from pathlib import Path
from blip.pubmed.search import Server, search
search(Path(sys.argv[1]), "brain", 9, server=Server("me@lab.org", eutils=sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [FETCH, SEARCH], ids=["fetch", "search"])
@pytest.mark.parametrize("name", ["endless-continue", "slow-headers", "slow-body", "silent", "wait-huge"])
def test_ctrl_c_ends_every_exchange(hostile: Hostile, program: str, name: str, tmp_path: Path) -> None:
    """With the default limits, of ten minutes: the program ends within seconds."""
    asked = len(hostile.asked)
    command = [sys.executable, "-c", program, str(tmp_path), hostile.url + name]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(hostile.asked) == asked and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        assert process.poll() is None and len(hostile.asked) > asked
        process.send_signal(2)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - begin < 5.0
        assert errors.strip().endswith("KeyboardInterrupt") and "Exception ignored" not in errors
    finally:
        process.kill()


def test_other_threads_are_ended(hostile: Hostile) -> None:
    client = Client(1000.0, RetryPolicy(), limits=Limits())
    caught: list[FetchError] = []

    def ask(name: str) -> None:
        with pytest.raises(FetchError, match="stopped") as error:
            client.get(hostile.url + name)
        caught.append(error.value)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("slow-body", "silent", "endless-continue")]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    client.abort()
    for thread in threads:
        thread.join(2.0)
    assert len(caught) == 3
    client.close()


def test_a_server_that_nobody_reaches(client: Client) -> None:
    """It accepts no connection and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as waiting, pytest.raises(FetchError):
        client.get(f"http://127.0.0.1:{waiting.getsockname()[1]}/")


def test_bodies_that_are_left_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """In a process of its own, whose end shows what asyncio says of tasks that it destroys."""
    code = """
import gc, http.server, threading
from blip.errors import BlipError
from blip.pubmed.http_body import Limits
from blip.pubmed.http_client import Client, RetryPolicy

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(b"junk" * 10_000)
    def log_message(self, *about):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.handle_error = lambda *about: None
threading.Thread(target=server.serve_forever, daemon=True).start()
for _ in range(10):
    client = Client(1000.0, RetryPolicy(tries=2, first_delay=0.01))
    try:
        client.get(f"http://127.0.0.1:{server.server_port}/")
    except BlipError:
        pass
    client.close()
    gc.collect()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                            timeout=60)  # fmt: skip
    assert result.stderr == ""
