"""`blip pubmed STEP ...`: from a search in PubMed Central to image-caption pairs."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from blip.command_line import user_errors
from blip.errors import BlipError

app = typer.Typer(no_args_is_help=True, help="Articles of PubMed Central: from a search to image-caption pairs.")
Corpus = Annotated[Path, typer.Argument(help="folder of the catalogue and the articles")]
Workers = Annotated[int, typer.Option(min=1, help="processes")]


class for_people(user_errors):
    """The same, and a missing package is named with the line that installs it."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ModuleNotFoundError):
            error = BlipError(f"{error.name} is not installed: pip install -e '.[pubmed]'")
        super().__exit__(kind, error, trace)


@app.callback()
def steps() -> None:
    """Articles of PubMed Central: from a search to image-caption pairs."""


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="such as 'brain tumor[Title/Abstract] AND open_access[Filter]'")],
    out: Annotated[Path, typer.Option(help="folder of the catalogue")],
    count: Annotated[int, typer.Option(min=1, help="results at most")] = 1000,
    email: Annotated[str, typer.Option(help="yours; NCBI asks for it")] = "",
    api_key: Annotated[str, typer.Option(help="of NCBI: ten requests a second instead of three")] = "",
    source: Annotated[str, typer.Option(help="pmc, or openi: an index of figures")] = "pmc",
    again: Annotated[bool, typer.Option("--again", help="ask anew though this search was finished")] = False,
    eutils: Annotated[str, typer.Option(help="base address")] = "",
    openi: Annotated[str, typer.Option(help="address")] = "",
) -> None:
    """Finds articles and notes them in a catalogue; fetch brings them."""
    with for_people():
        from blip.pubmed import search as steps
        from blip.pubmed.catalogue import Catalogue

        server = steps.Server(email, api_key, eutils or steps.EUTILS, openi or steps.OPENI)
        new = steps.search(out, query, count, server, source, again)
        seen, total = Catalogue(out).progress(source, query)
        typer.echo(f"{seen:,} of {total or 0:,} results seen, {new:,} new articles: {out}")


@app.command()
def fetch(
    corpus: Corpus,
    licenses: Annotated[str, typer.Option(help="of which articles, such as CC-BY,CC0; without: all")] = "",
    retracted: Annotated[bool, typer.Option("--retracted", help="retracted articles too")] = False,
    workers: Annotated[int, typer.Option(min=1, help="downloads at the same time")] = 4,
    rate: Annotated[float, typer.Option(min=0.01, help="requests a second, of all workers together")] = 10.0,
    update: Annotated[bool, typer.Option("--update", help="first look for articles that changed")] = False,
    inventory: Annotated[Path | None, typer.Option(help="a downloaded inventory CSV, for --update")] = None,
    bucket: Annotated[str, typer.Option(help="base address")] = "",
) -> None:
    """Brings XML and figures of the catalogue's articles, checked; stop it and start it as you like."""
    with for_people():
        from blip.pubmed import fetch as steps
        from blip.pubmed.catalogue import Catalogue
        from blip.pubmed.inventory import update as update_

        place = bucket or steps.BUCKET
        if update:
            typer.echo(f"{len(update_(corpus, place, inventory))} articles changed")
        names = [name for name in licenses.split(",") if name.strip()]
        done = steps.fetch(corpus, steps.Wanted(names, retracted, place, rate, workers), typer.echo)
        typer.echo(f"{done.articles:,} articles, {done.files:,} files, {done.bytes / 1e6:,.0f} MB, {done.left_out:,} "
                   f"left out by licence or retraction, {done.failed:,} failed")  # fmt: skip
        catalogue = Catalogue(corpus)
        for error in catalogue.errors():
            typer.echo(f"  {error}")
        for name, counts in catalogue.counts().items():
            typer.echo(f"{name}: " + ", ".join(f"{key or 'none'} {count:,}" for key, count in counts.items()))
        if done.failed:
            typer.echo("start the same again to try what failed")
            raise typer.Exit(1)


@app.command()
def extract(
    folder: Annotated[Path, typer.Argument(help="articles as JATS XML, each with its figure files beside or below it")],
    out: Annotated[Path, typer.Option(help="a line a figure: .jsonl")],
    workers: Annotated[int, typer.Option(min=1, help="processes that parse")] = 1,
) -> None:
    """Figures, captions and the paragraphs that name them, out of a folder of articles."""
    with for_people():
        from blip.pubmed.extract import extract as extract_

        found = extract_(folder, out, workers)
        typer.echo(f"{found.articles} articles, {found.figures} figures, {found.files} with a file: {out}")
        for count, what in (
            (found.unreadable, "articles could not be read"),
            (found.left_out, "articles are not done, as the catalogue says, and were left out"),
            (found.no_file, "figures have no file here"),
            (found.no_caption, "figures have no caption"),
        ):
            if count:
                typer.echo(f"{count} {what}")
        for tag, count in found.other_graphics.most_common():
            typer.echo(f"{count} images of {tag} are no figures")
        _problems(found.problems, out)


