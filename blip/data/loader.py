"""Loaders: batches of a data set in an order, read ahead by worker processes.

A position in training is (epoch, batch). The same position gives the same batch for any number of workers.
B samples in a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from blip.data.batches import collate
from blip.data.order import EpochOrder, Positions, steps_per_epoch
from blip.data.skipped import Skipped
from blip.data.workers import Loader, start_worker, worker_context
from blip.errors import InputError


@dataclass
class LoaderOptions:
    """How batches are read ahead and put together."""

    num_workers: int = 0  # processes that read ahead; 0: this process reads
    seed: int = 0  # for the workers' own generators; nothing is drawn from the global ones
    _: KW_ONLY
    pad_id: int = 0  # see `padded`
    pad_to: tuple[int, ...] = ()  # see `padded`
    pin_memory: bool = False  # copies batches to page-locked memory, from which they move to a GPU faster
    # called as collate_fn(samples, pad_id=..., pad_to=...); data sets of another kind have their own
    collate_fn: Callable[..., Any] = collate


def make_loader(
    dataset: Dataset,
    order: EpochOrder,
    batch_size: int,
    *,
    start: tuple[int, int] = (0, 0),
    options: LoaderOptions | None = None,
) -> Iterator[Any]:
    """Batches without end, epoch after epoch, from the position `start` on, without an epoch's incomplete last batch.

    Args:
        dataset: its item (epoch, position) is a sample.
        order: the order that the dataset reads; the length of an epoch is taken from it.
        batch_size: B, on this rank.
        start: (epoch, batch in the epoch) of the first batch.
    """
    options = options or LoaderOptions()
    positions = Positions(steps_per_epoch(order, batch_size), batch_size, start)
    collate_batch = partial(options.collate_fn, pad_id=options.pad_id, pad_to=options.pad_to)
    return iter(
        data_loader(
            dataset,
            positions,
            collate_batch,
            num_workers=options.num_workers,
            seed=options.seed,
            pin_memory=options.pin_memory,
        )
    )


class EvalLoader:
    """Batches of this rank's records in order, each record once. Made by `eval_loader`.

    Unreadable images are left out of their batch and noted in the batch and in `skipped`; a batch without any readable
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
        """The number of batches, if all images are readable."""
        return len(self.loader)


def eval_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    pad_id: int = 0,
    pin_memory: bool = False,
    collate_fn: Callable[..., Any] = collate,
) -> EvalLoader:
    """Loader of a dataset with plain indices, such as `EvalPairs`; rank r reads r, r + world, r + 2 world, ...

    The last batch may be smaller. No record is repeated to give ranks equal numbers of records.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it needs to be 1 or more")
    indices = range(rank, len(dataset), world)  # type: ignore[arg-type]
    batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    collate_batch = partial(collate_fn, pad_id=pad_id)
    loader = data_loader(dataset, batches, collate_batch, num_workers=num_workers, pin_memory=pin_memory)
    return EvalLoader(loader, len(indices))


def data_loader(
    dataset: Dataset,
    batches: Iterable[Sequence[Any]] | None,
    collate_batch: Callable[[list[Any]], Any] | None = None,
    *,
    num_workers: int = 0,
    seed: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A torch loader of these `batches`, each the keys of its samples; None: the dataset itself yields batches.

    Iterating raises WorkerError when a worker has ended, and errors of workers that a user can mend as they are.
    """
    if num_workers < 0:
        raise InputError(f"num_workers is {num_workers}; it needs to be 0 or more")
    options: dict[str, Any] = {} if batches is not None else {"batch_size": None}
    if batches is not None:
        options |= {"batch_sampler": batches, "collate_fn": collate_batch}
    return Loader(
        dataset,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context() if num_workers else None,
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
