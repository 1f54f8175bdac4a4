"""`blip VERB ...`: each verb calls a function that Python code can call as well."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from blip import __version__
from blip.capfilt import cli as capfilt
from blip.command_line import (
    ANY_SPELLING,
    ColumnNames,
    DatasetForm,
    FirstRecords,
    ImageRoot,
    MaxImageMb,
    Overwrite,
    alone,
    as_input,
    say,
    user_errors,
    workers_option,
)
from blip.data.columns import parse_columns
from blip.data.image_bytes import MAX_MB, ImageLimits
from blip.errors import InputError, did_you_mean
from blip.inference import cli as inference
from blip.inference.cli import claim_json
from blip.inference.opening import Channels, Window, view_of
from blip.interpret import cli as interpret
from blip.interpret.causes import cli as causes
from blip.interpret.features import cli as features
from blip.outputs import claim_output, writing
from blip.pubmed import cli as pubmed
from blip.reports import cli as reports
from blip.reports import labels
from blip.serve import cli as serve
from blip.shards import cli as shards
from blip.shards.phantoms import phantoms
from blip.train.torchrun import torchrun

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=ANY_SPELLING,
    help=__doc__,
)
app.add_typer(capfilt.app, name="capfilt")
app.add_typer(pubmed.app, name="pubmed")
app.add_typer(shards.app, name="data")
app.add_typer(labels.app, name="labels")
app.add_typer(features.app, name="sae")
app.command()(phantoms)

HfClass = Annotated[
    str, typer.Option("--hf_class", help="for huggingface: retrieval, caption or vqa; of BLIP-2 also model or qformer")
]
TowerName = Annotated[
    str, typer.Option("--image_encoder", help="of a BLIP-2 of LAVIS, which leaves it out: its file, folder or name")
]
LanguageName = Annotated[
    str, typer.Option("--language_model", help="of a BLIP-2: a folder of transformers or hub:OWNER/NAME")
]
Files = Annotated[list[str], typer.Argument(help="annotation files, folders of sets as distributed, or hub:OWNER/NAME")]


@app.command("check-data")
def check_data(
    files: Files,
    image_root: ImageRoot = "",
    dataset: DatasetForm = "json",
    split: Annotated[str, typer.Option(help="train, validation or test of a folder; everything unless given")] = "",
    columns: ColumnNames = None,
    limit: FirstRecords = 0,
    tokenizer: Annotated[str, typer.Option(help="vocab.txt, tokenizer.json or hub:NAME, to count tokens")] = "",
    max_text_tokens: Annotated[
        int, typer.Option("--max_text_tokens", "--max_tokens", help="length in tokens at which a run cuts texts")
    ] = 30,
    num_workers: Annotated[int, workers_option("processes that open images; 0: this one", min=0)] = 2,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    report: Annotated[Path | None, typer.Option(help="write the full report to this JSON file")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Counts records, opens every image, measures texts; status 1 when something is missing or broken."""
    from blip.data.check import check_data
    from blip.data.check_report import print_report
    from blip.tokenizer import load_tokenizer

    with user_errors():
        options = as_input(dataset=dataset, split=split, columns=columns, max_text_tokens=max_text_tokens, limit=limit)
        claim = claim_json(report, "check-data", [*files, image_root, tokenizer, options], overwrite)
        with alone(claim):
            words = load_tokenizer(tokenizer) if tokenizer else None
            data_report = check_data(
                list(files),
                image_root,
                words,
                max_text_tokens=max_text_tokens,
                num_workers=num_workers,
                dataset=dataset,
                split=split,
                columns=parse_columns(columns or []),
                limit=limit or None,
                report_file=report,
                limits=ImageLimits.of_mb(max_image_mb, **view_of(window, channels)),
            )
            print_report(data_report)
            with writing(claim):
                if report:
                    data_report.save(report)
    raise typer.Exit(0 if data_report.ok else 1)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="our folder, a released .pth, a Hugging Face folder, hub:OWNER/NAME or an https:// address"
        ),
    ],
    target: Annotated[Path, typer.Argument(help="folder or file to write")],
    to: Annotated[str, typer.Option(help="blip, salesforce or huggingface")] = "blip",
    hf_class: HfClass = "",
    tokenizer: Annotated[
        str, typer.Option(help="file that goes beside the weights; the source's own unless given")
    ] = "",
    image_heads: Annotated[int | None, typer.Option("--image_heads", min=1, help="width / 64 unless given")] = None,
    text_heads: Annotated[int | None, typer.Option("--text_heads", min=1, help="width / 64 unless given")] = None,
    image_encoder: TowerName = "",
    language_model: LanguageName = "",
    overwrite: Overwrite = False,
) -> None:
    """Writes a checkpoint in another format and lists what that format cannot hold."""
    from blip.checkpoints import convert as formats
    from blip.checkpoints.format import TOKENIZER, TOKENIZERS
    from blip.checkpoints.language_models import with_language_model
    from blip.checkpoints.places import local, local_tokenizer
    from blip.models.factory import spec_of
    from blip.tokenizer import load_tokenizer

    with user_errors():
        form = as_input(to=to, hf_class=hf_class, image_heads=image_heads, text_heads=text_heads)
        others = [one for one in (tokenizer, image_encoder, language_model) if one]
        # names of either folder, so that nothing of another format stays beside the weights
        claim = claim_output(
            target,
            "convert",
            inputs=[source, *others, form],
            folder=to != "salesforce",
            overwrite=overwrite,
            names=() if to == "salesforce" else formats.NAMES,
        )
        with alone(claim):
            folder = local(source)
            tensors, info = formats.read(folder, image_heads, text_heads, image_encoder=image_encoder)
            if language_model:
                info = with_language_model(info, language_model)
            reads = info.get("qformer", {}).get("text", True)  # else the tokenizer there is a language model's
            own = [str(folder / name) for name in TOKENIZERS if reads and (folder / name).is_file()]
            words = local_tokenizer(tokenizer) or next(iter(own), "")
            beside = words if to == "huggingface" and words else None
            held = hf_class or next(iter(spec_of(info["task"]).exports_as), info["task"])
            with claim.writing() as written:
                left_out = formats.write(target, tensors, info, to=to, tokenizer_file=beside, hf_class=held)
                if to == "blip" and words:
                    load_tokenizer(words).save(target / TOKENIZER)
                written += [] if to == "salesforce" else [name for name in formats.NAMES if (target / name).is_file()]
        say(f"{sum(name not in left_out for name in tensors)} tensors: {target}")
        if left_out:  # settings first: of many tensors not all are listed
            left_out.sort(key=lambda name: (name in tensors, name))
            say(f"{to} cannot hold {len(left_out)}: {', '.join(left_out[:20])}")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"blip {__version__}")
        raise typer.Exit


