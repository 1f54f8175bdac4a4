"""A run within a process that goes on, such as a notebook's: its state, interruptions, and new folders."""

import gc
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from blip import distributed
from blip.config import ModelConfig
from blip.console.bars import LastingConsole
from blip.errors import InputError, printable
from blip.files import write_error
from blip.tasks.entries import Entry
from blip.train.checkpoint import begun_checkpoints, newest_checkpoint
from blip.train.history import METRICS
from blip.train.signals import in_a_session

FOLDER = Path("runs")  # in the working directory


@contextmanager
def as_before() -> Iterator[None]:
    """After this block the random numbers of Python, NumPy and torch go on as before it, and the same GPU is in use.

    Memory that the block has left is freed.
    """
    numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.is_initialized()
    of_gpus = torch.cuda.get_rng_state_all() if on_gpu else []
    gpu = torch.cuda.current_device() if on_gpu else None
    try:
        yield
    finally:
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        torch.set_rng_state(numbers[2])
        if gpu is not None:
            torch.cuda.set_rng_state_all(of_gpus)
            torch.cuda.set_device(gpu)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def train_in(folder: Path, entry: Entry, config: ModelConfig, *, resume: str, **flags: bool) -> None:
    """Trains in a folder: a new run, or one that is continued.

    Interrupted in an interactive session, it returns with the finished step saved; without a checkpoint, and in a
    script, which would go on as if the model were trained, KeyboardInterrupt follows.

    Args:
        resume, flags: as in `blip.train.launch.Run`.

    Raises:
        InputError: the process is one of several, which the scripts are for.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise InputError("runs from Python take one process: start several with torchrun and a training script")
    with as_before():
        try:
            given = {name: True for name, on in flags.items() if on}
            finished = entry.run(config, folder, resume, device=distributed.start(config.device), **given)
        except KeyboardInterrupt:  # between the steps, or in a second interruption
            if not (in_a_session() and begun_checkpoints(folder)):
                raise
            finished = False
    if finished:
        return
    newest = newest_checkpoint(folder)
    about = f"{folder} is interrupted and saved ({newest.name if newest else 'nothing'}): run.resume() continues it"
    if not in_a_session():
        raise KeyboardInterrupt(about)
    say(about)


@contextmanager
def removed_if_empty(folder: Path | None) -> Iterator[None]:
    """Removes a folder that was made for a run, where the run ends before it has logged or saved anything."""
    try:
        yield
    except BaseException:
        if folder is not None and not (folder / METRICS).exists() and not begun_checkpoints(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def new_folder(task: str) -> Path:
    """Makes runs/TASK-N, with a number above those that are there.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        FOLDER.mkdir(exist_ok=True)
        taken = [re.fullmatch(rf"{re.escape(task)}-(\d+)", path.name) for path in FOLDER.iterdir()]
        number = 1 + max((int(name[1]) for name in taken if name), default=0)
        while True:
            folder = FOLDER / f"{task}-{number}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:  # another process was faster
                number += 1
    except OSError as error:
        raise write_error(FOLDER / f"{task}-1", error) from error


def say(text: str) -> None:
    """Prints a line to standard error, or below a notebook's cell."""
    LastingConsole(stderr=True).print(printable(text), markup=False, highlight=False, soft_wrap=True)
