"""What every command shares: the types of options that several commands have, and how errors reach the user."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from blip import distributed
from blip.errors import BlipError, printable
from blip.files import NO_ROOM

REPORT = (
    "\nThis is a defect of blip, not a mistake in what it was given. Please report it, with the command and the "
    "traceback above, in the issue tracker of the repository that blip was installed from."
)

# ---- options of several commands -------------------------------------------------------------------------------------

Checkpoint = Annotated[str, typer.Option(help="our folder, a released .pth, or a Hugging Face folder")]
TokenizerFile = Annotated[str, typer.Option(help="vocab.txt or tokenizer.json, where the checkpoint has none")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
BatchSize = Annotated[int, typer.Option("--batch_size", min=1, help="images at once")]
ImageRoot = Annotated[
    str, typer.Option("--image_root", help="folder that image paths of annotation files are relative to")
]
MaxImageMb = Annotated[
    int, typer.Option("--max_image_mb", min=1, help="MiB of an image's file; larger ones count as unreadable")
]
JsonFile = Annotated[Path | None, typer.Option(help="write JSON to this file")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
ConfigFile = Annotated[Path, typer.Option(help="a YAML file, or a name of one in configs/, such as pretrain_demo")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace outputs that this command did not write")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, overrides the file")]


def workers_option(help: str, *, min: int = 1) -> Any:
    """The option `--num_workers`, also called `--workers`, for the annotation of an integer parameter `num_workers`."""
    return typer.Option("--num_workers", "--workers", min=min, help=help)


def say(text: object, err: bool = False) -> None:
    """Prints a line; control characters, which names of files may hold, become escapes that a terminal shows."""
    typer.echo(printable(text), err=err)


# ---- errors ----------------------------------------------------------------------------------------------------------


class user_errors:
    """Within this block, errors that a user can mend end the program with one message and status 1.

    These are `BlipError`, and errors of the operating system that name a file (no such file, permission denied, disk
    full). Any other exception is a defect: its traceback is shown, and where to report it; the status is 1 too.
    BLIP_DEBUG=1 in the environment shows every traceback.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        distributed.stop()
        if not isinstance(error, Exception) or os.environ.get("BLIP_DEBUG"):
            return
        if message := user_message(error):
            print(printable(f"error: {message}"), file=sys.stderr)
        elif type(error).__module__.partition(".")[0] in ("typer", "click"):  # the command line's own errors
            return
        else:
            traceback.print_exception(error)
            print(REPORT, file=sys.stderr)
        raise SystemExit(1) from None


def user_message(error: Exception) -> str | None:
    """The message of an error that a user can mend, or None for a defect."""
    if isinstance(error, BlipError):
        # a loader's worker sends its traceback as part of the message
        return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        if error.errno in NO_ROOM:  # libraries that write by themselves do not pass the name on
            return f"an output could not be written: {error.strerror}"
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which is not imported for its name alone
        return f"the GPU's memory is too small: lower the batch size; {error}"
    return None
