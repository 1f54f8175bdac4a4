"""`blip pubmed run`: all steps from a search to a data set and its report; each continues where it was stopped."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from blip.config import ConfigError, load_config
from blip.data.image_bytes import ImageLimits
from blip.files import ReadError, read_json, write_whole
from blip.hashing import fingerprint
from blip.outputs import claim_output, has_record, locked
from blip.pubmed import claims
from blip.pubmed.bucket import BUCKET
from blip.pubmed.build import build
from blip.pubmed.catalogue import NAME as CATALOGUE
from blip.pubmed.extract import extract
from blip.pubmed.fetch import Wanted, fetch
from blip.pubmed.http_body import Limits
from blip.pubmed.licenses import selected_families
from blip.pubmed.panels.split import Options, split
from blip.pubmed.report import write_report
from blip.pubmed.rules import Rules
from blip.pubmed.search import EUTILS, OPENI, Server, search


class PubmedConfig(BaseModel):
    """Options of `blip pubmed run`."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
    former_names: ClassVar[dict[str, str]] = {"workers": "num_workers", "splits": "split_shares"}

    # search and fetch
    query: str  # in the notation of PubMed
    count: int = Field(1000, gt=0)  # articles at most; of Open-i, figures [articles]
    source: Literal["pmc", "openi"] = "pmc"  # PubMed Central, or Open-i, an index of figures
    email: str = ""  # NCBI asks for it
    api_key: str = ""  # of NCBI: ten requests per second instead of three
    licenses: list[str] = ["CC-BY", "CC0"]  # empty: all that are named
    retracted: bool = False  # retracted articles too
    folder: str = "corpus"  # of the articles, lines and sub-figures
    dataset: str = "dataset"  # folder of the data set
    num_workers: int = Field(4, gt=0)  # downloads, or processes, at the same time [downloads]
    max_image_mb: int = Field(512, gt=0)  # of an image's file; larger ones count as unreadable [MiB]
    rate: float = Field(10.0, gt=0)  # requests per second to the bucket [requests/s]

    # sub-figures and data set
    split_figures: bool = True  # divide compound figures and their captions
    read_letters: bool = False  # read panel letters with RapidOCR
    min_confidence: float = Field(0.5, ge=0, le=1)  # that a sub-figure needs [probability]
    keep_whole: bool = True  # keep compound figures that were not divided
    min_side: int = Field(64, gt=0)  # pixels of the shorter side [pixels]
    min_words: int = Field(3, gt=0)  # of a caption [words]
    max_words: int = Field(300, gt=0)  # of a caption [words]
    words: list[str] = []  # a caption has one of these; empty: any
    not_words: list[str] = []  # a caption has none of these
    split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)  # shares of train, val and test, by article [shares]
    decontaminate: list[str] = []  # folders or files of evaluation images to leave out
    shards: bool = False  # also write webdataset shards
    seed: int = 0  # of the division [number]

    # servers
    eutils: str = EUTILS  # base address of ESearch
    openi: str = OPENI  # address of Open-i
    bucket: str = BUCKET  # base address of the open bucket
    max_seconds: float = Field(600.0, gt=0)  # of one exchange with a server, its whole answer included [seconds]
    max_mb: float = Field(512.0, gt=0)  # megabytes of one file [MB]
    max_answer_mb: float = Field(32.0, gt=0)  # megabytes of a listing, of metadata or of a page of results [MB]
    max_ratio: float = Field(200.0, ge=1)  # bytes after decompression for each byte that a server sends [factor]
    max_wait: float = Field(600.0, gt=0)  # seconds to wait at most when a server asks for it [seconds]

    @field_validator("licenses")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        selected_families(names)
        return names


