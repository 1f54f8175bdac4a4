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
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from blip.data.skipped import Skipped
from blip.hashing import stable_hash


class EpochOrder:
    """A new permutation of the records every epoch, from (seed, epoch) alone; rank r takes every world-th from r on.

    Weights: a record of weight w is visited floor(w) times an epoch, and of the records that share a weight a random
    subset, new every epoch, is visited once more, so that the visits sum to w times their number (rounded).
    Ranks get equal lengths: up to world - 1 records at the end of the permutation wait for another epoch.
    """

    def __init__(self, count: int, seed: int, rank: int = 0, world: int = 1, weights: np.ndarray | None = None):
        """`count` records; `weights` (count,) or None for 1 each. `per_rank` is the number of positions."""
        if weights is not None and len(weights) != count:
            raise ValueError(f"{len(weights)} weights for {count} records")
        self.seed, self.rank, self.world = seed, rank, world
        # records of equal weight, and that weight
        self._groups = [(np.arange(count, dtype=np.int32), 1.0)]
        if weights is not None:
            values, inverse = np.unique(weights, return_inverse=True)
            self._groups = [
                (np.flatnonzero(inverse == k).astype(np.int32), float(value)) for k, value in enumerate(values)
            ]
        self.per_rank = sum(round(len(group) * weight) for group, weight in self._groups) // world
        self._epoch, self._order = -1, np.empty(0, np.int32)

    def index(self, epoch: int, position: int) -> int:
        """The record at `position` (0 to per_rank - 1) of this rank's epoch."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._draw(epoch)
        return int(self._order[position])

    def _draw(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng(stable_hash("order", self.seed, epoch))
        visits = []
        for group, weight in self._groups:
            whole = int(weight)
            extra = round(len(group) * weight) - whole * len(group)
            visits += [group] * whole + [generator.permutation(group)[:extra]]
        order = np.concatenate(visits)
        generator.shuffle(order)
        return order[self.rank :: self.world][: self.per_rank].copy()


@dataclass
class Sample:
    """One image with one caption. `image` is None where evaluation met an unreadable image."""

    image: Tensor | None  # float32 (3, S, S)
    ids: list[int]  # [CLS] ... [SEP]
    caption_id: int
    image_id: int
    index: int
    skipped: list[Skipped]  # unreadable images in whose place this one stands
    source: str = ""  # where the pair comes from, such as web or synthetic; "": the data do not say


@dataclass
class TensorBatch:
    """What batches of every task do: move. All tensors go along, but for lengths, which the CPU reads."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy on the device; lengths stay on the CPU."""
        tensors = {name: x for name, x in self._tensors().items() if not name.endswith("lengths")}
        return replace(self, **{name: x.to(device, non_blocking=non_blocking) for name, x in tensors.items()})

    def pin_memory(self) -> Self:
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}

    def __len__(self) -> int:
        return len(self.indices)  # type: ignore[attr-defined]


@dataclass
class Batch(TensorBatch):
    """Tensors of B samples."""

    images: Tensor  # float32 (B, 3, S, S)
    ids: Tensor  # int64 (B, T), [CLS] first, padded to the longest of the batch
    lengths: Tensor  # int64 (B,), without pads; stays on the CPU
    caption_ids: Tensor  # int64 (B,), equal for equal captions
    image_ids: Tensor  # int64 (B,), equal for equal images
    indices: list[int]  # of the records, to name a sample in a message
    skipped: list[Skipped]
    sources: list[str] = field(default_factory=list)  # of each pair, see `Sample`


def collate(samples: list[Sample], pad_id: int = 0, pad_to: tuple[int, ...] = ()) -> Batch:
    """Puts samples side by side; those without an image only leave their note in `skipped`. `pad_to`: see `padded`."""
    skipped = [note for sample in samples for note in sample.skipped]
    samples = [sample for sample in samples if sample.image is not None]
    ids, lengths = padded([sample.ids for sample in samples], pad_id, pad_to)
    return Batch(
        images=torch.stack([sample.image for sample in samples]) if samples else torch.empty(0),  # type: ignore[misc]
        ids=ids,
        lengths=lengths,
        caption_ids=torch.tensor([sample.caption_id for sample in samples], dtype=torch.int64),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        indices=[sample.index for sample in samples],
        skipped=skipped,
        sources=[sample.source for sample in samples],
    )


def padded(rows: list[list[int]], pad_id: int, pad_to: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """B lists of ids -> int64 (B, T) and their lengths (B,).

    `pad_to`: lengths that compiled code knows; ids are padded to the smallest that holds the longest text, or to that
    text itself where none does.
    """
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    longest = max(map(len, rows), default=0)
    width = min((length for length in pad_to if length >= longest), default=longest)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return ids, lengths


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


def steps_per_epoch(order: EpochOrder, batch_size: int) -> int:
    """Full batches in an epoch of one rank; ValueError where there is none."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it needs to be 1 or more")
    if order.per_rank < batch_size:
        raise ValueError(
            f"an epoch has {order.per_rank} records on each of {order.world} ranks, fewer than one batch of "
            f"{batch_size}: set batch_size to {max(order.per_rank, 1)} or lower, use fewer ranks, or add data"
        )
    return order.per_rank // batch_size


class _Positions(Sampler):
    """For each batch the keys of its samples: [(epoch, position), ...], without end."""

    def __init__(self, steps: int, batch_size: int, start: tuple[int, int]):
        epoch, batch = start
        if epoch < 0 or not 0 <= batch <= steps:
            raise ValueError(f"cannot start at batch {batch} of epoch {epoch}: an epoch has {steps} batches")
        self.steps, self.batch_size, self.start = steps, batch_size, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = self.start
        while True:
            for batch in range(first, self.steps):
                yield [(epoch, batch * self.batch_size + i) for i in range(self.batch_size)]
            epoch, first = epoch + 1, 0


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
        raise ValueError(f"batch_size is {batch_size}; it needs to be 1 or more")
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
        raise ValueError(f"num_workers is {num_workers}; it needs to be 0 or more")
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
