"""`blip capfilt STEP ...`: the steps of CapFilt, each as one process or under torchrun."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from blip.command_line import (
    BatchSize,
    Checkpoint,
    ConfigFile,
    Device,
    ImageRoot,
    MaxImageMb,
    Overrides,
    Overwrite,
    Precision,
    TokenizerFile,
    alone,
    as_input,
    say,
    seed_option,
    user_errors,
    workers_option,
)
from blip.data.image_bytes import MAX_MB
from blip.data.places import refuse_image_name
from blip.inference.opening import Channels, Reads, Window, load_model
from blip.outputs import claim_output

app = typer.Typer(no_args_is_help=True, help="CapFilt: write captions, filter all of them, merge what passes.")

Data = Annotated[list[str], typer.Option(help="annotation file, or folder of shards; several times")]
ShardFolder = Annotated[Path, typer.Option(help="folder of shards to write, or to continue")]
ScoredFolders = Annotated[list[Path], typer.Option(help="folder that `filter` wrote; several times")]
ShardSize = Annotated[int, typer.Option("--shard_size", min=1, help="images a shard")]
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


def _claim_shards(out: Path, command: str, inputs: list[str], *, overwrite: bool) -> None:
    """Whether the shards may be written; whether their settings agree is decided when these are known."""
    from blip import distributed
    from blip.data.jsonl_shards import is_of_a_step

    if distributed.is_main():
        known = is_of_a_step(out)
        claim_output(out, command, inputs=filter(None, inputs), folder=True, overwrite=overwrite, known=known)
    distributed.barrier()


def _progress(images: int, shard_size: int) -> Callable[[int], None]:
    """Prints a line for each finished shard, in the main process."""
    from blip import distributed

    total = -(-images // shard_size)

    def show(number: int) -> None:
        if distributed.is_main():
            say(f"shard {number + 1} of {total}")

    return show


def _model_fingerprint(checkpoint: str, tokenizer: str) -> str:
    """What distinguishes the shards of one model from those of another: its weights, and its tokenizer if given."""
    from blip.checkpoints.places import local
    from blip.hashing import fingerprint

    checkpoint = str(local(checkpoint))
    if not tokenizer:
        return fingerprint(checkpoint)
    words = fingerprint(tokenizer) if Path(tokenizer).exists() else tokenizer
    return f"{fingerprint(checkpoint)} {words}"


def _show_end(out: Path, counts: str) -> None:
    """The last lines of the main process, when all shards are there."""
    from blip import distributed
    from blip.data.jsonl_shards import read_lines

    distributed.barrier()
    if distributed.is_main():
        if unreadable := sum("problem" in line for line in read_lines(out)):
            say(f"{unreadable} images could not be read: see `problem` in {out}")
        say(f"{counts}: {out}")


@app.command()
def run(
    config: ConfigFile,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="folder for the files of every step")] = Path(
        "runs/capfilt"
    ),
    rounds: Annotated[int | None, typer.Option(min=1, help="rounds of CapFilt; overrides the file")] = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Bootstraps the captions of a noisy set, round by round; the same command continues after an interruption."""
    with user_errors():
        from blip.capfilt.rounds import run

        overrides = [*(set_ or []), *([f"rounds={rounds}"] if rounds else [])]
        run(config, output_dir, overrides, overwrite=overwrite)


