"""The process group: this process joins it, leaves it, and knows its place in it."""

import os
from datetime import timedelta
from typing import NoReturn, cast

import torch
import torch.distributed as dist

from blip.distributed.watch import Watch
from blip.distributed.watch import leave as end_process
from blip.errors import InputError
from blip.hardware.allocator import avoid_gaps

STEP = timedelta(minutes=30)  # that a process waits for the others within a step
LONG = timedelta(hours=24)  # that it waits for what one process does for all, such as reading data or merging files

# of the default group, which torch keeps in the same way
_long_waits: dist.ProcessGroup | None = None
_watch: Watch | None = None


def start(device: str = "auto") -> torch.device:
    """Joins torchrun's process group where there is one and returns this process's device.

    `device`: `auto` is a GPU if there is one, `cpu` or `cuda`. The processes communicate by gloo on CPU, NCCL on GPU.

    Raises:
        InputError: `device` is another word, or there is no such GPU.
    """
    avoid_gaps()
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}; it can be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch finds no GPU here; use device=cpu or device=auto")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local = int(os.environ.get("LOCAL_RANK", 0))
    target = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this host has no GPU, there are {torch.cuda.device_count()}: "
                "set --nproc_per_node to that number"
            )
        torch.cuda.set_device(target)
    if "RANK" in os.environ and not dist.is_initialized():
        _join(target)
    return target


def _join(device: torch.device) -> None:
    global _long_waits, _watch
    if device.type == "cuda":
        # with its device, NCCL connects the processes here, where an error is easy to read, and not in the first step
        dist.init_process_group("nccl", timeout=STEP, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=STEP)
    if dist.get_world_size() > 1:
        _long_waits = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=LONG))
        _watch = Watch()


def stop() -> None:
    """Leaves the process group, if there is one, after work without an error; after one, see `leave`."""
    global _long_waits, _watch
    if _watch is not None:
        _watch.end()
    if dist.is_initialized():
        dist.destroy_process_group()
    _long_waits = _watch = None


def leave(status: int) -> NoReturn:
    """Ends this process after an error, with this exit status; the others are told and end soon.

    To destroy the process group instead would take all processes, and they may wait for this one.
    """
    if _watch is not None:
        _watch.tell()
    end_process(status)


def long_waits() -> dist.ProcessGroup | None:
    """The group, by gloo, of operations for which a process may wait for hours; None for the default group."""
    return _long_waits if dist.is_initialized() else None


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and the log."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process has reached this line."""
    if world_size() > 1:
        dist.barrier(group=long_waits())
