"""What changed in the bucket since a corpus was fetched: its daily inventory, a CSV line an article version."""

import csv
import gzip
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from blip.pubmed.catalogue import Catalogue
from blip.pubmed.fetch import BUCKET, base, listed
from blip.pubmed.http_client import Client, FetchError, Patience

REPORTS = "inventory-reports/pmc-oa-opendata/metadata/"
KEY = re.compile(r"metadata/(PMC\d+)\.(\d+)\.json")


def update(folder: Path, bucket: str = BUCKET, inventory: Path | None = None,
           patience: Patience | None = None) -> list[str]:  # fmt: skip
    """Marks the articles of a corpus that changed: the next fetch reads them anew.

    Args:
        inventory: a CSV (or .csv.gz) that was downloaded; else the newest one of the bucket is read.

    Returns:
        the PMCIDs that changed.

    Raises:
        FetchError: no inventory there.
    """
    catalogue = Catalogue(folder)
    known = set(catalogue.pmcids("described", "done", "failed", "gone"))
    bucket = base(bucket)
    newest: dict[str, tuple[int, str]] = {}
    client = Client(3.0, patience)
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
    """The CSV files of the newest inventory, each downloaded when it is asked for."""
    days = [day for day in listed(client, bucket, REPORTS) if re.search(r"/\d{4}-\d\d-\d\dT[\d-]+Z/$", day)]
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
    """(PMCID, version, ETag) of each line; other objects' lines are passed over."""
    with open(path, "rb") as raw:
        opened = gzip.open if raw.read(2) == b"\x1f\x8b" else open
    with opened(path, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines):
            if len(row) > 2 and (match := KEY.fullmatch(row[1])):
                # the order of the two behind the key is not ours to choose: an ETag is a number, a date is none
                etag = next((value for value in row[2:] if re.fullmatch(r"[0-9a-f]{32}", value.strip('"'))), "")
                yield match[1], int(match[2]), etag.strip('"')
