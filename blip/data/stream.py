"""Training batches streamed from webdataset shards: read in order, shuffled in windows, the same after any restart.

Each epoch puts the shards in a new order and divides the sequence of all samples into equal parts, one for each lane of
each process. A lane reads its part once and shuffles it window by window; the batches of a process come from its lanes
in turn. A position (epoch, batch) therefore determines which shard to open and how many samples to skip, every process
gets the same number of batches, and any number of workers gives the same batches.

Workers read lanes in parallel. If the number of workers divides that of lanes, each lane is read by one worker alone.
S: side of an image in pixels.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from blip.data.batches import Batch, Sample, collate
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.loader import data_loader
from blip.data.order import seeded
from blip.data.pairs import caption_id
from blip.data.pictures import finish_item, read_item
from blip.data.skipped import Skipped, TooManySkipped, too_many
from blip.data.training_images import TrainingImages, Transform, images_of
from blip.data.webdataset import Raw, TarShards
from blip.errors import BlipError, InputError
from blip.hashing import stable_hash


@dataclass
class StreamOrder:
    """Which sample comes when. An epoch has `per_lane` samples for each lane and `steps` batches for each process."""

    shards: TarShards
    batch_size: int
    seed: int
    _: KW_ONLY
    rank: int = 0
    world: int = 1
    lanes: int = 4  # of each process; fewer where a lane would have less than one batch
    window: int = 1000  # samples that a lane holds in memory and shuffles

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
        """The samples of a lane in an epoch, in the order of its batches, from the one numbered `start` on."""
        number = start // self.window
        stored = self._stored(epoch, lane, number * self.window)
        while held := list(itertools.islice(stored, self.window)):
            own = stable_hash("window", self.seed, epoch, self.rank, lane, number)
            for place in np.random.default_rng(own).permutation(len(held))[max(0, start - number * self.window) :]:
                yield held[place]
            number += 1

    def _stored(self, epoch: int, lane: int, first: int) -> Iterator[Raw]:
        """A lane's part of the samples from number `first` on, in the stored order; a shard is opened once."""
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
    """Batches without end from (epoch, batch) on; of several workers each makes those that the loader takes from it."""

    def __init__(
        self,
        order: StreamOrder,
        encode: Callable[[str], list[int]],
        transform: Transform | TrainingImages,
        *,
        start: tuple[int, int] = (0, 0),
        pad_id: int = 0,
        pad_to: tuple[int, ...] = (),
        limits: ImageLimits = LIMITS,
    ):
        """`encode`: a caption to ids; `transform`: PIL RGB to (3, S, S), or what reads images by itself; `pad_id`,
        `pad_to`: see `padded`."""
        self.order, self.encode, self.images, self.start = order, encode, images_of(transform, limits), start
        self.pad_id, self.pad_to, self.limits = pad_id, pad_to, limits

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            _after_fork()
        epoch, first = self.start
        turn = 0  # the worker that makes the next batch
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
        next(itertools.islice(samples, start - at, start - at), None)  # skips other workers' batches
        raws = list(itertools.islice(samples, size))
        lanes[lane] = start + size, samples
        return collate(self._readable(epoch, raws), pad_id=self.pad_id, pad_to=self.pad_to)

    def _readable(self, epoch: int, raws: list[Raw]) -> list[Sample]:
        """One sample for each; an unreadable one is replaced by the next readable one. The first has the notes."""
        opened: list[Sample | None] = []
        notes: list[Skipped] = []
        for raw in raws:
            try:
                opened.append(self._sample(epoch, raw))
            except BlipError as error:  # a BrokenSample, an UnreadableImage, or a text that cannot be encoded
                reason = error.reason if isinstance(error, UnreadableImage) else str(error)
                notes.append((raw.number, self.order.shards.name(raw.number), reason))
                opened.append(None)
        good = [sample for sample in opened if sample is not None]
        if not good:
            raise TooManySkipped(too_many(notes, f"a whole batch of {len(raws)} samples"))
        samples, following = [], good[0]
        for sample in reversed(opened):
            following = sample or following
            samples.append(following)
        samples.reverse()
        samples[0] = replace(samples[0], skipped=notes)
        return samples

    def _sample(self, epoch: int, raw: Raw) -> Sample:
        record = raw.record()
        read = read_item(self.images, raw.images(), self.limits, self.order.seed, epoch, raw.number)
        captions = record["caption"]
        with seeded(self.order.seed, epoch, raw.number):
            caption = captions[int(torch.randint(len(captions), ()))]
            pixels = finish_item(self.images, read)
        image_id = stable_hash(record["image_id"] or record.get("image") or self.order.shards.name(raw.number))
        source = str(record.get("source") or "")
        return Sample(
            pixels.image,
            self.encode(caption),
            caption_id(caption),
            image_id,
            index=raw.number,
            skipped=[],
            source=source,
            operations=pixels.operations,
        )


def stream_loader(dataset: StreamDataset, num_workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches of `dataset`, made by `num_workers` processes (0: this one)."""
    seed = dataset.order.seed
    return iter(data_loader(dataset, None, num_workers=num_workers, seed=seed, pin_memory=pin_memory))


def _after_fork() -> None:
    """Makes fsspec open new connections: those of the parent process cannot be used in a worker."""
    import fsspec.asyn

    fsspec.asyn.reset_lock()
