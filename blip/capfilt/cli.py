"""`blip capfilt STEP ...`: the steps of CapFilt, each as one process or under torchrun."""

from pathlib import Path
from typing import Annotated, Any

import typer

from blip.command_line import (
    BatchSize,
    Checkpoint,
    ConfigFile,
    Device,
    ImageRoot,
    Overrides,
    TokenizerFile,
    user_errors,
    workers_option,
)

app = typer.Typer(no_args_is_help=True, help="CapFilt: write captions, filter all of them, merge what passes.")

Data = Annotated[list[str], typer.Option(help="annotation file, or folder of shards; several times")]
ShardFolder = Annotated[Path, typer.Option(help="folder of shards to write, or to continue")]
ScoredFolders = Annotated[list[Path], typer.Option(help="folder that `filter` wrote; several times")]
ShardSize = Annotated[int, typer.Option("--shard_size", min=1, help="images a shard")]
Precision = Annotated[str, typer.Option(help="fp32, or bf16 on a GPU that has it")]
NumWorkers = Annotated[int, workers_option("threads that open images")]
MaxSkipped = Annotated[
    float,
    typer.Option(
        "--max_skipped_fraction", min=0, max=1, help="a shard with a larger share of unreadable images ends the command"
    ),
]
Threshold = Annotated[float, typer.Option(help="least match probability")]
ItcThreshold = Annotated[float | None, typer.Option("--itc_threshold", help="least cosine, in addition")]
Fraction = Annotated[float | None, typer.Option(help="instead of a threshold: keep this share of all texts")]


def _start(checkpoint: str, tokenizer: str, device: str) -> Any:
    from blip import distributed
    from blip.inference.load import load

    return load(checkpoint, device=distributed.start(device, hours=24), tokenizer=tokenizer or None)


def _counter(images: int, shard_size: int) -> Any:
    from blip import distributed

    total = -(-images // shard_size)

    def show(number: int) -> None:
        if distributed.is_main():
            typer.echo(f"shard {number + 1} of {total}")

    return show


def _model_name(checkpoint: str, tokenizer: str) -> str:
    """What tells shards of one model from those of another: its weights, and its words where these are given."""
    from blip.hashing import fingerprint

    if not tokenizer:
        return fingerprint(checkpoint)
    words = fingerprint(tokenizer) if Path(tokenizer).exists() else tokenizer
    return f"{fingerprint(checkpoint)} {words}"


def _tell(out: Path, what: str) -> None:
    """The last lines of the main process, when all shards are there."""
    from blip import distributed
    from blip.data.jsonl_shards import read_lines

    distributed.barrier()
    if distributed.is_main():
        if count := sum("problem" in line for line in read_lines(out)):
            typer.echo(f"{count} images could not be read: see `problem` in {out}")
        typer.echo(f"{what}: {out}")


@app.command()
def run(
    config: ConfigFile,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="where every step leaves its files")] = Path(
        "runs/capfilt"
    ),
    rounds: Annotated[int | None, typer.Option(min=1, help="how often; overrides the file")] = None,
    set_: Overrides = None,
) -> None:
    """Bootstraps the captions of a noisy set, round by round; started again, it continues."""
    with user_errors():
        from blip.capfilt.rounds import run

        run(config, output_dir, [*(set_ or []), *([f"rounds={rounds}"] if rounds else [])])


