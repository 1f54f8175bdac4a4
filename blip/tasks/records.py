"""Records of a fine-tuning run: their files, batches of them for training and evaluation, results of all processes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from blip import distributed
from blip.config import ConfigError, WeightedFile
from blip.data.batches import TensorBatch, collate
from blip.data.loader import EvalLoader, LoaderOptions, eval_loader, make_loader
from blip.data.order import EpochOrder, steps_per_epoch
from blip.data.skipped import SkipLog
from blip.data.training_images import TrainingImages
from blip.data.transforms import eval_transform
from blip.errors import BlipError
from blip.tasks.data_options import limits_of, on_device, training_images
from blip.tasks.image_tokens import dropped_share
from blip.train.parallel import padded_lengths
from blip.train.record import write_result
from blip.train.schedule import Epochs


class Records:
    """The data of a run; `finetune.FineTuning` sets its attributes and adds a model."""

    collate_fn: Callable[..., Any] = staticmethod(collate)
    config: Any
    output: Any
    device: Any
    model: Any
    tokenizer: Any

    # ---- what a task adds --------------------------------------------------------------------------------------------

    def read_data(self) -> None:
        """Reads the annotation files of training, if there are any, and of validation."""
        raise NotImplementedError

    def texts(self) -> Iterable[str]:
        """The training texts, for `tokenizer: train`."""
        raise NotImplementedError

    def records(self) -> tuple[int, np.ndarray | None]:
        """The number of training records, and the weight of each."""
        raise NotImplementedError

    def dataset(self, images: TrainingImages) -> Dataset:
        """Training samples by (epoch, position); `images` is the `transform` of the data set."""
        raise NotImplementedError

    # ---- data --------------------------------------------------------------------------------------------------------

    def needs_positions(self, count: int, what: str) -> None:
        """ConfigError where a text of `count` tokens is longer than the model can read; `what` names its options."""
        if count > self.config.max_positions:
            raise ConfigError(f"{what}: {count} tokens, and the model has {self.config.max_positions} positions")

    def files(self, split: str) -> list[str]:
        """The names of the annotation files of `val` or `test`."""
        return [entry if isinstance(entry, str) else entry.path for entry in self.entries(split)]

    def entries(self, split: str) -> list[str | WeightedFile]:
        """The files of `train`, `val` or `test` as the configuration has them."""
        return getattr(self.config, f"{split}_file")

    def _count_steps(self) -> None:
        count, weights = self.records()
        if not count:  # evaluation alone
            return
        config, world = self.config, distributed.world_size()
        self.order = EpochOrder(count, config.seed, rank=distributed.rank(), world=world, weights=weights)
        batches = steps_per_epoch(self.order, config.batch_size)
        self.epochs = Epochs(batches, config.accumulation, config.epochs, max_steps=config.max_steps)
        self.skipped = SkipLog(self.output / "skipped.jsonl", count, config.max_skipped_fraction, world=world)

    def batches(self, start_step: int) -> Iterator[Any]:
        """Training batches without end, from the first one of optimizer step `start_step` (counted from 0)."""
        config = self.config
        options = LoaderOptions(
            config.num_workers,
            config.seed,
            pad_id=self.tokenizer.pad_id,
            pad_to=padded_lengths(config.max_positions) if config.compile else (),
            pin_memory=self.device.type == "cuda",
            collate_fn=self.collate_fn,
        )
        position, data = self.epochs.position(start_step), self.dataset(training_images(config, self.device))
        batches = make_loader(data, self.order, config.batch_size, start=position, options=options)
        return on_device(self.skipped.noted(batches), config, self.device)

    def prepared(self, batch: TensorBatch, step: int) -> Any:
        """The batch on the device, for optimizer step `step`, which sets how many patches of its images are seen."""
        self.model.image_encoder.patch_dropout.share = dropped_share(self.config, step, self.epochs)
        return batch.to(self.device, non_blocking=True)

    def reading(self, images: TrainingImages) -> dict[str, Any]:
        """What the training sets of all tasks take: what reads images, the seed, and how many may be unreadable."""
        config = self.config
        skipped = config.max_skipped_fraction
        return {"transform": images, "seed": config.seed, "max_skipped_fraction": skipped, "limits": limits_of(config)}

    def eval_batches(self, dataset: Dataset) -> EvalLoader:
        """This process's share of an evaluation set, in batches."""
        config, pin = self.config, self.device.type == "cuda"
        return eval_loader(
            dataset, config.batch_size, rank=distributed.rank(), world=distributed.world_size(),
            num_workers=config.num_workers, pad_id=self.tokenizer.pad_id, pin_memory=pin, collate_fn=self.collate_fn,
        )  # fmt: skip

    def gathered(self, split: str, own: list[tuple], batches: EvalLoader) -> list[tuple]:
        """The rows of all processes in the order of the records; a row begins with the number of its record.

        Images that could not be read are listed in `unreadable_SPLIT.json`.

        Raises:
            NothingToScore: no image could be read.
        """
        rows = sorted(row for part in distributed.gather_objects(own) for row in part)
        notes = sorted({note for part in distributed.gather_objects(batches.skipped) for note in part})
        self.write_unreadable(split, [path for _, path, _ in notes])
        if not rows:
            raise NothingToScore(f"no image of {', '.join(self.files(split))} could be read, such as {notes[0][1]}")
        return rows

    def write_unreadable(self, split: str, paths: list[str]) -> None:
        if paths:
            self.write(f"unreadable_{split}.json", sorted(set(paths)))

    def eval_transform(self) -> Callable[[Image.Image], Tensor]:
        return eval_transform(self.config.image_size)

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file beside the checkpoints; every process has to call this. OutputError: see `own`."""
        distributed.from_main(lambda: write_result(self.output, name, content))


class NothingToScore(BlipError):
    """No image of an evaluation set could be read."""
