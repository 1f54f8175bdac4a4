"""`blip explain`, `blip activations`, `blip localise` and `blip score-maps`: maps, activations, and tests of maps."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip.command_line import (
    BatchSize,
    Checkpoint,
    ColumnNames,
    DatasetForm,
    Device,
    FirstRecords,
    ImageRoot,
    JsonFile,
    MaxImageMb,
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
from blip.data.image_bytes import MAX_MB
from blip.data.places import images_of
from blip.inference.cli import claim_json, places_and_texts, reading
from blip.inference.opening import Channels, Reads, Window, load_model
from blip.outputs import claim_output, refuse_inputs, writing

if TYPE_CHECKING:
    from blip.inference.predictor import Predictor
    from blip.interpret.explain_files import Wanted

MapTask = Annotated[
    str, typer.Option(help="match, caption, answer, or image: without a text; the checkpoint's own unless given")
]
MapMethod = Annotated[
    str, typer.Option(help="relevance unless given; gradcam, raw or rollout, which needs no text for the image alone")
]
Target = Annotated[
    str, typer.Option(help="of records: explain the model's own captions and answers (predicted), or the true ones")
]


def explain(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|TEXT",
            help="an image or a folder, then texts, or an annotation file with its own texts; with --text several "
            "places and no texts",
        ),
    ],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="map.png, map.html or map.npz")],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "--question", help="a text, caption or question, instead of arguments; several times"),
    ] = None,
    task: MapTask = "",
    method: MapMethod = "",
    layer: Annotated[int | None, typer.Option(help="whose cross-attention; the middle one unless given")] = None,
    rows: Annotated[str, typer.Option(help="words, or enc: the [ENC] row; of BLIP-2 words or queries")] = "words",
    target: Target = "predicted",
    beams: Annotated[int, typer.Option(min=1, help="of the model's own captions, as in `blip caption`")] = 3,
    dataset: DatasetForm = "json",
    split: Split = "",
    columns: ColumnNames = None,
    image_root: ImageRoot = "",
    limit: Annotated[int, typer.Option(min=0, help="the first images or records alone; 0: all")] = 20,
    batch_size: BatchSize = 4,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Draws which parts of an image a model attended to, word by word. Not for diagnosis."""
    from blip.inference.inputs import CAPTIONS
    from blip.interpret.explain_files import How, explain_files
    from blip.interpret.pictures import check_ending, files_of

    with user_errors():
        places, texts = places_and_texts(arguments, text, "--text")
        check_ending(out)
        read = reading(dataset, split, columns, image_root=image_root, limit=0)
        wanted, bad = first_pairs(places, texts, limit, read)
        reads, search = Reads(max_image_mb, precision, window, channels), replace(CAPTIONS, beams=beams)
        how = How(task, method, layer, rows, target=target, decoding=search, batch_size=batch_size)
        given = [*filter(None, (tokenizer, reads.chosen)), as_input(how=asdict(how), **read)]
        inputs: list[str | Path] = [*places, *(one.image for one in wanted), checkpoint, *texts, *given]
        first, *others = files_of(out, len(wanted))
        claim = claim_output(first, "explain", inputs=inputs, overwrite=overwrite, names=[one.name for one in others])
        with alone(claim), claim.writing() as written:
            model = load_model(checkpoint, tokenizer, device, reads)
            files, problems = explain_files(model, wanted, out, how)
            written += [path.name for path in files]
        for problem in [*bad, *problems]:
            say(problem, err=True)
        where = " to ".join(str(path) for path in {files[0]: 1, files[-1]: 1}) if files else "nothing written"
        say(f"{len(wanted) - len(problems)} explained: {where}")
    raise typer.Exit(1 if bad or problems else 0)


def first_pairs(
    places: list[str], texts: list[str], limit: int, how: dict[str, Any]
) -> tuple[list["Wanted"], list[str]]:
    """The first `limit` (0: all) images or records of places, and messages about records that cannot be used."""
    from blip.interpret.explain_files import find_pairs
    from blip.interpret.pictures import PictureError

    bad: list[str] = []
    pairs = (pair for place in places for pair in find_pairs(place, texts, bad, **how))
    wanted = list(itertools.islice(pairs, limit + 1) if limit else pairs)
    if bad and not wanted:
        raise PictureError(bad[0])
    if limit and len(wanted) > limit:
        say(f"the first {limit} are explained; --limit 0 explains all", err=True)
        wanted = wanted[:limit]
    return wanted, bad