@app.command()
def caption(
    checkpoint: Checkpoint,
    data: Data,
    out: ShardFolder,
    captions_per_image: Annotated[int, typer.Option("--captions_per_image", min=1)] = 1,
    top_p: Annotated[float, typer.Option("--top_p", help="nucleus to draw from")] = 0.9,
    beams: Annotated[int, typer.Option(help="search with as many beams instead of drawing")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens")] = 30,
    min_new_tokens: Annotated[int, typer.Option("--min_new_tokens")] = 0,
    prompt: Annotated[str | None, typer.Option(help="what captions begin with; the model's own unless given")] = None,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    round_: Annotated[int, typer.Option("--round", min=0, max=65535, help="which round of CapFilt this is")] = 1,
    image_root: ImageRoot = "",
    shard_size: ShardSize = 1024,
    batch_size: BatchSize = 32,
    precision: Precision = "fp32",
    num_workers: NumWorkers = 2,
    max_skipped_fraction: MaxSkipped = 0.05,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
) -> None:
    """Writes captions for every image."""
    from blip.capfilt import steps
    from blip.capfilt.candidates import read_candidates

    with user_errors():
        work = steps.Work(shard_size, batch_size, precision, num_workers, max_skipped_fraction)
        how = steps.decoding(captions_per_image, beams, top_p, max_new_tokens, min_new_tokens)
        candidates = read_candidates(data, image_root)
        model, own = _start(checkpoint, tokenizer, device), _model_name(checkpoint, tokenizer)
        progress = _counter(len(candidates), shard_size)
        steps.caption(model, candidates, out, own, how, seed, round_, prompt, work, progress)
        _tell(out, f"{len(candidates)} images")


@app.command("filter")
def filter_(
    checkpoint: Checkpoint,
    data: Data,
    out: ShardFolder,
    image_root: ImageRoot = "",
    shard_size: ShardSize = 1024,
    batch_size: BatchSize = 32,
    precision: Precision = "fp32",
    num_workers: NumWorkers = 2,
    max_skipped_fraction: MaxSkipped = 0.05,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
) -> None:
    """Scores every text of every image by matching and contrast."""
    from blip.capfilt import steps
    from blip.capfilt.candidates import read_candidates

    with user_errors():
        candidates = read_candidates(data, image_root)
        model, own = _start(checkpoint, tokenizer, device), _model_name(checkpoint, tokenizer)
        progress = _counter(len(candidates), shard_size)
        work = steps.Work(shard_size, batch_size, precision, num_workers, max_skipped_fraction)
        steps.score(model, candidates, out, own, work, progress)
        _tell(out, f"{candidates.texts} texts of {len(candidates)} images")


@app.command()
def merge(
    scored: ScoredFolders,
    out: Annotated[Path, typer.Option(help="what to write: .json, .jsonl, or a folder of webdataset shards")],
    keep: Annotated[
        list[str] | None, typer.Option(help="annotation file of texts that all stay; several times")
    ] = None,
    threshold: Threshold = 0.5,
    itc_threshold: ItcThreshold = None,
    fraction: Fraction = None,
    source: Annotated[list[str] | None, typer.Option(help="web or synthetic alone; both unless given")] = None,
    tar_size: Annotated[int, typer.Option("--tar_size", min=1, help="pairs in a webdataset shard")] = 1000,
    image_root: ImageRoot = "",
) -> None:
    """Writes what passes, with what people wrote, to train on."""
    from blip import distributed
    from blip.capfilt.merge import Rule
    from blip.capfilt.merge import merge as merge_

    with user_errors():
        distributed.start("cpu")
        if not distributed.is_main():  # it is the work of one process
            return
        rule = Rule(threshold, itc_threshold, fraction)
        found = merge_(scored, out, rule, keep or [], image_root, source or [], tar_size)
        for source in sorted({**found.kept, **found.dropped}):
            typer.echo(f"{source}: {found.kept[source]} kept, {found.dropped[source]} dropped")
        if found.problems:
            typer.echo(f"{found.problems} images could not be read")
        typer.echo(str(out))


@app.command()
def report(
    scored: ScoredFolders,
    out: Annotated[Path, typer.Option(help="page to write, .html")],
    threshold: Threshold = 0.5,
    itc_threshold: ItcThreshold = None,
    fraction: Fraction = None,
    examples: Annotated[int, typer.Option(help="pairs of each kind", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="of what is drawn")] = 0,
) -> None:
    """Writes a page with histograms, counts, and pairs to look at."""
    from blip import distributed
    from blip.capfilt.merge import Rule
    from blip.capfilt.report import write_report

    with user_errors():
        distributed.start("cpu")
        if not distributed.is_main():
            return
        write_report(scored, out, Rule(threshold, itc_threshold, fraction), examples, seed)
        typer.echo(str(out))
