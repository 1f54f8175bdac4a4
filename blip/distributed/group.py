"""The process group: this process joins it, leaves it, and knows its place in it."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from blip.errors import InputError


def start(device: str = "auto", hours: float = 0.5) -> torch.device:
    """Joins torchrun's process group where there is one and returns this process's device.

    `device`: `auto` is a GPU if there is one, `cpu` or `cuda`. The processes communicate by gloo on CPU, NCCL on GPU.
    `hours`: the time after which a process that waits for another one fails.

    Raises:
        InputError: `device` is another word, or there is no such GPU.
    """
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
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=hours))
    return target


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
        dist.barrier()