@app.callback()
def _of_every_verb(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and end", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """`blip VERB ...`: each verb calls a function that Python code can call as well."""


def sections() -> dict[str, type[BaseModel]]:
    """The configuration classes by title, in the order of the documentation; each section has the options that its
    class adds to those of its parents."""
    from blip.capfilt.config import CapFiltConfig
    from blip.config import ModelConfig, PairConfig, PretrainConfig, RunConfig, WeightedFile
    from blip.pubmed.config import PubmedConfig
    from blip.tasks import config as of_tasks
    from blip.tasks import part_options
    from blip.tasks.blip2_config import Blip2Config

    return {
        "Every training script": RunConfig,
        "Data and model": ModelConfig,
        "Weighted files": WeightedFile,
        "Every pre-training": PairConfig,
        "Pre-training": PretrainConfig,
        "Tower and Q-Former of BLIP-2": part_options.Blip2Options,
        "Language model of BLIP-2": part_options.LanguageOptions,
        "Stages of BLIP-2": Blip2Config,
        "Fine-tuning": of_tasks.FineTuneConfig,
        "Generation in evaluation": of_tasks.WritingConfig,
        "Retrieval": of_tasks.RetrievalConfig,
        "Captions": of_tasks.CaptionConfig,
        "Questions": of_tasks.VqaConfig,
        "Statements about two images": of_tasks.NlvrConfig,
        "Dialogues": of_tasks.DialogueConfig,
        "LoRA": part_options.LoraConfig,
        "CapFilt": CapFiltConfig,
        "PubMed Central": PubmedConfig,
    }


# argument of `blip options` -> title of its class, of which all options are listed
TASKS = {
    "pretrain": "Pre-training",
    "blip2": "Stages of BLIP-2",
    "retrieval": "Retrieval",
    "caption": "Captions",
    "vqa": "Questions",
    "nlvr": "Statements about two images",
    "dialogue": "Dialogues",
    "lora": "LoRA",
    "capfilt": "CapFilt",
    "pubmed": "PubMed Central",
}


@app.command()
def options(
    task: Annotated[
        str,
        typer.Argument(help=f"{', '.join(TASKS)}; all unless given"),
    ] = "",
    find: Annotated[str, typer.Option(help="only options whose name, unit or meaning has this text")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="print tables in Markdown")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Prints every option of a configuration, with type, default, unit and meaning."""
    from blip.options import tables

    with user_errors():
        classes = sections()
        if task and task not in TASKS:
            near = did_you_mean(task, TASKS)
            raise InputError(f"there are no options of {task!r}; {near}; --find searches the options of all tasks")
        listed = tables.all_of(classes[TASKS[task]], classes) if task else tables.sections_of(classes)
        tables.print_options(listed, find=find, markdown=markdown, as_json=as_json)


VERBS_OF_ROOMS: tuple[Callable[..., None], ...] = (
    inference.caption, inference.match, inference.answer, interpret.explain, interpret.activations, interpret.localise,
    interpret.score_maps, causes.ablate, features.probe,
    reports.show, reports.report,
    serve.serve,
)  # fmt: skip
for verb in VERBS_OF_ROOMS:
    app.command()(verb)
app.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})(torchrun)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
