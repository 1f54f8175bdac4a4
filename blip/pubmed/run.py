"""`blip pubmed run`: all steps from a search to a data set and its report; each continues where it was stopped."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from blip.config import ConfigError, load_config
from blip.data.image_bytes import ImageLimits
from blip.files import ReadError, read_json, write_whole
from blip.outputs import claim_output, has_record, locked
from blip.pubmed import claims
from blip.pubmed.build import build
from blip.pubmed.catalogue import NAME as CATALOGUE
from blip.pubmed.config import PubmedConfig
from blip.pubmed.extract import extract
from blip.pubmed.fetch import Wanted, fetch
from blip.pubmed.http_body import Limits
from blip.pubmed.panels.split import Options, settings_of, split
from blip.pubmed.report import write_report
from blip.pubmed.rules import Rules
from blip.pubmed.search import Server, search


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
    crops = corpus / "subfigures"
    limits = ImageLimits.of_mb(settings.max_image_mb)
    options = Options(
        str(crops.resolve()),
        read_letters=settings.read_letters,
        captions=settings.captions,
        shared=settings.shared,
        limits=limits,
    )
    made_from = settings_of(figures, options)
    if pairs.exists() and _content(mark) == made_from:
        tell("split: done before")
        return
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
