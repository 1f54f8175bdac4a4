"""Odd articles, catalogues of others and folders with files of the user: nothing outside of the corpus changes.

Every test compares a snapshot of the surroundings before and after.
"""

import gzip
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pmc_server import Library, Server

pytest.importorskip("lxml")
pytest.importorskip("httpx")

from blip.files import ReadError, WriteError
from blip.pubmed import catalogue_file, http_client
from blip.pubmed import fetch as fetching
from blip.pubmed.article_files import article_folder, is_file_name
from blip.pubmed.catalogue import NAME, Catalogue, is_pmcid
from blip.pubmed.catalogue_file import CatalogueError
from blip.pubmed.extract import extract
from blip.pubmed.failures import FetchError, OddRecord
from blip.pubmed.fetch import Fetched, Wanted, fetch
from blip.pubmed.http_body import Limits
from blip.pubmed.http_client import RetryPolicy
from blip.pubmed.inventory import read, update
from blip.pubmed.search import Server as Where
from blip.pubmed.search import search

pytestmark = pytest.mark.slow  # all of them together

QUICK = RetryPolicy(tries=2, first_delay=0.01, longest_delay=0.02, timeout=5.0)
LIMITS = Limits(seconds=10.0, file_mb=1.0, answer_mb=1.0)
LEAVES = ["../../victim.jpg", "..", ".", "", "a/b.jpg", "/victim.jpg", "a\\b.jpg", "a\0.jpg", "a\n.jpg", "\x1b[31m.jpg",
          "\ud800.jpg", "x" * 250 + ".jpg", "\u00e4" * 150 + ".jpg", ".hidden.jpg", "notes.txt", "fetch.lock", "jpg",
          "\u202egpj.jpg", "a.jpg/", 7, None, b"a.jpg"]  # fmt: skip


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(4, small=True)


