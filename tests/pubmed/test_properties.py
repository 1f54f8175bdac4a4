"""Properties over random licences, headers and bodies: a restriction is never lost, and every answer ends as one."""

import time
import zlib
from collections.abc import Iterator

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("httpx")
pytest.importorskip("lxml")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hostile_servers import Hostile

from blip.pubmed.failures import FetchError, shown_part
from blip.pubmed.http_body import Limits, Unpacker
from blip.pubmed.http_client import Client, RetryPolicy, retry_after
from blip.pubmed.jats import JatsError, parse_article
from blip.pubmed.licenses import ARCHIVE_CODES, FAMILIES, UNKNOWN, article_license, license_name, short_license
from blip.pubmed.retractions import is_retracted

OPEN = {"CC0", "CC-BY", "CC-BY-SA", "CC-BY-ND"}  # without NC
NAMES = ["CC BY", "CC-BY 4.0", "CCBY", "Creative Commons Attribution License", "CC0", "Attribution 4.0 International",
         "https://creativecommons.org/licenses/by/4.0/", "This is an open access article under the terms of", "(CC BY)",
         "CC BY-SA", "in the public domain", "International License", "3.0 US",
         "which permits unrestricted use"]  # fmt: skip
LIMITED = ["NC", "NonCommercial", "non-commercial", "Non Commercial", "noncommercially", "no commercial use"]
TAKEN_BACK = ["not", "except", "data", "all rights reserved", "copyrighted", "only", "figures", "unless",
              "personal use", "nicht kommerziell", "pas d'utilisation commerciale", "sin", "no", "educational", "?",
              "\u041dC", "restricted", "commercial use needs a fee", "embargo", "*", "!"]  # fmt: skip
GAPS = [" ", "-", "_", "/", ", ", ". ", " (", ") ", "; ", ": ", "\u00a0", "\u2010", "\u2013", "\u202f", "\t", "\n"]


@st.composite
def statements(draw: st.DrawFn, words: list[str]) -> str:
    """Parts of statements in any order, one of which is of `words`, with gaps of any kind and case of any kind."""
    parts = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
    parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(words)))
    gaps = draw(st.lists(st.sampled_from(GAPS), min_size=len(parts), max_size=len(parts)))
    text = "".join(part + gap for part, gap in zip(parts, gaps, strict=True))
    return draw(st.sampled_from([text, text.upper(), text.lower()]))


@settings(max_examples=500, deadline=None)
@given(statements(LIMITED))
def test_a_restriction_is_never_lost(text: str) -> None:
    assert short_license(text) not in OPEN
    assert short_license(license_name(text)) not in OPEN
    assert article_license(["https://creativecommons.org/licenses/by/4.0/"], text) == UNKNOWN


@settings(max_examples=500, deadline=None)
@given(statements(TAKEN_BACK))
def test_what_is_taken_back_is_not_open(text: str) -> None:
    assert short_license(text) not in FAMILIES
    assert license_name(text) in ("", UNKNOWN)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="cCbByY0nNaAsSdD- _/().;4\u00a0\u2010"), st.none(), st.integers(),
                 st.floats(), st.lists(st.text())))  # fmt: skip
def test_every_code_has_a_family(code: object) -> None:
    family = short_license(code)
    assert family in {"", UNKNOWN, *FAMILIES, *ARCHIVE_CODES}
    assert short_license(family) == family
    if isinstance(code, str):
        assert short_license(license_name(code)) in {"", UNKNOWN, *FAMILIES}
        if family in FAMILIES:
            assert short_license(code + " NC") not in OPEN and short_license(code + " but not really") == UNKNOWN


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.booleans())))
def test_only_a_clear_no_is_no_retraction(mark: object) -> None:
    retracted, why = is_retracted({"mark": mark}, "mark")
    assert retracted or str(mark).strip().lower() in ("false", "0", "0.0", "-0.0", "no")
    assert why.isprintable()


