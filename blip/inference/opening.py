"""What the options of verbs name: the model, and how its images are read and scans shown."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from blip.data.image_bytes import ImageLimits

Window = Annotated[
    str | None,
    typer.Option(
        help="of CT and NIfTI scans: lung, soft, brain, bone, abdomen, liver, mediastinum, or LEVEL/WIDTH; "
        "'' is the file's own; that of the model's training unless given"
    ),
]
Channels = Annotated[
    str | None, typer.Option(help="of CT and NIfTI scans: three windows as red, green and blue, such as lung,soft,bone")
]


def load_model(
    checkpoint: str,
    tokenizer: str,
    device: str,
    *,
    max_image_mb: int,
    precision: str = "auto",
    window: str | None = None,
    channels: str | None = None,
) -> Any:
    """The model that the options of a verb name."""
    from blip import distributed
    from blip.inference.load import load

    shown = view_of(window, channels)
    model = load(checkpoint, device=distributed.start(device), precision=precision, tokenizer=tokenizer or None)
    model.limits = replace(model.limits, max_bytes=ImageLimits.of_mb(max_image_mb).max_bytes, **shown)
    return model


def view_of(window: str | None, channels: str | None) -> dict[str, Any]:
    """The fields of `ImageLimits` that `--window` and `--channels` give; none where neither is given.

    Raises:
        InputError: they name no windows, or both are given.
    """
    if window is None and channels is None:
        return {}
    names = tuple(name.strip() for name in channels.split(",")) if channels else ()
    shown = ImageLimits(window=window or "", channels=names)
    return {"window": shown.window, "channels": shown.channels}
