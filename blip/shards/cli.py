"""`blip data VERB ...`: data sets in a form that trains faster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip.command_line import (
    ColumnNames,
    DatasetForm,
    FirstRecords,
    ImageRoot,
    MaxImageMb,
    Overwrite,
    alone,
    as_input,
    say,
    seed_option,
    user_errors,
    workers_option,
)
from blip.data.columns import parse_columns
from blip.data.image_bytes import LIMITS, MAX_MB, ImageLimits
from blip.data.sources import source_of
from blip.data.tar_sizes import SIZES
from blip.inference.opening import Channels, Window, view_of
from blip.outputs import claim_output

if TYPE_CHECKING:
    from blip.shards.write import Written

app = typer.Typer(no_args_is_help=True, help="Data sets in a form that trains faster.")
COMMAND = "data shard"
SHOWN = 5  # unreadable images that the terminal names


@app.callback()
def verbs() -> None:
    """Data sets in a form that trains faster."""


@app.command()
def shard(
    sources: Annotated[
        list[str], typer.Argument(help="annotation files, folders of sets as distributed, or hub:OWNER/NAME")
    ],
    out: Annotated[Path, typer.Option("--out", "--output", help="folder to write")],
    image_size: Annotated[int, typer.Option("--image_size", min=1, help="pixels of the shorter side at most")] = 512,
    form: Annotated[
        str, typer.Option("--format", help="jpeg, png, or auto: JPEG for images that are JPEG, PNG for all others")
    ] = "auto",
    quality: Annotated[int, typer.Option(min=1, max=100, help="of images that are stored as JPEG")] = 92,
    shard_size: Annotated[int, typer.Option("--shard_size", min=1, help="images in a shard")] = 1000,
    seed: Annotated[int, seed_option("of the order of the images in the shards")] = 0,
    image_root: ImageRoot = "",
    dataset: DatasetForm = "json",
    split: Annotated[str, typer.Option(help="train, validation or test of a folder; everything unless given")] = "",
    columns: ColumnNames = None,
    limit: FirstRecords = 0,
    num_workers: Annotated[int, workers_option("processes that resize; 0: this one", min=0)] = 2,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    frames: Annotated[int, typer.Option(min=1, help="of a video whose reference does not say")] = LIMITS.frames,
    slices: Annotated[int, typer.Option(min=1, help="of a volume whose reference does not say")] = LIMITS.slices,
    overwrite: Overwrite = False,
) -> None:
    """Resizes the images of a set once and writes them into shards, which every training script reads."""
    from blip.data.sets.layout import SHARD_ANNOTATIONS
    from blip.shards.resize import ImageForm
    from blip.shards.write import SKIPPED, refuse_images_in, write_shards

    with user_errors():
        usual: dict[str, Any] = {"image_root": image_root, "dataset": dataset, "split": split or "all"}
        usual |= {"columns": parse_columns(columns or []), "limit": limit or None}
        shown = view_of(window, channels)
        read = {"frames": frames, "slices": slices}
        stored_as = ImageForm(image_size, form, quality, ImageLimits.of_mb(max_image_mb, **shown, **read))
        chosen = as_input(
            image_size=image_size,
            format=form,
            quality=quality,
            shard_size=shard_size,
            seed=seed,
            **usual,
            **shown,
            **{name: count for name, count in read.items() if count != getattr(LIMITS, name)},
        )
        names = ["shard-?????.tar", SIZES, SHARD_ANNOTATIONS, SKIPPED]
        inputs = [*sources, *filter(None, [image_root]), chosen]
        claim = claim_output(out, COMMAND, inputs=inputs, folder=True, overwrite=overwrite, names=names)
        places = [source_of(source, **usual) for source in sources]
        refuse_images_in(out, places)
        with alone(claim), claim.writing() as written:
            options = {"shard_size": shard_size, "seed": seed, "num_workers": num_workers}
            done = write_shards(places, out, stored_as, **options)
            written += done.files
        _say(done, out)


def _say(done: "Written", out: Path) -> None:
    """What was written, and what could not be read."""
    from blip.shards.write import SKIPPED

    size = f"{done.bytes / 1e6:,.1f} MB, {done.bytes / done.images / 1e3:,.1f} kB an image"
    of = f" of {done.items:,} items" if done.items < done.images else ""
    say(f"{done.images:,} images{of} in {len(done.shards)} shards ({size}), {done.records:,} records: {out}")
    for _, path, reason in done.skipped[:SHOWN]:
        say(f"skipped {path}: {reason}", err=True)
    if done.skipped:
        say(f"{len(done.skipped)} images could not be read, and {done.left_out} records with them: {out / SKIPPED}",
            err=True)  # fmt: skip
