"""Pre-trains BLIP on image-caption files.

    python pretrain.py --config configs/pretrain_demo.yaml --output_dir runs/demo
    torchrun --nproc_per_node=8 pretrain.py --config configs/pretrain.yaml --output_dir runs/base

Samples are made in blip/data/pairs.py (of shards: blip/data/stream.py), the losses in blip/models/pretrain.py; the loop
is in blip/train/loop.py. The docstring of pretrain.py lists the whole path of a batch.
"""

from pathlib import Path
from typing import Any

import torch

from blip import distributed
from blip.checkpoints import initialize
from blip.checkpoints.format import load_strict, load_weights, unique_state
from blip.config import ConfigError, PretrainConfig
from blip.data.batches import Batch
from blip.evaluation.pretraining import evaluate_pretraining
from blip.models import losses
from blip.models.decoding import Decoding
from blip.models.generation import generate
from blip.network import flops
from blip.network.med import DecoderStep
from blip.network.pictures import Pictures, encode
from blip.tasks import pins, start
from blip.tasks.contrast import MomentumContrast
from blip.tasks.data_options import with_commits, with_pipeline_of_run
from blip.tasks.dry_run import plan_for, run_once
from blip.tasks.image_tokens import dropped_share, tokens_seen
from blip.tasks.pair_run import PairRun
from blip.train.folder import open_run
from blip.train.launch import launch
from blip.train.log import RunLog
from blip.train.loop import Step
from blip.train.run import fit
from blip.train.sharding import gathered, in_parallel, is_sharded

STEPS_TO_LEARN = 500  # steps after the warm-up within which matching should have begun to learn
PLATEAU = (
    "ITM is at {mean:.3f}, and a model without skill is at {none:.4f}. What helps: start from released weights "
    "(init_from) or from ViT and BERT weights (vision_init, text_init), a larger global batch, a lower lr, more "
    "epochs; and captions that describe their images (blip check-data)."
)


