"""What the training data sets share: the next readable image, and chance that depends on (seed, epoch, index) alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from blip.data.loader import EpochOrder
from blip.data.skipped import Skipped, TooManySkipped, too_many
from blip.data.transforms import UnreadableImage
from blip.hashing import stable_hash

Opened = TypeVar("Opened")


class Walk:
    """Opens the record at a place of an epoch's order or, where its image is unreadable, the next one behind it."""

    def __init__(self, order: EpochOrder, count: int, max_skipped_fraction: float = 0.01):
        """`count` records. More unreadable images in a row than 10 and than `max_skipped_fraction` of the records, or
        all of them, raise TooManySkipped."""
        self.order = order
        self.patience = min(max(10, int(max_skipped_fraction * count)), order.per_rank - 1)

    def open(
        self, epoch: int, position: int, open_record: Callable[[int], Opened]
    ) -> tuple[int, Opened, list[Skipped]]:
        """(index of the record, what `open_record` gives for it, notes of those skipped on the way)."""
        skipped: list[Skipped] = []
        while True:
            index = self.order.index(epoch, (position + len(skipped)) % self.order.per_rank)
            try:
                return index, open_record(index), skipped
            except UnreadableImage as error:
                skipped.append((index, error.path, error.reason))
                if len(skipped) > self.patience:
                    raise TooManySkipped(too_many(skipped, f"{len(skipped)} images in a row")) from None


@contextmanager
def own_chance(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Within it torch's generator of the CPU starts from (seed, epoch, index); afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would also reset the GPU's generator when there are no workers
        torch.default_generator.manual_seed(stable_hash("sample", seed, epoch, index))
        yield


def open_or_note(index: int, open_record: Callable[[int], Opened]) -> tuple[Opened | None, list[Skipped]]:
    """For evaluation, which replaces nothing: what `open_record` gives, or None and a note."""
    try:
        return open_record(index), []
    except UnreadableImage as error:
        return None, [(index, error.path, error.reason)]
