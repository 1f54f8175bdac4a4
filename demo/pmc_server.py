"""A small PubMed Central on this machine: articles that nobody wrote, behind the addresses that the real one has.

    python demo/pmc_server.py --port 8765 --articles 40

It answers ESearch, Open-i's search and the open bucket (listings, metadata, files, inventory), so that collecting
articles can be tried, and tested, without a network. Faults can be switched on: too many requests, server errors,
bodies cut short or changed, silence.
"""

import argparse
import gzip
import hashlib
import io
import json
import random
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np

from blip.pubmed.panels.compose import Compound, compose
from blip.pubmed.panels.singles import scan

FIRST = 7000001
LICENSES = ("CC BY", "CC BY", "CC BY", "CC0", "CC BY-NC", "CC BY-NC-ND")
LINKS = {"CC0": "https://creativecommons.org/publicdomain/zero/1.0/"}
SIGHTS = (
    "Axial CT of the chest",
    "T1-weighted MRI of the brain",
    "Chest radiograph",
    "Haematoxylin and eosin stain",
    "Ultrasound of the liver",
    "FLAIR image of the brain",
    "Fluorescence of labelled cells",
    "Western blot",
)
FINDINGS = ("shows a mass", "is normal", "shows a bright lesion (arrow)", "after treatment", "before treatment",
            "with oedema around it", "in a control", "at the last visit")  # fmt: skip
DAY = "2026-01-18T01-00Z"
REPORTS = "inventory-reports/pmc-oa-opendata/metadata/"


@dataclass
class Faults:
    """Of all addresses a share answers wrongly once to `most` times before it answers rightly."""

    share: float = 0.0
    most: int = 2
    kinds: tuple[str, ...] = ("429", "500", "short", "wrong", "silent")
    seed: int = 0
    silence: float = 3.0  # seconds
    tries: dict[str, int] = field(default_factory=dict)

    def of(self, address: str, checked: bool) -> str:
        """The fault of the next answer, or ""; `wrong` only where a checksum can tell."""
        rng = random.Random(f"{self.seed} {address}")
        planned = rng.randint(1, self.most) if rng.random() < self.share else 0
        kinds = [kind for kind in self.kinds if checked or kind != "wrong"]
        chosen = [rng.choice(kinds) for _ in range(planned)]
        at = self.tries[address] = self.tries.get(address, 0) + 1
        return chosen[at - 1] if at <= planned else ""


class Library:
    """The articles; each is drawn when it is first asked for, always the same. `small`: a little scan a figure."""

    def __init__(self, articles: int, seed: int = 0, small: bool = False) -> None:
        self.seed, self.small, self.pmcids = seed, small, [f"PMC{FIRST + at}" for at in range(articles)]
        self.versions = {pmcid: 1 + (at % 7 == 3) for at, pmcid in enumerate(self.pmcids)}
        self.files = lru_cache(maxsize=None)(self._files)

    def license(self, pmcid: str) -> str:
        return LICENSES[int(pmcid[3:]) % len(LICENSES)]

    def retracted(self, pmcid: str) -> bool:
        return int(pmcid[3:]) % 11 == 5

    def _files(self, pmcid: str, version: int) -> dict[str, bytes]:
        """Name -> content of an article's version: its XML, its figures, a supplement."""
        rng = np.random.default_rng([self.seed, int(pmcid[3:]), version])
        figures, files = [], {}
        for number in range(1, int(rng.integers(2, 4))):
            figure = Compound(scan(rng, 64, 48), [(0, 0, 64, 48)]) if self.small else compose(rng, [])
            name, jpeg = f"fig-g{number:03d}", io.BytesIO()
            figure.image.save(jpeg, "JPEG", quality=85)
            files[f"{name}.jpg"] = jpeg.getvalue()
            figures.append(_figure(rng, number, name, len(figure.boxes)))
        files["supplement.xlsx"] = b"no image"
        xml = _article(rng, pmcid, self.license(pmcid), self.retracted(pmcid), figures).encode()
        return {f"{pmcid}.{version}.xml": xml, **files}

    def metadata(self, pmcid: str, version: int) -> bytes:
        files = self.files(pmcid, version)
        urls = [f"s3://pmc-oa-opendata/{pmcid}.{version}/{name}?md5={hashlib.md5(body).hexdigest()}"
                for name, body in files.items()]  # fmt: skip
        about = {"pmcid": pmcid, "version": version, "title": f"A study, number {pmcid[3:]}", "is_pmc_openaccess": True,
                 "is_manuscript": False, "is_retracted": self.retracted(pmcid), "license_code": self.license(pmcid),
                 "xml_url": urls[0], "media_urls": urls[1:]}  # fmt: skip
        return json.dumps(about).encode()

    def inventory(self) -> bytes:
        lines = []
        for pmcid in self.pmcids:
            for version in range(1, self.versions[pmcid] + 1):
                etag = hashlib.md5(self.metadata(pmcid, version)).hexdigest()
                date = "2026-01-08T11:47:59.000Z"
                lines.append(f'"pmc-oa-opendata","metadata/{pmcid}.{version}.json","{date}","{etag}"\n')
        return gzip.compress("".join(lines).encode(), mtime=0)


