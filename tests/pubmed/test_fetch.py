"""Search and fetch against a local server that speaks the protocol and sometimes answers wrongly."""

import json
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.running import Program, run_verb
from pmc_server import Faults, Library, Server

pytest.importorskip("lxml")
pytest.importorskip("httpx")

from blip.outputs import LockedError, locked
from blip.pubmed import http_client
from blip.pubmed.bucket import file_of
from blip.pubmed.catalogue import NAME, Catalogue
from blip.pubmed.catalogue_file import CatalogueError
from blip.pubmed.extract import extract
from blip.pubmed.failures import FetchError
from blip.pubmed.fetch import LOCK, Wanted, fetch
from blip.pubmed.http_body import Limits
from blip.pubmed.http_client import Client, RateLimit, RetryPolicy
from blip.pubmed.inventory import update
from blip.pubmed.licenses import short_license
from blip.pubmed.search import Server as Where
from blip.pubmed.search import search

pytestmark = pytest.mark.slow

QUICK = RetryPolicy(tries=6, first_delay=0.02, longest_delay=0.1, timeout=3.0)
QUERY = "brain AND open_access[Filter]"


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(16, small=True)


def corpus_of(folder: Path, server: Server, count: int = 100) -> Path:
    search(folder, QUERY, count, server=Where("me@lab.org", eutils=server.url, retry=QUICK))
    return folder


def wanted(server: Server, **changes: Any) -> Wanted:
    return Wanted(**{"bucket": server.url, "rate": 200.0, "num_workers": 4, "retry": QUICK, **changes})


def contents(folder: Path) -> tuple[list[Any], dict[str, bytes]]:
    """All that the catalogue says, and all files."""
    with sqlite3.connect(folder / NAME) as db:
        rows = [tuple(row) for table in ("articles", "files", "searches")
                for row in sorted(db.execute(f"SELECT * FROM {table}"), key=str)]  # fmt: skip
    files = {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "articles").rglob("*")) if p.is_file()
    }
    return rows, files


