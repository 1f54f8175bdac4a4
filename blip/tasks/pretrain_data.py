"""The training data of pre-training: annotation files, kept in memory, or webdataset shards, which are streamed.

Both have the number of pairs, the number of batches in an epoch of this process, and batches from any position.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip import distributed
from blip.config import ConfigError, PairConfig
from blip.data.batches import Batch
from blip.data.loader import LoaderOptions, make_loader
from blip.data.order import EpochOrder, steps_per_epoch
from blip.data.pairs import PairDataset, Pairs, read_pairs
from blip.data.sources import source_of
from blip.data.stream import StreamDataset, StreamOrder, stream_loader
from blip.data.training_images import TrainingImages
from blip.data.webdataset import BrokenSample, is_tar_address, open_shards
from blip.hub.names import is_hub_name
from blip.tasks.data_options import limits_of, read_as
from blip.tasks.item_pictures import tell_left_out

Encode = Callable[[str], list[int]]  # a caption to ids, see `CaptionEncoder`
SAMPLES_FOR_WORDS = 20_000  # first samples of a stream, on whose captions a tokenizer is trained


def read_part(config: PairConfig, files: Sequence[str | Mapping[str, Any]], part: str) -> Pairs:
    """The pairs of the files of a part, `train` or `val`. Its split is that of folders and data sets of the hub; of a
    file all records are read, whatever split they name."""
    options = read_as(config, part)
    split = options.pop("split")
    sources = [source_of(entry) for entry in files]
    placed = [
        replace(source, split=split) if not source.split and (is_hub_name(source.path) or os.path.isdir(source.path))
        else source for source in sources
    ]  # fmt: skip
    pairs = read_pairs([source.entry() for source in placed], **options)
    tell_left_out(pairs, config)
    return pairs


class FileData:
    """Pairs of annotation files, whose captions and paths are kept in memory."""

    def __init__(self, config: PairConfig, files: Sequence[str | Mapping[str, Any]]):
        self.config = config
        self.pairs = read_part(config, files, "train")
        weights = self.pairs.record_weights()
        self.order = EpochOrder(
            len(self.pairs), config.seed, rank=distributed.rank(), world=distributed.world_size(), weights=weights
        )
        self.steps = steps_per_epoch(self.order, config.batch_size)

    def __len__(self) -> int:
        return len(self.pairs)

    def captions(self) -> Iterator[str]:
        return (text for i in range(len(self.pairs)) for text in self.pairs.captions(i))

    def name(self, index: int) -> str:
        """Where a pair comes from, for messages."""
        return f"{self.pairs.image_path(index)} ({self.pairs.annotation_file(index)} record {index})"

    def batches(
        self,
        encode: Encode,
        images: TrainingImages,
        start: tuple[int, int],
        *,
        pad_id: int,
        pad_to: tuple[int, ...],
        pin: bool,
    ) -> Iterator[Batch]:
        """Batches without end, from `start` (epoch, batch); texts are padded to the next length of `pad_to`."""
        config = self.config
        dataset = PairDataset(
            self.pairs,
            self.order,
            encode,
            transform=images,
            seed=config.seed,
            max_skipped_fraction=config.max_skipped_fraction,
            limits=limits_of(config),
        )
        return make_loader(
            dataset,
            self.order,
            config.batch_size,
            start=start,
            options=LoaderOptions(config.num_workers, config.seed, pad_id=pad_id, pad_to=pad_to, pin_memory=pin),
        )


class StreamData:
    """Pairs of webdataset shards, read from a disk or a network as they are needed."""

    def __init__(self, config: PairConfig, addresses: Sequence[str], output: Path):
        """Counts of shards that have none are kept in the folder `output`."""
        self.config = config
        known = output / "shard_sizes.json"
        self.shards = distributed.from_main(lambda: open_shards(addresses, known))  # one process counts for all
        self.order = StreamOrder(
            self.shards,
            config.batch_size,
            config.seed,
            rank=distributed.rank(),
            world=distributed.world_size(),
            lanes=config.stream_lanes,
            window=config.stream_window,
        )
        self.steps = self.order.steps

    def __len__(self) -> int:
        return len(self.shards)

    def captions(self) -> Iterator[str]:
        """The captions of the first samples alone, so that the stream is not read to its end."""
        raws = itertools.chain.from_iterable(self.shards.read(n) for n in range(len(self.shards.counts)))
        for raw in itertools.islice(raws, SAMPLES_FOR_WORDS):
            try:
                yield from raw.record()["caption"]
            except BrokenSample:  # training reports it
                continue

    def name(self, index: int) -> str:
        """Where a pair comes from, for messages."""
        return self.shards.name(index)

    def batches(
        self,
        encode: Encode,
        images: TrainingImages,
        start: tuple[int, int],
        *,
        pad_id: int,
        pad_to: tuple[int, ...],
        pin: bool,
    ) -> Iterator[Batch]:
        """Batches without end, from `start` (epoch, batch); texts are padded to the next length of `pad_to`."""
        dataset = StreamDataset(
            self.order,
            encode,
            images,
            start=start,
            pad_id=pad_id,
            pad_to=pad_to,
            limits=limits_of(self.config),
        )
        return stream_loader(dataset, self.config.num_workers, pin)


class NoData:
    """Nothing to train on: what `--dry_run` has in place of files, with one batch an epoch."""

    steps = 1

    def __len__(self) -> int:
        return 0

    def captions(self) -> Iterator[str]:
        return iter(())

    def name(self, index: int) -> str:
        return ""

    def batches(self, *_: Any, **__: Any) -> Iterator[Batch]:
        return iter(())


Data = FileData | StreamData | NoData


def open_training(config: PairConfig, files: Sequence[str | Mapping[str, Any]], output: Path) -> FileData | StreamData:
    """The training data of a configuration; `files` as from `annotation_files`.

    Raises:
        ConfigError: annotation files and shards are mixed, or shards have weights.
    """
    sources = [source_of(entry) for entry in files]
    paths = [source.path for source in sources]
    tars = [path for path in paths if is_tar_address(path)]
    if not tars:
        return FileData(config, files)
    if len(tars) < len(paths):
        other = next(path for path in paths if path not in tars)
        raise ConfigError(f"train_file names shards ({tars[0]}) and annotations ({other}): one kind at a time; "
                          "`blip capfilt merge --out FOLDER` makes shards")  # fmt: skip
    if weighted := [source.path for source in sources if source.weight != 1]:
        raise ConfigError(f"train_file: {weighted[0]} has a weight, which shards cannot have")
    limited = [key for key in ("max_train_records", "columns") if getattr(config, key)]
    limited += [f"{source.path}: {key}" for source in sources for key in source.entry() if key != "path"]
    if limited:
        raise ConfigError(f"{limited[0]} is not for shards, which are read whole and have names of their own")
    return StreamData(config, tars, output)
