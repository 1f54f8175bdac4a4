"""Loaders: batches of a data set in an order, read ahead by worker processes.

A position in training is (epoch, batch). The same position gives the same batch for any number of workers.
B samples in a batch.
"""

import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from blip.data.batches import collate
from blip.data.order import EpochOrder, Positions, steps_per_epoch
from blip.data.skipped import Skipped
from blip.errors import BlipError, InputError

# of torch: a worker that was killed, or that ended by itself
DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)")


class WorkerError(BlipError):
    """A process that reads data ended before its work did."""


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
    return _Loader(
        dataset,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        multiprocessing_context=worker_context() if num_workers else None,
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


class _Loader(DataLoader):
    """torch's loader, which would call an error's class with the text of a traceback in place of its arguments."""

    def __init__(self, dataset: Dataset, *, num_workers: int, **options: Any):
        if num_workers:
            streamed = isinstance(dataset, IterableDataset)
            dataset = _CarryingStream(dataset) if streamed else _Carrying(dataset)
            if "collate_fn" in options:
                options["collate_fn"] = partial(_collate_or_carry, options["collate_fn"])
        super().__init__(dataset, num_workers=num_workers, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if DEAD_WORKER.search(str(error)):
                    raise WorkerError(_about_dead_worker(str(error))) from error
                raise
            if isinstance(batch, _Carried):
                raise batch.error
            yield batch


def _about_dead_worker(problem: str) -> str:
    advice = "often because memory ran out: lower num_workers"
    if "Bus error" in problem:
        advice = "because shared memory ran out: enlarge /dev/shm (in a container: --shm-size), or set num_workers: 0"
    return f"a process that reads data was ended from outside, {advice} ({problem.strip()})"


@dataclass
class _Carried:
    """An error on its way from a worker."""

    error: Exception


def _carried(error: Exception) -> _Carried:
    """Raises the error itself where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        raise error from None
    return _Carried(error)


class _Carrying(Dataset):
    """A dataset whose errors that a user can mend are samples."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except (BlipError, OSError) as error:
            return _carried(error)


class _CarryingStream(IterableDataset):
    """The same of a stream, which ends with the error."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except (BlipError, OSError) as error:
            yield _carried(error)


def _collate_or_carry(collate_batch: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    try:
        return next((one for one in samples if isinstance(one, _Carried)), None) or collate_batch(samples)
    except (BlipError, OSError) as error:
        return _carried(error)


def worker_context() -> str | None:
    """Start method of workers: fork, which shares the annotations' memory, or None for the platform's default."""
    # macOS offers fork too, but its system libraries fail after it
    return "fork" if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods() else None


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # what ends or warns a job reaches its whole process group, but the main process finishes its step first
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """Ends this worker at a SIGTERM of its main process, which sends it to remaining workers when it exits; others are
    ignored."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