@pytest.fixture(scope="module")
def undisturbed(library: Library, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A corpus fetched without faults, and the requests that it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Server(library) as server:
        fetch(corpus_of(folder, server), wanted(server))
        return folder, len(server.log)


# ---- search ----------------------------------------------------------------------------------------------------------


def test_search_goes_on_where_it_stopped(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip.pubmed.search.PAGE", {"pmc": 5, "openi": 4})
    with Server(library) as server:
        where = Where("me@lab.org", eutils=server.url, openi=server.url + "openi", retry=QUICK)
        assert search(tmp_path, QUERY, 7, server=where) == 7
        assert search(tmp_path, QUERY, 100, server=where) == 9
        asked = len(server.log)
        assert search(tmp_path, QUERY, 100, server=where) == 0 and len(server.log) == asked, (
            "a finished search asks nothing"
        )
        assert search(tmp_path, QUERY, 100, server=where, again=True) == 0 and len(server.log) == asked + 4
        assert search(tmp_path, "brain", 100, server=where, source="openi") == 0
        first = server.log[0][1]
        assert "tool=blip" in first and "email=me%40lab.org" in first and "db=pmc" in first
    assert Catalogue(tmp_path).pmcids("found") == library.pmcids


def test_search_tells_what_is_wrong(library: Library, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="--email"):
        search(tmp_path, QUERY, 10, server=Where(""))
    with pytest.raises(FetchError, match="known are pmc, openi"):
        search(tmp_path, QUERY, 10, server=Where("me@lab.org"), source="google")
    with (
        Server(Library(0, small=True)) as server,
        pytest.raises(FetchError, match="no article of PubMed Central matches"),
    ):
        search(tmp_path, "xyzzy", 10, server=Where("me@lab.org", eutils=server.url, retry=QUICK))
    with pytest.raises(FetchError, match=r"\(2 tries\)"):  # nobody listens there
        retry = RetryPolicy(tries=2, first_delay=0.01, timeout=1)
        search(tmp_path, QUERY, 10, server=Where("me@lab.org", eutils="http://127.0.0.1:9/", retry=retry))


# ---- fetch -----------------------------------------------------------------------------------------------------------


def test_fetch_brings_xml_and_images_of_the_newest_version(library: Library, undisturbed: tuple[Path, int]) -> None:
    folder, requests = undisturbed
    catalogue = Catalogue(folder)
    kept = [p for p in library.pmcids if not library.retracted(p)]
    assert catalogue.pmcids("done") == kept
    two = next(p for p in kept if library.versions[p] == 2)
    files = {path.name: path.read_bytes() for path in (folder / "articles" / two).iterdir()}
    there = {n: b for n, b in library.files(two, 2).items() if not n.endswith("xlsx")}
    assert files == there and f"{two}.2.xml" in files
    entry = catalogue.entry(two)
    assert entry.version == 2 and entry.license == short_license(library.license(two)) and len(entry.etag) == 32
    images = sum(len(library.files(p, library.versions[p])) - 1 for p in kept)
    assert requests == 1 + 2 * len(library.pmcids) + images, "one search, listing and metadata each, each file once"


def test_licences_and_retractions(library: Library, tmp_path: Path) -> None:
    with Server(library) as server:
        corpus_of(tmp_path, server)
        done = fetch(tmp_path, wanted(server, licenses=["CC0"]))
        kept = [p for p in library.pmcids if library.license(p) == "CC0" and not library.retracted(p)]
        assert Catalogue(tmp_path).pmcids("done") == kept and done.left_out == len(library.pmcids) - len(kept)
        asked = len(server.log)
        assert fetch(tmp_path, wanted(server, licenses=["cc0"])).left_out == done.left_out
        assert len(server.log) == asked, "what is known not to be wanted is not asked for again"
        fetch(tmp_path, wanted(server, licenses=["CC0", "CC BY"], retracted=True))
        more = [p for p in library.pmcids if library.license(p) in ("CC0", "CC BY")]
        assert Catalogue(tmp_path).pmcids("done") == more


def test_faults_leave_no_trace(library: Library, undisturbed: tuple[Path, int], tmp_path: Path) -> None:
    """Every kind of fault happens; catalogue and files end as without, and nothing is asked more often than it must."""
    faults = Faults(share=0.4, silence=4.0, seed=3)
    with Server(library, faults) as server:
        fetch(corpus_of(tmp_path, server), wanted(server))
        log = list(server.log)
    assert {fault for _, _, fault in log} >= {"429", "500", "short", "wrong", "silent"}
    assert contents(tmp_path) == contents(undisturbed[0])
    assert not list(tmp_path.rglob("*.partial"))
    asked = Counter(address for _, address, _ in log)
    wrong = Counter(address for _, address, fault in log if fault)
    assert all(asked[address] == wrong[address] + 1 for address in asked), "again after a fault, never else"
    assert sum(asked.values()) - sum(wrong.values()) == undisturbed[1]


def test_the_rate_holds_over_all_workers(library: Library, tmp_path: Path) -> None:
    with Server(library) as server:
        corpus_of(tmp_path, server)
        begin = len(server.log)
        done = fetch(tmp_path, wanted(server, rate=60.0, num_workers=8))
        times = [at for at, _, _ in server.log[begin:]]
    assert len(times) == done.requests
    assert max(times) - min(times) >= 0.9 * (len(times) - 1) / 60.0, "n requests take at least n - 1 slots"


def test_slots_of_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: evenly apart, and later after a pause."""
    clock = [100.0]
    slept: list[float] = []
    monkeypatch.setattr(http_client.time, "monotonic", lambda: clock[0])
    rate = RateLimit(4)
    for _ in range(3):
        rate.wait(slept.append)
    rate.pause(10)
    rate.wait(slept.append)
    assert slept == [0.0, 0.25, 0.5, 10.0]
    with pytest.raises(ValueError, match="a rate of 0"):
        RateLimit(0)


def test_delays_double_and_follow_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client.random, "uniform", lambda low, high: high)
    retry = RetryPolicy(first_delay=1.0, longest_delay=10.0)
    assert [retry.delay(attempt) for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    with Server(Library(1, small=True), Faults(share=1.0, most=1, kinds=("429",))) as server:
        client = Client(1000.0, RetryPolicy(tries=3, first_delay=0.001, timeout=1))
        client.get(server.url, {"list-type": "2", "prefix": "PMC7000001."})
        times = [at for at, _, _ in server.log]
    assert len(times) == 2 and times[1] - times[0] > 0.9, "the server asked for a second"


def test_what_is_not_there_is_named_and_not_asked_again(library: Library, tmp_path: Path) -> None:
    with Server(library) as server:
        corpus_of(tmp_path, server)
        catalogue = Catalogue(tmp_path)
        catalogue.add_page("pmc", "other", 1, total=1, pmcids=["PMC1"])
        done = fetch(tmp_path, wanted(server))
        assert done.lasting == done.failed == 1 and catalogue.pmcids("gone") == ["PMC1"]
        assert "PMC1: not in the open bucket" in catalogue.errors()[0]
        asked = len(server.log)
        fetch(tmp_path, wanted(server))
        assert len(server.log) == asked


def test_only_what_may_succeed_is_advised_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetryPolicy, "delay", lambda *_: 0.0)
    library = Library(2, small=True)
    with Server(library) as server:
        catalogue = Catalogue(corpus_of(tmp_path, server))
        catalogue.add_page("pmc", "other", 1, total=1, pmcids=["PMC1"])
        said = run_verb("pubmed", "fetch", tmp_path, "--bucket", server.url)
        assert said.exit_code == 1 and "1 of the failed fail again" in said.output and "retry" not in said.output
        catalogue._rows("UPDATE files SET done = 0, md5 = 'x' WHERE pmcid = ?", library.pmcids[0])
        catalogue.set_state(library.pmcids[0], "described")
        shutil.rmtree(tmp_path / "articles")
        said = run_verb("pubmed", "fetch", tmp_path, "--bucket", server.url)
        assert said.exit_code == 1 and "again to retry 1 that failed" in said.output
        assert "fail again" not in said.output


def test_a_server_that_is_down_ends_the_run(library: Library, tmp_path: Path) -> None:
    with Server(Library(60, small=True)) as server:
        corpus_of(tmp_path, server)
    retry = RetryPolicy(tries=2, first_delay=0.001, timeout=1)
    gone = Wanted(bucket=server.url, rate=1000, num_workers=2, retry=retry)
    with pytest.raises(FetchError, match="20 articles in a row failed"):
        fetch(tmp_path, gone)
    with Server(Library(60, small=True), port=int(server.url.rsplit(":", 1)[1].strip("/"))) as server:
        assert fetch(tmp_path, wanted(server)).failed == 0  # nothing was given up


def test_an_article_that_failed_before_its_licence_was_known_is_tried_again(tmp_path: Path) -> None:
    library = Library(3, small=True)
    with Server(library) as server:
        corpus_of(tmp_path, server)
        first = RetryPolicy(tries=1, timeout=1)
        server.faults = Faults(share=1.0, most=1, kinds=("500",))
        assert fetch(tmp_path, wanted(server, licenses=["CC0", "CC-BY"], retry=first)).failed == 3
        server.faults = Faults()
        assert fetch(tmp_path, wanted(server, licenses=["CC0", "CC-BY"])).failed == 0
        allowed = [p for p in library.pmcids if library.license(p) in ("CC0", "CC BY") and not library.retracted(p)]
        assert Catalogue(tmp_path).pmcids("done") == allowed and allowed


def test_a_retraction_after_the_fetch_reaches_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(3, small=True)
    with Server(library) as server:
        fetch(corpus_of(tmp_path, server), wanted(server))
        retracted = Catalogue(tmp_path).pmcids("done")[0]
        monkeypatch.setattr(library, "retracted", lambda pmcid: pmcid == retracted)
        library.files.cache_clear()
        assert update(tmp_path, server.url, retry=QUICK) != []
        fetch(tmp_path, wanted(server))
    extract(tmp_path, tmp_path / "figures.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert lines and retracted not in {line["article"] for line in lines}


def test_a_wrong_address_gives_nothing_up(library: Library, tmp_path: Path) -> None:
    """A base without its slash is mended; one that is no bucket ends the run, and the right one goes on."""
    with Server(Library(40, small=True)) as server:
        corpus_of(tmp_path, server)
        with pytest.raises(FetchError, match="20 articles in a row failed"):
            fetch(tmp_path, wanted(server, bucket=server.url + "wrong/"))
        assert fetch(tmp_path, wanted(server, bucket=server.url.rstrip("/"))).failed == 0
        assert not Catalogue(tmp_path).pmcids("gone", "failed", "found")


def test_articles_that_are_odd_hold_up_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata of other forms, an image that is not there: named, the rest fetched, also by a second run."""
    library = Library(30, small=True)
    about, good = library.metadata, library.pmcids[-1]
    odd = {"PMC7000001": b"{}", "PMC7000002": b'{"xml_url": null}', "PMC7000003": b"[1]", "PMC7000004": b"no JSON"}
    body = lambda pmcid, version: odd.get(pmcid) or (about(pmcid, version) if pmcid == good else b"{}")  # noqa: E731
    monkeypatch.setattr(library, "metadata", body)
    with Server(library) as server:
        corpus_of(tmp_path, server)
        for _ in range(2):
            assert fetch(tmp_path, wanted(server, num_workers=1)).failed == 29
        assert Catalogue(tmp_path).pmcids("done") == [good]
        assert "its metadata cannot be read" in Catalogue(tmp_path).errors()[0]
        monkeypatch.setattr(library, "metadata", about)
        files = library.files(library.pmcids[0], 1)
        image = next(name for name in files if name.endswith(".jpg"))
        urls = about(library.pmcids[0], 1).replace(image.encode(), b"none-" + image.encode())
        monkeypatch.setattr(library, "metadata", lambda p, v: urls if p == library.pmcids[0] else about(p, v))
        assert fetch(tmp_path, wanted(server)).failed == 0
        entry = Catalogue(tmp_path).entry(library.pmcids[0])
        assert entry.state == "done" and sum(not file.done for file in entry.files) == 1


def test_an_image_above_a_limit_is_named_and_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(2, small=True)
    pmcid, other = library.pmcids
    image = next(name for name in library.files(pmcid, 1) if name.endswith(".jpg"))
    files = {one: library.files(one, 1) for one in library.pmcids}
    files[pmcid] = files[pmcid] | {image: bytes(300_000)}
    monkeypatch.setattr(library, "files", lambda one, version: files[one])
    with Server(library) as server:
        corpus_of(tmp_path, server)
        for _ in range(2):
            assert fetch(tmp_path, wanted(server, limits=Limits(file_mb=0.2))).failed == 1
            catalogue = Catalogue(tmp_path)
            assert catalogue.pmcids("failed") == [pmcid] and catalogue.pmcids("done") == [other]
            assert image in catalogue.errors()[0] and "raise --max_mb" in catalogue.errors()[0]
        assert fetch(tmp_path, wanted(server)).failed == 0
    assert all(file.done for file in Catalogue(tmp_path).entry(pmcid).files)
    assert (tmp_path / "articles" / pmcid / image).read_bytes() == bytes(300_000)


def test_a_file_that_was_replaced_is_described_anew(library: Library, tmp_path: Path) -> None:
    with Server(library) as server:
        corpus_of(tmp_path, server, 1)
        pmcid = library.pmcids[0]
        catalogue = Catalogue(tmp_path)
        fetch(tmp_path, wanted(server))
        catalogue._rows("UPDATE files SET done = 0, md5 = 'x' WHERE pmcid = ?", pmcid)
        catalogue.set_state(pmcid, "described")
        shutil.rmtree(tmp_path / "articles")
        assert fetch(tmp_path, wanted(server)).failed == 1 and "MD5" in catalogue.errors()[0]
        assert fetch(tmp_path, wanted(server)).failed == 0


def test_one_fetch_at_a_time(library: Library, tmp_path: Path) -> None:
    with Server(library) as server:
        corpus_of(tmp_path, server)
        with locked(tmp_path, name=LOCK), pytest.raises(LockedError, match="is being written by process"):
            fetch(tmp_path, wanted(server))
        assert fetch(tmp_path, wanted(server)).failed == 0


def test_updates_by_the_inventory(tmp_path: Path) -> None:
    library = Library(8, small=True)
    with Server(library) as server:
        fetch(corpus_of(tmp_path, server), wanted(server))
        assert update(tmp_path, server.url, retry=QUICK) == []
        changed = next(p for p in library.pmcids if library.versions[p] == 1 and not library.retracted(p))
        library.versions[changed] = 2
        assert update(tmp_path, server.url, retry=QUICK) == [changed]
        asked = len(server.log)
        assert fetch(tmp_path, wanted(server)).articles == 1
        names = {path.name for path in (tmp_path / "articles" / changed).iterdir()}
        assert f"{changed}.2.xml" in names and f"{changed}.1.xml" not in names, "the old version is gone"
        assert {changed in address for _, address, _ in server.log[asked:]} == {True}
        library.versions[changed] = 1  # an inventory of yesterday
        assert (
            update(tmp_path, server.url, retry=QUICK) == [] and changed in Catalogue(tmp_path).license_and_retraction()
        )
        library.versions[changed] = 2
        local = tmp_path / "inventory.csv.gz"
        local.write_bytes(library.inventory())
        assert update(tmp_path, "http://127.0.0.1:9/", local, retry=QUICK) == []


def test_a_corpus_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="begin with `blip pubmed search"):
        fetch(tmp_path, Wanted())
    (tmp_path / NAME).write_bytes(b"this is no database, it is a text" * 50)
    with pytest.raises(CatalogueError, match="is no catalogue"):
        Catalogue(tmp_path)


@pytest.mark.parametrize("url", ["s3://b/PMC1.1/", "s3://b/PMC1.1/..", "s3://b/PMC1.1/a%5Cb.jpg"])
def test_names_that_would_leave_the_folder(url: str) -> None:
    with pytest.raises(FetchError, match="names no file"):
        file_of(url)
    assert file_of("https://h/PMC1.1/..%2F..%2Fx.jpg?md5=AB").name == "x.jpg"


RUN = """
import sys
from pathlib import Path
from blip.pubmed.fetch import Wanted, fetch
from blip.pubmed.http_client import RetryPolicy
fetch(Path(sys.argv[1]), Wanted(bucket=sys.argv[2], rate=40, num_workers=4, retry=RetryPolicy(8, 0.02, 0.1, 3.0)))
"""


def test_killed_ten_times(library: Library, undisturbed: tuple[Path, int], tmp_path: Path) -> None:
    """By SIGKILL, after a random number of requests each time; then it ends as if nothing had been."""
    rng, workers, kills, script = random.Random(1), 4, 0, tmp_path / "script.py"
    script.write_text(RUN)
    with Server(library, Faults(share=0.25, silence=4.0, seed=5)) as server:
        corpus_of(tmp_path / "corpus", server)
        while True:
            begin = len(server.log)
            after = begin + rng.randint(1, 7)
            program = Program(str(script), tmp_path / "corpus", server.url)
            while program.poll() is None:
                if kills < 10 and len(server.log) >= after:
                    time.sleep(rng.random() * 0.02)
                    program.kill()
                    kills += 1
                time.sleep(0.002)
            if program.poll() == 0:
                break
            assert program.poll() == -signal.SIGKILL, program.shown("stderr")
        log = list(server.log)
    assert kills == 10
    assert contents(tmp_path / "corpus") == contents(undisturbed[0])
    wrong = sum(bool(fault) for _, _, fault in log)
    assert len(log) - wrong <= undisturbed[1] + kills * workers, "a kill costs the requests that were under way"


def test_leftovers_of_a_kill_are_written_over(library: Library, undisturbed: tuple[Path, int], tmp_path: Path) -> None:
    """A file that is there but not noted is not asked for again; one that is damaged is."""
    shutil.copytree(undisturbed[0], tmp_path / "corpus")
    catalogue = Catalogue(tmp_path / "corpus")
    pmcid = catalogue.pmcids("done")[0]
    images = [file for file in catalogue.entry(pmcid).files if file.name.endswith(".jpg")]
    for file in images:
        catalogue._rows("UPDATE files SET done = 0 WHERE pmcid = ? AND name = ?", pmcid, file.name)
    catalogue.set_state(pmcid, "described")
    (tmp_path / "corpus" / "articles" / pmcid / images[0].name).write_bytes(b"half of")
    with Server(library) as server:
        fetch(tmp_path / "corpus", wanted(server))
        assert [address for _, address, _ in server.log] == [f"/{images[0].url}"]
    assert contents(tmp_path / "corpus") == contents(undisturbed[0])
