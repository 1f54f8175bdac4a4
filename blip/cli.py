"""`blip VERB ...`: each verb is a thin cover of a function that can be called from Python."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blip.capfilt import cli as capfilt
from blip.command_line import (
    AsJson,
    BatchSize,
    Checkpoint,
    Device,
    ImageRoot,
    JsonFile,
    TokenizerFile,
    user_errors,
    workers_option,
)
from blip.data.images import find_images
from blip.pubmed import cli as pubmed

if TYPE_CHECKING:
    from blip.inference.predictor import Predictor

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(capfilt.app, name="capfilt")
app.add_typer(pubmed.app, name="pubmed")

Files = Annotated[list[str], typer.Argument(help="annotation files, or folders of sets as distributed")]


@app.command()
def phantoms(
    out: Annotated[Path, typer.Argument(help="folder to write")],
    count: Annotated[int, typer.Option(help="images")] = 1000,
    seed: Annotated[int, typer.Option(help="another seed, other images")] = 0,
    image_size: Annotated[int, typer.Option("--image_size", help="pixels a side")] = 48,
    max_lesions: Annotated[int, typer.Option("--max_lesions", help="one to this many an image")] = 3,
    noise: Annotated[float, typer.Option(help="share of captions made wrong, recorded as such")] = 0.0,
    name_one: Annotated[bool, typer.Option("--name_one", help="captions name one lesion of those there are")] = False,
) -> None:
    """Draws a data set of scanner-like phantoms with captions, questions and boxes."""
    from blip.data.phantoms import write_phantoms

    with user_errors():
        path = write_phantoms(
            out, count, seed, image_size=image_size, max_lesions=max_lesions, noise=noise, name_one=name_one
        )
        typer.echo(f"{count} phantoms: {path}")


@app.command("check-data")
def check_data(
    files: Files,
    image_root: ImageRoot = "",
    dataset: Annotated[str, typer.Option(help="json, or how a set is distributed: vqa_rad, slake, roco ...")] = "json",
    split: Annotated[str, typer.Option(help="train, validation or test of a folder; everything unless given")] = "",
    tokenizer: Annotated[str, typer.Option(help="vocab.txt, tokenizer.json or hub:NAME, to count tokens")] = "",
    max_text_tokens: Annotated[
        int, typer.Option("--max_text_tokens", "--max_tokens", help="length in tokens at which a run cuts texts")
    ] = 30,
    num_workers: Annotated[int, workers_option("processes that open images; 0: this one", min=0)] = 2,
    report: Annotated[Path | None, typer.Option(help="write the full report to this JSON file")] = None,
) -> None:
    """Counts records, opens every image, measures texts; status 1 when something is missing or broken."""
    from blip.data.check import check_data
    from blip.data.check_report import print_report
    from blip.tokenizer import load_tokenizer

    with user_errors():
        words = load_tokenizer(tokenizer) if tokenizer else None
        data_report = check_data(
            list(files),
            image_root,
            words,
            max_text_tokens=max_text_tokens,
            num_workers=num_workers,
            dataset=dataset,
            split=split,
        )
        print_report(data_report)
        if report:
            data_report.save(report)
    raise typer.Exit(0 if data_report.ok else 1)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="our folder, a released .pth, or a Hugging Face folder")],
    target: Annotated[Path, typer.Argument(help="what to write")],
    to: Annotated[str, typer.Option(help="blip, salesforce or huggingface")] = "blip",
    hf_class: Annotated[str, typer.Option("--hf_class", help="retrieval, caption or vqa, for huggingface")] = "",
    tokenizer: Annotated[str, typer.Option(help="to put beside the weights; the source's own unless given")] = "",
    image_heads: Annotated[int | None, typer.Option("--image_heads", help="width / 64 unless given")] = None,
    text_heads: Annotated[int | None, typer.Option("--text_heads", help="width / 64 unless given")] = None,
) -> None:
    """Writes a checkpoint in another format and lists what that format cannot hold."""
    from blip.checkpoints import convert as formats
    from blip.checkpoints.format import TOKENIZER
    from blip.models.factory import spec_of
    from blip.tokenizer import load_tokenizer

    with user_errors():
        tensors, info = formats.read(source, image_heads=image_heads, text_heads=text_heads)
        own = source / TOKENIZER
        words = tokenizer or (str(own) if own.is_file() else "")
        beside = words if to == "huggingface" and words else None
        held = hf_class or next(iter(spec_of(info["task"]).exports_as), info["task"])
        left_out = formats.write(target, tensors, info, to=to, tokenizer_file=beside, hf_class=held)
        if to == "blip" and words:
            load_tokenizer(words).save(target / TOKENIZER)
        typer.echo(f"{len(tensors) - len(left_out)} tensors: {target}")
        if left_out:
            typer.echo(f"{to} cannot hold {len(left_out)}: {', '.join(sorted(left_out)[:20])}")


Images = Annotated[list[str], typer.Argument(help="image files, and folders of them")]


def _load(checkpoint: str, tokenizer: str, device: str) -> "Predictor":
    from blip import distributed
    from blip.inference.load import load

    return load(checkpoint, device=distributed.start(device), tokenizer=tokenizer or None)


@app.command()
def caption(
    images: Images,
    checkpoint: Checkpoint,
    prompt: Annotated[str | None, typer.Option(help="what captions begin with; the model's own unless given")] = None,
    beams: Annotated[int | None, typer.Option(help="3 unless given; 1: the likeliest token at each step")] = None,
    sample: Annotated[bool, typer.Option(help="draw tokens instead of searching")] = False,
    top_p: Annotated[float, typer.Option("--top_p", help="nucleus to draw from")] = 0.9,
    num_return: Annotated[int, typer.Option("--num_return", help="captions an image")] = 1,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens")] = 30,
    min_new_tokens: Annotated[int, typer.Option("--min_new_tokens")] = 0,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    batch_size: BatchSize = 32,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    out: JsonFile = None,
    as_json: AsJson = False,
) -> None:
    """Writes captions; status 1 when an image cannot be read."""
    from blip.inference import files
    from blip.models.decoding import Decoding

    with user_errors():
        paths = find_images(images)
        decoding = Decoding(
            beams=beams or (1 if sample else 3),
            sample=sample,
            top_p=top_p if sample else 1.0,
            num_return=num_return,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
        )
        rows = files.caption_rows(
            _load(checkpoint, tokenizer, device), paths, prompt, decoding=decoding, batch_size=batch_size, seed=seed
        )
        unread = files.show(rows, out, as_json)
    raise typer.Exit(1 if unread else 0)


@app.command()
def match(
    image: Annotated[str, typer.Argument(help="an image, or a folder of them")],
    texts: Annotated[list[str], typer.Argument(help="one text or several")],
    checkpoint: Checkpoint,
    batch_size: BatchSize = 32,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    out: JsonFile = None,
    as_json: AsJson = False,
) -> None:
    """Says how probably an image and a text belong together (ITM), with the cosine of their features (ITC)."""
    from blip.inference import files

    with user_errors():
        paths = find_images([image])
        rows = files.match_rows(_load(checkpoint, tokenizer, device), paths, texts, batch_size=batch_size)
        unread = files.show(rows, out, as_json)
    raise typer.Exit(1 if unread else 0)


@app.command()
def answer(
    image: Annotated[str, typer.Argument(help="an image, or a folder of them")],
    questions: Annotated[list[str], typer.Argument(help="one question or several")],
    checkpoint: Checkpoint,
    answers: Annotated[Path | None, typer.Option(help="text file of one answer a line to choose from")] = None,
    generate: Annotated[bool, typer.Option(help="write the answer instead of choosing one")] = False,
    k: Annotated[int, typer.Option(help="answers that are scored whole")] = 128,
    batch_size: BatchSize = 16,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    out: JsonFile = None,
    as_json: AsJson = False,
) -> None:
    """Answers questions about images, from the list that the model was fine-tuned with unless told otherwise."""
    from blip.inference import files
    from blip.models.decoding import Decoding

    with user_errors():
        paths = find_images([image])
        choices = None
        if answers is not None:
            choices = [line.strip() for line in answers.read_text(encoding="utf-8").splitlines() if line.strip()]
        decoding = Decoding(beams=3, max_new_tokens=10) if generate else None
        model = _load(checkpoint, tokenizer, device)
        rows = files.answer_rows(
            model, paths, questions, answers=choices, k=k, decoding=decoding, batch_size=batch_size
        )
        unread = files.show(rows, out, as_json)
    raise typer.Exit(1 if unread else 0)


@app.command()
def explain(
    image: Annotated[str, typer.Argument(help="an image, a folder, or an annotation file with its texts")],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="map.png, map.html or map.npz")],
    texts: Annotated[list[str] | None, typer.Argument(help="texts, captions or questions")] = None,
    task: Annotated[str, typer.Option(help="match, caption or answer; the checkpoint's own unless given")] = "",
    method: Annotated[str, typer.Option(help="gradcam, raw, relevance or rollout")] = "gradcam",
    layer: Annotated[int | None, typer.Option(help="whose cross-attention; the middle one unless given")] = None,
    rows: Annotated[str, typer.Option(help="words, or enc: the [ENC] row alone")] = "words",
    batch_size: BatchSize = 8,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
) -> None:
    """Draws which parts of an image a model looked at, word by word. Not for diagnosis."""
    from blip.interpret.explain_files import explain_files, find_pairs

    with user_errors():
        wanted = find_pairs(image, texts or [])
        model = _load(checkpoint, tokenizer, device)
        files, problems = explain_files(
            model, wanted, out, task=task, method=method, layer=layer, rows=rows, batch_size=batch_size
        )
        for problem in problems:
            typer.echo(problem, err=True)
        typer.echo(f"{len(wanted) - len(problems)} explained: {files[0] if files else 'nothing written'}"
                   + (f" to {files[-1]}" if len(files) > 1 else ""))  # fmt: skip
    raise typer.Exit(1 if problems else 0)


@app.command()
def activations(
    data: Annotated[str, typer.Argument(help="annotation file, or a folder of images")],
    checkpoint: Checkpoint,
    points: Annotated[list[str], typer.Option(help="names or patterns, such as 'text.*.out'; several times")],
    out: Annotated[Path, typer.Option(help="folder to write, or to go on with")],
    task: Annotated[str, typer.Option(help="match, caption, answer or image; the checkpoint's own unless given")] = "",
    pool: Annotated[str, typer.Option(help="tokens: all, first or mean")] = "all",
    format: Annotated[str, typer.Option(help="safetensors or npy")] = "safetensors",
    shard_size: Annotated[int, typer.Option("--shard_size", help="records a shard")] = 1024,
    batch_size: BatchSize = 32,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
) -> None:
    """Writes what passes through named points for a whole data set, in shards; goes on where it was interrupted."""
    from blip.hashing import fingerprint
    from blip.interpret import activations as shards
    from blip.interpret.explain_files import find_pairs

    with user_errors():
        wanted = find_pairs(data, [])
        model = _load(checkpoint, tokenizer, device)
        chosen = shards.points_of(model, points)
        task = task or shards.usual_task(model, chosen)
        settings = shards.Capture(fingerprint(checkpoint), data, chosen, task, pool, format, shard_size)
        problems = shards.capture(model, wanted, settings, out, batch_size=batch_size)
        for problem in problems:
            typer.echo(problem, err=True)
        typer.echo(f"{len(wanted) - len(problems)} records, {len(chosen)} points: {out / shards.INDEX}")
    raise typer.Exit(1 if problems else 0)


@app.command()
def localise(
    data: Annotated[Path, typer.Argument(help="annotation file with boxes: blip phantoms OUT --name_one")],
    checkpoint: Checkpoint,
    method: Annotated[list[str] | None, typer.Option(help="one or several; all unless given")] = None,
    limit: Annotated[int, typer.Option(help="this many records; 0: all")] = 0,
    batch_size: BatchSize = 16,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    out: JsonFile = None,
) -> None:
    """Plays the pointing game: do maps peak on what the text names? With every control."""
    from blip.interpret import pointing_game as game
    from blip.interpret.maps import METHODS

    with user_errors():
        records, left_out = game.read_named(data, limit)
        for reason, count in left_out.items():
            typer.echo(f"left out: {count} images {reason}", err=True)
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
        model = _load(checkpoint, tokenizer, device)
        lines = game.localise(model, records, method or METHODS, batch_size=batch_size)
        game.show(lines, game.centre(model, records), out)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
