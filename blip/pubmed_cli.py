"""`blip pubmed STEP ...`: from articles to image-caption pairs."""

from pathlib import Path
from typing import Annotated

import typer

from blip.train.launch import errors_for_people

app = typer.Typer(no_args_is_help=True, help="Articles of PubMed Central: figures and captions out of them.")


@app.callback()
def steps() -> None:
    """Articles of PubMed Central: figures and captions out of them."""


@app.command()
def extract(
    folder: Annotated[Path, typer.Argument(help="articles as JATS XML, each with its figure files beside or below it")],
    out: Annotated[Path, typer.Option(help="a line a figure: .jsonl")],
    workers: Annotated[int, typer.Option(min=1, help="processes that parse")] = 1,
) -> None:
    """Figures, captions and the paragraphs that name them, out of a folder of articles."""
    from blip.pubmed.extract import extract as extract_

    with errors_for_people():
        found = extract_(folder, out, workers)
        typer.echo(f"{found.articles} articles, {found.figures} figures, {found.files} with a file: {out}")
        for count, what in (
            (found.unreadable, "articles could not be read"),
            (found.no_file, "figures have no file here"),
            (found.no_caption, "figures have no caption"),
        ):
            if count:
                typer.echo(f"{count} {what}")
        for tag, count in found.other_graphics.most_common():
            typer.echo(f"{count} images of {tag} are no figures")
        for problem in found.problems[:5]:
            typer.echo(f"  {problem}")
        if len(found.problems) > 5:
            typer.echo(f"  and more: {out}.summary.json")
