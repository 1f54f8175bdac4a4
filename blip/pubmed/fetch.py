"""Articles with their figures out of PubMed Central's open bucket, every file checked, at any point to be gone on with.

For each article: which versions there are, the newest one's metadata, then its XML and its images. What is known is
written to the catalogue after each answer, so that a run which is stopped asks for nothing twice.
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
from blip.pubmed.http_client import Client, FetchError, Mismatch, Patience
from blip.pubmed.licenses import short_license

BUCKET = "https://pmc-oa-opendata.s3.amazonaws.com/"
ARTICLES = "articles"  # folder of a corpus, with one folder an article
IN_A_ROW = 20  # articles that fail one after the other: then it is the server, or the network


@dataclass
class Wanted:
    """Which articles to fetch, and how hard to try."""

    licenses: list[str] = field(default_factory=list)  # such as CC-BY, CC0; none: any
    retracted: bool = False
    bucket: str = BUCKET
    rate: float = 10.0  # requests a second, over all workers
    workers: int = 4
    patience: Patience | None = None

    def allows(self, entry: Entry) -> bool:
        if entry.retracted and not self.retracted:
            return False
        return not self.licenses or entry.license in {short_license(name) for name in self.licenses}


@dataclass
class Fetched:
    """What a run did."""

    articles: int = 0
    files: int = 0
    bytes: int = 0
    left_out: int = 0  # by licence or retraction
    failed: int = 0
    requests: int = 0


class NotThere(FetchError):
    """An article that the bucket does not have."""


def fetch(folder: Path, wanted: Wanted, tell: Callable[[str], None] = lambda line: None) -> Fetched:
    """Brings a corpus as far as `wanted` says.

    Args:
        folder: the corpus, begun by a search.
        tell: takes a line now and then.

    Raises:
        CatalogueError: no corpus. FetchError: the server cannot be reached.
    """
    wanted = replace(wanted, bucket=base(wanted.bucket))
    catalogue = Catalogue(folder)
    client = Client(wanted.rate, wanted.patience)
    done, lock = Fetched(), threading.Lock()
    pmcids = catalogue.pmcids("found", "described", "failed")
    if wanted.licenses or not wanted.retracted:
        pmcids = [p for p in pmcids if _may_be(catalogue.entry(p), wanted, done)]
    in_a_row, told, known_out = 0, time.monotonic(), done.left_out
    try:
        catalogue.lock_folder()
        with ThreadPoolExecutor(wanted.workers) as pool:
            waiting: set[Future[bool]] = set()
            rest = iter(pmcids)
            try:
                while True:
                    while len(waiting) < 2 * wanted.workers and (pmcid := next(rest, None)) is not None:
                        waiting.add(pool.submit(_article, catalogue, client, pmcid, wanted, done, lock))
                    if not waiting:
                        break
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in finished:
                        in_a_row = 0 if future.result() else in_a_row + 1
                    if in_a_row >= IN_A_ROW:
                        why = "; ".join(catalogue.errors(1))
                        raise FetchError(f"{in_a_row} articles in a row failed, the last ones like this: {why}")
                    if time.monotonic() - told > 10:
                        told = time.monotonic()
                        tell(f"{done.articles + done.left_out - known_out + done.failed} of {len(pmcids)} articles, "
                             f"{done.files} files, {done.bytes / 1e6:.0f} MB, {done.failed} failed")  # fmt: skip
            except BaseException:
                client.stop.set()  # the others end with the request that they are at
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        done.requests = client.requests
        client.close()
        catalogue.close()
    return done


def _may_be(entry: Entry, wanted: Wanted, done: Fetched) -> bool:
    """Whether an article may be wanted; those known not to be are counted and asked for nothing."""
    if entry.state == "found" or entry.version is None or wanted.allows(entry):
        return True
    done.left_out += 1
    return False


def _article(catalogue: Catalogue, client: Client, pmcid: str, wanted: Wanted, done: Fetched,
             lock: threading.Lock) -> bool:  # fmt: skip
    """One article as far as it gets; False where it failed in a way that others may share."""
    try:
        entry = catalogue.entry(pmcid)
        if entry.state == "found" or entry.version is None:
            describe(catalogue, client, pmcid, wanted.bucket)
            entry = catalogue.entry(pmcid)
        if not wanted.allows(entry):
            catalogue.set_state(pmcid, "described")
            with lock:
                done.left_out += 1
            return True
        folder = catalogue.folder / ARTICLES / pmcid
        for file in entry.files:
            if file.done:
                continue
            try:
                size = _file(catalogue, client, entry.pmcid, file, folder, wanted.bucket)
            except FetchError as error:
                if not error.lasting or not is_image(file.name):
                    raise
                continue  # one image that is not there; it is noted with the file
            with lock:
                done.files, done.bytes = done.files + 1, done.bytes + size
        _remove_others(folder, entry.files)
        catalogue.set_state(pmcid, "done")
        with lock:
            done.articles += 1
        return True
    except FetchError as error:
        if client.stop.is_set():
            return True  # nobody's fault
        catalogue.set_state(pmcid, "gone" if isinstance(error, NotThere) else "failed", str(error))
        if isinstance(error, Mismatch):
            catalogue.forget_version(pmcid)  # the file may have been replaced since the metadata were read
        with lock:
            done.failed += 1
        return not error.shared


def listed(client: Client, bucket: str, prefix: str) -> list[str]:
    """The folders of the bucket whose names begin so."""
    listing = client.get(bucket, {"list-type": "2", "prefix": prefix, "delimiter": "/"})
    try:
        root = etree.fromstring(listing, etree.XMLParser(resolve_entities=False, no_network=True))
    except etree.XMLSyntaxError as error:
        raise FetchError(f"the bucket's listing is no XML ({error})", shared=True) from None
    if not root.tag.endswith("ListBucketResult"):
        raise FetchError(f"{bucket} answers with <{root.tag}>, no listing: is it a bucket's address?", shared=True)
    return [element.text or "" for element in root.iter("{*}Prefix")]


def describe(catalogue: Catalogue, client: Client, pmcid: str, bucket: str) -> None:
    """Reads the newest version's metadata into the catalogue."""
    prefixes = listed(client, bucket, f"{pmcid}.")
    versions = [int(m[1]) for p in prefixes if (m := re.fullmatch(rf"{pmcid}\.(\d+)/", p))]
    if not versions:
        raise NotThere("not in the open bucket (no open licence, or removed)", lasting=True)
    version = max(versions)
    body, etag = client.get_tagged(f"{bucket}metadata/{pmcid}.{version}.json")
    try:
        about = json.loads(body)
        urls = [about["xml_url"], *(about.get("media_urls") or [])]
        files = [file_of(url) for at, url in enumerate(urls) if at == 0 or is_image(url)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FetchError(f"its metadata cannot be read ({error!r})") from None
    license = short_license(str(about.get("license_code") or ""))
    catalogue.describe(pmcid, version, etag, license, about, files)


def file_of(url: str) -> File:
    """s3://bucket/PMC1.1/name.jpg?md5=... or https -> its name, its key in the bucket, its checksum."""
    parts = urlsplit(url)
    key = unquote(parts.path.lstrip("/"))
    name = key.rpartition("/")[2]
    if not name or name in (".", "..") or "\\" in name or "\0" in name:
        raise FetchError(f"{url}: names no file", lasting=True)
    return File(name, key, parse_qs(parts.query).get("md5", [""])[0].lower())


def is_image(url: str) -> bool:
    return urlsplit(url).path.lower().endswith(ENDINGS)


def _file(catalogue: Catalogue, client: Client, pmcid: str, file: File, folder: Path, bucket: str) -> int:
    """One file, unless it lies there already; returns its bytes."""
    path = folder / file.name
    if not (file.md5 and path.is_file() and _md5(path) == file.md5):
        try:
            file.md5 = client.download(bucket + quote(file.url), path, file.md5)
        except FetchError as error:
            catalogue.file_failed(pmcid, file.name, str(error))
            raise
    catalogue.file_done(pmcid, file.name, file.md5)
    return path.stat().st_size


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _remove_others(folder: Path, files: list[File]) -> None:
    """What an older version had and this one has not."""
    names = {file.name for file in files}
    for path in folder.iterdir():
        if path.name not in names and path.is_file():
            path.unlink()


def base(address: str) -> str:
    """An address that others are put behind."""
    return address.rstrip("/") + "/"
