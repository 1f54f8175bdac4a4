"""Trains the first stage of BLIP-2: a Q-Former between images and captions, with three losses.

    python pretrain_blip2.py --config configs/blip2_stage1.yaml --output_dir runs/q1

The losses of a batch are in blip/models/blip2.py, the Q-Former in blip/network/qformer.py. The second stage, which
shows a frozen language model what the queries have read, is blip/tasks/blip2_language.py; `language_model` asks for it.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip.checkpoints.initialize import Source
from blip.config import ConfigError
from blip.data.batches import Batch
from blip.evaluation.pretraining import evaluate_pretraining
from blip.models.blip2 import Blip2Model, positives_among
from blip.models.decoding import Decoding
from blip.models.momentum import TEMPERATURE_RANGE
from blip.network.pictures import Pictures
from blip.tasks import blip2_start, pins, start
from blip.tasks.blip2_config import Blip2Config
from blip.tasks.blip2_language import Stage2
from blip.tasks.blip2_rehearsal import plan_for, run_once
from blip.tasks.blip2_run import Blip2Run
from blip.tasks.data_options import with_commits, with_pipeline_of_run
from blip.train.folder import open_run
from blip.train.launch import launch
from blip.train.loop import Step
from blip.train.run import fit


class Stage1(Blip2Run):
    """A run of the first stage: contrast, matching and language modelling."""

    task = "blip2"
    model: Blip2Model
    main_scores = ("val_i2t_r1", "val_t2i_r1", "val_itm_matched", "val_itm_unmatched")

    def build(self, source: Source | None) -> tuple[Blip2Model, blip2_start.Frozen]:
        return blip2_start.stage1_model(self.config, source, self.tokenizer)

    def step(self, batch: Batch, step: int) -> Step:
        """A batch to its losses."""
        batch = self.prepared(batch, step)
        equal = self.config.equal_captions == "positives"
        positives = positives_among(batch.caption_ids, batch.image_ids, equal_captions=equal, equal_images=equal)
        out = self.parallel(
            batch.images,
            batch.ids,
            batch.lengths,
            positives=positives,
            gather_gradients=self.config.gather_gradients,
        )
        count = len(batch)
        matched, unmatched = out.match_logits.argmax(dim=1).split([count, 2 * count])
        logs: dict[str, Tensor | float] = {
            "itc": out.itc,
            "itm": out.itm,
            "lm": out.lm,
            "itm_matched": (matched == 1).float().mean(),
            "itm_unmatched": (unmatched == 0).float().mean(),
            "temperature": self.model.temperature,
        }
        return Step(out.itc + out.itm + out.lm, logs, count, describe=lambda: self.name(batch))

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Follows each optimizer step: keeps the temperature in its range."""
        self.model.temperature.clamp_(*TEMPERATURE_RANGE)
        super().after_update(step)

    def evaluate(self, batches: Any) -> tuple[dict[str, Any], dict[str, list]]:
        found = evaluate_pretraining(self.model, batches, self.device, val_loss=self.config.val_loss)
        return found.metrics, found.similarities

    def captions(self, images: Tensor | Pictures) -> list[str]:
        first = torch.full((len(images), 1), self.tokenizer.dec_id, device=self.device)
        decoding = Decoding(max_new_tokens=self.config.max_text_tokens - 1)
        ids = self.model.write(images, first, decoding, end_id=self.tokenizer.sep_id).ids
        return [self.tokenizer.decode(text) for text in ids.tolist()]


def run(config: Blip2Config, output: Path, resume: str, *, device: torch.device, **options: bool) -> bool:
    """Trains, from the start or from a checkpoint, and writes the result to `output`. False when a signal ended it.

    `options`: `allow_changed` and `overwrite`, as in `open_run`.
    """
    if not config.train_file:
        raise ConfigError("train_file is empty; --set 'train_file=[captions.json]'")
    config = with_commits(config)
    with open_run(config, output, resume, **options) as folder:
        begun = folder.checkpoint
        config = start.as_begun(config, begun) if begun else config
        config = with_pipeline_of_run(pins.pin(config, begun), begun)
        source = blip2_start.read_source(config, begun)
        config = blip2_start.with_sizes_of(config, source)
        make = Stage2 if blip2_start.is_stage2(config, source) else Stage1
        task = make(config, source, output, resume=begun, device=device)
        return fit(task, config, folder)


def main(help: str | None = None) -> None:
    """The command line of the task; `help` is shown with `--help`."""
    costs = {"dry_run": partial(run_once, (Stage1, Stage2)), "plan": partial(plan_for, Stage1)}
    launch(run, Blip2Config, default_output="runs/blip2", **costs, help=help or __doc__)


if __name__ == "__main__":
    main()