@app.command()
def caption(
    checkpoint: Checkpoint,
    data: Data,
    out: ShardFolder,
    captions_per_image: Annotated[
        int, typer.Option("--captions_per_image", min=1, help="texts written for each image")
    ] = 1,
    top_p: Annotated[
        float, typer.Option("--top_p", help="nucleus sampling: probability of the tokens to draw from")
    ] = 0.9,
    beams: Annotated[int, typer.Option(help="beam search with this many beams instead of sampling")] = 0,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", help="tokens at most, the prompt not counted")
    ] = 30,
    min_new_tokens: Annotated[int, typer.Option("--min_new_tokens", help="tokens before the text may end")] = 0,
    prompt: Annotated[str | None, typer.Option(help="beginning of every caption; the model's own unless given")] = None,
    seed: Annotated[int, seed_option("of sampling")] = 0,
    round_: Annotated[int, typer.Option("--round", min=0, max=65535, help="which round of CapFilt this is")] = 1,
    image_root: ImageRoot = "",
    shard_size: ShardSize = 1024,
    batch_size: BatchSize = 32,
    precision: Precision = "fp32",
    num_workers: NumWorkers = 2,
    max_skipped_fraction: MaxSkipped = 0.05,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Writes captions for every image."""
    from blip import distributed
    from blip.capfilt import steps
    from blip.capfilt.candidates import read_candidates
    from blip.inference.load_blip2 import only_blip

    with user_errors():
        reads = Reads(max_image_mb, precision, window, channels)
        shards = steps.ShardOptions(shard_size, batch_size, precision, num_workers, max_skipped_fraction)
        decoding = steps.caption_decoding(
            captions_per_image, beams, top_p, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens
        )
        distributed.start(device)
        _claim_shards(out, "capfilt caption", [*data, checkpoint, tokenizer], overwrite=overwrite)
        candidates = read_candidates(data, image_root)
        steps.caption(
            only_blip(load_model(checkpoint, tokenizer, device, reads), "blip capfilt"),
            candidates,
            out,
            model_fingerprint=_model_fingerprint(checkpoint, tokenizer),
            options=steps.CaptionOptions(decoding, seed, round_, prompt),
            shards=shards,
            progress=_progress(len(candidates), shard_size),
            overwrite=overwrite,
        )
        _show_end(out, f"{len(candidates)} images")


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
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Scores every text of every image by matching and contrast."""
    from blip import distributed
    from blip.capfilt import steps
    from blip.capfilt.candidates import read_candidates
    from blip.inference.load_blip2 import only_blip

    with user_errors():
        reads = Reads(max_image_mb, precision, window, channels)
        shards = steps.ShardOptions(shard_size, batch_size, precision, num_workers, max_skipped_fraction)
        distributed.start(device)
        _claim_shards(out, "capfilt filter", [*data, checkpoint, tokenizer], overwrite=overwrite)
        candidates = read_candidates(data, image_root)
        steps.score(
            only_blip(load_model(checkpoint, tokenizer, device, reads), "blip capfilt"),
            candidates,
            out,
            model_fingerprint=_model_fingerprint(checkpoint, tokenizer),
            shards=shards,
            progress=_progress(len(candidates), shard_size),
            overwrite=overwrite,
        )
        _show_end(out, f"{candidates.texts} texts of {len(candidates)} images")


@app.command()
def merge(
    scored: ScoredFolders,
    out: Annotated[Path, typer.Option(help="what to write: .json, .jsonl, or a folder of webdataset shards")],
    keep: Annotated[
        list[str] | None, typer.Option(help="annotation file whose texts are all kept; several times")
    ] = None,
    threshold: Threshold = 0.5,
    itc_threshold: ItcThreshold = None,
    fraction: Fraction = None,
    source: Annotated[list[str] | None, typer.Option(help="only web or synthetic texts; both unless given")] = None,
    tar_size: Annotated[int, typer.Option("--tar_size", min=1, help="pairs in a webdataset shard")] = 1000,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    image_root: ImageRoot = "",
    overwrite: Overwrite = False,
) -> None:
    """Writes the texts that pass, and those written by people, as training data."""
    from blip import distributed
    from blip.capfilt.merge import Rule, merge_to

    with user_errors():
        distributed.start("cpu")
        distributed.barrier()  # a process that ended before the others have connected would fail them
        if not distributed.is_main():  # one process merges
            return
        rule, limits = Rule(threshold, itc_threshold, fraction), Reads(max_image_mb, "auto", window, channels).limits
        merged = merge_to(
            scored,
            out,
            rule,
            overwrite=overwrite,
            keep=keep or [],
            image_root=image_root,
            sources=source or [],
            tar_size=tar_size,
            limits=limits,
        )
        for source in sorted({**merged.kept, **merged.dropped}):
            say(f"{source}: {merged.kept[source]} kept, {merged.dropped[source]} dropped")
        if merged.problems:
            say(f"{merged.problems} images could not be read")
        say(str(out))


@app.command()
def report(
    scored: ScoredFolders,
    out: Annotated[Path, typer.Option(help="page to write, .html")],
    threshold: Threshold = 0.5,
    itc_threshold: ItcThreshold = None,
    fraction: Fraction = None,
    examples: Annotated[int, typer.Option(help="pairs of each kind", min=1)] = 50,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    seed: Annotated[int, seed_option("of the random pairs")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Writes a page with histograms, counts and example pairs."""
    from blip import distributed
    from blip.capfilt.merge import Rule
    from blip.capfilt.report import write_report

    with user_errors():
        distributed.start("cpu")
        distributed.barrier()  # a process that ended before the others have connected would fail them
        if not distributed.is_main():
            return
        refuse_image_name(out, ".html")
        reads = Reads(max_image_mb, "auto", window, channels)
        limits, rule = reads.limits, Rule(threshold, itc_threshold, fraction)
        chosen_by = [as_input(examples=examples, seed=seed, **asdict(rule)), *filter(None, [reads.chosen])]
        claim = claim_output(out, "capfilt report", inputs=[*scored, *chosen_by], overwrite=overwrite)
        with alone(claim), claim.writing():
            write_report(scored, out, rule, examples=examples, seed=seed, limits=limits)
        say(str(out))