# ---- servers ---------------------------------------------------------------------------------------------------------

LIMITS = Limits(seconds=2.0, file_mb=0.1, answer_mb=0.1, ratio=20.0, longest_wait=0.01)
LINES = st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 503 No\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\r\n",
                         b"Content-Length: 5\r\n", b"Content-Length: 99999\r\n", b"Transfer-Encoding: chunked\r\n",
                         b"Content-Encoding: gzip\r\n", b"Content-Encoding: deflate, br\r\n", b"Retry-After: 9\r\n",
                         b"Location: /x\r\n", b"HTTP/1.1 302 Found\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"hello",
                         zlib.compress(bytes(500_000)), b"Connection: close\r\n", b"ETag: \xff\r\n"])  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Hostile]:
    with Hostile({"a": lambda: iter([])}) as server:
        yield server
        server.shutdown()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.lists(st.one_of(LINES, st.binary(max_size=20)), max_size=12).map(b"".join),
                 st.lists(LINES, max_size=6).map(lambda lines: b"HTTP/1.1 200 OK\r\n" + b"".join(lines))))  # fmt: skip
def test_every_answer_ends_as_a_body_or_a_message(server: Hostile, answer: bytes) -> None:
    server.answers["a"] = lambda: iter([answer])
    client = Client(1000.0, RetryPolicy(tries=2, first_delay=0.001, longest_delay=0.001, timeout=1.0), limits=LIMITS)
    begin = time.monotonic()
    try:
        body, etag = client.get_tagged(server.url + "a")
        assert len(body) <= LIMITS.answer_mb * 1e6 and etag.isascii()
    except FetchError as error:
        assert str(error).isprintable()
    finally:
        client.close()
    assert time.monotonic() - begin < 8.0


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.integers().map(str), st.floats().map(str), st.datetimes().map(str)))
def test_every_retry_after_is_a_wait_within_the_limit(header: str) -> None:
    assert 0 <= retry_after(header, 600.0) <= 600


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=2000).map(zlib.compress), st.binary(max_size=50)), max_size=6),
       st.integers(1, 40))  # fmt: skip
def test_whatever_is_unpacked_comes_in_pieces_or_is_damaged(parts: list[bytes], size: int) -> None:
    whole, unpacker, pieces = b"".join(parts), Unpacker(), []
    try:
        for at in range(0, len(whole), size):
            pieces += unpacker.feed(whole[at : at + size])
    except FetchError:
        return
    if unpacker.complete:
        expected, rest = b"", whole
        while rest:
            stream = zlib.decompressobj(wbits=47)
            expected += stream.decompress(rest)
            rest = stream.unused_data
        assert b"".join(pieces) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec=None)))
def test_texts_of_servers_can_be_shown_and_recorded(text: str) -> None:
    shown = shown_part(text)
    assert shown.isprintable() and len(shown.encode("utf-8")) <= 10 * min(len(text), 1000)


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.sampled_from(["", "x", "&#181;"]), lambda inner: st.builds(
    lambda tag, attributes, parts: f"<{tag} {attributes}>{''.join(parts)}</{tag}>",
    st.sampled_from(["p", "fig", "caption", "xref", "sec", "title", "label", "graphic", "alternatives", "sup", "body",
                     "fig-group", "permissions", "license", "front", "article-meta", "pub-date", "year", "contrib"]),
    st.sampled_from(["", 'id="f"', 'ref-type="fig" rid="f"', 'pub-id-type="pmc"', 'contrib-type="author"']),
    st.lists(inner, max_size=4)), max_leaves=30))  # fmt: skip
def test_every_article_is_read_or_refused(inner: str) -> None:
    try:
        article = parse_article(f"<article>{inner}</article>".encode())
    except JatsError:
        return
    assert all(figure.mentions == list(dict.fromkeys(figure.mentions)) for figure in article.figures)
