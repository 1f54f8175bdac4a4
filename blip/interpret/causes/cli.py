"""`blip ablate`: ablation of heads, layers and feed-forward networks over a data set."""

from pathlib import Path
from typing import Annotated

import typer

from blip.command_line import (
    Checkpoint,
    ColumnNames,
    DatasetForm,
    Device,
    FirstRecords,
    ImageRoot,
    MaxImageMb,
    Overwrite,
    Precision,
    Split,
    TokenizerFile,
    say,
    seed_option,
    user_errors,
)
from blip.data.image_bytes import MAX_MB
from blip.inference.cli import reading
from blip.inference.opening import Channels, Reads, Window, load_model
from blip.interpret.cli import claim_shards, made_with


def ablate(
    data: Annotated[str, typer.Argument(help="an annotation file, a folder of a set, or hub:OWNER/NAME")],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="folder to write, or to continue")],
    by: Annotated[str, typer.Option(help="head, layer or mlp")] = "head",
    metric: Annotated[
        str, typer.Option(help="match, cosine, caption, or vqa: the log-probability of the answer")
    ] = "match",
    method: Annotated[str, typer.Option(help="what takes the place of a component: zero, mean or resample")] = "zero",
    seed: Annotated[int, seed_option("of the records that resampling draws")] = 0,
    shard_size: Annotated[int, typer.Option("--shard_size", help="records a shard")] = 64,
    dataset: DatasetForm = "json",
    split: Split = "",
    columns: ColumnNames = None,
    image_root: ImageRoot = "",
    limit: FirstRecords = 0,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="components at once")] = 256,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Ablates each head, layer or feed-forward network over a data set, and ranks them by what a metric loses."""
    from blip.inference.load_blip2 import without_language_model
    from blip.interpret.causes import ablation_files as files
    from blip.interpret.explain_files import find_pairs

    with user_errors():
        reads = Reads(max_image_mb, precision, window, channels)
        wanted = list(find_pairs(data, [], **reading(dataset, split, columns, image_root=image_root, limit=limit)))
        given = [data, checkpoint, *filter(None, [tokenizer])]
        claim_shards(out, "ablate", wanted, inputs=given, known=files.is_ablation(out), overwrite=overwrite)
        model = without_language_model(load_model(checkpoint, tokenizer, device, reads), "blip ablate")
        made = made_with(model, reads, checkpoint=checkpoint, tokenizer=tokenizer)
        settings = {"by": by, "method": method, "seed": seed, **made}
        ablation, problems = files.ablate_files(
            model, wanted, out, settings=settings, metric=files.usual_metric(metric), shard_size=shard_size,
            batch_size=batch_size, overwrite=overwrite,
        )  # fmt: skip
        files.save(ablation, out, {**settings, "metric": metric})
        files.show(ablation)
        for problem in problems:
            say(problem, err=True)
        say(f"{len(ablation.components)} components, {len(ablation.clean)} pairs: {out / files.NAMES[0]}")
    raise typer.Exit(1 if problems else 0)
