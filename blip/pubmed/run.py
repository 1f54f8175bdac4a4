"""`blip pubmed run`: all steps from a search to a data set and its page, each going on where it was stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from blip.config import ConfigError, load_config
from blip.hashing import fingerprint
from blip.pubmed.build import Rules, build
from blip.pubmed.extract import extract
from blip.pubmed.fetch import BUCKET, Wanted, fetch
from blip.pubmed.panels.split import Options, split
from blip.pubmed.report import write_report
from blip.pubmed.search import EUTILS, OPENI, Server, search


class PubmedConfig(BaseModel):
    """Options of `blip pubmed run`."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    # search and fetch
    query: str  # in PubMed's notation
    count: int = Field(1000, gt=0)  # articles at most; of Open-i, figures
    source: Literal["pmc", "openi"] = "pmc"  # PubMed Central, or Open-i, an index of figures
    email: str = ""  # NCBI asks for it
    api_key: str = ""  # of NCBI: ten requests a second instead of three
    licenses: list[str] = ["CC-BY", "CC0"]  # empty: all that are named
    retracted: bool = False  # retracted articles too
    folder: str = "corpus"  # articles, lines, sub-figures
    dataset: str = "dataset"  # folder of the data set
    workers: int = Field(4, gt=0)  # downloads, or processes, at the same time
    rate: float = Field(10.0, gt=0)  # requests a second to the bucket

    # sub-figures and data set
    split_figures: bool = True  # divide compound figures and their captions
    read_letters: bool = False  # read panel letters with RapidOCR
    min_confidence: float = Field(0.5, ge=0, le=1)  # that a sub-figure needs
    keep_whole: bool = True  # keep compound figures that were not divided
    min_side: int = Field(64, gt=0)  # pixels of the shorter side
    min_words: int = Field(3, gt=0)  # of a caption
    max_words: int = Field(300, gt=0)  # of a caption
    words: list[str] = []  # a caption has one of these; empty: any
    not_words: list[str] = []  # a caption has none of these
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)  # shares of train, val and test, by article
    decontaminate: list[str] = []  # folders or files of evaluation images to leave out
    shards: bool = False  # also write webdataset shards
    seed: int = 0  # of the division

    # servers
    eutils: str = EUTILS  # base address of ESearch
    openi: str = OPENI  # address of Open-i
    bucket: str = BUCKET  # base address of the open bucket


def run(config: Path, overrides: list[str], tell: Callable[[str], None]) -> None:
    """Every step of a configuration; those that are done and made from the same are not done again."""
    settings = load_config(config, PubmedConfig, overrides)
    if settings.source == "pmc" and not settings.email:
        raise ConfigError(
            f"{config}: NCBI asks for an address to write to: set `email`, or --set email=you@example.org"
        )
    corpus, dataset = Path(settings.folder), Path(settings.dataset)
    server = Server(settings.email, settings.api_key, settings.eutils, settings.openi)
    new = search(corpus, settings.query, settings.count, server, settings.source)
    tell(f"search: {new} new articles in {corpus}")
    wanted = Wanted(settings.licenses, settings.retracted, settings.bucket, settings.rate, settings.workers)
    fetched = fetch(corpus, wanted, tell)
    tell(f"fetch: {fetched.articles} articles, {fetched.files} files, {fetched.failed} failed, "
         f"{fetched.left_out} left out")  # fmt: skip
    figures = corpus / "figures.jsonl"
    found = extract(corpus, figures, settings.workers)
    tell(f"extract: {found.figures} figures, {found.files} with a file")
    pairs = figures
    if settings.split_figures:
        pairs, mark = corpus / "subfigures.jsonl", corpus / "subfigures.made_from.json"
        made_from = {"figures": fingerprint(figures), "read_letters": settings.read_letters}
        if pairs.exists() and mark.exists() and json.loads(mark.read_text()) == made_from:
            tell("split: done before")
        else:
            options = Options(str((corpus / "subfigures").resolve()), read_letters=settings.read_letters)
            done = split(figures, pairs, options, settings.workers, tell)
            mark.write_text(json.dumps(made_from))
            tell(f"split: {done.pairs} pairs of {done.figures} figures")
    rules = Rules(
        settings.splits,
        settings.licenses,
        settings.retracted,
        confidence=settings.min_confidence,
        whole=settings.keep_whole,
        min_side=settings.min_side,
        min_words=settings.min_words,
        max_words=settings.max_words,
        words=settings.words,
        not_words=settings.not_words,
        seed=settings.seed,
    )
    clean = [Path(place) for place in settings.decontaminate]
    built = build(pairs, dataset, rules, clean, settings.shards, settings.workers)
    tell(f"build: {', '.join(f'{name} {count}' for name, count in built.pairs.items())} pairs in {dataset}")
    write_report(dataset, dataset / "report.html")
    tell(f"report: {dataset / 'report.html'}")
