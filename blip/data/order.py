"""Which record comes when: the order of an epoch, and the record that replaces one with an unreadable image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import Sampler

from blip.data.images import UnreadableImage
from blip.data.skipped import Skipped, TooManySkipped, too_many
from blip.errors import InputError
from blip.hashing import stable_hash

Opened = TypeVar("Opened")


class EpochOrder:
    """A new permutation of the records every epoch, from (seed, epoch) alone; rank r takes every world-th from r on.

    Weights: a record of weight w is visited floor(w) times an epoch. Of the records that share a weight a random
    subset, new every epoch, is visited once more, so that the visits sum to w times their number (rounded).
    All ranks have equally many positions: up to world - 1 records at the end of the permutation are not visited.
    """

    def __init__(self, count: int, seed: int, *, rank: int = 0, world: int = 1, weights: np.ndarray | None = None):
        """`count` records; `weights` (count,) or None for 1 each. `per_rank` is the number of positions."""
        if weights is not None and len(weights) != count:
            raise InputError(f"{len(weights)} weights for {count} records")
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


def steps_per_epoch(order: EpochOrder, batch_size: int) -> int:
    """Full batches in an epoch of one rank; ValueError where there is none."""
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it needs to be 1 or more")
    if order.per_rank < batch_size:
        raise InputError(
            f"an epoch has {order.per_rank} records on each of {order.world} ranks, fewer than one batch of "
            f"{batch_size}: set batch_size to {max(order.per_rank, 1)} or lower, use fewer ranks, or add data"
        )
    return order.per_rank // batch_size


class Positions(Sampler):
    """The keys of each batch's samples, [(epoch, position), ...], without end, from the position `start` on."""

    def __init__(self, steps: int, batch_size: int, start: tuple[int, int]):
        epoch, batch = start
        if epoch < 0 or not 0 <= batch <= steps:
            raise InputError(f"cannot start at batch {batch} of epoch {epoch}: an epoch has {steps} batches")
        self.steps, self.batch_size, self.start = steps, batch_size, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = self.start
        while True:
            for batch in range(first, self.steps):
                yield [(epoch, batch * self.batch_size + i) for i in range(self.batch_size)]
            epoch, first = epoch + 1, 0


class Walk:
    """Opens the record at a position of an epoch or, where its image is unreadable, the next readable one."""

    def __init__(self, order: EpochOrder, count: int, max_skipped_fraction: float = 0.01):
        """`count`: number of records. `open` raises TooManySkipped if all images are unreadable, or more than N in a
        row: N is 10 or `max_skipped_fraction` of the records, whichever is larger."""
        self.order = order
        self.most_in_a_row = min(max(10, int(max_skipped_fraction * count)), order.per_rank - 1)

    def open(
        self, epoch: int, position: int, open_record: Callable[[int], Opened]
    ) -> tuple[int, Opened, list[Skipped]]:
        """(index of the record, what `open_record` returns for it, notes about those skipped before it)."""
        skipped: list[Skipped] = []
        while True:
            index = self.order.index(epoch, (position + len(skipped)) % self.order.per_rank)
            try:
                return index, open_record(index), skipped
            except UnreadableImage as error:
                skipped.append((index, error.path, error.reason))
                if len(skipped) > self.most_in_a_row:
                    raise TooManySkipped(too_many(skipped, f"{len(skipped)} images in a row")) from None


@contextmanager
def seeded(seed: int, epoch: int, index: int) -> Iterator[None]:
    """A block in which torch's generator of the CPU is seeded with (seed, epoch, index); then its state is restored."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would also reset the GPU's generator when there are no workers
        torch.default_generator.manual_seed(stable_hash("sample", seed, epoch, index))
        yield


def open_or_note(index: int, open_record: Callable[[int], Opened]) -> tuple[Opened | None, list[Skipped]]:
    """For evaluation, where no record replaces another: what `open_record` returns, or None and a note."""
    try:
        return open_record(index), []
    except UnreadableImage as error:
        return None, [(index, error.path, error.reason)]
