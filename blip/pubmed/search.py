"""Which articles: PubMed Central's ESearch, or Open-i's index of figures.

Both only name articles, by PMCID; licences, retractions and files come from the bucket (`fetch.py`). A search that was
stopped goes on at the page where it stopped.
"""

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.pubmed.catalogue import Catalogue
from blip.pubmed.http_client import Client, FetchError, Patience

EUTILS = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils/"
OPENI = "https://openi.nlm.nih.gov/api/search"
PAGE = {"pmc": 1000, "openi": 100}  # results a request
RATE, RATE_WITH_KEY = 3.0, 10.0  # requests a second that NCBI allows


@dataclass
class Server:
    """Where to ask and as whom."""

    email: str = ""
    api_key: str = ""
    eutils: str = EUTILS
    openi: str = OPENI
    patience: Patience | None = None


def search(folder: Path, query: str, count: int, server: Server, source: str = "pmc", again: bool = False) -> int:
    """Adds the articles that a query finds to the catalogue of a corpus.

    Args:
        folder: the corpus.
        query: in the words of the source (PMC: https://www.ncbi.nlm.nih.gov/books/NBK3825/).
        count: results at most; of Open-i these are figures, several an article.
        source: "pmc" or "openi".
        again: ask from the first page on, though this search was finished.

    Returns:
        how many articles are new in the corpus.

    Raises:
        FetchError: the server does not answer, or not as it should.
    """
    pages: dict[str, Callable[[Client, Server, str, int, int], tuple[list[str], int]]] = {"pmc": _pmc, "openi": _openi}
    if source not in pages:
        raise FetchError(f"source {source!r}: known are {', '.join(pages)}", lasting=True)
    if source == "pmc" and not re.fullmatch(r"[^@\s]+@[^@\s]+", server.email):
        raise FetchError("NCBI asks for an address to write to: --email you@example.org", lasting=True)
    catalogue = Catalogue(folder, create=True)
    client = Client(RATE_WITH_KEY if server.api_key else RATE, server.patience, f"blip-pubmed ({server.email})")
    new = 0
    try:
        if again:
            catalogue.forget_search(source, query)
        seen, total = catalogue.progress(source, query)
        while seen < min(count, count if total is None else total):
            most = min(PAGE[source], count - seen)
            pmcids, total = pages[source](client, server, query, seen, most)
            if not pmcids and seen < total and source == "pmc":
                raise FetchError(f"{query}: the server counts {total} results and shows none from {seen} on")
            seen += most
            new += catalogue.add_page(source, query, min(seen, total), total, list(dict.fromkeys(pmcids)))
    finally:
        client.close()
        catalogue.close()
    return new


def _pmc(client: Client, server: Server, query: str, start: int, most: int) -> tuple[list[str], int]:
    """(PMCIDs of a page, results that there are)."""
    from Bio import Entrez

    params = {"db": "pmc", "term": query, "retstart": start, "retmax": most, "tool": "blip", "email": server.email}
    if server.api_key:
        params["api_key"] = server.api_key
    body = client.get(server.eutils.rstrip("/") + "/esearch.fcgi", params)
    try:
        answer = Entrez.read(io.BytesIO(body))
        ids, total = [f"PMC{number}" for number in answer["IdList"]], int(answer["Count"])
    except Exception as error:  # Biopython's parser raises what it likes
        raise FetchError(f"ESearch: an answer that is none ({type(error).__name__}: {error}): {body[:200]!r}") from None
    unknown = answer.get("ErrorList", {}).get("PhraseNotFound", [])
    if not total:
        words = f"; unknown are {', '.join(map(str, unknown))}" if unknown else ""
        raise FetchError(f"no article of PubMed Central matches {query!r}{words}", lasting=True)
    return ids, total


def _openi(client: Client, server: Server, query: str, start: int, most: int) -> tuple[list[str], int]:
    """The same of Open-i, which counts figures from 1."""
    params: dict[str, Any] = {"coll": "pmc", "query": query, "m": start + 1, "n": start + most}
    body = client.get(server.openi, params)
    try:
        answer = json.loads(body)
        rows, total = answer.get("list") or [], int(answer["total"])
        numbers = [str(row.get("pmcid") or row.get("uid", "").partition("_")[0]) for row in rows]
    except (ValueError, KeyError, AttributeError) as error:
        raise FetchError(f"Open-i: an answer that is none ({error}): {body[:200]!r}") from None
    if not total:
        raise FetchError(f"no figure of Open-i matches {query!r}", lasting=True)
    return [f"PMC{number.removeprefix('PMC')}" for number in numbers if number.removeprefix("PMC").isdigit()], total
