"""What every command shares: the types of options that several commands have, and how errors reach the user."""

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from blip import distributed
from blip.errors import BlipError, printable, visible
from blip.files import NO_ROOM
from blip.outputs import Output, locked, locked_file

REPORT = (
    "\nThis is a defect of blip, not a mistake in what it was given. Please report it, with the command and the "
    "traceback above, in the issue tracker of the repository that blip was installed from."
)
TOLD = "_blip_told"  # an attribute of errors whose message has been printed

# ---- options of several commands -------------------------------------------------------------------------------------

Checkpoint = Annotated[
    str, typer.Option(help="our folder or a run's, a released .pth, a Hugging Face folder, hub:OWNER/NAME, https://...")
]
TokenizerFile = Annotated[
    str, typer.Option(help="vocab.txt, tokenizer.json or hub:NAME, where the checkpoint has none")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Precision = Annotated[
    str, typer.Option(help="of the model: fp32, tf32, bf16, or auto: bf16 on a GPU that has it, else fp32")
]
BatchSize = Annotated[int, typer.Option("--batch_size", min=1, help="images at once")]
ImageRoot = Annotated[
    str, typer.Option("--image_root", help="folder that image paths of annotation files are relative to")
]
MaxImageMb = Annotated[
    int, typer.Option("--max_image_mb", min=1, help="MiB of an image's file; larger ones count as unreadable")
]
DatasetForm = Annotated[
    str, typer.Option("--dataset", help="json, or how a set is distributed: vqa_rad, slake, roco ...")
]
Split = Annotated[str, typer.Option(help="train, validation or test of a folder or a data set of the hub")]
ColumnNames = Annotated[
    list[str] | None, typer.Option("--columns", help="own names of columns, such as question=Frage,image=img")
]
FirstRecords = Annotated[int, typer.Option("--limit", min=0, help="the first records alone; 0: all")]
JsonFile = Annotated[Path | None, typer.Option(help="write JSON to this file")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
CONFIG_HELP = "a YAML file, or a name of one in configs/, such as pretrain_demo"
ConfigFile = Annotated[Path, typer.Option(help=CONFIG_HELP)]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="replace what is there, also where this command did not write it")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, overrides the file")]


# of a `typer.Typer`: `--min-side` is `--min_side`, whichever of them a command names
ANY_SPELLING = {"token_normalize_func": lambda option: option.replace("-", "_")}


def workers_option(help: str, *, min: int = 1) -> Any:
    """The option `--num_workers`, also called `--workers`, for the annotation of an integer parameter `num_workers`."""
    return typer.Option("--num_workers", "--workers", min=min, help=help)


def seed_option(help: str) -> Any:
    """The option `--seed`, a number that every library takes, for the annotation of an integer parameter."""
    return typer.Option(min=0, max=(1 << 63) - 1, help=help)


def as_input(**options: Any) -> str:
    """Options that change a result, as one of the inputs of `claim_output`: with another value it is another result."""
    return json.dumps(options, sort_keys=True, default=str)


def run_command(command: Callable[..., None]) -> None:
    """`typer.run` for a script of one command, whose options may be spelled with hyphens or underscores.

    Words that belong to no option are in the `args` of the context, so that the command can tell where they come from.
    """
    app = typer.Typer(add_completion=False, context_settings=ANY_SPELLING)
    app.command(context_settings={"allow_extra_args": True})(command)
    app()


def say(text: object, err: bool = False) -> None:
    """Prints a line; control characters and ends of lines, which names of files may hold, become visible escapes."""
    typer.echo(visible(str(text)), err=err)


def alone(claim: Output | None) -> AbstractContextManager[None]:
    """Within this block no other process writes a claimed output. It holds the work too: a second process ends before
    its own."""
    if claim is None:
        return nullcontext()
    return locked(claim.path) if claim.folder else locked_file(claim.path)


# ---- errors ----------------------------------------------------------------------------------------------------------


class user_errors:
    """Within this block, errors that a user can mend end the program with one message and status 1.

    These are `BlipError`, and errors of the operating system that name a file (no such file, permission denied, disk
    full). Any other exception is a defect: its traceback is shown, and where to report it; the status is 1 too.
    BLIP_DEBUG=1 in the environment shows every traceback.
    """

    def __enter__(self) -> None:
        open_missing_streams()

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        status = _status(error)
        if error is None or not status:
            distributed.stop()
            return
        several = distributed.world_size() > 1 or _of_several()
        of_typer = type(error).__module__.partition(".")[0] in ("typer", "click")  # the command line's own errors
        if of_typer and not user_message(error):
            return
        if not isinstance(error, Exception) or os.environ.get("BLIP_DEBUG"):
            if not several:
                distributed.stop()
                return
            with suppress(OSError, ValueError):
                if not isinstance(error, SystemExit):
                    traceback.print_exception(error)
                elif isinstance(error.code, str):
                    print(error.code, file=sys.stderr)
        else:
            _let_others_speak(error)
            tell(error)
        if several:  # to leave the group could wait for the others, who wait for this process
            distributed.leave(status)
        raise SystemExit(1) from None


def _status(error: BaseException | None) -> int:
    """The exit status of a program that ends with an error, or with none."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1 if error else 0)
    return code if isinstance(code, int) else int(code is not None)


def tell(error: BaseException) -> None:
    """Prints the message of an error once, to standard error: of a defect its traceback, and where to report it."""
    if getattr(error, TOLD, False):
        return
    setattr(error, TOLD, True)
    message = user_message(error)
    with suppress(OSError, ValueError):  # nobody reads standard error any more
        if message:
            print(printable(f"error: {message}"), file=sys.stderr, flush=True)
        else:
            traceback.print_exception(error)
            print(REPORT, file=sys.stderr, flush=True)


def tell_first(error: BaseException) -> None:
    """`tell`, where several processes try to save what they have before they end, which may fail or take long.

    Of equal messages one is printed; that of a process which ends because of another one comes at the end.
    """
    if distributed.world_size() == 1 or not isinstance(error, Exception) or os.environ.get("BLIP_DEBUG"):
        return
    if not _of_another(error) and distributed.is_first(user_message(error) or repr(error)):
        tell(error)


OWN_SECONDS, OTHERS_SECONDS = 3.0, 5.0  # that a process waits before it prints an error of its own, or of another


def _let_others_speak(error: BaseException) -> None:
    """Of several processes with one mistake only the first prints it: the others wait, and their launcher ends them.

    A process that ends because of another one waits longer, so that the one with the reason comes first.
    """
    if not _of_several():
        return
    if _of_another(error):
        time.sleep(OTHERS_SECONDS)
    elif os.environ["RANK"] != "0" and user_message(error):  # a defect is shown by each
        time.sleep(OWN_SECONDS)


def _of_another(error: BaseException) -> bool:
    """Whether this process ends because another one did."""
    return isinstance(error, distributed.OtherProcessError) or distributed.lost_peer(error)


def _of_several() -> bool:
    """Whether a launcher started this process as one of several."""
    number, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return number.isdigit() and count.isdigit() and int(count) > 1


def user_message(error: BaseException) -> str | None:
    """The message of an error that a user can mend, or None for a defect."""
    if isinstance(error, BlipError):
        text = str(error)
        if re.match(r"Caught \w+ in DataLoader worker", text):  # with the traceback of the worker
            text = text.rpartition(f"{type(error).__name__}: ")[2]
        return text.strip()
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        if error.errno in NO_ROOM:  # libraries that write by themselves do not pass the name on
            return f"an output could not be written: {error.strerror}"
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which is not imported for its name alone
        return (
            "the GPU's memory is too small: lower the batch size; in training raise accumulation for it, or set "
            f"activation_checkpointing: torch; {error}"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return f"there is not enough memory: lower the batch size, or what else is held at once, such as beams; {error}"
    if distributed.lost_peer(error):
        return str(distributed.OtherProcessError())
    return None


# ---- standard output and error ---------------------------------------------------------------------------------------


def open_missing_streams() -> None:
    """Puts the null device in the place of a standard stream that was closed before the program began.

    Otherwise Python has no such stream to print to, and the next file that is opened takes its number: what a library
    prints would go into that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open until the end)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within this block, what is printed when nobody reads it any more is lost, and no error.

    For long work that is worth more than its messages, such as training behind a pipe or in a terminal that is closed.
    """
    open_missing_streams()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Lasting(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Lasting:
    """A text stream that goes on as the null device when it cannot be written."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except BlockingIOError:  # the reader is slow
            return len(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open until the end)
        with suppress(OSError, ValueError):  # what is still in the buffer goes there too, when Python ends
            os.dup2(null.fileno(), self._stream.fileno())
        self._stream = null
