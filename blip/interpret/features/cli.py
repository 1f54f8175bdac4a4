"""`blip probe` and `blip sae`: what cached states hold."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from blip.command_line import (
    BatchSize,
    Checkpoint,
    ColumnNames,
    DatasetForm,
    Device,
    ImageRoot,
    Overwrite,
    Precision,
    Split,
    TokenizerFile,
    alone,
    as_input,
    say,
    seed_option,
    user_errors,
)
from blip.errors import InputError, visible
from blip.files import json_text, write_whole
from blip.html_page import csv_cell
from blip.outputs import claim_output

if TYPE_CHECKING:
    from blip.interpret.features.probes import Probe

app = typer.Typer(
    no_args_is_help=True, help="Sparse autoencoders of cached states: train one, and report what it found."
)

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
    from blip.interpret.features.probe_picture import draw
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
                    draw(found, beside[1])
                written += [out.name, *names]
        _show(found)
        say(f"{len(found)} probes: {out}")


@app.command()
def train(
    shards: Shards,
    point: Annotated[str, typer.Option(help="of the shards, such as image.2.out")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    features: Annotated[int, typer.Option(min=1, help="how many directions are learnt")] = 1024,
    kind: Annotated[str, typer.Option(help="topk: the k largest are active; gated: a threshold decides")] = "topk",
    k: Annotated[int, typer.Option(min=1, help="active features of a state, of topk")] = 16,
    sparsity: Annotated[float, typer.Option(min=0, help="of gated: the larger, the fewer are active")] = 0.2,
    steps: Annotated[int, typer.Option(min=1, help="of Adam")] = 2000,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="states a step")] = 512,
    learning_rate: Annotated[float, typer.Option("--learning_rate", "--lr", help="at the start")] = 1e-3,
    revive_every: Annotated[
        int, typer.Option("--revive_every", min=1, help="steps after which idle ones restart")
    ] = 200,
    seed: Annotated[int, seed_option("of everything drawn")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Trains a sparse autoencoder on cached states; every fifth image is held out and tests it."""
    from blip.interpret.features.sae import ABOUT, OF_SHARDS, WEIGHTS, check_point, save_sae
    from blip.interpret.features.sae_report import score_rows
    from blip.interpret.features.sae_training import SaeSettings, train_sae
    from blip.interpret.features.states import Cached

    with user_errors():
        settings = SaeSettings(features, kind, k, sparsity, steps, batch_size, learning_rate, revive_every, seed)
        options = as_input(point=point, settings=asdict(settings))
        claim = claim_output(
            out, "sae train", inputs=[shards, options], folder=True, overwrite=overwrite, names=[WEIGHTS, ABOUT]
        )
        with alone(claim):
            cached = Cached(shards)
            (point,) = one_point(cached.matching([point]))
            check_point(point)
            sae, about = train_sae(cached.tokens([point]), point, settings)
            about |= {"point": point, **{name: cached.about.get(name) for name in OF_SHARDS}}
            with claim.writing() as written:
                written += save_sae(out, sae, about)
        for name, value in score_rows({**about, "features": features, "kind": kind}, None):
            say(f"{name}: {value}")
        say(f"{out}")


@app.command()
def report(
    sae: Annotated[Path, typer.Argument(help="folder that `blip sae train` wrote")],
    shards: Shards,
    data: Annotated[str, typer.Argument(help="the data that the activations are of")],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="page to write, .html; the same as JSON beside it")],
    features: Annotated[int, typer.Option(min=1, help="of the page: those with the largest sum of codes")] = 40,
    examples: Annotated[int, typer.Option(min=1, help="images of a feature")] = 8,
    task: Annotated[str, typer.Option(help="whose loss is measured: match, caption or answer")] = "",
    limit: Annotated[int, typer.Option(min=0, help="records on which the model's loss is measured; 0: all")] = 256,
    test_data: Annotated[
        str, typer.Option("--test_data", help="measure it on these records instead of those held out in training")
    ] = "",
    dataset: DatasetForm = "json",
    split: Split = "",
    columns: ColumnNames = None,
    image_root: ImageRoot = "",
    batch_size: BatchSize = 32,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Measures what the model loses with the autoencoder in it, and draws the most active images of its features."""
    from blip.checkpoints.places import local
    from blip.hashing import fingerprint
    from blip.inference.cli import reading
    from blip.inference.opening import Reads, load_model
    from blip.interpret.explain_files import find_pairs
    from blip.interpret.features import sae_report

    with user_errors():
        if out.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"{out} does not end in .html: choose {out.stem}.html")
        options = as_input(features=features, examples=examples, task=task, limit=limit, split=split, test=test_data)
        beside = out.with_suffix(".json")
        inputs: list[str | Path] = [sae, shards, data, checkpoint, *filter(None, [test_data]), options]
        claim = claim_output(out, "sae report", inputs=inputs, overwrite=overwrite, names=[beside.name])
        with alone(claim):
            loaded, about, cached = sae_report.opened(sae, shards)
            read = reading(dataset, split, columns, image_root=image_root, limit=0)
            wanted = list(find_pairs(data, [], **read))
            sae_report.check_data(wanted, cached, data)
            sae_report.check_weights(fingerprint(local(checkpoint)), cached, checkpoint)
            others = list(find_pairs(test_data, [], **read)) if test_data else None
            tested = sae_report.tested_records(test_data, others, wanted, about=about, limit=limit)
            model = load_model(checkpoint, tokenizer, device, Reads(precision=precision))
            tokens = cached.tokens([about["point"]])
            found = sae_report.find_features(loaded, tokens, count=features, examples=examples)
            sae_report.add_words(found, wanted)
            lost = sae_report.loss_with(model, loaded, about, tested=tested, task=task, batch_size=batch_size)
            with claim.writing() as written:
                sae_report.write_gallery(model, found, out, wanted=wanted, about=about, lost=lost, tested=tested.name)
                write_whole(beside, json_text(sae_report.as_json(found, about, lost, tested=tested.name)))
                written += [out.name, beside.name]
        for name, value in sae_report.score_rows(about, lost, tested.name):
            say(f"{name}: {value}")
        say(f"{len(found)} features: {out}")


def one_point(points: list[str]) -> list[str]:
    """InputError unless a pattern named one point."""
    if len(points) != 1:
        raise InputError(f"an autoencoder is of one point, and these are {', '.join(points)}: name one")
    return points


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
            f"{round(100 * x.mean)} ({round(100 * x.low)} to {round(100 * x.high)})" for x in (one.score, one.shuffled)
        )
        counts = ", ".join(f"{name} {count}" for name, count in one.classes.items())
        numbers = (f"{100 * one.floor:.0f}", str(one.records))
        table.add_row(*map(visible, (one.point, one.label, one.measure, score, shuffled, *numbers, counts)))
    Console(width=max(110, Console().width)).print(table, markup=False)