def _figure(rng: np.random.Generator, number: int, name: str, panels: int) -> str:
    said = [f"{rng.choice(SIGHTS)} {rng.choice(FINDINGS)}." for _ in range(panels)]
    words = said[0] if panels == 1 else " ".join(f"({chr(65 + at)}) {text}" for at, text in enumerate(said[:26]))
    return (f'<fig id="f{number}"><label>Figure {number}.</label><caption><title>Findings of case {number}.</title>'
            f'<p>{words}</p></caption><graphic xlink:href="{name}"/></fig>')  # fmt: skip


def _article(rng: np.random.Generator, pmcid: str, license: str, retracted: bool, figures: list[str]) -> str:
    title = f"{'RETRACTED: ' if retracted else ''}A study of the brain, number {pmcid[3:]}"
    link = LINKS.get(license) or f"https://creativecommons.org/licenses/{license[3:].lower()}/4.0/"
    seen = " ".join(f'As <xref ref-type="fig" rid="f{n + 1}">Figure {n + 1}</xref> shows.' for n in range(len(figures)))
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<article xmlns:xlink="http://www.w3.org/1999/xlink" article-type="research-article"><front><journal-meta>
<journal-title-group><journal-title>Journal of Made Examples</journal-title></journal-title-group></journal-meta>
<article-meta><article-id pub-id-type="pmc">{pmcid}</article-id>
<article-id pub-id-type="doi">10.0000/made.{pmcid[3:]}</article-id>
<title-group><article-title>{escape(title)}</article-title></title-group>
<contrib-group><contrib contrib-type="author"><name><surname>Nobody</surname><given-names>N</given-names></name>
</contrib></contrib-group><pub-date><year>{int(rng.integers(2005, 2026))}</year></pub-date>
<permissions><license xlink:href="{link}"><license-p>Distributed under {license}.</license-p></license></permissions>
</article-meta></front><body><sec><title>Results</title><p>{seen}</p>{"".join(figures)}</sec></body></article>"""


class Server:
    """Serves a library from a thread of this process; `log` has (seconds, address, fault) of every request."""

    def __init__(self, library: Library, faults: Faults | None = None, port: int = 0) -> None:
        self.library, self.faults = library, faults or Faults()
        self.log: list[tuple[float, str, str]] = []
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # http.server's name
                owner.answer(self)

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "Server":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        address = request.path
        parts, query = urlsplit(address), {k: v[0] for k, v in parse_qs(urlsplit(address).query).items()}
        body = self.body(unquote(parts.path).lstrip("/"), query)
        with self.lock:
            fault = "" if body is None else self.faults.of(address, checked=parts.path.startswith("/PMC"))
            self.log.append((time.monotonic(), address, fault or ("404" if body is None else "")))
        try:
            self.send(request, body, fault)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True

    def send(self, request: BaseHTTPRequestHandler, body: bytes | None, fault: str) -> None:
        if fault == "silent":
            time.sleep(self.faults.silence)
            request.close_connection = True
            return
        status = 404 if body is None else int(fault) if fault.isdigit() else 200
        whole = body if status == 200 and body is not None else b"an error"
        request.send_response(status)
        if status == 200:
            request.send_header("ETag", f'"{hashlib.md5(whole).hexdigest()}"')
        if status == 429:
            request.send_header("Retry-After", "1")
        request.send_header("Content-Length", str(len(whole)))
        request.end_headers()
        if fault == "short":
            request.wfile.write(whole[: len(whole) // 2])
            request.wfile.flush()
            request.close_connection = True
            return
        request.wfile.write(bytes([whole[0] ^ 1]) + whole[1:] if fault == "wrong" else whole)

    def body(self, path: str, query: dict[str, str]) -> bytes | None:
        """What stands at an address, None where nothing does."""
        library = self.library
        if path.endswith("esearch.fcgi"):
            return self.esearch(int(query.get("retstart", 0)), int(query.get("retmax", 20)))
        if path == "openi":
            return self.openi(int(query["m"]), int(query["n"]))
        if path == "" and query.get("list-type") == "2":
            return self.listing(query.get("prefix", ""))
        if path == f"{REPORTS}{DAY}/manifest.json":
            entry = {"key": f"{REPORTS}data/one.csv.gz", "MD5checksum": hashlib.md5(library.inventory()).hexdigest()}
            return json.dumps({"files": [entry], "fileFormat": "CSV"}).encode()
        if path == f"{REPORTS}data/one.csv.gz":
            return library.inventory()
        folder, _, name = path.partition("/")
        own = name.removesuffix(".json") if folder == "metadata" else folder
        pmcid, _, version = own.partition(".")
        if pmcid not in library.versions or not version.isdigit() or not 0 < int(version) <= library.versions[pmcid]:
            return None
        if folder == "metadata":
            return library.metadata(pmcid, int(version))
        return library.files(pmcid, int(version)).get(name)

    def esearch(self, start: int, most: int) -> bytes:
        ids = "".join(f"<Id>{pmcid[3:]}</Id>" for pmcid in self.library.pmcids[start : start + most])
        return f"""<?xml version="1.0" encoding="UTF-8" ?>
