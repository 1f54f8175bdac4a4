"""`blip pubmed STEP ...`: from a search in PubMed Central to image-caption pairs."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from blip.command_line import MaxImageMb, Overwrite, alone, say, user_errors
from blip.data.image_bytes import MAX_MB, ImageLimits
from blip.data.places import refuse_image_name
from blip.errors import BlipError
from blip.outputs import claim_output, locked
from blip.pubmed.build_options import (
    Captions,
    KeepWhole,
    MaxAspect,
    MinConfidence,
    NotWords,
    SharedWords,
    Shares,
    SplitCaptions,
    licences_of,
    words_of,
)
from blip.pubmed.config import BUCKET, EUTILS, OPENI
from blip.pubmed.printed import say_counts, say_problems
from blip.pubmed.server_options import Downloads, MaxAnswerMb, MaxMb, MaxRatio, MaxSeconds, MaxWait

app = typer.Typer(no_args_is_help=True, help="Articles of PubMed Central: from a search to image-caption pairs.")
Corpus = Annotated[Path, typer.Argument(help="folder of the catalogue and the articles")]
NumWorkers = Annotated[int, typer.Option("--num_workers", "--workers", min=1, help="processes")]
Retracted = Annotated[bool, typer.Option("--retracted", help="also retracted articles")]


@contextmanager
def reported_errors() -> Iterator[None]:
    """`user_errors`; the message about a package that is not installed has the command that installs it."""
    with user_errors():
        try:
            yield
        except ModuleNotFoundError as error:
            if not error.name or error.name.partition(".")[0] == "blip":
                raise
            raise BlipError(f"{error.name} is not installed: pip install -e '.[pubmed]'") from None


@app.callback()
def steps() -> None:
    """Articles of PubMed Central: from a search to image-caption pairs."""


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="such as 'brain tumor[Title/Abstract] AND open_access[Filter]'")],
    *,
    out: Annotated[Path, typer.Option(help="folder of the catalogue")],
    count: Annotated[int, typer.Option(min=1, help="results at most")] = 1000,
    email: Annotated[str, typer.Option(help="address of the user, which NCBI asks for")] = "",
    api_key: Annotated[str, typer.Option("--api_key", help="of NCBI: ten requests per second instead of three")] = "",
    source: Annotated[str, typer.Option(help="pmc, or openi: an index of figures")] = "pmc",
    again: Annotated[bool, typer.Option("--again", help="repeat a search that was finished")] = False,
    eutils: Annotated[str, typer.Option(help="base address of ESearch")] = EUTILS,
    openi: Annotated[str, typer.Option(help="address of Open-i")] = OPENI,
    max_seconds: MaxSeconds = 600.0,
    max_answer_mb: MaxAnswerMb = 32.0,
    max_ratio: MaxRatio = 200.0,
    max_wait: MaxWait = 600.0,
    overwrite: Overwrite = False,
) -> None:
    """Searches for articles and records them in a catalogue; `fetch` downloads them."""
    with reported_errors():
        from blip.pubmed import search as steps
        from blip.pubmed.catalogue import NAME, Catalogue
        from blip.pubmed.http_body import Limits

        limits = Limits(seconds=max_seconds, answer_mb=max_answer_mb, ratio=max_ratio, longest_wait=max_wait)
        server = steps.Server(email, api_key, eutils, openi, limits=limits)
        claim_output(out, "pubmed search", folder=True, overwrite=overwrite, known=os.path.isfile(out / NAME))
        with locked(out):
            new = steps.search(out, query, count, server=server, source=source, again=again)
        seen, total = Catalogue(out).progress(source, query)
        say(f"{seen:,} of {total or 0:,} results seen, {new:,} new articles: {out}")


@app.command()
def fetch(
    corpus: Corpus,
    *,
    licenses: Annotated[str, typer.Option(help="of articles to fetch, such as CC-BY,CC0; without: all")] = "",
    retracted: Retracted = False,
    num_workers: Downloads = 4,
    rate: Annotated[float, typer.Option(min=0.01, help="requests per second, over all workers")] = 10.0,
    update: Annotated[bool, typer.Option("--update", help="first check which articles changed")] = False,
    inventory: Annotated[Path | None, typer.Option(help="a downloaded inventory CSV, for --update")] = None,
    bucket: Annotated[str, typer.Option(help="base address")] = BUCKET,
    max_seconds: MaxSeconds = 600.0,
    max_mb: MaxMb = 512.0,
    max_answer_mb: MaxAnswerMb = 32.0,
    max_ratio: MaxRatio = 200.0,
    max_wait: MaxWait = 600.0,
) -> None:
    """Downloads XML and figures of the articles in a catalogue and checks them; it can be stopped and started again."""
    with reported_errors():
        from blip.pubmed import fetch as steps
        from blip.pubmed.catalogue import NAME, Catalogue
        from blip.pubmed.http_body import Limits
        from blip.pubmed.inventory import update as mark_changed

        limits = Limits(max_seconds, max_mb, max_answer_mb, max_ratio, max_wait)
        wanted = steps.Wanted(licences_of(licenses), retracted, bucket, rate, num_workers, limits=limits)
        with locked(corpus) if os.path.isfile(corpus / NAME) else nullcontext():
            if update:
                say(f"{len(mark_changed(corpus, bucket, inventory, limits=limits))} articles changed")
            done = steps.fetch(corpus, wanted, say)
        say(f"{done.articles:,} articles, {done.files:,} files, {done.bytes / 1e6:,.0f} MB, {done.left_out:,} "
                   f"left out by licence or retraction, {done.failed:,} failed")  # fmt: skip
        catalogue = Catalogue(corpus)
        for error in catalogue.errors():
            say(f"  {error}")
        for name, counts in catalogue.counts().items():
            say(f"{name}: " + ", ".join(f"{key or 'none'} {count:,}" for key, count in counts.items()))
        if done.failed:
            say(done.advice())
            raise typer.Exit(1)


@app.command()
def extract(
    folder: Annotated[Path, typer.Argument(help="articles as JATS XML, each with its figure files beside or below it")],
    *,
    out: Annotated[Path, typer.Option(help="a line for each figure: .jsonl")],
    num_workers: NumWorkers = 1,
    overwrite: Overwrite = False,
) -> None:
    """Extracts figures, captions and the paragraphs that refer to them from a folder of articles."""
    with reported_errors():
        from blip.pubmed import claims
        from blip.pubmed.extract import extract as extract_

        with claims.writing_lines(claims.claim_lines(out, claims.EXTRACT, [folder], overwrite=overwrite)):
            counts = extract_(folder, out, num_workers)
        say(f"{counts.articles} articles, {counts.figures} figures, {counts.files} with a file: {out}")
        say_counts(
            (counts.unreadable, "articles could not be read"),
            (counts.left_out, "articles are not done according to the catalogue, and were left out"),
            (counts.no_file, "figures have no file here"),
            (counts.no_caption, "figures have no caption"),
        )
        for tag, count in counts.other_graphics.most_common():
            say(f"{count} images of {tag} are not figures")
        say_problems(counts.problems, out)


@app.command()
def split(
    pairs: Annotated[Path, typer.Argument(help="lines of `blip pubmed extract`")],
    *,
    out: Annotated[
        Path, typer.Option(help="a line for each sub-figure: .jsonl; images go to a folder of the same name")
    ],
    num_workers: NumWorkers = 1,
    max_image_mb: MaxImageMb = MAX_MB,
    read_letters: Annotated[bool, typer.Option("--read_letters", help="read panel letters (RapidOCR)")] = False,
    weights: Annotated[Path | None, typer.Option(help="of another detector")] = None,
    split_captions: SplitCaptions = None,
    captions: Captions = "learned",
    shared: SharedWords = "all",
    min_side: Annotated[int, typer.Option("--min_side", min=1, help="pixels of the shorter side of a sub-figure")] = 48,
    overwrite: Overwrite = False,
) -> None:
    """Splits compound figures into sub-figures with their part of the caption; in doubt a figure stays whole."""
    logging.getLogger("rapidocr").setLevel(logging.WARNING)
    with reported_errors():
        from blip.pubmed import claims
        from blip.pubmed.panels import split as steps
        from blip.pubmed.panels.given import read_splits

        given = read_splits(split_captions) if split_captions else {}
        crops, detector = out.with_suffix(""), str(weights) if weights else None
        limits = ImageLimits.of_mb(max_image_mb)
        options = steps.Options(str(crops.resolve()), detector, read_letters, min_side, given, captions, shared, limits)
        others = filter(None, [split_captions, weights])
        with claims.splitting(pairs, out, crops, others, overwrite=overwrite):
            counts = steps.split(pairs, out, options, num_workers=num_workers, tell=say, restart=overwrite)
        whole = counts.how["whole"]
        say(f"{counts.figures} figures: {counts.how.total() - whole} split, {whole} whole, {counts.pairs} "
                   f"pairs: {out}")  # fmt: skip
        say_counts(
            *((count, f"whole: {why}") for why, count in counts.why_whole.most_common()),
            (counts.no_file, "figures have no file"),
            (counts.unreadable, "images could not be read"),
            (counts.left_out, f"panels are smaller than {min_side} pixels, or too large"),
        )
        say_problems(counts.problems, out)


@app.command()
def build(
    pairs: Annotated[Path, typer.Argument(help="lines of `blip pubmed split` or `extract`")],
    *,
    out: Annotated[Path, typer.Option(help="folder of the data set")],
    split_shares: Shares = (0.8, 0.1, 0.1),
    decontaminate: Annotated[list[Path] | None, typer.Option(help="evaluation images: a folder, or a JSON")] = None,
    licenses: Annotated[str, typer.Option(help="such as CC-BY,CC0; without: all that are named")] = "",
    unlicensed: Annotated[bool, typer.Option("--unlicensed", help="also articles that name no licence")] = False,
    retracted: Retracted = False,
    min_confidence: MinConfidence = 0.5,
    keep_whole: KeepWhole = True,
    min_side: Annotated[int, typer.Option("--min_side", min=1, help="pixels of the shorter side")] = 64,
    max_aspect: MaxAspect = 5.0,
    min_words: Annotated[int, typer.Option("--min_words", help="of a caption")] = 3,
    max_words: Annotated[int, typer.Option("--max_words", help="of a caption")] = 300,
    words: Annotated[str, typer.Option(help="a caption has one of these, such as MRI,CT,scan")] = "",
    not_words: NotWords = "",
    duplicates: Annotated[bool, typer.Option("--duplicates", help="keep repeated pictures")] = False,
    shards: Annotated[bool, typer.Option("--shards", help="also write webdataset shards")] = False,
    num_workers: NumWorkers = 1,
    max_image_mb: MaxImageMb = MAX_MB,
    seed: Annotated[int, typer.Option(help="of the division")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Builds a data set divided by article, without evaluation images, with licences and credits."""
    with reported_errors():
        from blip.pubmed import build as steps
        from blip.pubmed import claims

        rules = steps.Rules(
            split_shares=split_shares,
            licenses=licences_of(licenses),
            retracted=retracted,
            unlicensed=unlicensed,
            min_confidence=min_confidence,
            keep_whole=keep_whole,
            min_side=min_side,
            max_aspect=max_aspect,
            min_words=min_words,
            max_words=max_words,
            words=words_of(words),
            not_words=words_of(not_words),
            duplicates=duplicates,
            seed=seed,
        )
        limits = ImageLimits.of_mb(max_image_mb)
        claim = claims.claim_build(pairs, out, rules, decontaminate=decontaminate or [], overwrite=overwrite)
        with claims.building(claim, shards):
            built = steps.build(
                pairs, out, rules, decontaminate=decontaminate, shards=shards, num_workers=num_workers, limits=limits
            )
        for name in steps.NAMES:
            say(f"{name}: {built.pairs[name]} pairs of {built.articles[name]} articles: {out / f'{name}.json'}")
        for why, count in built.out.most_common():
            say(f"{count} left out: {why}")
        if decontaminate:
            say(f"{built.evaluation_images} evaluation images were compared")
        say_problems(built.problems, out / "build.json")


@app.command()
def report(
    dataset: Annotated[Path, typer.Argument(help="folder written by `blip pubmed build`")],
    *,
    out: Annotated[Path, typer.Option(help="page to write: .html")],
    pairs: Annotated[int, typer.Option(min=0, help="random pairs to show")] = 24,
    figures: Annotated[int, typer.Option(min=0, help="random split figures to show")] = 10,
    max_image_mb: MaxImageMb = MAX_MB,
    seed: Annotated[int, typer.Option(help="of the choice")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Writes one HTML page on a data set: counts, licences, pairs, split figures, failures."""
    with reported_errors():
        from blip.pubmed.report import write_report

        refuse_image_name(out, ".html")
        claim = claim_output(out, "pubmed report", inputs=[dataset], overwrite=overwrite)
        with alone(claim), claim.writing():
            write_report(dataset, out, pairs, figures=figures, seed=seed, limits=ImageLimits.of_mb(max_image_mb))
        say(str(out))


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="a file such as configs/pubmed_brain.yaml")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, overrides the file")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Runs all steps, from the search to the report."""
    with reported_errors():
        from blip.pubmed.run import run as run_

        run_(config, set_ or [], say, overwrite=overwrite)
