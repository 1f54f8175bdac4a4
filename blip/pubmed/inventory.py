"""Changes in the bucket since a corpus was fetched, from its daily inventory: a CSV line for each article version."""

import csv
import gzip
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from blip.pubmed.catalogue import Catalogue
from blip.pubmed.fetch import BUCKET, base, folders
from blip.pubmed.http_client import Client, FetchError, RetryPolicy

RATE = 3.0  # requests a second
REPORTS = "inventory-reports/pmc-oa-opendata/metadata/"
KEY = re.compile(r"metadata/(PMC\d+)\.(\d+)\.json")


def update(folder: Path, bucket: str = BUCKET, inventory: Path | None = None, *,
           retry: RetryPolicy | None = None) -> list[str]:  # fmt: skip
    """Marks the articles of a corpus that changed: the next fetch reads them again.

    Args:
        folder: the corpus.
        bucket: base address.
        inventory: a downloaded CSV or .csv.gz; the newest one of the bucket without.

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
    client = Client(RATE, retry)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            files = [inventory] if inventory else _newest(client, bucket, Path(scratch))
            for file in files:
                for pmcid, version, etag in read(file):
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
    try:
        manifest = json.loads(client.get(f"{bucket}{max(days)}manifest.json"))
        entries = [(entry["key"], str(entry.get("MD5checksum", "")).lower()) for entry in manifest["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FetchError(f"{bucket}{max(days)}manifest.json cannot be read ({error!r})") from None
    for key, md5 in entries:
        path = scratch / key.rpartition("/")[2]
        client.download(bucket + key, path, md5)
        yield path
        path.unlink()


def read(path: Path) -> Iterator[tuple[str, int, str]]:
    """(PMCID, version, ETag) of each line of an inventory; lines of other objects are skipped."""
    with open(path, "rb") as raw:
        opened = gzip.open if raw.read(2) == b"\x1f\x8b" else open
    with opened(path, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines):
            if len(row) > 2 and (match := KEY.fullmatch(row[1])):
                # the columns behind the key may come in any order: an ETag is a hexadecimal number, a date is not
                etag = next((value for value in row[2:] if re.fullmatch(r"[0-9a-f]{32}", value.strip('"'))), "")
                yield match[1], int(match[2]), etag.strip('"')
