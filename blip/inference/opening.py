"""What the options of verbs name: the model, and how its images are read and scans shown."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from blip.command_line import as_input
from blip.data.image_bytes import MAX_MB, ImageLimits

Window = Annotated[
    str | None,
    typer.Option(
        "--window",
        help="of CT and NIfTI scans: lung, soft, brain, bone, abdomen, liver, mediastinum, or LEVEL/WIDTH; "
        "'' is the file's own; that of the model's training unless given",
    ),
]
Channels = Annotated[
    str | None,
    typer.Option("--channels", help="of CT and NIfTI scans: three windows as red, green, blue, such as lung,soft,bone"),
]


@dataclass(frozen=True)
class Reads:
    """Options of a verb that say how a model computes and how its images are read.

    Raises:
        InputError: `window` or `channels` name no windows, or both are given.
    """

    max_image_mb: int = MAX_MB
    precision: str = "auto"
    window: str | None = None  # None: that of the model's training; "": the file's own
    channels: str | None = None  # three windows, divided by commas

    def __post_init__(self) -> None:
        view_of(self.window, self.channels)

    @property
    def chosen(self) -> str:
        """What was chosen, as one of the inputs of `claim_output`: results of other options are others."""
        given = {"precision": None if self.precision == "auto" else self.precision}
        given |= {"window": self.window, "channels": self.channels}
        chosen = {name: value for name, value in given.items() if value is not None}
        return as_input(**chosen) if chosen else ""

    @property
    def view(self) -> str:
        """The window or the channels that were chosen; "" for those of the model's training."""
        given = {"window": self.window, "channels": self.channels}
        return " ".join(f"{name}={value}" for name, value in given.items() if value is not None)

    @property
    def limits(self) -> ImageLimits:
        """How images are read where no model says so."""
        return ImageLimits.of_mb(self.max_image_mb, **view_of(self.window, self.channels))


def load_model(checkpoint: str, tokenizer: str, device: str, reads: Reads) -> Any:
    """The model that the options of a verb name."""
    from blip import distributed
    from blip.inference.load import load

    limits = {"max_bytes": reads.limits.max_bytes, **view_of(reads.window, reads.channels)}
    model = load(checkpoint, device=distributed.start(device), precision=reads.precision, tokenizer=tokenizer or None)
    model.limits = replace(model.limits, **limits)
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