class Pretraining(PairRun):
    """A run of pre-training: its parts, and the methods that the loop calls; see `blip.train.run.Task`."""

    main_scores = ("val_i2t_r1", "val_t2i_r1", "val_itm_matched", "val_itm_unmatched")

    def __init__(self, config: PretrainConfig, output: Path, resume: Path | None, *, device: torch.device):
        super().__init__(config, output, resume, device=device)
        torch.manual_seed(config.seed)  # equal starting weights on every process
        self.model, twin, queue = start.build_pretrain(
            config,
            self.tokenizer.size,
            self.tokenizer.specials,
            device=torch.device("cpu") if is_sharded(config) else device,
            fresh=resume is None,
        )
        equal = config.equal_captions == "positives"
        self.contrast = MomentumContrast(
            self.model, twin, queue, config=config, equal_captions=equal, equal_images=equal
        )
        torch.manual_seed(config.seed + 1 + distributed.rank())  # dropout and negatives differ between processes
        start.freeze_parts(self.model, config)
        self.contrast.shard(device)
        self.parallel = in_parallel(self.model, config, device, twin=twin)
        self.itm_mean: torch.Tensor | None = None  # running mean of the ITM loss
        self.warned = False
        self.pending: list[torch.Tensor] = []  # ITM losses since the last update

    def step(self, batch: Batch, step: int) -> Step:
        """A batch to its losses. Changes no weights; `contrast` keeps what the update needs."""
        config = self.config
        batch = batch.to(self.device, non_blocking=True)
        alpha = self.contrast.alpha(step, self.epochs.steps)
        self.model.image_encoder.patch_dropout.share = dropped_share(config, step, self.epochs)
        candidates = self.contrast.candidates(batch)
        out = self.parallel(batch.images, batch.ids, batch.lengths, candidates, alpha)

        self.pending.append(out.itm.detach())
        self.pending_sources += batch.sources
        logs = {"itc": out.itc, "itm": out.itm, "lm": out.lm, **self.contrast.logs(out.match_logits, alpha)}
        seen = tokens_seen(self.model.image_encoder, self.contrast.twin.image_encoder, batch.images)
        if config.image_sizes or config.patch_dropout:
            logs["image_tokens"] = float(seen.kept)
        cost = flops.pretrain_step(
            self.model.image_encoder.config, self.model.text_encoder.config, batch.lengths.tolist(),
            longest=batch.ids.shape[1], embed_dim=config.embed_dim, queue=config.queue_size,
            seen=seen,
        )  # fmt: skip
        loss = out.itc + out.itm + out.lm
        return Step(loss, logs, len(batch), flops=cost.total, describe=lambda: self.name(batch))

    def after_update(self, step: int) -> None:
        """Follows each optimizer step: the temperature, the twin and the queue; what is known of the step's pairs."""
        self.contrast.after_update()
        for recent in self.pending:
            self.itm_mean = recent if self.itm_mean is None else self.itm_mean.lerp(recent, 0.02)
        self.pending.clear()
        super().after_update(step)

    def at_step_end(self, step: int, log: RunLog) -> dict | None:
        """As in `PairRun`; advice when matching learns nothing."""
        if step % self.config.log_every_steps == 0:
            self.warn_of_plateau(step, log)
        return super().at_step_end(step, log)

    def evaluate(self, batches: Any) -> tuple[dict[str, Any], dict[str, list]]:
        found = evaluate_pretraining(self.model, batches, self.device, val_loss=self.config.val_loss)
        return found.metrics, found.similarities

    def captions(self, images: torch.Tensor | Pictures) -> list[str]:
        decoder = self.model.text_decoder
        step = DecoderStep(decoder, decoder.image_keys(encode(self.model.image_encoder, images)))
        first = torch.full((len(images), 1), self.tokenizer.dec_id, device=self.device)
        decoding = Decoding(max_new_tokens=self.config.max_text_tokens - 1)
        ids = generate(step, first, decoding, end_id=self.tokenizer.sep_id, pad_id=self.tokenizer.pad_id).ids
        return [self.tokenizer.decode(text) for text in ids.tolist()]

    def warn_of_plateau(self, step: int, log: RunLog) -> None:
        """Logs advice, once, when the ITM loss is still that of a model without skill."""
        total = self.epochs.total_steps
        warmup = min(self.config.warmup_steps, total // 2)
        late = step >= warmup + min(STEPS_TO_LEARN, (total - warmup) // 2)
        if self.warned or not late or self.itm_mean is None:
            return
        mean = float(self.itm_mean)
        if abs(mean - losses.ITM_NO_SKILL) < 0.02:
            self.warned = True
            log.message(PLATEAU.format(mean=mean, none=losses.ITM_NO_SKILL), style="yellow")

    def describe(self) -> tuple[str, dict]:
        """A line about data and model for the log, and the content of `model.json`."""
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        cut, limit = self.truncated(), self.config.max_text_tokens
        line = (
            f"{len(self.data)} pairs, {cut:.1%} of captions cut at {limit} tokens, {parameters:.1f} M parameters on "
            f"{self.device} in {self.config.precision}, ITM without skill is {losses.ITM_NO_SKILL:.4f}"
        )
        return line, start.describe_pretraining(self.config, self.model)

    def weights(self) -> dict[str, torch.Tensor]:
        """What a checkpoint's `model.safetensors` holds."""
        return unique_state(self.model)

    def state(self) -> dict:
        """What a checkpoint holds beside weights and optimizer."""
        progress: dict = {} if self.itm_mean is None else {"itm_mean": self.itm_mean}
        progress["seen"] = dict(self.all_seen())
        return {**self.contrast.state(), "progress": progress}

    def load(self, folder: Path, training: dict) -> None:
        """Continues from a checkpoint of this run."""
        tensors, info = distributed.tensors_from_main(lambda: load_weights(folder))
        heads = self.model.image_encoder.config.heads, self.model.text_encoder.config.heads
        initialize.check_heads(info, *heads, path=str(folder))
        with gathered(self.parallel, self.model, changed=True) as model:
            load_strict(model, tensors, str(folder))
        self.contrast.load(folder, training)
        if "itm_mean" in training["progress"]:
            self.itm_mean = training["progress"]["itm_mean"].to(self.device)
        super().load(folder, training)


def run(config: PretrainConfig, output: Path, resume: str, *, device: torch.device, **options: bool) -> bool:
    """Trains, from the start or from a checkpoint, and writes the result to `output`. False when a signal ended it.

    `options`: `allow_changed` and `overwrite`, as in `open_run`.
    """
    if not config.train_file:
        raise ConfigError("train_file is empty; --set 'train_file=[captions.json]'")
    config = with_commits(config)
    with open_run(config, output, resume, **options) as folder:
        config = with_pipeline_of_run(pins.pin(config, folder.checkpoint), folder.checkpoint)
        task = Pretraining(config, output, folder.checkpoint, device=device)
        return fit(task, config, folder)


def main(help: str | None = None) -> None:
    """The command line of the task; `help` is shown with `--help`."""
    launch(run, PretrainConfig, default_output="runs/pretrain", dry_run=run_once, plan=plan_for, help=help or __doc__)


if __name__ == "__main__":
    main()
