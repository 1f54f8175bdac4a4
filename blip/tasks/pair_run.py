"""A run of pre-training, of BLIP or of BLIP-2, but for its model: data, batches, validation, samples, counts.

A run is a subclass of `PairRun` and adds its model, a step and an evaluation.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.config import PairConfig, annotation_files
from blip.data.batches import Batch, collate
from blip.data.loader import EvalLoader, eval_loader
from blip.data.pairs import MAX_SOURCES, CaptionEncoder, EvalPairs
from blip.data.skipped import SkipLog
from blip.data.transforms import eval_transform, unnormalise
from blip.hardware.precision import choose_precision, computing
from blip.network.pictures import Pictures, beside_one_another
from blip.tasks.data_options import entries, limits_of, on_device, training_images
from blip.tasks.pretrain_data import Data, Encode, open_training, read_part
from blip.tasks.samples import chosen, sample
from blip.tasks.tokenizers import choose_tokenizer
from blip.train.history import SAMPLES, SIMILARITIES
from blip.train.log import RunLog
from blip.train.parallel import not_compiled, padded_lengths
from blip.train.schedule import Epochs
from blip.train.sharding import with_whole_model

IN_TENSORBOARD = 4  # images with captions


class PairRun:
    """Images with captions of files or shards, and the methods that the loop calls; see `blip.train.run.Task`."""

    collate_fn = staticmethod(collate)
    pictures = 1  # of an item, in a dry run
    model: Any
    parallel: Any
    tokenizer: Any

    def __init__(
        self, config: PairConfig, output: Path, resume: Path | None, *, device: torch.device, data: Data | None = None
    ):
        """Reads the data, unless they are given, and prepares their tokens; a subclass then builds its model."""
        self.config: Any = config
        self.output, self.device = output, device
        choose_precision(config.precision, device)  # an error before data are read
        self.data = open_training(config, annotation_files(config), output) if data is None else data
        self.tokenizer = self.choose_tokenizer(resume)
        self.epochs = Epochs(self.data.steps, config.accumulation, config.epochs, max_steps=config.max_steps)
        self.val_data = self._validation_pairs()
        self.val = self._validation_loader(self.val_data) if self.val_data is not None else None
        world = distributed.world_size()
        self.skipped = SkipLog(output / "skipped.jsonl", len(self.data), config.max_skipped_fraction, world=world)
        self.seen: Counter[str] = Counter()  # pairs of each source that this process was trained on
        self.pending_sources: list[str] = []  # of the pairs since the last update

    # ---- what a run adds ---------------------------------------------------------------------------------------------

    def choose_tokenizer(self, resume: Path | None) -> Any:
        """The tokenizer of the captions."""
        return choose_tokenizer(self.config, self.data.captions(), self.output, resume=resume)

    def encoder(self) -> Encode:
        """Captions to ids."""
        config = self.config
        return CaptionEncoder(self.tokenizer, config.max_text_tokens, text_cleaning=config.text_cleaning)

    def captions(self, images: Tensor | Pictures) -> list[str]:
        """A caption of each image (B, 3, S, S) or item of several pictures, of the likeliest token at each step."""
        raise NotImplementedError

    def evaluate(self, batches: Any) -> tuple[dict[str, Any], dict[str, list]]:
        """Scores of the validation batches, and a line of `similarities.jsonl`, {} where there is none."""
        raise NotImplementedError

    def load(self, folder: Path, training: dict) -> None:
        """Continues from a checkpoint of this run; a subclass loads its weights."""
        if distributed.is_main():  # the counts of all processes; the others start at 0
            self.seen.update(training["progress"].get("seen", {}))

    # ---- data --------------------------------------------------------------------------------------------------------

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Training batches without end, from the first one of optimizer step `start_step` (counted from 0)."""
        config = self.config
        images = training_images(config, self.device)
        pad_to = padded_lengths(config.max_positions) if config.compile else ()
        start = self.epochs.position(start_step)
        pin = self.device.type == "cuda"
        batches = self.data.batches(self.encoder(), images, start, pad_id=self.tokenizer.pad_id, pad_to=pad_to, pin=pin)
        return on_device(self.skipped.noted(batches), config, self.device)

    def after_update(self, step: int) -> None:
        """Follows each optimizer step: counts the pairs of each source."""
        for source in filter(None, self.pending_sources):
            known = source in self.seen or len(self.seen) < MAX_SOURCES
            self.seen[source if known else "other"] += 1
        self.pending_sources.clear()

    def all_seen(self) -> Counter[str]:
        """Pairs of each source, over all processes."""
        return sum(distributed.gather_objects(self.seen), Counter())

    def truncated(self, sample: int = 2000) -> float:
        """Share of captions, of the first `sample`, that are cut at `max_text_tokens`."""
        captions = list(itertools.islice(self.data.captions(), sample))
        if not captions:
            return 0.0
        return sum(n > self.config.max_text_tokens for n in self.tokenizer.count(captions)) / len(captions)

    def name(self, batch: Batch) -> str:
        """The pairs of a batch, for an error message."""
        return ", ".join(self.data.name(i) for i in batch.indices[:16])

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def at_step_end(self, step: int, log: RunLog) -> dict | None:
        """An evaluation after each `eval_every_epochs` epochs and at the end, with the pairs seen until then of each
        source that the data name."""
        done = self.epochs.evaluation_due(step, self.config.eval_every_epochs)
        if done is None:
            return None
        seen = {f"pairs_{source}": count for source, count in sorted(self.all_seen().items())}
        if self.val is None:
            return {"epoch": done, **seen} if seen else None
        with computing(self.device, self.config.precision), not_compiled(), with_whole_model(self):
            metrics, similarities = self.evaluate(log.bars.over(self.val, "evaluating", len(self.val)))
            distributed.from_main(lambda: self.write_samples(step, log))
        if similarities:
            log.add(SIMILARITIES, [similarities])
        return {"epoch": done, **metrics, "val_unreadable": len(self.val.skipped), **seen}

    def write_samples(self, step: int, log: RunLog) -> None:
        """The same validation images each time with their generated captions, to the log; four to TensorBoard."""
        assert self.val_data is not None
        pairs = self.val_data.records
        found = [one for i in sorted(chosen(len(pairs))) if (one := self.val_data[i]).image is not None]
        if not found:
            return
        images = beside_one_another([one.image for one in found if one.image is not None]).to(self.device)
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            texts = self.captions(images)
        self.model.train(training)
        rows = [
            sample(one.index, pairs.image_paths(one.index), truth=pairs.captions(one.index)[0], output=text)
            for one, text in zip(found, texts, strict=True)
        ]
        log.add(SAMPLES, rows)
        if self.config.tensorboard:
            for number, text in enumerate(texts[:IN_TENSORBOARD]):
                first = images[number] if isinstance(images, Tensor) else images.tensor[number, 0]
                log.sample(step, number, unnormalise(first), text=text)

    def _validation_pairs(self) -> EvalPairs | None:
        """The pairs of the validation files, or None where there are none."""
        config = self.config
        if not config.val_file:
            return None
        pairs = read_part(config, entries(config.val_file), "val")
        limits = limits_of(config)
        return EvalPairs(pairs, self.encoder(), eval_transform(config.image_size), limits=limits)

    def _validation_loader(self, data: EvalPairs) -> EvalLoader:
        """Batches of this process's part of the validation pairs."""
        return eval_loader(
            data,
            self.config.batch_size,
            rank=distributed.rank(),
            world=distributed.world_size(),
            num_workers=self.config.num_workers,
            pad_id=self.tokenizer.pad_id,
            pin_memory=self.device.type == "cuda",
        )
