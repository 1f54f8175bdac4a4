"""Changes in the bucket since a corpus was fetched, from its daily inventory: a CSV line for each article version."""

import csv
import itertools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field

from blip.files import ReadError, open_regular, parse_json
from blip.pubmed.bucket import base, folders
from blip.pubmed.catalogue import Catalogue
from blip.pubmed.config import BUCKET
from blip.pubmed.failures import FetchError
from blip.pubmed.http_body import SMALL, Limits, Unpacker
from blip.pubmed.http_client import Client, RetryPolicy

RATE = 3.0  # requests a second
LARGER = 16  # an inventory may be so many times as large as the file of an article
LONGEST_LINE = 10_000  # bytes
BLOCK = 1 << 16  # bytes that are read at once
REPORTS = "inventory-reports/pmc-oa-opendata/metadata/"
KEY = re.compile(r"metadata/(PMC[0-9]{1,12})\.([0-9]{1,5})\.json")


class _File(BaseModel):
    key: str = Field(max_length=1000)
    MD5checksum: str = Field("", max_length=32)


class _Manifest(BaseModel):
    """The list of files of an inventory."""

    files: list[_File] = Field(max_length=10_000)


def update(folder: Path, bucket: str = BUCKET, inventory: Path | None = None, *,
           retry: RetryPolicy | None = None, limits: Limits | None = None) -> list[str]:  # fmt: skip
    """Marks the articles of a corpus that changed: the next fetch reads them again.

    Args:
        folder: the corpus.
        bucket: base address.
        inventory: a downloaded CSV or .csv.gz; the newest one of the bucket without.
        limits: of each exchange; a file of an inventory may be 16 times as large as that of an article.

    Returns:
        the PMCIDs of articles that changed.

    Raises:
        CatalogueError: there is no corpus.
        FetchError: the bucket has no inventory, or it cannot be read.
    """
    catalogue = Catalogue(folder)
    known = set(catalogue.pmcids("described", "done", "failed", "gone"))
    bucket = base(bucket)
    newest: dict[str, tuple[int, str]] = {}
    client = Client(RATE, retry, limits=limits)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            files = [inventory] if inventory else _newest(client, bucket, Path(scratch))
            for file in files:
                for pmcid, version, etag in read(file, client.limits.ratio):
                    if pmcid in known and version > newest.get(pmcid, (0, ""))[0]:
                        newest[pmcid] = (version, etag)
        return catalogue.renew(newest)
    finally:
        client.close()
        catalogue.close()


def _newest(client: Client, bucket: str, scratch: Path) -> Iterator[Path]:
    """The CSV files of the newest inventory, each downloaded when it is needed."""
    days = [day for day in folders(client, bucket, REPORTS) if re.search(r"/\d{4}-\d\d-\d\dT[\d-]+Z/$", day)]
    if not days:
        raise FetchError(f"{bucket}{REPORTS}: no inventory there", lasting=True)
    name = f"{bucket}{max(days)}manifest.json"
    try:
        manifest = parse_json(client.get(name), _Manifest, name)
    except ReadError as error:
        raise FetchError(f"{name} cannot be read ({error.problem})") from None
    for number, file in enumerate(manifest.files):
        path = scratch / f"{number}.csv"  # the server's name could lead elsewhere
        most = LARGER * client.limits.file_mb * 1e6
        client.download(bucket + file.key, path, file.MD5checksum.lower(), most=most)
        yield path
        path.unlink()


def read(path: Path, ratio: float = Limits.ratio) -> Iterator[tuple[str, int, str]]:
    """(PMCID, version, ETag) of each line of an inventory; lines of other objects are skipped.

    Args:
        path: CSV, or .csv.gz.
        ratio: bytes after decompression for each byte of the file.

    Raises:
        FetchError: it is damaged, or no inventory. ReadError: there is no such file, or it is not a regular one.
    """
    rows = csv.reader(_lines(path, ratio))
    try:
        for row in rows:
            if len(row) > 2 and (match := KEY.fullmatch(row[1])):
                # the columns behind the key may come in any order: an ETag is a hexadecimal number, a date is not
                etag = next((value for value in row[2:] if re.fullmatch(r"[0-9a-f]{32}", value.strip('"'))), "")
                yield match[1], int(match[2]), etag.strip('"')
    except (csv.Error, UnicodeDecodeError) as error:
        raise FetchError(f"{path}, line {rows.line_num + 1}: not readable as CSV ({error})") from None


def _lines(path: Path, ratio: float) -> Iterator[str]:
    """The lines of a text that may be compressed. FetchError where it is damaged or grows beyond the ratio."""
    with open_regular(path) as file:
        unpacker = Unpacker() if file.read(2) == b"\x1f\x8b" else None
        file.seek(0)
        rest, sent, size = b"", 0, 0
        for block in itertools.chain(iter(lambda: file.read(BLOCK), b""), [b""]):
            sent += len(block)
            for piece in unpacker.feed(block, str(path)) if unpacker else [block]:
                size += len(piece)
                if size > max(SMALL, ratio * sent):
                    raise FetchError(f"{path}: decompressed, it is more than {ratio:g} times as large")
                *whole, rest = (rest + piece).split(b"\n")
                yield from (line.decode() for line in whole)
                if len(rest) > LONGEST_LINE:
                    raise FetchError(f"{path}: a line is longer than {LONGEST_LINE} bytes: is it an inventory?")
        if unpacker and not unpacker.complete:
            raise FetchError(f"{path}: the file is cut short")
        if rest:
            yield rest.decode()
