"""A training state of which several processes write parts, each its own rows, and one process reads whole tensors.

training-00003-of-00008.safetensors    rows of process 3 of 8: those of all, in this order, are the tensors

Names are paths in the training state, such as `optimizer/state/12/exp_avg`. safetensors are read without running code,
which the pickled index of `torch.distributed.checkpoint` would not be.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.checkpoints.format import CheckpointError, check_numbers, disk_errors, load_tensors, save_tensors
from blip.train.sharding import is_divided, local
from blip.train.state import TRAINING, read_training

PART = re.compile(r"training-(\d{5})-of-(\d{5})\.safetensors")


def split(state: dict, place: str = "") -> tuple[dict, dict[str, Tensor]]:
    """(the state without tensors that are divided among processes, what this process has of them by its path)."""
    rest: dict = {}
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            rest[key], more = split(value, f"{place}{key}/")
            own |= more
        elif isinstance(value, Tensor) and is_divided(value):
            own[f"{place}{key}"] = local(value)
        else:
            rest[key] = value
    return rest, own


def write_parts(folder: Path, own: dict[str, Tensor]) -> Path:
    """Writes the parts of all processes into a folder that they share; each process gives its own -> the folder.

    Raises:
        CheckpointError: a part could not be written; on the other processes OtherProcessError.
    """

    def make() -> None:
        with disk_errors("parts of a checkpoint", folder):
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            folder.mkdir(parents=True)

    distributed.from_main(make)
    name, error = f"training-{distributed.rank():05d}-of-{distributed.world_size():05d}.safetensors", None
    try:
        with disk_errors("a part of a checkpoint", folder / name):
            save_tensors({path: tensor.detach().contiguous() for path, tensor in own.items()}, folder / name)
    except Exception as caught:
        error = caught
    distributed.agree(error)
    return folder


def take_parts(source: Path, folder: Path) -> None:
    """Moves the parts of all processes from the folder that they were written to.

    Raises:
        CheckpointError: some are not there.
    """
    count = distributed.world_size()
    names = [f"training-{rank:05d}-of-{count:05d}.safetensors" for rank in range(count)]
    if missing := [name for name in names if not (source / name).is_file()]:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of {count} parts, such as {missing[0]}: with parallel: fsdp every machine "
            "has to write to one and the same --output_dir"
        )
    for name in names:
        (source / name).rename(folder / name)
    source.rmdir()


def load_training(folder: Path) -> dict:
    """The training state beside a checkpoint's weights, with whole tensors. The main process reads it for all.

    Raises:
        CheckpointError: as in `read_training` and `add_parts`; on the other processes OtherProcessError.
    """

    def read() -> dict:
        state = read_training(folder / TRAINING)
        add_parts(state, folder)
        return state

    return distributed.tensors_from_main(read)


def add_parts(state: dict, folder: Path) -> None:
    """Puts the whole tensors of a folder's parts, if it has any, into the state that was read beside them.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    found = sorted(path for path in folder.iterdir() if PART.fullmatch(path.name))
    if not found:
        return
    counts = {int(PART.fullmatch(path.name)[2]) for path in found}  # type: ignore[index]
    if counts != {len(found)}:
        raise CheckpointError(f"{folder} has {len(found)} parts of {max(counts)}: continue from another checkpoint")
    parts = [load_tensors(path) for path in found]
    for path, part in zip(found, parts, strict=True):
        check_numbers(part, path)
        if part.keys() != parts[0].keys():
            raise CheckpointError(f"{path} is of another checkpoint than the other parts")
    for name in list(parts[0]):
        *keys, last = [int(key) if key.isdecimal() else key for key in name.split("/")]
        entry: Any = state
        for key in keys:
            entry = entry.setdefault(key, {})
        entry[last] = torch.cat([part.pop(name) for part in parts])
