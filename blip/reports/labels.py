"""`blip labels VERB ...`: clinical agreement of generated reports, by the labels of a program that runs elsewhere."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from blip.command_line import Overwrite, alone, as_input, say, user_errors
from blip.errors import InputError
from blip.files import json_text, read_json, write_whole
from blip.inference.cli import claim_json
from blip.outputs import claim_output, writing

app = typer.Typer(no_args_is_help=True, help="Clinical agreement of generated reports with their references.")
NAMES = ("references.csv", "predictions.csv")
Results = Annotated[Path, typer.Argument(help="captions_SPLIT.json of a run or an evaluation")]


class Row(BaseModel):
    """A line of a file of captions."""

    image: str = ""
    images: list[str] = []  # of an item of several
    caption: str
    references: list[str] = Field(min_length=1)
    group: str = ""  # of the patient


def _rows(path: Path) -> list[Row]:
    """InputError where there are no captions; ReadError for another file."""
    rows = read_json(path, list[Row])
    if not rows or not all(row.image or row.images for row in rows):
        raise InputError(f"{path} holds no captions of images: give captions_SPLIT.json of a run or an evaluation")
    return rows


@app.command()
def reports(
    results: Results,
    out: Annotated[Path, typer.Option("--out", "--output", help="folder to write")] = Path("labels"),
    overwrite: Overwrite = False,
) -> None:
    """Writes the reports of a run, and their references, as tables that a labeller such as CheXbert reads."""
    from blip.evaluation.clinical import table_of

    with user_errors():
        rows = _rows(results)
        claim = claim_output(out, "labels reports", inputs=[results], folder=True, overwrite=overwrite, names=NAMES)
        with alone(claim), claim.writing() as written:
            write_whole(out / NAMES[0], table_of([row.references[0] for row in rows]))
            write_whole(out / NAMES[1], table_of([row.caption for row in rows]))
            written += NAMES
        say(f"{len(rows)} reports: {out / NAMES[0]} and {out / NAMES[1]}")


@app.command()
def score(
    results: Results,
    references: Annotated[Path, typer.Option(help="the labeller's table of the references")],
    predictions: Annotated[Path, typer.Option(help="its table of the generated reports")],
    unsure: Annotated[str, typer.Option(help="what unsure labels count as: positive or negative")] = "positive",
    out: Annotated[Path | None, typer.Option(help="write the scores to this JSON file")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Scores the reports of a run by the labels of both: micro and macro F1, each with an interval over patients."""
    from blip.evaluation.bootstrap import as_json
    from blip.evaluation.clinical import agreement, check_order, read_labels

    with user_errors():
        inputs: list[str | Path] = [results, references, predictions, as_input(unsure=unsure)]
        claim = claim_json(out, "labels score", inputs, overwrite)
        rows = _rows(results)
        true, given = read_labels(references), read_labels(predictions)
        check_order(true, [row.references[0] for row in rows])
        check_order(given, [row.caption for row in rows])
        groups = [row.group or row.image or row.images[0] for row in rows]
        found = agreement(true, given, groups, unsure=unsure)
        with alone(claim), writing(claim):
            if out is not None:
                write_whole(out, json_text({"reports": len(rows), "unsure": unsure, **as_json(found)}))
    table = Table("F1", "score", "95 %", "references", "predictions", title=f"{len(rows)} reports")
    for name, one in {**found.scores, **found.conditions}.items():
        counts = map(str, found.stated.get(name, ("", "")))
        table.add_row(name, f"{one.mean:.3f}", f"{one.low:.3f} to {one.high:.3f}", *counts)
    Console().print(table)
