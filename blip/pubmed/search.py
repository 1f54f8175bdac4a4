"""`blip pubmed search`: articles by ESearch of PubMed Central, or by Open-i, an index of figures.

Both return PMCIDs only; licences, retractions and files come from the bucket (`fetch.py`). A search that was stopped
continues at the page where it stopped.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lxml import etree

from blip.files import ReadError, parse_json
from blip.pubmed.catalogue import Catalogue, is_pmcid
from blip.pubmed.config import EUTILS, OPENI
from blip.pubmed.failures import FetchError, shown_part
from blip.pubmed.http_body import Limits
from blip.pubmed.http_client import Client, RetryPolicy

log = logging.getLogger(__name__)

PAGE = {"pmc": 1000, "openi": 100}  # results a request
RATE, RATE_WITH_KEY = 3.0, 10.0  # requests a second that NCBI allows
MOST_RESULTS = 10**9  # a number of results above this is none


@dataclass
class Server:
    """Addresses of the servers, and what identifies the user."""

    email: str = ""
    api_key: str = ""
    eutils: str = EUTILS
    openi: str = OPENI
    retry: RetryPolicy | None = None
    limits: Limits | None = None  # of each exchange


def search(folder: Path, query: str, count: int, *, server: Server, source: str = "pmc", again: bool = False) -> int:
    """Adds the articles that match a query to the catalogue of a corpus, which is made where it is missing.

    Args:
        folder: the corpus.
        query: in the notation of the source (PMC: https://www.ncbi.nlm.nih.gov/books/NBK3825/).
        count: results at most; results of Open-i are figures, several for an article.
        source: "pmc" or "openi".
        again: start at the first page although this search was finished.

    Returns:
        the number of articles that are new in the corpus.

    Raises:
        FetchError: the server does not answer, its answer cannot be read, or nothing matches.
    """
    pages: dict[str, Callable[[Client, Server, _Page], tuple[list[str], int]]] = {"pmc": _pmc, "openi": _openi}
    if source not in pages:
        raise FetchError(f"source {source!r}: known are {', '.join(pages)}", lasting=True)
    if source == "pmc" and not re.fullmatch(r"[^@\s]+@[^@\s]+", server.email):
        raise FetchError("NCBI asks for an address to write to: --email you@example.org", lasting=True)
    catalogue = Catalogue(folder, create=True)
    client = Client(RATE_WITH_KEY if server.api_key else RATE, server.retry, f"blip-pubmed ({server.email})",
                    limits=server.limits)  # fmt: skip
    new = 0
    try:
        if again:
            catalogue.forget_search(source, query)
        seen, total = catalogue.progress(source, query)
        while seen < min(count, count if total is None else total):
            most = min(PAGE[source], count - seen)
            pmcids, total = pages[source](client, server, _Page(query, seen, most))
            if not pmcids and seen < total and source == "pmc":
                raise FetchError(f"{query}: the server counts {total} results and shows none from {seen} on")
            seen += most
            odd = [name for name in pmcids if not is_pmcid(name)]
            if odd:
                log.warning("%s names %s, which is no PMCID: left out", source, shown_part(repr(odd[0]), 80))
            pmcids = [name for name in dict.fromkeys(pmcids[:most]) if is_pmcid(name)]
            new += catalogue.add_page(source, query, min(seen, total), total=total, pmcids=pmcids)
    except FetchError as error:  # a server may repeat what it was sent
        if not server.api_key or server.api_key not in str(error):
            raise
        shown = str(error).replace(server.api_key, "...")
        raise FetchError(shown, lasting=error.lasting, shared=error.shared) from None
    finally:
        client.close()
        catalogue.close()
    return new


@dataclass
class _Page:
    """A part of the results."""

    query: str
    start: int  # number of its first result, from 0
    most: int  # results


def _pmc(client: Client, server: Server, page: _Page) -> tuple[list[str], int]:
    """(PMCIDs of a page, total number of results) of ESearch."""
    params = {"db": "pmc", "term": page.query, "retstart": page.start, "retmax": page.most, "tool": "blip",
              "email": server.email}  # fmt: skip
    if server.api_key:
        params["api_key"] = server.api_key
    body = client.get(server.eutils.rstrip("/") + "/esearch.fcgi", params)
    try:
        answer = etree.fromstring(body, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
        total = _total(answer.findtext("Count") or answer.findtext("ERROR") or f"<{answer.tag}>")
        ids = [f"PMC{element.text or ''}" for element in answer.iterfind("IdList/Id")]
        unknown = [element.text or "" for element in answer.iterfind("ErrorList/PhraseNotFound")]
    except (etree.XMLSyntaxError, ValueError) as error:
        raise FetchError(f"ESearch: an answer that cannot be read ({error}): {body[:200]!r}") from None
    if not total:
        words = f"; unknown are {', '.join(map(str, unknown))}" if unknown else ""
        raise FetchError(f"no article of PubMed Central matches {page.query!r}{words}", lasting=True)
    return ids, total


def _openi(client: Client, server: Server, page: _Page) -> tuple[list[str], int]:
    """The same of Open-i, which counts figures from 1."""
    params: dict[str, Any] = {"coll": "pmc", "query": page.query, "m": page.start + 1, "n": page.start + page.most}
    body = client.get(server.openi, params)
    try:
        answer = parse_json(body, dict[str, Any], server.openi)
        rows, total = answer.get("list") or [], _total(answer["total"])
        numbers = [str(row.get("pmcid") or str(row.get("uid", "")).partition("_")[0]) for row in rows]
    except (ReadError, ValueError, KeyError, AttributeError, TypeError) as error:
        problem = getattr(error, "problem", error)
        raise FetchError(f"Open-i: an answer that cannot be read ({problem}): {body[:200]!r}") from None
    if not total:
        raise FetchError(f"no figure of Open-i matches {page.query!r}", lasting=True)
    return [f"PMC{number.removeprefix('PMC')}" for number in numbers if number.removeprefix("PMC").isdigit()], total


def _total(value: object) -> int:
    """A number of results. ValueError for anything else."""
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,10}", str(value)[:100].strip()):
        raise ValueError(f"{str(value)[:100]!r} is no number of results")
    return min(int(str(value)), MOST_RESULTS)
