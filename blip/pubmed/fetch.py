"""`blip pubmed fetch`: articles with their figures from the open bucket of PubMed Central; every file is checked.

For each article: a listing of its versions, the metadata of the newest one, then its XML and its images. Every answer
is recorded in the catalogue at once, so that a run that was stopped repeats no request.
"""

import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from blip.files import NO_ROOM, WriteError
from blip.outputs import locked
from blip.pubmed.article_files import article_folder, claim, has_md5, remove_others
from blip.pubmed.bucket import NotInBucket, base, describe, is_image
from blip.pubmed.catalogue import Catalogue, Entry, File
from blip.pubmed.catalogue_file import CatalogueError
from blip.pubmed.config import BUCKET
from blip.pubmed.failures import Absent, FetchError, OddRecord
from blip.pubmed.http_body import Limits
from blip.pubmed.http_client import Client, Mismatch, RetryPolicy
from blip.pubmed.licenses import selected_families

LOCK = "fetch.lock"
IN_A_ROW = 20  # articles that fail in succession before a run ends: the server or the network is at fault
REPORT_EVERY = 10.0  # seconds between messages
NOT_ONE_ARTICLES = (*NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)  # why no file can be written


@dataclass
class Wanted:
    """Which articles to fetch, from where and how fast."""

    licenses: list[str] = field(default_factory=list)  # such as CC-BY, CC0; empty: any
    retracted: bool = False
    bucket: str = BUCKET
    rate: float = 10.0  # requests a second, over all workers
    num_workers: int = 4  # downloads at the same time
    retry: RetryPolicy | None = None
    limits: Limits | None = None  # of each exchange

    def __post_init__(self) -> None:
        self.families = selected_families(self.licenses)

    def allows(self, entry: Entry) -> bool:
        """Whether licence and retraction of a described article permit it."""
        if entry.retracted and not self.retracted:
            return False
        return not self.families or entry.license in self.families


@dataclass
class Fetched:
    """Counts of a run."""

    articles: int = 0
    files: int = 0
    bytes: int = 0
    left_out: int = 0  # by licence or retraction
    failed: int = 0
    lasting: int = 0  # of the failed: the same fetch would fail again
    requests: int = 0

    def advice(self) -> str:
        """What to do about articles that failed."""
        said = []
        if self.failed > self.lasting:
            said.append(f"start the same command again to retry {self.failed - self.lasting:,} that failed")
        if self.lasting:
            said.append(f"{self.lasting:,} of the failed fail again unless what their messages name is changed")
        return "; ".join(said)


def fetch(folder: Path, wanted: Wanted, tell: Callable[[str], None] = lambda line: None) -> Fetched:
    """Fetches all wanted articles of a corpus that are not complete yet.

    Args:
        folder: the corpus, which a search has started.
        tell: receives a message every ten seconds.

    Raises:
        CatalogueError: there is no corpus, or the catalogue cannot be used. LockedError: another fetch is running.
        InputError: a licence is not known.
        FetchError: many articles failed in succession.
        WriteError: a file cannot be written.
    """
    wanted = replace(wanted, bucket=base(wanted.bucket))
    catalogue = Catalogue(folder)
    run = _Run(catalogue, Client(wanted.rate, wanted.retry, limits=wanted.limits), wanted)
    try:
        # two would exceed the rate, and write the same files
        with locked(folder, name=LOCK), ThreadPoolExecutor(wanted.num_workers) as pool:
            pmcids = run.pmcids()
            try:
                _fetch_all(run, pmcids, pool, tell=tell)
            except BaseException:
                run.client.abort()  # the other threads end at once
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        run.done.requests = run.client.requests
        run.client.close()
        catalogue.close()
    return run.done


def _fetch_all(run: "_Run", pmcids: list[str], pool: ThreadPoolExecutor, *, tell: Callable[[str], None]) -> None:
    """Fetches articles in the threads of the pool, with few waiting, so that a run can end soon."""
    rest, waiting = iter(pmcids), set[Future[bool]]()
    failed_in_a_row, told, known_out = 0, time.monotonic(), run.done.left_out
    while True:
        while len(waiting) < 2 * run.wanted.num_workers and (pmcid := next(rest, None)) is not None:
            waiting.add(pool.submit(run.article, pmcid))
        if not waiting:
            return
        finished, waiting = wait(waiting, timeout=REPORT_EVERY, return_when=FIRST_COMPLETED)
        for future in finished:
            failed_in_a_row = 0 if future.result() else failed_in_a_row + 1
        if failed_in_a_row >= IN_A_ROW:
            raise FetchError(f"{failed_in_a_row} articles in a row failed, the last ones like this: {run.last_error}")
        if time.monotonic() - told > REPORT_EVERY:
            told, done = time.monotonic(), run.done
            tell(f"{done.articles + done.left_out - known_out + done.failed} of {len(pmcids)} articles, "
                 f"{done.files} files, {done.bytes / 1e6:.0f} MB, {done.failed} failed")  # fmt: skip


