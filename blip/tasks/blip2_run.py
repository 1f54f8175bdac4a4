"""What the runs of both stages of BLIP-2 have in common: a tower, frozen or not, adapters, checkpoints."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.checkpoints.format import load_weights
from blip.checkpoints.initialize import Source
from blip.data.batches import Batch
from blip.tasks import blip2_parts, blip2_start
from blip.tasks.blip2_config import Blip2Config
from blip.tasks.image_tokens import dropped_share
from blip.tasks.pair_run import PairRun
from blip.tasks.pretrain_data import Data
from blip.train.sharding import in_parallel


class Blip2Run(PairRun):
    """A run of a stage; a subclass adds its model, a step and an evaluation."""

    task = ""
    config: Blip2Config

    def __init__(
        self,
        config: Blip2Config,
        source: Source | None,
        output: Path,
        *,
        resume: Path | None,
        device: torch.device,
        data: Data | None = None,
    ):
        """Reads the data and builds the model from `source`, which is the checkpoint of a run that is resumed."""
        self.source = source
        super().__init__(config, output, resume, device=device, data=data)
        torch.manual_seed(config.seed)  # equal starting weights on every process
        model, frozen = self.build(source)
        self.model: Any = model.to(device)
        self.lora = blip2_parts.lora_of(config.lora, source)
        self.trained = blip2_parts.prepare(self.model, config, self.lora, source=source)
        self.frozen = blip2_parts.frozen_tower(self.model, frozen)
        torch.manual_seed(config.seed + 1 + distributed.rank())  # dropout and negatives differ between processes
        self.parallel = in_parallel(self.model, config, device)

    def build(self, source: Source | None) -> tuple[Any, blip2_start.Frozen]:
        """The model of the stage with its starting weights, and which file its tower is from."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Content of `model.json` beside sizes, such as a prompt."""
        return {}

    def info(self) -> dict[str, Any]:
        """The content of `model.json`."""
        more = {**self.facts(), **({"lora": self.lora} if self.lora else {})}
        more |= {"frozen": self.frozen} if self.frozen else {}
        return blip2_start.describe(self.task, self.config, self.model, **more)

    def prepared(self, batch: Batch, step: int) -> Batch:
        """The batch on the device, for optimizer step `step`, which sets how many patches of its images are seen."""
        self.model.image_encoder.patch_dropout.share = dropped_share(self.config, step, self.epochs)
        self.pending_sources += batch.sources
        return batch.to(self.device, non_blocking=True)

    def describe(self) -> tuple[str, dict]:
        """A line about data and model for the log, and the content of `model.json`."""
        cut, limit = self.truncated(), self.config.max_text_tokens
        line = (
            f"{self.task}: {len(self.data)} pairs, {cut:.1%} of captions cut at {limit} tokens, on {self.device} in "
            f"{self.config.precision}; {self.trained}"
        )
        return line, self.info()

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint's `model.safetensors` holds."""
        return blip2_parts.saved_state(self.model, self.info())

    def state(self) -> dict:
        """What a checkpoint holds beside weights and optimizer."""
        return {"progress": {"seen": dict(self.all_seen())}}

    def load(self, folder: Path, training: dict) -> None:
        """Continues from a checkpoint of this run."""
        tensors, _ = distributed.tensors_from_main(lambda: load_weights(folder))
        blip2_parts.load_saved(self.model, tensors, self.info(), str(folder))
        super().load(folder, training)