def activations(
    data: Annotated[
        str,
        typer.Argument(help="an image, a folder of images or of a set, an annotation file, or hub:OWNER/NAME"),
    ],
    checkpoint: Checkpoint,
    points: Annotated[list[str], typer.Option(help="names or patterns, such as 'text.*.out'; several times")],
    out: Annotated[Path, typer.Option(help="folder to write, or to continue")],
    task: Annotated[str, typer.Option(help="match, caption, answer or image; the checkpoint's own unless given")] = "",
    pool: Annotated[str, typer.Option(help="tokens: all, first or mean")] = "all",
    format: Annotated[str, typer.Option(help="safetensors or npy")] = "safetensors",
    shard_size: Annotated[int, typer.Option("--shard_size", help="records a shard")] = 1024,
    dataset: DatasetForm = "json",
    split: Split = "",
    columns: ColumnNames = None,
    image_root: ImageRoot = "",
    limit: FirstRecords = 0,
    batch_size: BatchSize = 32,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Writes the activations at named points for a whole data set, in shards; continues where it was interrupted."""
    from blip.inference.load_blip2 import without_language_model
    from blip.interpret import activations as shards
    from blip.interpret.activation_shards import INDEX, is_index
    from blip.interpret.explain_files import find_pairs

    with user_errors():
        reads = Reads(max_image_mb, precision, window, channels)
        wanted = list(find_pairs(data, [], **reading(dataset, split, columns, image_root=image_root, limit=limit)))
        given = [data, checkpoint, *filter(None, [tokenizer])]
        claim_shards(out, "activations", wanted, inputs=given, known=is_index(out), overwrite=overwrite)
        model = without_language_model(load_model(checkpoint, tokenizer, device, reads), "blip activations")
        chosen = shards.points_of(model, points)
        task = task or shards.usual_task(model, chosen)
        made = made_with(model, reads, checkpoint=checkpoint, tokenizer=tokenizer)
        settings = shards.Capture(made.pop("weights"), data, chosen, task, pool, format, shard_size, **made)
        problems = shards.capture(model, wanted, settings, out, batch_size=batch_size, overwrite=overwrite)
        for problem in problems:
            say(problem, err=True)
        say(f"{len(wanted) - len(problems)} records, {len(chosen)} points: {out / INDEX}")
    raise typer.Exit(1 if problems else 0)


def claim_shards(
    out: Path, command: str, wanted: Sequence["Wanted"], *, inputs: list[str], known: bool, overwrite: bool
) -> None:
    """Claims the folder of shards about records for `command`, which compares the settings of what is `known` there.

    `inputs` are what it reads beside the images. OutputError as in `claim_output`.
    """
    images = [path for one in wanted for path in one.paths]
    claim_output(out, command, inputs=[*inputs, *images], folder=True, overwrite=overwrite, known=known)


def made_with(model: "Predictor", reads: Reads, *, checkpoint: str, tokenizer: str) -> dict[str, Any]:
    """What shards depend on beside the records: a run that continues needs the same.

    The fingerprint of a checkpoint covers its weights, sizes and tokenizer; `tokenizer` stands where another is given.
    """
    from blip.checkpoints.places import local
    from blip.hashing import fingerprint

    given = {"weights": fingerprint(local(checkpoint)), "precision": model.precision, "view": reads.view}
    if tokenizer:
        given["tokenizer"] = fingerprint(tokenizer) if Path(tokenizer).exists() else tokenizer
    return given


def localise(
    data: Annotated[Path, typer.Argument(help="annotation file with boxes: blip phantoms OUT --name_one")],
    checkpoint: Checkpoint,
    method: Annotated[list[str] | None, typer.Option(help="one or several; all unless given")] = None,
    limit: Annotated[int, typer.Option(min=0, help="the first records alone; 0: all")] = 0,
    batch_size: BatchSize = 16,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    precision: Precision = "auto",
    out: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Plays the pointing game: do maps peak on what the text names? With every control."""
    from blip.inference.load_blip2 import only_blip
    from blip.interpret import pointing_game as game
    from blip.interpret.maps import METHODS

    with user_errors():
        methods = list(method or METHODS)
        reads = Reads(max_image_mb, precision, window, channels)
        options = [as_input(methods=methods, limit=limit), reads.chosen]
        claim = claim_json(out, "localise", [data, checkpoint, tokenizer, *options], overwrite)
        if out and out.exists():
            refuse_inputs([out], images_of([data]))
        with alone(claim):
            model = only_blip(load_model(checkpoint, tokenizer, device, reads), "blip localise")
            records, left_out = game.read_named(data, limit, limits=model.limits)
            for reason, count in left_out.items():
                say(f"left out: {count} images {reason}" if reason == game.SINGLE else reason, err=True)
            lines = game.localise(model, records, methods, batch_size=batch_size)
            with writing(claim):
                game.show(lines, game.centre(model, records), out)


def score_maps(
    data: Annotated[Path, typer.Argument(help="annotation file with boxes, such as the captions.json of phantoms")],
    checkpoint: Checkpoint,
    method: Annotated[list[str] | None, typer.Option(help="one or several; all unless given")] = None,
    score: Annotated[
        list[str] | None, typer.Option(help="boxes, curves, sanity; several times, all unless given")
    ] = None,
    task: Annotated[str, typer.Option(help="match, caption or answer; the checkpoint's own unless given")] = "",
    layer: Annotated[int | None, typer.Option(help="whose cross-attention; the middle one unless given")] = None,
    rows: Annotated[str, typer.Option(help="words, or enc: the [ENC] row; of BLIP-2 words or queries")] = "words",
    fill: Annotated[str, typer.Option(help="what covers a patch in curves: blur, mean or black")] = "blur",
    steps: Annotated[int, typer.Option(min=1, help="of a curve")] = 12,
    seed: Annotated[int, seed_option("of random maps, random weights and equal values")] = 0,
    limit: FirstRecords = 0,
    batch_size: BatchSize = 16,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    precision: Precision = "auto",
    out: Annotated[Path | None, typer.Option(help="folder for scores.json, scores.csv and curves.png")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Scores maps: agreement with boxes, deletion and insertion curves, sanity checks by random weights."""
    from blip.inference.load_blip2 import without_language_model
    from blip.interpret import map_report as report
    from blip.interpret.map_boxes import read_boxed
    from blip.interpret.map_scores import SCORES, MapScorer, Scoring, methods_of
    from blip.interpret.maps import METHODS
    from blip.interpret.objectives import explained

    with user_errors():
        methods, reads = list(method or METHODS), Reads(max_image_mb, precision, window, channels)
        how = Scoring(task, layer, rows, tuple(score or SCORES), fill, steps=steps, batch_size=batch_size, seed=seed)
        given = [as_input(how=asdict(how), methods=methods, limit=limit), reads.chosen, tokenizer]
        inputs: list[str | Path] = [data, *images_of([data]), checkpoint, *filter(None, given)]
        files = (report.JSON, report.CSV, report.PICTURE)
        claim = (
            claim_output(out, "score-maps", inputs=inputs, folder=True, overwrite=overwrite, names=files)
            if out
            else None
        )
        with alone(claim):
            model = without_language_model(load_model(checkpoint, tokenizer, device, reads), "blip score-maps")
            boxed, objective = "boxes" in how.scores, explained(model, task)
            records, problems = read_boxed(data, objective, limit, needs_boxes=boxed, limits=model.limits)
            for problem in problems:
                say(problem, err=True)
            lines = MapScorer(model, records, how).table(method or methods_of(model))
            report.show(lines, len(records), "their answers" if objective.has_answers else "their captions")
            with writing(claim) as written:
                written += report.save(lines, len(records), claim.path) if claim else []
    raise typer.Exit(1 if problems else 0)