@pytest.fixture
def around(tmp_path: Path) -> Path:
    """A folder with files of the user beside the corpus."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("years of work")
    (tmp_path / "victim.jpg").write_text("a picture of the user")
    return tmp_path


def snapshot(folder: Path, *, without: str = "corpus") -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder).parts[0] != without}  # fmt: skip


def corpus_of(folder: Path, server: Server) -> Path:
    search(folder, "brain", 100, server=Where("me@lab.org", eutils=server.url, retry=QUICK))
    return folder


def run(corpus: Path, server: Server, **more: Any) -> Fetched:
    return fetch(corpus, Wanted(bucket=server.url, rate=1000.0, num_workers=2, retry=QUICK, limits=LIMITS, **more))


def change(corpus: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    with sqlite3.connect(corpus / NAME) as db:
        for statement in statements:
            db.execute(statement, values)
    db.close()


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEAVES)
def test_names_that_are_no_files_of_an_article(name: Any) -> None:
    assert not is_file_name(name)


@pytest.mark.parametrize(
    "name", ["fig-g001.jpg", "PMC1.1.xml", "a b.TIF", "\u00e4.png", "x" * 190 + ".jpg", "a..b.nxml"]
)
def test_names_of_files(name: str) -> None:
    assert is_file_name(name)


@pytest.mark.parametrize("name", ["PMC", "PMC1\n", "PMC" + "1" * 13, "PMC1/..", "pmc1", "PMC\u0661", " PMC1", "PMC-1",
                                  1, None, b"PMC1", "/../../../victim"])  # fmt: skip
def test_names_that_are_no_articles(name: Any, tmp_path: Path) -> None:
    assert not is_pmcid(name)
    with pytest.raises(FetchError, match="no PMCID"):
        article_folder(tmp_path, name)


# ---- odd articles of a server ----------------------------------------------------------------------------------------


def metadata(pmcid: str, /, **changes: Any) -> bytes:
    url = f"s3://b/{pmcid}.1/{pmcid}.1.xml"
    return json.dumps(
        {"xml_url": url, "media_urls": [], "license_code": "CC BY", "is_retracted": False} | changes
    ).encode()


ODD: dict[str, Callable[[str], bytes]] = {
    **{f"xml {name!r}": lambda pmcid, name=name: metadata(pmcid, xml_url=f"s3://b/{pmcid}.1/{name}")
       for name in LEAVES if isinstance(name, str)},
    "XML is a number": lambda pmcid: metadata(pmcid, xml_url=7),
    "XML is null": lambda pmcid: metadata(pmcid, xml_url=None),
    **{f"image {name!r}": lambda pmcid, name=name: metadata(pmcid, media_urls=[f"s3://b/{pmcid}.1/{name}"])
       for name in LEAVES if isinstance(name, str) and name.endswith(".jpg") and not {"/", "\n"} & set(name)},
    "empty": lambda pmcid: b"",
    "no JSON": lambda pmcid: b"<html>",
    "no UTF-8": lambda pmcid: b'{"xml_url": "\xff"}',
    "null": lambda pmcid: b"null",
    "list": lambda pmcid: b"[1]",
    "missing": lambda pmcid: b"{}",
    "long number": lambda pmcid: b'{"xml_url": ' + b"9" * 5000 + b"}",
    "deep": lambda pmcid: b"[" * 100_000 + b"]" * 100_000,
    "deep inside": lambda pmcid: b'{"a": ' * 50_000 + b"1" + b"}" * 50_000,
    "wrong types": lambda pmcid: metadata(pmcid, media_urls={"a": 1}),
    "list of numbers": lambda pmcid: metadata(pmcid, media_urls=[1, 2]),
    "no address": lambda pmcid: metadata(pmcid, media_urls=["http://[/a.jpg"]),
    "long address": lambda pmcid: metadata(pmcid, xml_url="s3://b/" + "a/" * 5000 + "a.xml"),
    "many files": lambda pmcid: metadata(pmcid, media_urls=["s3://b/a.jpg"] * 6000),
    "large": lambda pmcid: metadata(pmcid, more="x" * 1_100_000),
    "twice": lambda pmcid: b'{"license_code": "CC BY-NC", ' + metadata(pmcid)[1:],
    "retracted twice": lambda pmcid: b'{"is_retracted": true, ' + metadata(pmcid)[1:],
    "another article": lambda pmcid: metadata(pmcid, pmcid="PMC999"),
    "no article": lambda pmcid: metadata(pmcid, pmcid=7),
    "another version": lambda pmcid: metadata(pmcid, pmcid=pmcid, version=7),
    "version 0": lambda pmcid: metadata(pmcid, version=0),
    "image as XML": lambda pmcid: metadata(pmcid, xml_url=f"s3://b/{pmcid}.1/a.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_article_costs_itself(odd: str, around: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded with the reason, the next ones follow, and so they do at the next start."""
    about, first = library.metadata, library.pmcids[0]
    body = ODD[odd](first)
    monkeypatch.setattr(library, "metadata", lambda pmcid, v: body if pmcid == first else about(pmcid, v))
    before = snapshot(around)
    with Server(library) as server:
        corpus = corpus_of(around / "corpus", server)
        for _ in range(2):
            assert run(corpus, server, retracted=True).failed == 1
            catalogue = Catalogue(corpus)
            assert catalogue.pmcids("done") == library.pmcids[1:] and catalogue.pmcids("failed") == [first]
            [why] = catalogue.errors()
            assert why.startswith(first) and len(why) > len(first) + 20 and why.isprintable()
            catalogue.close()
    assert snapshot(around) == before
    assert not (corpus / "articles" / first).exists() or not list((corpus / "articles" / first).iterdir())


