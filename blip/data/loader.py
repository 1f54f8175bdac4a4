"""From samples to batches: which record comes when, how samples become one `Batch`, and the loaders of both.

A training position is (epoch, batch). Whatever the number of workers, the same position gives the same batch.
B images in a batch, T text tokens, S side of an image in pixels.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from blip.data.batches import collate
from blip.data.order import EpochOrder, _Positions, steps_per_epoch
from blip.data.skipped import Skipped
from blip.errors import InputError


def make_loader(
    dataset: Dataset,
    order: EpochOrder,
    batch_size: int,
    start: tuple[int, int] = (0, 0),
    num_workers: int = 0,
    seed: int = 0,
    pad_id: int = 0,
    pad_to: tuple[int, ...] = (),
    pin_memory: bool = False,
    collate_fn: Callable[..., Any] = collate,
) -> Iterator[Any]:
    """Batches for ever, epoch after epoch, from the position `start` on; the incomplete tail of an epoch is dropped.

    Args:
        dataset: gives a sample for (epoch, position).
        order: the order that the dataset reads; here it says how long an epoch is.
        batch_size: B, on this rank.
        start: (epoch, batch in the epoch) of the first batch.
        num_workers: processes that read ahead; 0 reads in this one.
        seed: for the workers' own generators. Nothing is drawn from the global ones.
        pad_id, pad_to: see `padded`.
        collate_fn: called as collate_fn(samples, pad_id=..., pad_to=...), for data sets with batches of their own.
    """
    sampler = _Positions(steps_per_epoch(order, batch_size), batch_size, start)
    collate_batch = partial(collate_fn, pad_id=pad_id, pad_to=pad_to)
    return iter(data_loader(dataset, sampler, num_workers, seed, collate_batch, pin_memory))


class EvalLoader:
    """Batches of this rank's records in order, each record once. Made by `eval_loader`.

    Unreadable images are left out of their batch and noted, in the batch and in `skipped`; a batch without any readable
    image is left out.
    """

    def __init__(self, loader: DataLoader, count: int):
        """`count`: the records of this rank."""
        self.loader, self.count = loader, count
        self.skipped: list[Skipped] = []

    def __iter__(self) -> Iterator[Any]:
        self.skipped = []
        for batch in self.loader:
            self.skipped += batch.skipped
            if len(batch):
                yield batch

    def __len__(self) -> int:
        """Batches, if all images are readable."""
        return len(self.loader)


def eval_loader(
    dataset: Dataset,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    pad_id: int = 0,
    pin_memory: bool = False,
    collate_fn: Callable[..., Any] = collate,
) -> EvalLoader:
    """Loader of a dataset that takes plain indices, such as `EvalPairs`; rank r gets r, r + world, r + 2 world, ...

    The last batch may be smaller. Nothing is padded or repeated to make ranks equal.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it needs to be 1 or more")
    indices = range(rank, len(dataset), world)  # type: ignore[arg-type]
    batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    loader = data_loader(dataset, batches, num_workers, 0, partial(collate_fn, pad_id=pad_id), pin_memory)
    return EvalLoader(loader, len(indices))


def data_loader(
    dataset: Dataset, batches: Any, num_workers: int, seed: int, collate_batch: Callable[..., Any], pin_memory: bool
) -> DataLoader:
    options = loader_options(num_workers, seed, pin_memory)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate_batch, **options)


def loader_options(num_workers: int, seed: int, pin_memory: bool) -> dict[str, Any]:
    """What every loader of ours has in common: how its workers start and end."""
    if num_workers < 0:
        raise InputError(f"num_workers is {num_workers}; it needs to be 0 or more")
    return {
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "worker_init_fn": _start_worker,
        "multiprocessing_context": worker_context() if num_workers else None,
        "persistent_workers": num_workers > 0,
        "generator": torch.Generator().manual_seed(seed),
    }


def worker_context() -> str | None:
    """Start method of worker processes: fork, which shares the annotations' pages, or None for the platform's own."""
    # macOS offers fork too, but its system libraries do not survive it
    return "fork" if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods() else None


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and torchrun's SIGTERM reach the whole process group, but the main process has a step to finish first
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """Ends this worker at a SIGTERM of its main process, which sends one to workers left at its exit; no other's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