@app.command()
def split(
    pairs: Annotated[Path, typer.Argument(help="lines of `blip pubmed extract`")],
    out: Annotated[Path, typer.Option(help="a line a sub-figure: .jsonl; their images go to a folder beside it")],
    workers: Workers = 1,
    read_letters: Annotated[bool, typer.Option("--read_letters", help="read panel letters (RapidOCR)")] = False,
    weights: Annotated[Path | None, typer.Option(help="of a detector of your own")] = None,
    splits: Annotated[Path | None, typer.Option(help="captions split by something else: .jsonl")] = None,
    min_side: Annotated[int, typer.Option(min=1, help="pixels of a sub-figure's shorter side")] = 48,
) -> None:
    """Compound figures into sub-figures with their part of the caption; in doubt a figure stays whole."""
    logging.getLogger("rapidocr").setLevel(logging.WARNING)
    with for_people():
        from blip.pubmed.panels import split as steps

        given = steps.read_splits(splits) if splits else {}
        crops = out.with_suffix("")
        options = steps.Options(str(crops.resolve()), str(weights) if weights else None, read_letters, min_side, given)
        found = steps.split(pairs, out, options, workers, typer.echo)
        whole = found.how.get("whole", 0)
        typer.echo(f"{found.figures} figures: {sum(found.how.values()) - whole} split, {whole} whole, {found.pairs} "
                   f"pairs: {out}")  # fmt: skip
        for why, count in found.why_whole.most_common():
            typer.echo(f"{count} whole: {why}")
        if found.unreadable:
            typer.echo(f"{found.unreadable} images could not be read")
        _problems(found.problems, out)


@app.command()
def build(
    pairs: Annotated[Path, typer.Argument(help="lines of `blip pubmed split` or `extract`")],
    out: Annotated[Path, typer.Option(help="folder of the data set")],
    splits: Annotated[tuple[float, float, float], typer.Option(help="shares of train, val, test")] = (0.8, 0.1, 0.1),
    decontaminate: Annotated[list[Path] | None, typer.Option(help="evaluation images: a folder, or a JSON")] = None,
    licenses: Annotated[str, typer.Option(help="such as CC-BY,CC0; without: all that are named")] = "",
    unlicensed: Annotated[bool, typer.Option("--unlicensed", help="also articles that name no licence")] = False,
    retracted: Annotated[bool, typer.Option("--retracted", help="also retracted articles")] = False,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="that a sub-figure needs")] = 0.5,
    no_whole: Annotated[bool, typer.Option("--no_whole", help="no compound figures that stayed whole")] = False,
    min_side: Annotated[int, typer.Option(min=1, help="pixels")] = 64,
    max_aspect: Annotated[float, typer.Option(min=1, help="longer to shorter side")] = 5.0,
    min_words: int = 3,
    max_words: int = 300,
    words: Annotated[str, typer.Option(help="one of which the caption has, such as MRI,CT,scan")] = "",
    not_words: Annotated[str, typer.Option(help="none of which it has, such as flowchart,diagram")] = "",
    duplicates: Annotated[bool, typer.Option("--duplicates", help="keep the same picture again")] = False,
    shards: Annotated[bool, typer.Option("--shards", help="also webdataset shards")] = False,
    workers: Workers = 1,
    seed: int = 0,
) -> None:
    """A data set divided by article, without evaluation images, with licences and credits."""

    def listed(text: str) -> list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]

    with for_people():
        from blip.pubmed import build as steps

        rules = steps.Rules(
            splits=splits,
            licenses=listed(licenses),
            retracted=retracted,
            unlicensed=unlicensed,
            confidence=confidence,
            whole=not no_whole,
            min_side=min_side,
            max_aspect=max_aspect,
            min_words=min_words,
            max_words=max_words,
            words=listed(words),
            not_words=listed(not_words),
            duplicates=duplicates,
            seed=seed,
        )
        built = steps.build(pairs, out, rules, decontaminate, shards, workers)
        for name in steps.NAMES:
            typer.echo(f"{name}: {built.pairs[name]} pairs of {built.articles[name]} articles: {out / f'{name}.json'}")
        for why, count in built.out.most_common():
            typer.echo(f"{count} left out: {why}")
        if decontaminate:
            typer.echo(f"{built.evaluation_images} evaluation images were looked at")
        _problems(built.problems, out / "build.json")


@app.command()
def report(
    dataset: Annotated[Path, typer.Argument(help="of `blip pubmed build`")],
    out: Annotated[Path, typer.Option(help="page to write: .html")],
    pairs: Annotated[int, typer.Option(min=0, help="random pairs shown")] = 24,
    figures: Annotated[int, typer.Option(min=0, help="random split figures shown")] = 10,
    seed: int = 0,
) -> None:
    """One HTML page on a data set: counts, licences, pairs, split figures, failures."""
    with for_people():
        from blip.pubmed.report import write_report

        write_report(dataset, out, pairs, figures, seed)
        typer.echo(str(out))


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="a file such as configs/pubmed_brain.yaml")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, overrides the file")] = None,
) -> None:
    """All steps, from the search to the page."""
    with for_people():
        from blip.pubmed.run import run as run_

        run_(config, set_ or [], typer.echo)


def _problems(problems: list[str], out: Path) -> None:
    """The first few problems; where more are told."""
    for problem in problems[:5]:
        typer.echo(f"  {problem}")
    if len(problems) > 5:
        typer.echo(f"  and more: {out.with_name(f'{out.name}.summary.json') if out.suffix == '.jsonl' else out}")