UNFORESEEN = [ValueError("\ud800\x1b"), RecursionError(), OSError(36, "File name too long"), KeyError(1),
              OverflowError("x" * 5000), UnicodeError("x")]  # fmt: skip


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_an_error_that_nobody_foresaw_costs_its_article(error: Exception, tmp_path: Path, library: Library,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    first, describe = library.pmcids[0], fetching.describe

    def odd(catalogue: Catalogue, client: Any, pmcid: str, *, bucket: str) -> None:
        if pmcid == first:
            raise error
        describe(catalogue, client, pmcid, bucket=bucket)

    monkeypatch.setattr(fetching, "describe", odd)
    with Server(library) as server:
        corpus = corpus_of(tmp_path, server)
        assert [run(corpus, server, retracted=True).failed for _ in range(2)] == [1, 1]
        assert Catalogue(corpus).pmcids("done") == library.pmcids[1:]
        assert Catalogue(corpus).errors()[0].isprintable()


def test_a_full_disk_ends_the_run(tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of the article, which is not marked."""

    def full(*_: Any, **__: Any) -> None:
        raise WriteError("full") from OSError(28, "No space left on device")

    with Server(library) as server:
        corpus = corpus_of(tmp_path, server)
        with monkeypatch.context() as patch, pytest.raises(WriteError):
            patch.setattr(http_client.Client, "download", full)
            run(corpus, server, retracted=True)
        assert not Catalogue(corpus).pmcids("failed")
        assert run(corpus, server, retracted=True).failed == 0


@pytest.mark.parametrize(
    ("listed", "failed"),
    [(["9" * 5000], 1), (["-1"], 1), (["1e9"], 1), (["\u0661"], 1), (["../x"], 1), (["9" * 5000, "1"], 0), ([], 1)],
)
def test_odd_versions(listed: list[str], failed: int, tmp_path: Path, library: Library, monkeypatch) -> None:
    listing, first = Server.listing, library.pmcids[0]

    def odd(self: Server, prefix: str) -> bytes:
        if prefix != f"{first}.":
            return listing(self, prefix)
        some = "".join(f"<CommonPrefixes><Prefix>{prefix}{one}/</Prefix></CommonPrefixes>" for one in listed)
        return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{some}</ListBucketResult>'.encode()

    monkeypatch.setattr(Server, "listing", odd)
    with Server(library) as server:
        corpus = corpus_of(tmp_path, server)
        assert [run(corpus, server, retracted=True).failed for _ in range(2)] == [failed, failed * bool(listed)]
        assert Catalogue(corpus).pmcids("done") == library.pmcids[failed:]


def test_marks_of_retraction_and_licences_of_servers(tmp_path: Path, library: Library, monkeypatch) -> None:
    """What is not understood is not fetched with a selection of licences, and the reason is recorded."""
    marks: list[dict[str, Any]] = [{"is_retracted": [True]}, {"is_retracted": 1.0}, {"license_code": "CC BY (NC?)"},
                                   {"license_code": ["CC BY"]}]  # fmt: skip
    abouts = {pmcid: json.loads(library.metadata(pmcid, library.versions[pmcid])) for pmcid in library.pmcids}
    odd = {pmcid: abouts[pmcid] | {"license_code": "CC BY", "is_retracted": False} | mark
           for pmcid, mark in zip(library.pmcids, marks, strict=True)}  # fmt: skip
    monkeypatch.setattr(library, "metadata", lambda pmcid, v: json.dumps(odd[pmcid]).encode())
    with Server(library) as server:
        corpus = corpus_of(tmp_path, server)
        assert run(corpus, server, licenses=["CC-BY"]).left_out == 4
        catalogue = Catalogue(corpus)
        assert catalogue.counts()["license"] == {"CC-BY": 2, "unknown": 2}
        why = "its mark of retraction (list) is not understood and counts as retracted"
        assert catalogue.errors() == [f"{library.pmcids[0]}: {why}"]
        assert run(corpus, server, licenses=["CC-BY"]).left_out == 4, "nor at the next start"
        assert run(corpus, server, licenses=["CC-BY"], retracted=True).articles == 2


def test_a_search_leaves_odd_names_out(around: Path, library: Library, monkeypatch, caplog) -> None:
    ids = ["/../../../victim", "7000001", "\u0661", "1" * 5000, "", "-1"]
    body = "".join(f"<Id>{number}</Id>" for number in ids)
    answer = f"<eSearchResult><Count>6</Count><IdList>{body}</IdList></eSearchResult>"
    monkeypatch.setattr(Server, "esearch", lambda self, start, most: answer.encode())
    rows = [{"pmcid": 7000002}, {"uid": "PMC../x_1"}, {"uid": 5}, {"pmcid": ["7"]}]
    monkeypatch.setattr(Server, "openi", lambda self, first, last: json.dumps({"total": 4, "list": rows}).encode())
    before = snapshot(around)
    with Server(library) as server:
        where = Where("me@lab.org", eutils=server.url, openi=server.url + "openi", retry=QUICK)
        assert search(around / "corpus", "brain", 100, server=where) == 1
        assert "no PMCID" in caplog.text and "\n/" not in caplog.text
        assert search(around / "corpus", "brain", 100, server=where, source="openi") == 2
    assert Catalogue(around / "corpus").pmcids("found") == ["PMC5", "PMC7000001", "PMC7000002"]
    assert snapshot(around) == before


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "9" * 5000, "\u0661", "1e9"])
def test_numbers_of_results_that_are_none(count: str, tmp_path: Path, library: Library, monkeypatch) -> None:
    answer = f"<eSearchResult><Count>{count}</Count><IdList><Id>1</Id></IdList></eSearchResult>"
    monkeypatch.setattr(Server, "esearch", lambda self, start, most: answer.encode())
    monkeypatch.setattr(Server, "openi", lambda self, *_: json.dumps({"total": count, "list": []}).encode())
    with Server(library) as server:
        where = Where("me@lab.org", eutils=server.url, openi=server.url + "openi", retry=QUICK)
        for source in ("pmc", "openi"):
            with pytest.raises(FetchError, match="cannot be read"):
                search(tmp_path, "brain", 10, server=where, source=source)


def test_results_with_a_repeated_key_are_refused(tmp_path: Path, library: Library, monkeypatch) -> None:
    monkeypatch.setattr(Server, "openi", lambda *_: b'{"total": 9, "total": 1, "list": [{"pmcid": 7}]}')
    with Server(library) as server, pytest.raises(FetchError, match="'total' occurs twice"):
        search(tmp_path, "brain", 10, server=Where(openi=server.url + "openi", retry=QUICK), source="openi")


def test_no_entity_of_a_server_is_read(around: Path, library: Library, monkeypatch) -> None:
    secret = (around / "victim" / "thesis.txt").as_uri()
    answer = (f'<!DOCTYPE e [<!ENTITY x SYSTEM "{secret}">]><eSearchResult><Count>1</Count><IdList><Id>1</Id></IdList>'
              "<ErrorList><PhraseNotFound>&x;</PhraseNotFound></ErrorList></eSearchResult>")  # fmt: skip
    monkeypatch.setattr(Server, "esearch", lambda self, *_: answer.replace("<Count>1", "<Count>0").encode())
    with Server(library) as server, pytest.raises(FetchError) as error:
        search(around / "corpus", "brain", 10, server=Where("me@lab.org", eutils=server.url, retry=QUICK))
    assert "years of work" not in str(error.value)


# ---- catalogues of others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEAVES)
def test_file_names_of_a_foreign_catalogue(name: Any, around: Path, library: Library) -> None:
    """They are neither written nor deleted, and cost their article alone."""
    first = library.pmcids[0]
    before = snapshot(around)
    with Server(library) as server:
        corpus = corpus_of(around / "corpus", server)
        run(corpus, server, retracted=True)
        (corpus / "articles" / first / "notes.txt").write_text("of the user")
        (corpus / "articles" / first / ".hidden.jpg").write_text("of the user")
        thesis = hashlib.md5(b"years of work").hexdigest()
        name = name.encode(errors="surrogatepass") if isinstance(name, str) and "\ud800" in name else name
        if name is not None:
            change(corpus, "INSERT OR REPLACE INTO files VALUES (?1, ?2, ?2, '', 0, '')", values=(first, name))
            change(corpus, "INSERT OR REPLACE INTO written VALUES (?1, ?2, ?3)", values=(first, name, thesis))
        change(corpus, "INSERT OR REPLACE INTO written VALUES (?1, '../../../victim/thesis.txt', ?2)",
               values=(first, thesis))  # fmt: skip
        change(corpus, "UPDATE articles SET state = 'failed'")
        done = run(corpus, server, retracted=True)
        assert done.failed == (name is not None) and done.articles == 4 - (name is not None)
        assert run(corpus, server, retracted=True).failed <= 1
    assert snapshot(around) == before
    assert (corpus / "articles" / first / "notes.txt").read_text() == "of the user"


@pytest.mark.parametrize(
    "pmcid", ["/../../../victim", "PMC1/../../../victim", "PMC" + "1" * 200, "", 7, 1.5, b"PMC1", "pmc1"]
)
def test_article_names_of_a_foreign_catalogue(pmcid: Any, around: Path, library: Library) -> None:
    before = snapshot(around)
    with Server(library) as server:
        corpus = corpus_of(around / "corpus", server)
        change(corpus, "INSERT INTO articles (pmcid, state, source, version) VALUES (?, 'described', 'pmc', 1)",
               values=(pmcid,))  # fmt: skip
        change(corpus, "INSERT INTO files VALUES (?, '../thesis.txt', 'x', '', 0, '')", values=(pmcid,))
        assert [run(corpus, server, retracted=True).failed for _ in range(2)] == [1, 0]
        catalogue = Catalogue(corpus)
        assert catalogue.pmcids("done") == library.pmcids
        assert "no PMCID" in catalogue.errors()[0]
        update(corpus, server.url, retry=QUICK)
    extract(corpus, around / "corpus" / "figures.jsonl")
    assert snapshot(around) == before


@pytest.mark.parametrize(
    ("column", "value"),
    [("version", "x"), ("version", -1), ("version", 2**62), ("version", 1.5), ("version", b"1"), ("etag", b"\xff"),
     ("state", "odd"), ("license", b"CC-BY"), ("retracted", "x"), ("about", b"\xff"), ("about", "[")],
)  # fmt: skip
def test_values_of_a_foreign_catalogue(column: str, value: Any, around: Path, library: Library) -> None:
    first = library.pmcids[0]
    with Server(library) as server:
        corpus = corpus_of(around / "corpus", server)
        run(corpus, server, retracted=True)
        change(corpus, "UPDATE articles SET state = 'failed'")
        change(corpus, f"UPDATE articles SET {column} = ? WHERE pmcid = ?", values=(value, first))
        run(corpus, server, retracted=True)
        catalogue = Catalogue(corpus)
        assert set(catalogue.pmcids("done")) >= set(library.pmcids[1:])
        if column in ("version", "etag", "license"):
            with pytest.raises(OddRecord):
                change(corpus, f"UPDATE articles SET {column} = ? WHERE pmcid = ?", values=(value, first))
                catalogue.entry(first)
        catalogue.license_and_retraction()
        catalogue.close()


def test_files_of_the_user_stay(around: Path, library: Library) -> None:
    """In an article's folder: notes, a picture with the name of a figure, a figure that the user has changed."""
    first = library.pmcids[0]
    library.versions[first] = 1
    figure = next(name for name in library.files(first, 1) if name.endswith(".jpg"))
    with Server(library) as server:
        corpus = corpus_of(around / "corpus", server)
        folder = corpus / "articles" / first
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("notes")
        (folder / figure).write_text("of the user")
        assert run(corpus, server, retracted=True).failed == 1
        assert (folder / figure).read_text() == "of the user" and "no fetch wrote it" in Catalogue(corpus).errors()[0]
        (folder / figure).unlink()
        assert run(corpus, server, retracted=True).failed == 0
        (folder / f"{first}.1.xml").write_text("changed by the user")
        library.versions[first] = 2
        try:
            assert update(corpus, server.url, retry=QUICK) == [first]
            run(corpus, server, retracted=True)
        finally:
            library.versions[first] = 1
        assert (folder / f"{first}.1.xml").read_text() == "changed by the user"
        assert (folder / "notes.txt").read_text() == "notes" and (folder / f"{first}.2.xml").exists()


@pytest.mark.parametrize("link", ["articles", "articles/PMC7000001", "articles/PMC7000001/PMC7000001.1.xml",
                                  "articles/PMC7000001/.PMC7000001.1.xml.partial", "fetch.lock"])  # fmt: skip
def test_links_do_not_lead_out_of_a_corpus(link: str, around: Path, library: Library) -> None:
    before = snapshot(around)
    with Server(library) as server:
        corpus = corpus_of(around / "corpus", server)
        (corpus / link).parent.mkdir(parents=True, exist_ok=True)
        target = around / "victim" if "." not in link else around / "victim" / "thesis.txt"
        (corpus / link).symlink_to(target)
        if link == "fetch.lock":
            with pytest.raises(WriteError, match=r"fetch\.lock, a lock, is a link"):
                run(corpus, server)
        else:
            assert run(corpus, server, retracted=True).failed == (4 if link == "articles" else 1)
            assert "link" in Catalogue(corpus).errors()[0] or "no fetch wrote it" in Catalogue(corpus).errors()[0]
    assert snapshot(around) == before and (corpus / link).is_symlink()


def test_a_file_where_a_folder_should_be(around: Path, library: Library) -> None:
    first = library.pmcids[0]
    with Server(library) as server:
        corpus = corpus_of(around / "corpus", server)
        (corpus / "articles").mkdir()
        (corpus / "articles" / first).write_text("of the user")
        assert run(corpus, server, retracted=True).failed == 1
        assert Catalogue(corpus).pmcids("done") == library.pmcids[1:]
    assert (corpus / "articles" / first).read_text() == "of the user"


# ---- catalogues that cannot be used ----------------------------------------------------------------------------------


def tables(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def make_damaged(path: Path) -> None:
    catalogue = Catalogue(path.parent, create=True)
    catalogue.add_page("pmc", "x", 500, total=500, pmcids=[f"PMC{at}" for at in range(500)])
    catalogue.close()
    content = bytearray(path.read_bytes())
    content[100:] = b"\xa5" * (len(content) - 100)
    path.write_bytes(content)


def make_newer(path: Path) -> None:
    Catalogue(path.parent, create=True).close()
    tables(path, "PRAGMA user_version = 99")


def make_older(path: Path) -> None:
    tables(path, "CREATE TABLE articles (pmcid TEXT)", "CREATE TABLE files (pmcid TEXT)")


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.touch(), "is empty"),
    "text": (lambda path: path.write_bytes(b"no database " * 500), "is no catalogue"),
    "damaged": (make_damaged, "is damaged"),
    "newer": (make_newer, "newer version of blip"),
    "older": (make_older, "before the first release"),
    "foreign": (lambda path: tables(path, "CREATE TABLE moz_places (id INTEGER)"), "another program"),
    "foreign-id": (lambda path: tables(path, "PRAGMA application_id = 252006674"), "another program"),
    "foreign-version": (lambda path: tables(path, "PRAGMA user_version = 7"), "another program"),
    "view": (lambda path: tables(path, "CREATE VIEW articles AS SELECT 1 AS pmcid"), "another program"),
    "folder": (lambda path: path.mkdir(), "is no file"),
    "pipe": (lambda path: os.mkfifo(path), "is no file"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_catalogues_that_cannot_be_used_are_told_apart(kind: str, tmp_path: Path) -> None:
    make, message = UNUSABLE[kind]
    make(tmp_path / NAME)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(CatalogueError, match=message) as error:
        Catalogue(tmp_path)
    assert str(tmp_path / NAME) in str(error.value)
    assert not [word for word in ("remove", "delete", "erase", "rm ") if word in str(error.value).lower()]
    assert [text for text in {text for _, text in UNUSABLE.values()} if text in str(error.value)] == [message]
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}, "as it was"


def test_a_locked_catalogue(tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_file, "BUSY_SECONDS", 0.2)
    Catalogue(tmp_path, create=True).close()
    other = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with Server(library) as server:
        with pytest.raises(CatalogueError, match="is locked: another process"):
            search(tmp_path, "brain", 10, server=Where("me@lab.org", eutils=server.url, retry=QUICK))
        other.execute("ROLLBACK")
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CatalogueError, match="is locked: another process") as error:
            run(tmp_path, server)
        assert "Nothing is lost" in str(error.value)
        other.execute("ROLLBACK")
        other.close()
        run(corpus_of(tmp_path, server), server)


def test_a_catalogue_that_is_locked_during_a_fetch_ends_it(tmp_path: Path, library: Library, monkeypatch) -> None:
    monkeypatch.setattr(catalogue_file, "BUSY_SECONDS", 0.2)
    with Server(library) as server:
        corpus = corpus_of(tmp_path, server)
        other = sqlite3.connect(tmp_path / NAME, isolation_level=None, check_same_thread=False)
        about = library.metadata
        with monkeypatch.context() as patch:
            patch.setattr(library, "metadata", lambda p, v: (other.in_transaction or other.execute("BEGIN IMMEDIATE"),
                                                             about(p, v))[1])  # fmt: skip
            with pytest.raises(CatalogueError, match="is locked"):
                run(corpus, server)
        other.execute("ROLLBACK")
        other.close()
        assert run(corpus, server, retracted=True).failed == 0
        assert Catalogue(corpus).pmcids("done") == library.pmcids, "nothing was given up"


def test_a_catalogue_of_the_version_before_is_brought_up(tmp_path: Path, library: Library) -> None:
    """Without the table of written files; its licences and retractions are read by the present rules."""
    first, second, third, fourth = library.pmcids
    with Server(library) as server:
        corpus = corpus_of(tmp_path, server)
        run(corpus, server, retracted=True)
        abouts = {first: {"license_code": "CC BY-NonCommercial"},
                  second: {"license_code": "CC BY", "is_retracted": [True]},
                  third: {"license_code": "CC BY", "is_retracted": False}}  # fmt: skip
        for pmcid, about in abouts.items():
            change(corpus, "UPDATE articles SET license = 'CC-BY', retracted = 0, about = ? WHERE pmcid = ?",
                   values=(json.dumps(about), pmcid))  # fmt: skip
        change(corpus, "UPDATE articles SET about = ? WHERE pmcid = ?",
               values=('{"license_code": "CC BY-NC", "license_code": "CC BY"}', fourth))  # fmt: skip
        change(corpus, "DROP TABLE written", "PRAGMA user_version = 0", "PRAGMA application_id = 0")
        known = Catalogue(corpus).license_and_retraction()
        assert known[first] == ("CC-BY-NC", False) and known[second] == ("CC-BY", True)
        assert known[third] == ("CC-BY", False) and known[fourth] == ("unknown", True)
        library.versions[third] = 2
        try:
            assert third in update(corpus, server.url, retry=QUICK)
            run(corpus, server, retracted=True)
        finally:
            library.versions[third] = 1
        names = {path.name for path in (corpus / "articles" / third).iterdir()}
        assert f"{third}.2.xml" in names and f"{third}.1.xml" not in names


def test_a_lost_catalogue_finds_its_articles_again(tmp_path: Path, library: Library) -> None:
    with Server(library) as server:
        corpus = corpus_of(tmp_path, server)
        run(corpus, server, retracted=True)
        shutil.move(corpus / NAME, tmp_path / "kept.sqlite")
        asked = len(server.log)
        assert run(corpus_of(corpus, server), server, retracted=True).articles == 4
        assert not [address for _, address, _ in server.log[asked:] if address.startswith("/PMC")]


# ---- inventories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 3_000_000, "a line is longer"),
        (b'"b","metadata/PMC1.1.json"\n"\xff"\n', "not readable as CSV"),
        (b'"' + b"x\n" * 200_000, "not readable as CSV"),
    ],
)
def test_inventories_that_are_none(content: bytes, message: str, tmp_path: Path) -> None:
    for name, body in (("plain.csv", content), ("packed.csv.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(body)
        with pytest.raises(FetchError, match=f"{message}|times as large"):
            list(read(tmp_path / name))
    lines = b"".join(b'"b","metadata/PMC%d.1.json","%032x"\n' % (at, at * 7919) for at in range(2000))
    packed = gzip.compress(lines)
    for body, why in ((packed[:-20], "cut short"), (packed[:-8] + bytes(8), "damaged"),
                      (gzip.compress(b"\n" * 50_000_000), "more than 200 times as large")):  # fmt: skip
        (tmp_path / "odd.csv.gz").write_bytes(body)
        with pytest.raises(FetchError, match=why):
            list(read(tmp_path / "odd.csv.gz"))
    (tmp_path / "good.csv.gz").write_bytes(packed + gzip.compress(lines))
    assert len(list(read(tmp_path / "good.csv.gz"))) == 4000


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b'{"files": 1}',
        b'{"files": [{"key": 7}]}',
        b"[" * 10_000,
        b'{"files": [1]}',
        b'{"files": [], "files": [{"key": "a"}]}',
    ],
)
def test_manifests_that_are_none(manifest: bytes, around: Path, library: Library, monkeypatch) -> None:
    body = Server.body
    monkeypatch.setattr(Server, "body", lambda self, path, query: manifest if path.endswith("manifest.json")
                        else body(self, path, query))  # fmt: skip
    before = snapshot(around)
    with Server(library) as server, pytest.raises(FetchError, match="cannot be read"):
        update(corpus_of(around / "corpus", server), server.url, retry=QUICK)
    assert snapshot(around) == before


def test_an_inventory_that_is_no_regular_file(around: Path, library: Library) -> None:
    with Server(library) as server:
        corpus = corpus_of(around / "corpus", server)
        os.mkfifo(around / "inventory.csv")
        with pytest.raises(ReadError, match="is not a regular file"):
            update(corpus, server.url, around / "inventory.csv")
