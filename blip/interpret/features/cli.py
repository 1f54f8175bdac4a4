"""`blip probe`: what cached states hold."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from blip.command_line import Overwrite, alone, as_input, say, seed_option, user_errors
from blip.errors import InputError, visible
from blip.files import json_text, write_whole
from blip.html_page import csv_cell
from blip.outputs import claim_output

if TYPE_CHECKING:
    from blip.interpret.features.probes import Probe

Shards = Annotated[Path, typer.Argument(help="folder that `blip activations` wrote")]


def probe(
    shards: Shards,
    labels: Annotated[
        Path, typer.Option(help="JSON, JSONL or CSV with a row for each record, such as the data itself")
    ],
    label: Annotated[
        list[str], typer.Option(help="NAME=PLACE in a row, such as side=lesions.0.side, or a column; several times")
    ],
    out: Annotated[Path, typer.Option(help="write all scores to this JSON file, and a table beside it as CSV")],
    points: Annotated[list[str] | None, typer.Option(help="of the shards; all unless given; several times")] = None,
    pool: Annotated[str, typer.Option(help="of several tokens: mean or first")] = "mean",
    kind: Annotated[str, typer.Option(help="logistic, linear, or auto: linear for labels that are numbers")] = "auto",
    folds: Annotated[int, typer.Option(min=2, help="of the cross-validation")] = 5,
    group: Annotated[str, typer.Option(help="place of what several records share")] = "image",
    strength: Annotated[float, typer.Option(help="of the L2 penalty")] = 1.0,
    seed: Annotated[int, seed_option("of folds and shuffled labels")] = 0,
    picture: Annotated[bool, typer.Option("--picture", help="draw the scores beside it too, as PNG")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Trains linear probes on cached states, with controls: shuffled labels and the majority class."""
    from blip.interpret.features import probes
    from blip.interpret.features.labels import labels_of, read_rows
    from blip.interpret.features.states import POOLS, Cached

    with user_errors():
        if out.suffix.lower() != ".json":
            raise InputError(f"{out} does not end in .json: choose {out.stem}.json; the table is {out.stem}.csv")
        if pool not in POOLS:
            raise InputError(f"pool is {pool!r}; it can be {', '.join(POOLS)}")
        settings = probes.Settings(kind, folds, strength, seed)
        options = as_input(label=label, points=points, pool=pool, group=group, settings=asdict(settings))
        beside = [out.with_suffix(".csv"), *([out.with_suffix(".png")] if picture else [])]
        names = [path.name for path in beside]
        claim = claim_output(out, "probe", inputs=[shards, labels, options], overwrite=overwrite, names=names)
        with alone(claim):
            cached, rows = Cached(shards), read_rows(labels)
            states, records = cached.pooled(cached.matching(points or []), pool)
            found = []
            for one in label:
                known = labels_of(rows, one, records=records, count=cached.about["records"], group=group)
                found += [probes.probe(x, known, point=point, settings=settings) for point, x in states.items()]
            with claim.writing() as written:
                write_whole(out, json_text(probes.as_json(found)))
                write_whole(beside[0], _as_csv(probes.as_rows(found)))
                if picture:
                    probes.table(found).picture(beside[1])
                written += [out.name, *names]
        _show(found)
        say(f"{len(found)} probes: {out}")


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _show(found: "list[Probe]") -> None:
    """A line for each probe: per cent, or R² in hundredths, with 95 % intervals."""
    table = Table("point", "label", "measure", "score", "shuffled labels", "floor", "records", "classes")
    for one in found:
        score, shuffled = (
            f"{100 * x.mean:.0f} ({100 * x.low:.0f} to {100 * x.high:.0f})" for x in (one.score, one.shuffled)
        )
        counts = ", ".join(f"{name} {count}" for name, count in one.classes.items())
        numbers = (f"{100 * one.floor:.0f}", str(one.records))
        table.add_row(*map(visible, (one.point, one.label, one.measure, score, shuffled, *numbers, counts)))
    Console(width=max(110, Console().width)).print(table, markup=False)
