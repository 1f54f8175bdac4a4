"""`blip torchrun`: torchrun without its own traceback where a process of the run has said what is wrong."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

QUIET = ("torch.distributed.elastic", "torch.distributed.run")  # loggers that tell of the end of each process
SAVE_SECONDS = 300


def torchrun(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="ARGUMENTS", help="as of torchrun: options, a script and the script's options"),
    ],
) -> None:
    """Starts a script in several processes, as torchrun does; a mistake is one message, without a traceback."""
    raise typer.Exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Starts what torchrun's command line describes -> the exit status: that of the first process that failed.

    What processes print stays as it is. Of a process that was killed, which prints nothing, a line tells. After a
    signal the processes have SAVE_SECONDS to save their last step, unless torchrun's own option or variable gives
    another number; torchrun gives them 30.
    BLIP_DEBUG=1 in the environment shows all that torchrun shows.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_SECONDS))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as start

    if os.environ.get("BLIP_DEBUG"):
        start(parse_args(list(arguments)))
        return 0
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        start(parse_args(list(arguments)))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(
                f"error: process {failure.local_rank} was ended from outside by {failure.signal_name()}; SIGKILL often "
                "means that memory was short",
                file=sys.stderr,
            )
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0