class _Run:
    """One fetch: its threads share the catalogue, the client and the counts."""

    def __init__(self, catalogue: Catalogue, client: Client, wanted: Wanted) -> None:
        self.catalogue, self.client, self.wanted = catalogue, client, wanted
        self.done, self.lock = Fetched(), threading.Lock()
        self.last_error = ""

    def pmcids(self) -> list[str]:
        """The articles to request; those that are known to be unwanted are counted, and names that are none."""
        odd = self.catalogue.refuse_odd_names()
        self._count(failed=odd, lasting=odd)
        pmcids = self.catalogue.pmcids("found", "described", "failed")
        if not self.wanted.licenses and self.wanted.retracted:
            return pmcids
        kept = []
        for pmcid in pmcids:
            try:
                entry = self.catalogue.entry(pmcid)
                unwanted = entry.state != "found" and entry.version is not None and not self.wanted.allows(entry)
            except OddRecord:  # `article` records it
                unwanted = False
            if unwanted:
                self.done.left_out += 1
            else:
                kept.append(pmcid)
        return kept

    def article(self, pmcid: str) -> bool:
        """Fetches one article; False where it failed for a reason that other articles may share.

        Whatever is odd about an article is recorded and costs that article alone. A catalogue or a disk that cannot be
        written ends the run.
        """
        try:
            return self._article(pmcid)
        except FetchError as error:
            if self.client.stop.is_set():
                return True  # the run was stopped, the article did not fail
            state = "gone" if isinstance(error, NotInBucket) else "failed"
            self._failed(pmcid, str(error), state=state, lasting=error.lasting and not error.shared)
            if isinstance(error, Mismatch | OddRecord):
                self.catalogue.forget_version(pmcid)  # the file may have been replaced since the metadata were read
            return not error.shared
        except CatalogueError:
            raise
        except (WriteError, OSError) as error:
            cause = error.__cause__ if isinstance(error, WriteError) else error
            if isinstance(cause, OSError) and cause.errno in NOT_ONE_ARTICLES:
                raise
            self._failed(pmcid, str(error))
        except Exception as error:
            self._failed(pmcid, f"{type(error).__name__}: {error}")
        return True

    def _failed(self, pmcid: str, why: str, *, state: str = "failed", lasting: bool = False) -> None:
        self.last_error = f"{pmcid}: {why}"
        self.catalogue.set_state(pmcid, state, why)
        self._count(failed=1, lasting=int(lasting))

    def _article(self, pmcid: str) -> bool:
        catalogue = self.catalogue
        entry = catalogue.entry(pmcid)
        if entry.state == "found" or entry.version is None:
            describe(catalogue, self.client, pmcid, bucket=self.wanted.bucket)
            entry = catalogue.entry(pmcid)
        if not self.wanted.allows(entry):
            if entry.state != "described":
                catalogue.set_state(pmcid, "described")
            self._count(left_out=1)
            return True
        self._files(entry)
        catalogue.set_state(pmcid, "done")
        self._count(articles=1)
        return True

    def _files(self, entry: Entry) -> None:
        """The files of an article that are missing; an image that does not exist is recorded and left out.

        Raises:
            FetchError: a file cannot be had, such as one above a limit. The article is not done without it: a later
                fetch, with another limit, asks again.
        """
        folder = article_folder(self.catalogue.folder, entry.pmcid)
        missing = [file for file in entry.files if not file.done]
        claim(self.catalogue, entry.pmcid, folder, files=missing)
        for file in missing:
            try:
                size = self._file(entry.pmcid, file, folder)
            except Absent:
                if not is_image(file.name):
                    raise
                continue
            self._count(files=1, bytes=size)
        remove_others(self.catalogue, entry.pmcid, folder, files=entry.files)

    def _file(self, pmcid: str, file: File, folder: Path) -> int:
        """Downloads one file unless it exists with the right checksum; returns its number of bytes."""
        path = folder / file.name
        if not has_md5(path, file.md5):
            try:
                file.md5 = self.client.download(self.wanted.bucket + quote(file.url), path, file.md5)
            except FetchError as error:
                self.catalogue.file_failed(pmcid, file.name, str(error))
                raise
        self.catalogue.file_done(pmcid, file.name, file.md5)
        return path.stat().st_size

    def _count(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                setattr(self.done, name, getattr(self.done, name) + count)
