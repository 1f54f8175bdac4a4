"""Training batches streamed from webdataset shards: read in order, shuffled on the way, the same after any restart.

Each epoch puts the shards in a new order and cuts the row of all samples into equal stretches, one for each lane of
each process. A lane reads its stretch once and shuffles it window by window; the batches of a process come from its
lanes in turn. So a position (epoch, batch) says which shard to open and how many samples to pass over, every process
gets the same number of batches, and whoever reads a lane, any number of workers give the same batches.

Lanes are read side by side by workers; a number of workers that divides that of lanes lets each read its own alone.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from blip.data.batches import Batch, Sample, collate
from blip.data.images import UnreadableImage, open_image
from blip.data.loader import loader_options
from blip.data.order import own_chance
from blip.data.pairs import caption_id
from blip.data.skipped import Skipped, TooManySkipped, too_many
from blip.data.webdataset import BrokenSample, Raw, TarShards
from blip.errors import InputError
from blip.hashing import stable_hash


@dataclass
class StreamOrder:
    """Which sample comes when. `per_lane` samples an epoch for each lane, `steps` batches for each process."""

    shards: TarShards
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    lanes: int = 4  # of each process; fewer where the data are few
    window: int = 1000  # samples that a lane holds to shuffle them

    def __post_init__(self) -> None:
        if min(self.batch_size, self.lanes, self.window) < 1:
            raise InputError("batch_size, stream_lanes and stream_window need to be 1 or more")
        own = len(self.shards) // self.world
        if own < self.batch_size:
            raise InputError(
                f"an epoch has {own} samples on each of {self.world} ranks, fewer than one batch of {self.batch_size}: "
                f"set batch_size to {max(own, 1)} or lower, use fewer ranks, or add data"
            )
        self.lanes = min(self.lanes, own // self.batch_size)
        self.per_lane = own // self.lanes
        self.steps = self.lanes * (self.per_lane // self.batch_size)

    def samples(self, epoch: int, lane: int, start: int = 0) -> Iterator[Raw]:
        """The samples of a lane in an epoch, from place `start` on, in the order in which batches take them."""
        number = start // self.window
        stored = self._stored(epoch, lane, number * self.window)
        while held := list(itertools.islice(stored, self.window)):
            own = stable_hash("window", self.seed, epoch, self.rank, lane, number)
            for place in np.random.default_rng(own).permutation(len(held))[max(0, start - number * self.window) :]:
                yield held[place]
            number += 1

    def _stored(self, epoch: int, lane: int, first: int) -> Iterator[Raw]:
        """A lane's stretch from its place `first` on, as it is stored; a shard is opened once."""
        order = np.random.default_rng(stable_hash("shards", self.seed, epoch)).permutation(len(self.shards.counts))
        ends = np.cumsum(np.asarray(self.shards.counts)[order])
        at, left = (self.rank * self.lanes + lane) * self.per_lane + first, self.per_lane - first
        number = bisect.bisect_right(ends, at)
        while left > 0:
            shard = int(order[number])
            inside = at - int(ends[number] - self.shards.counts[shard])
            count = min(left, self.shards.counts[shard] - inside)
            yield from itertools.islice(self.shards.read(shard, inside), count)
            at, left, number = at + count, left - count, number + 1


class StreamDataset(IterableDataset):
    """Batches for ever from (epoch, batch) on; of several workers each makes those that the loader asks it for."""

    def __init__(
        self,
        order: StreamOrder,
        encode: Callable[[str], list[int]],
        transform: Callable[[Image.Image], Tensor],
        start: tuple[int, int] = (0, 0),
        pad_id: int = 0,
        pad_to: tuple[int, ...] = (),
    ):
        """`encode`: a caption to ids; `transform`: PIL RGB to (3, S, S); `pad_id`, `pad_to`: see `loader.padded`."""
        self.order, self.encode, self.transform, self.start = order, encode, transform, start
        self.pad_id, self.pad_to = pad_id, pad_to

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            _after_fork()
        epoch, first = self.start
        turn = 0  # whose the next batch is
        while True:
            lanes: dict[int, tuple[int, Iterator[Raw]]] = {}  # lane -> samples taken, and those that follow
            for batch in range(first, self.order.steps):
                if turn == own:
                    yield self._batch(epoch, batch, lanes)
                turn = (turn + 1) % workers
            epoch, first = epoch + 1, 0

    def _batch(self, epoch: int, batch: int, lanes: dict[int, tuple[int, Iterator[Raw]]]) -> Batch:
        row, lane = divmod(batch, self.order.lanes)
        size, start = self.order.batch_size, row * self.order.batch_size
        at, samples = lanes.get(lane, (start, None))
        if samples is None:
            samples = self.order.samples(epoch, lane, start)
        next(itertools.islice(samples, start - at, start - at), None)  # passes over other workers' batches
        raws = list(itertools.islice(samples, size))
        lanes[lane] = start + size, samples
        return collate(self._readable(epoch, raws), pad_id=self.pad_id, pad_to=self.pad_to)

    def _readable(self, epoch: int, raws: list[Raw]) -> list[Sample]:
        """A sample each; one that cannot be read is replaced by the next of the batch that can, with a note."""
        found: list[Sample | None] = []
        notes: list[Skipped] = []
        for raw in raws:
            try:
                found.append(self._sample(epoch, raw))
            except (BrokenSample, UnreadableImage) as error:
                reason = error.reason if isinstance(error, UnreadableImage) else str(error)
                notes.append((raw.number, self.order.shards.name(raw.number), reason))
                found.append(None)
        good = [sample for sample in found if sample is not None]
        if not good:
            raise TooManySkipped(too_many(notes, f"a whole batch of {len(raws)} samples"))
        samples, last = [], good[0]
        for sample in reversed(found):
            last = sample or last
            samples.append(last)
        samples.reverse()
        samples[0] = Sample(**{**vars(samples[0]), "skipped": notes})
        return samples

    def _sample(self, epoch: int, raw: Raw) -> Sample:
        record, image = raw.record(), open_image(raw.image())
        captions = record["caption"]
        with own_chance(self.order.seed, epoch, raw.number):
            caption = captions[int(torch.randint(len(captions), ()))]
            pixels = self.transform(image)
        image_id = stable_hash(record["image_id"] or record.get("image") or self.order.shards.name(raw.number))
        source = str(record.get("source") or "")
        return Sample(pixels, self.encode(caption), caption_id(caption), image_id, raw.number, [], source)


def stream_loader(dataset: StreamDataset, num_workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches of `dataset`, made by this many processes (0: this one)."""
    options: dict[str, Any] = loader_options(num_workers, dataset.order.seed, pin_memory)
    return iter(DataLoader(dataset, batch_size=None, **options))


def _after_fork() -> None:
    """Connections of the parent's are of no use here: fsspec makes its own anew."""
    import fsspec.asyn

    fsspec.asyn.reset_lock()
