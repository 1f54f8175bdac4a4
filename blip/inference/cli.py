"""`blip caption`, `blip match` and `blip answer`: the predictor over images, folders and annotation files."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from blip.command_line import (
    AsJson,
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
from blip.console.bars import Bars
from blip.data.columns import parse_columns
from blip.data.image_bytes import MAX_MB
from blip.data.images import ENDINGS
from blip.data.places import ANNOTATIONS, is_source, items_of, refuse_image_name
from blip.data.records import text_problem
from blip.errors import InputError
from blip.files import read_text
from blip.inference.asked import captions_of, questions_of
from blip.inference.opening import Channels, Reads, Window
from blip.inference.opening import load_model as load_model
from blip.outputs import Output, claim_output, writing

AtOnce = Annotated[
    int | None, typer.Option("--batch_size", min=1, help="images at once; unless given, as many as suit the device")
]
Places = Annotated[
    list[str],
    typer.Argument(
        help="images, folders of images, annotation files, folders of sets, hub:OWNER/NAME, FILE.parquet#ROW"
    ),
]


def places_and_texts(arguments: Sequence[str], texts: Sequence[str] | None, option: str) -> tuple[list[str], list[str]]:
    """The places of images and the texts that a command line gives.

    With `texts`, which were given as options, every argument is a place. Without them the first argument is the place
    and the others are texts.

    Raises:
        InputError: an argument that should be a text has the form of a path and exists, or the arguments are the
            words of a question.
    """
    for text in texts or arguments[1:]:
        if problem := text_problem(text):
            raise InputError(f"the text {text:.40} {problem}")
    if texts:
        return list(arguments), list(texts)
    for text in arguments[1:]:
        if _has_form_of_a_path(text) and os.path.exists(text):
            raise InputError(f"{text} is a file or folder: for several places give the texts by {option}")
    _notice_divided(arguments[0], arguments[1:], option)
    return list(arguments[:1]), list(arguments[1:])


def reading(dataset: str, split: str, columns: Sequence[str] | None, *, image_root: str, limit: int) -> dict[str, Any]:
    """The options of a verb that say how its places are read, as `find_records` takes them."""
    given = {"dataset": dataset, "split": split, "image_root": image_root, "limit": limit or None}
    return {**given, "columns": parse_columns(columns or [])}


def _notice_divided(place: str, words: Sequence[str], option: str) -> None:
    """Several texts of one word each are probably one text without quotation marks: InputError where they should be
    questions, which have several words; elsewhere a note, since classes such as `normal` are texts too."""
    if len(words) < 2 or any(" " in word.strip() for word in words) or any(word.endswith("?") for word in words[:-1]):
        return
    whole, each = shlex.quote(" ".join(words)), " ".join(f"{option} {shlex.quote(word)}" for word in words)
    if option == "--question":
        raise InputError(
            f"these are {len(words)} questions of one word each. One question stands in quotation marks: {place} "
            f"{whole}; several are given by {each}"
        )
    say(f"each of these {len(words)} words is a text of its own; one text stands in quotation marks: {whole}", err=True)


def claim_json(out: Path | None, command: str, inputs: Sequence[str | Path | None], overwrite: bool) -> Output | None:
    """`claim_output` for the option `--out` of a verb, where it is given; options among the inputs may be absent."""
    if out is None:
        return None
    refuse_image_name(out, ".json")
    if out.suffix.lower() not in ("", ".json"):
        raise InputError(f"{out} does not end in .json, and blip {command} writes JSON: choose {out.stem}.json")
    return claim_output(out, command, inputs=[one for one in inputs if one], overwrite=overwrite)


def _has_form_of_a_path(text: str) -> bool:
    """Whether a text holds a separator of paths, or ends as image and annotation files do."""
    return os.sep in text or Path(text).suffix.lower() in (*ENDINGS, *ANNOTATIONS)


def _needed(what: str, option: str, places: list[str]) -> typer.BadParameter:
    """Typer's error of a missing argument."""
    own = any(is_source(place) for place in places)
    column = "question" if what == "question" else "caption"
    about = f"; where the records have it in a column of another name, --columns {column}=NAME gives the name"
    return typer.BadParameter(f"there is no {what}: give it behind the image, or by {option}{about if own else ''}")