<!DOCTYPE eSearchResult PUBLIC "-//NLM//DTD esearch 20060628//EN"
 "https://eutils.ncbi.nlm.nih.gov/eutils/dtd/20060628/esearch.dtd">
<eSearchResult><Count>{len(self.library.pmcids)}</Count><RetMax>{most}</RetMax><RetStart>{start}</RetStart>
<IdList>{ids}</IdList></eSearchResult>""".encode()

    def openi(self, first: int, last: int) -> bytes:
        figures = [{"uid": f"{pmcid}_f1", "pmcid": pmcid[3:], "image": {"caption": "A <b>brain</b>."}}
                   for pmcid in self.library.pmcids]  # fmt: skip
        return json.dumps({"total": len(figures), "list": figures[first - 1 : last]}).encode()

    def listing(self, prefix: str) -> bytes:
        versions = self.library.versions.get(prefix.removesuffix("."), 0)
        found = [f"{prefix}{version}/" for version in range(1, versions + 1)]
        if prefix == REPORTS:
            found = [f"{REPORTS}{DAY}/", f"{REPORTS}data/", f"{REPORTS}hive/"]
        some = "".join(f"<CommonPrefixes><Prefix>{one}</Prefix></CommonPrefixes>" for one in found)
        return f"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Prefix>{prefix}</Prefix>{some}</ListBucketResult>
""".encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--articles", type=int, default=40)
    parser.add_argument("--faults", type=float, default=0.0, help="share of addresses that answer wrongly at first")
    options = parser.parse_args()
    with Server(Library(options.articles), Faults(options.faults), options.port) as server:
        print(f"{options.articles} articles at {server.url}: give it as --eutils and --bucket; stop with Ctrl-C")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
