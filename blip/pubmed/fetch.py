"""`blip pubmed fetch`: articles with their figures from the open bucket of PubMed Central; every file is checked.

For each article: a listing of its versions, the metadata of the newest one, then its XML and its images. Every answer
is recorded in the catalogue at once, so that a run that was stopped repeats no request.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from lxml import etree

from blip.data.images import ENDINGS
from blip.pubmed.catalogue import Catalogue, Entry, File
from blip.pubmed.http_client import Client, FetchError, Mismatch, RetryPolicy
from blip.pubmed.licenses import short_license

BUCKET = "https://pmc-oa-opendata.s3.amazonaws.com/"
ARTICLES = "articles"  # folder of a corpus, with a folder for each article
IN_A_ROW = 20  # articles that fail in succession before a run ends: the server or the network is at fault
REPORT_EVERY = 10.0  # seconds between messages


@dataclass
class Wanted:
    """Which articles to fetch, from where and how fast."""

    licenses: list[str] = field(default_factory=list)  # such as CC-BY, CC0; empty: any
    retracted: bool = False
    bucket: str = BUCKET
    rate: float = 10.0  # requests a second, over all workers
    num_workers: int = 4  # downloads at the same time
    retry: RetryPolicy | None = None

    def allows(self, entry: Entry) -> bool:
        """Whether licence and retraction of a described article permit it."""
        if entry.retracted and not self.retracted:
            return False
        return not self.licenses or entry.license in {short_license(name) for name in self.licenses}


@dataclass
class Fetched:
    """Counts of a run."""

    articles: int = 0
    files: int = 0
    bytes: int = 0
    left_out: int = 0  # by licence or retraction
    failed: int = 0
    requests: int = 0


class NotInBucket(FetchError):
    """The bucket has no version of an article."""


def fetch(folder: Path, wanted: Wanted, tell: Callable[[str], None] = lambda line: None) -> Fetched:
    """Fetches all wanted articles of a corpus that are not complete yet.

    Args:
        folder: the corpus, which a search has started.
        tell: receives a message every ten seconds.

    Raises:
        CatalogueError: there is no corpus, or another fetch is running.
        FetchError: many articles failed in succession.
        WriteError: a file cannot be written.
    """
    wanted = replace(wanted, bucket=base(wanted.bucket))
    catalogue = Catalogue(folder)
    run = _Run(catalogue, Client(wanted.rate, wanted.retry), wanted)
    try:
        pmcids = run.pmcids()
        catalogue.lock_folder()
        with ThreadPoolExecutor(wanted.num_workers) as pool:
            try:
                _fetch_all(run, pmcids, pool, tell=tell)
            except BaseException:
                run.client.stop.set()  # other threads end with their present request
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
        finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in finished:
            failed_in_a_row = 0 if future.result() else failed_in_a_row + 1
        if failed_in_a_row >= IN_A_ROW:
            why = "; ".join(run.catalogue.errors(1))
            raise FetchError(f"{failed_in_a_row} articles in a row failed, the last ones like this: {why}")
        if time.monotonic() - told > REPORT_EVERY:
            told, done = time.monotonic(), run.done
            tell(f"{done.articles + done.left_out - known_out + done.failed} of {len(pmcids)} articles, "
                 f"{done.files} files, {done.bytes / 1e6:.0f} MB, {done.failed} failed")  # fmt: skip


class _Run:
    """One fetch: its threads share the catalogue, the client and the counts."""

    def __init__(self, catalogue: Catalogue, client: Client, wanted: Wanted) -> None:
        self.catalogue, self.client, self.wanted = catalogue, client, wanted
        self.done, self.lock = Fetched(), threading.Lock()

    def pmcids(self) -> list[str]:
        """The articles to request; those that are known to be unwanted are counted."""
        pmcids = self.catalogue.pmcids("found", "described", "failed")
        if not self.wanted.licenses and self.wanted.retracted:
            return pmcids
        kept = []
        for pmcid in pmcids:
            entry = self.catalogue.entry(pmcid)
            if entry.state == "found" or entry.version is None or self.wanted.allows(entry):
                kept.append(pmcid)
            else:
                self.done.left_out += 1
        return kept

    def article(self, pmcid: str) -> bool:
        """Fetches one article; False where it failed for a reason that other articles may share."""
        catalogue, client = self.catalogue, self.client
        try:
            entry = catalogue.entry(pmcid)
            if entry.state == "found" or entry.version is None:
                describe(catalogue, client, pmcid, bucket=self.wanted.bucket)
                entry = catalogue.entry(pmcid)
            if not self.wanted.allows(entry):
                catalogue.set_state(pmcid, "described")
                self._count(left_out=1)
                return True
            self._files(entry)
            catalogue.set_state(pmcid, "done")
            self._count(articles=1)
            return True
        except FetchError as error:
            if client.stop.is_set():
                return True  # the run was stopped, the article did not fail
            catalogue.set_state(pmcid, "gone" if isinstance(error, NotInBucket) else "failed", str(error))
            if isinstance(error, Mismatch):
                catalogue.forget_version(pmcid)  # the file may have been replaced since the metadata were read
            self._count(failed=1)
            return not error.shared

    def _files(self, entry: Entry) -> None:
        """The files of an article that are missing; an image that does not exist is recorded and left out."""
        folder = self.catalogue.folder / ARTICLES / entry.pmcid
        for file in entry.files:
            if file.done:
                continue
            try:
                size = self._file(entry.pmcid, file, folder)
            except FetchError as error:
                if not error.lasting or not is_image(file.name):
                    raise
                continue
            self._count(files=1, bytes=size)
        _remove_others(folder, entry.files)

    def _file(self, pmcid: str, file: File, folder: Path) -> int:
        """Downloads one file unless it exists with the right checksum; returns its number of bytes."""
        path = folder / file.name
        if not (file.md5 and path.is_file() and _md5(path) == file.md5):
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


def folders(client: Client, bucket: str, prefix: str) -> list[str]:
    """The folders of the bucket whose names begin with a prefix.

    Raises:
        FetchError: the bucket does not answer with a listing.
    """
    listing = client.get(bucket, {"list-type": "2", "prefix": prefix, "delimiter": "/"})
    try:
        root = etree.fromstring(listing, etree.XMLParser(resolve_entities=False, no_network=True))
    except etree.XMLSyntaxError as error:
        raise FetchError(f"the bucket's listing is not XML ({error})", shared=True) from None
    if not root.tag.endswith("ListBucketResult"):
        raise FetchError(f"{bucket} answers with <{root.tag}>, no listing: is it a bucket's address?", shared=True)
    return [element.text or "" for element in root.iter("{*}Prefix")]


def describe(catalogue: Catalogue, client: Client, pmcid: str, *, bucket: str) -> None:
    """Records the metadata of an article's newest version in the catalogue.

    Raises:
        NotInBucket: there is no version. FetchError: the metadata cannot be read.
    """
    prefixes = folders(client, bucket, f"{pmcid}.")
    versions = [int(m[1]) for p in prefixes if (m := re.fullmatch(rf"{pmcid}\.(\d+)/", p))]
    if not versions:
        raise NotInBucket("not in the open bucket (no open licence, or removed)", lasting=True)
    version = max(versions)
    body, etag = client.get_tagged(f"{bucket}metadata/{pmcid}.{version}.json")
    try:
        about = json.loads(body)
        urls = [about["xml_url"], *(about.get("media_urls") or [])]
        files = [file_of(url) for at, url in enumerate(urls) if at == 0 or is_image(url)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FetchError(f"its metadata cannot be read ({error!r})") from None
    license = short_license(str(about.get("license_code") or ""))
    catalogue.describe(pmcid, version, etag, license=license, about=about, files=files)


def file_of(url: str) -> File:
    """s3://bucket/PMC1.1/name.jpg?md5=... (or https) -> name, key in the bucket, checksum; FetchError for no name."""
    parts = urlsplit(url)
    key = unquote(parts.path.lstrip("/"))
    name = key.rpartition("/")[2]
    if not name or name in (".", "..") or "\\" in name or "\0" in name:
        raise FetchError(f"{url}: names no file", lasting=True)
    return File(name, key, parse_qs(parts.query).get("md5", [""])[0].lower())


def is_image(url: str) -> bool:
    """Whether an address or a name ends like an image."""
    return urlsplit(url).path.lower().endswith(ENDINGS)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _remove_others(folder: Path, files: list[File]) -> None:
    """Deletes files of an older version that the present one does not have."""
    names = {file.name for file in files}
    for path in folder.iterdir():
        if path.name not in names and path.is_file():
            path.unlink()


def base(address: str) -> str:
    """An address that ends in a slash, so that names can be appended."""
    return address.rstrip("/") + "/"