def _lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank. ReadError as in `read_text`."""
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def caption(
    images: Places,
    checkpoint: Checkpoint,
    prompt: Annotated[str | None, typer.Option(help="what captions begin with; the model's own unless given")] = None,
    beams: Annotated[int | None, typer.Option(help="3 unless given; 1: the likeliest token at each step")] = None,
    sample: Annotated[bool, typer.Option("--sample/--no_sample", help="draw tokens instead of searching")] = False,
    top_p: Annotated[float, typer.Option("--top_p", help="nucleus to draw from")] = 0.9,
    num_return: Annotated[int, typer.Option("--num_return", help="captions of each image")] = 1,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="tokens of a caption at most")] = 30,
    min_new_tokens: Annotated[int, typer.Option("--min_new_tokens", help="tokens of a caption at least")] = 0,
    seed: Annotated[int, seed_option("of sampling")] = 0,
    dataset: DatasetForm = "json",
    split: Split = "",
    columns: ColumnNames = None,
    image_root: ImageRoot = "",
    limit: FirstRecords = 0,
    batch_size: AtOnce = None,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    precision: Precision = "auto",
    out: JsonFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Writes captions; status 1 when an image cannot be read."""
    from blip.inference import files
    from blip.models.decoding import Decoding

    with user_errors():
        reads = Reads(max_image_mb, precision, window, channels)
        how = reading(dataset, split, columns, image_root=image_root, limit=limit)
        items = items_of(images, **how)
        paths = [path for item in items for path in item]
        decoding = Decoding(
            beams=beams or (1 if sample else 3),
            sample=sample,
            top_p=top_p if sample else 1.0,
            num_return=num_return,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
        )
        written_by = as_input(prompt=prompt, seed=seed if sample else None, **asdict(decoding), **how)
        written_by += reads.chosen
        claim = claim_json(out, "caption", [*images, *paths, checkpoint, tokenizer, written_by], overwrite)
        with alone(claim):
            model = load_model(checkpoint, tokenizer, device, reads)
            size = batch_size or model.profile.images_at_once
            found = files.caption_rows(model, items, prompt, decoding=decoding, batch_size=size, seed=seed)
            rows = list(Bars().over(found, "captioning", len(items)))
            with writing(claim):
                unread = files.show(rows, out, as_json)
    raise typer.Exit(1 if unread else 0)


def match(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|TEXT",
            help="an image, a folder or an annotation file, then texts; with --text several places and no texts; "
            "without any, the captions of the records themselves",
        ),
    ],
    checkpoint: Checkpoint,
    text: Annotated[list[str] | None, typer.Option(help="a text, instead of arguments; several times")] = None,
    dataset: DatasetForm = "json",
    split: Split = "",
    columns: ColumnNames = None,
    image_root: ImageRoot = "",
    limit: FirstRecords = 0,
    batch_size: AtOnce = None,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    precision: Precision = "auto",
    out: JsonFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Prints the probability that an image and a text belong together (ITM), and the cosine of their features (ITC)."""
    from blip.inference import files

    with user_errors():
        places, texts = places_and_texts(arguments, text, "--text")
        reads = Reads(max_image_mb, precision, window, channels)
        how = reading(dataset, split, columns, image_root=image_root, limit=limit)
        items = items_of(places, **how) if texts else []
        pairs = [] if texts else captions_of(places, how)
        if not (texts or pairs):
            raise _needed("text", "--text", places)
        images = list(dict.fromkeys(Path(path) for item in items or [item for item, _ in pairs] for path in item))
        inputs: list[Any] = [*places, *images, checkpoint, tokenizer, *texts, as_input(**how), reads.chosen]
        claim = claim_json(out, "match", inputs, overwrite)
        with alone(claim):
            model = load_model(checkpoint, tokenizer, device, reads)
            size = batch_size or model.profile.images_at_once
            if texts:
                found = files.match_rows(model, items, texts, batch_size=size)
            else:
                found = files.matched_pairs(model, pairs, batch_size=size)
            rows = list(Bars().over(found, "matching", len(items) * len(texts) + len(pairs)))
            with writing(claim):
                unread = files.show(rows, out, as_json)
    raise typer.Exit(1 if unread else 0)


def answer(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|QUESTION",
            help="an image, a folder or an annotation file, then questions; with --question several places and no "
            "questions; without any, the questions of the records themselves",
        ),
    ],
    checkpoint: Checkpoint,
    question: Annotated[list[str] | None, typer.Option(help="a question, instead of arguments; several times")] = None,
    answers: Annotated[Path | None, typer.Option(help="text file of one answer a line to choose from")] = None,
    generate: Annotated[
        bool, typer.Option("--generate/--no_generate", help="write the answer instead of choosing one")
    ] = False,
    k: Annotated[int, typer.Option(help="answers that are scored whole")] = 128,
    dataset: DatasetForm = "json",
    split: Split = "",
    columns: ColumnNames = None,
    image_root: ImageRoot = "",
    limit: FirstRecords = 0,
    batch_size: AtOnce = None,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    precision: Precision = "auto",
    out: JsonFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Answers questions about images, from the model's own list of answers unless another is given."""
    from blip.inference import files
    from blip.models.decoding import Decoding

    with user_errors():
        places, questions = places_and_texts(arguments, question, "--question")
        reads = Reads(max_image_mb, precision, window, channels)
        how = reading(dataset, split, columns, image_root=image_root, limit=limit)
        asked = questions_of(places, questions, how)
        if not asked:
            raise _needed("question", "--question", places)
        paths = list(dict.fromkeys(path for one in asked for path in one.images))
        chosen_by = as_input(generate=generate, k=k, **how)
        chosen_by += reads.chosen
        inputs = [*places, *paths, checkpoint, tokenizer, answers, *questions, chosen_by]
        claim = claim_json(out, "answer", inputs, overwrite)
        choices = _lines(answers) if answers is not None else None
        decoding = Decoding(beams=3, max_new_tokens=10) if generate else None
        with alone(claim):
            model = load_model(checkpoint, tokenizer, device, reads)
            size = batch_size or model.profile.images_at_once // 2
            found = files.answer_rows(model, asked, answers=choices, k=k, decoding=decoding, batch_size=size)
            rows = list(Bars().over(found, "answering", len(asked)))
            with writing(claim):
                unread = files.show(rows, out, as_json)
    raise typer.Exit(1 if unread else 0)