def run(config: Path, overrides: list[str], tell: Callable[[str], None], *, overwrite: bool = False) -> None:
    """Runs every step of a configuration; steps that were completed with the same input are skipped.

    Args:
        overrides: `key=value`, which take precedence over the file.
        tell: receives a line for each step.
        overwrite: write to folders that are not this command's, and data sets of other rules.

    Raises:
        ConfigError: the configuration cannot be read, or `email` is missing.
        OutputError: a folder is not this command's. LockedError: another process writes to it.
        FetchError: a server does not answer. BlipError of other kinds: see the steps.
    """
    settings = load_config(config, PubmedConfig, overrides)
    if settings.source == "pmc" and not settings.email:
        raise ConfigError(
            f"{config}: NCBI asks for an address to write to: set `email`, or --set email=you@example.org"
        )
    corpus, dataset = Path(settings.folder), Path(settings.dataset)
    pairs = corpus / ("subfigures.jsonl" if settings.split_figures else "figures.jsonl")
    limits = ImageLimits.of_mb(settings.max_image_mb)
    places = [Path(place) for place in settings.decontaminate]
    rules = _rules(settings)
    claim_output(corpus, "pubmed search", folder=True, overwrite=overwrite, known=os.path.isfile(corpus / CATALOGUE))
    claim = claims.claim_build(pairs, dataset, rules, decontaminate=places, overwrite=overwrite)
    page = dataset / "report.html"
    # earlier versions recorded neither
    known = not has_record(page) and os.path.isfile(dataset / "build.json")
    report = claim_output(page, "pubmed report", inputs=[os.path.abspath(dataset)], overwrite=overwrite, known=known)
    with locked(corpus):
        _search_and_fetch(settings, corpus, tell)
        figures = _extract(settings, corpus, tell=tell, overwrite=overwrite)
        if settings.split_figures:
            _split(settings, corpus, figures, tell=tell, overwrite=overwrite)
        with claims.building(claim, settings.shards):
            built = build(
                pairs,
                dataset,
                rules,
                decontaminate=places,
                shards=settings.shards,
                num_workers=settings.num_workers,
                limits=limits,
            )
    tell(f"build: {', '.join(f'{name} {count}' for name, count in built.pairs.items())} pairs in {dataset}")
    with report.writing():
        write_report(dataset, page, limits=limits)
    tell(f"report: {page}")


def _search_and_fetch(settings: PubmedConfig, corpus: Path, tell: Callable[[str], None]) -> None:
    limits = Limits(
        seconds=settings.max_seconds,
        file_mb=settings.max_mb,
        answer_mb=settings.max_answer_mb,
        ratio=settings.max_ratio,
        longest_wait=settings.max_wait,
    )
    server = Server(settings.email, settings.api_key, settings.eutils, settings.openi, limits=limits)
    new = search(corpus, settings.query, settings.count, server=server, source=settings.source)
    tell(f"search: {new} new articles in {corpus}")
    wanted = Wanted(
        licenses=settings.licenses,
        retracted=settings.retracted,
        bucket=settings.bucket,
        rate=settings.rate,
        num_workers=settings.num_workers,
        limits=limits,
    )
    fetched = fetch(corpus, wanted, tell)
    tell(f"fetch: {fetched.articles} articles, {fetched.files} files, {fetched.failed} failed, "
         f"{fetched.left_out} left out")  # fmt: skip


def _extract(settings: PubmedConfig, corpus: Path, *, tell: Callable[[str], None], overwrite: bool) -> Path:
    """Extracts the figures; returns their file, which is the corpus's own."""
    figures = corpus / "figures.jsonl"
    known = claims.summary_of(figures).is_file()  # of earlier versions
    claim = claims.claim_lines(figures, claims.EXTRACT, [corpus], known=known, overwrite=overwrite)
    with claims.writing_lines(claim):
        extracted = extract(corpus, figures, settings.num_workers)
    tell(f"extract: {extracted.figures} figures, {extracted.files} with a file")
    return figures


def _split(
    settings: PubmedConfig, corpus: Path, figures: Path, *, tell: Callable[[str], None], overwrite: bool
) -> None:
    """Splits the figures unless that was done before."""
    pairs, mark = corpus / "subfigures.jsonl", corpus / "subfigures.made_from.json"
    made_from = {"figures": fingerprint(figures), "read_letters": settings.read_letters}
    if pairs.exists() and _content(mark) == made_from:
        tell("split: done before")
        return
    crops = corpus / "subfigures"
    limits = ImageLimits.of_mb(settings.max_image_mb)
    options = Options(str(crops.resolve()), read_letters=settings.read_letters, limits=limits)
    with claims.splitting(figures, pairs, crops, known=mark.exists(), overwrite=overwrite):
        # figures of a stopped run may have been fewer
        done = split(figures, pairs, options, num_workers=settings.num_workers, tell=tell, restart=True)
    write_whole(mark, json.dumps(made_from))
    tell(f"split: {done.pairs} pairs of {done.figures} figures")


def _content(mark: Path) -> dict[str, Any]:
    """The content of the file that tells what the pairs were made from; {} where there is none that can be used."""
    with suppress(ReadError):
        return read_json(mark, dict[str, Any])
    return {}


def _rules(settings: PubmedConfig) -> Rules:
    return Rules(
        split_shares=settings.split_shares,
        licenses=settings.licenses,
        retracted=settings.retracted,
        min_confidence=settings.min_confidence,
        keep_whole=settings.keep_whole,
        min_side=settings.min_side,
        min_words=settings.min_words,
        max_words=settings.max_words,
        words=settings.words,
        not_words=settings.not_words,
        seed=settings.seed,
    )
