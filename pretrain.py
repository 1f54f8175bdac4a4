"""Pre-trains BLIP on image-caption files.

    python pretrain.py --config configs/pretrain_demo.yaml --output_dir runs/demo
    torchrun --nproc_per_node=8 pretrain.py --config configs/pretrain.yaml --output_dir runs/base

Read on: the batch is made in blip/data/pairs.py, the losses in blip/models/pretrain.py, the loop runs in blip/train/engine.py.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from blip import build, distributed, flops, losses, momentum
from blip.dry_run import run_once
from blip.config import ConfigError, PretrainConfig, dump_config, load_config
from blip.data.loader import Batch, EpochOrder, EvalLoader, eval_loader, make_loader, steps_per_epoch
from blip.data.pairs import EvalPairs, PairDataset, Pairs, read_pairs
from blip.data.skipped import SkipLog, TooManySkipped
from blip.data.transforms import UnreadableImage, eval_transform, train_transform
from blip.evaluate import evaluate_pretraining
from blip.models.pretrain import TEMPERATURE_RANGE, Specials
from blip.tokenizer import Tokenizer, load_tokenizer
from blip.train.checkpoint import Checkpointer, complete_checkpoints, find_checkpoint, load_training, restore_random_state
from blip.train.engine import Loop, LoopOptions, NonFiniteError, Step
from blip.train.log import METRICS, RunLog
from blip.train.optim import build_optimizer, lr_at, scaled_lr
from blip.train.parallel import (
    OptionError,
    autocast,
    checkpoint_activations,
    compile_blocks,
    data_parallel,
    measure_peak,
)
from blip.weights import TOKENIZER, CheckpointError, load_strict, load_weights, unique_state

USER_ERRORS = (
    ConfigError,
    CheckpointError,
    OptionError,
    NonFiniteError,
    TooManySkipped,
    UnreadableImage,
    ValueError,
    FileNotFoundError,
)
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # text lengths, in tokens, that compiled code meets


class Pretraining:
    """The parts of a run, and what the loop calls: `step`, `after_update`, `at_step_end`."""

    def __init__(self, config: PretrainConfig, output: Path, resume: Path | None, device: torch.device):
        self.config, self.output, self.device = config, output, device
        world = distributed.world_size()
        self.pairs = read_pairs(build.annotation_files(config), config.image_root)
        self.tokenizer = choose_tokenizer(config, self.pairs, output, resume)
        self.order = EpochOrder(len(self.pairs), config.seed, distributed.rank(), world, self.pairs.record_weights())
        self.batches_per_epoch = steps_per_epoch(self.order, config.batch_size)
        self.total_steps = max(1, config.epochs * self.batches_per_epoch // config.accumulation)
        if config.max_steps:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.val = build_validation(config, self.tokenizer)
        self.skipped = SkipLog(output / "skipped.jsonl", len(self.pairs), config.max_skipped_fraction, world)

        torch.manual_seed(config.seed)  # equal starting weights on every process
        specials = Specials(self.tokenizer.pad_id, self.tokenizer.enc_id, self.tokenizer.dec_id)
        parts = build.build_pretrain(config, self.tokenizer.size, specials, fresh=resume is None)
        self.model, self.twin, self.queue = (part.to(device) for part in parts)
        torch.manual_seed(config.seed + 1 + distributed.rank())  # dropout and negatives differ between processes
        blocks = build.blocks(self.model)
        checkpoint_activations(blocks, config.activation_checkpointing, device, config.precision)
        if config.compile:
            compile_blocks(blocks, config.activation_checkpointing)
        self.parallel = data_parallel(self.model, device)
        self.pending: list[tuple[torch.Tensor, ...]] = []  # momentum features and ids since the last update
        self.itm_mean: torch.Tensor | None = None  # running mean of the ITM loss
        self.warned = False

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Training batches for ever, from the one that optimizer step `start_step` begins with."""
        config = self.config
        transform = train_transform(config.image_size, config.crop_scale, config.randaugment, config.horizontal_flip)
        dataset = PairDataset(
            self.pairs,
            self.order,
            self.tokenizer,
            transform,
            config.max_text_tokens,
            config.seed,
            text_cleaning=config.text_cleaning,
            max_skipped_fraction=config.max_skipped_fraction,
        )
        return make_loader(
            dataset,
            self.order,
            config.batch_size,
            start=divmod(start_step * config.accumulation, self.batches_per_epoch),
            num_workers=config.num_workers,
            seed=config.seed,
            pad_id=self.tokenizer.pad_id,
            pad_to=BUCKETS if config.compile else (),
            pin_memory=self.device.type == "cuda",
        )

    def step(self, batch: Batch, step: int) -> Step:
        """A batch to its losses. Changes nothing; what the update needs later is kept in `pending`."""
        config = self.config
        self.skipped.add(batch.skipped)
        batch = batch.to(self.device, non_blocking=True)
        packed = not config.compile  # compiled code wants few shapes
        ramp = config.alpha_ramp_epochs * self.batches_per_epoch / config.accumulation
        alpha = losses.alpha_ramp(step, round(ramp), config.alpha)

        features = self.twin(batch.images, batch.ids, batch.lengths, packed)  # two of (B, E)
        candidates = momentum.candidates(*features, batch.caption_ids, batch.image_ids, self.queue, config.equal_captions)
        out = self.parallel(batch.images, batch.ids, batch.lengths, candidates, alpha, packed=packed)
        self.pending.append((*features, batch.caption_ids, batch.image_ids))

        recent = out.itm.detach()
        self.itm_mean = recent if self.itm_mean is None else self.itm_mean.lerp(recent, 0.02)
        matched, unmatched = out.match_logits.argmax(dim=1).split([len(batch), 2 * len(batch)])
        logs = {
            "itc": out.itc,
            "itm": out.itm,
            "lm": out.lm,
            "itm_matched": (matched == 1).float().mean(),
            "itm_unmatched": (unmatched == 0).float().mean(),
            "temperature": self.model.temperature,
            "alpha": alpha,
        }
        cost = flops.pretrain_step(
            self.model.image_encoder.config, self.model.text_encoder.config, batch.lengths.tolist(),
            batch.ids.shape[1], config.embed_dim, config.queue_size, flops.Savings(packed=packed),
        )  # fmt: skip
        return Step(out.itc + out.itm + out.lm, logs, len(batch), cost.total, lambda: self._name(batch))

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """What follows the optimizer, in this order: clamp the temperature, move the twin, push the queue."""
        self.model.temperature.clamp_(*TEMPERATURE_RANGE)
        momentum.update_twin(*self.twin.pairs_with(self.model), self.config.momentum)
        self.queue.push(*(torch.cat(parts) for parts in zip(*self.pending, strict=True)))
        self.pending.clear()

    def at_step_end(self, step: int) -> dict | None:
        """An evaluation after each `eval_every_epochs` epochs and at the end."""
        done, before = (n * self.config.accumulation // self.batches_per_epoch for n in (step, step - 1))
        due = done > before and done % self.config.eval_every_epochs == 0
        if self.val is None or not (due or step == self.total_steps):
            return None
        with autocast(self.device, self.config.precision):
            metrics = evaluate_pretraining(self.model, self.val, self.device)
        return {"epoch": done, **metrics}

    def plateau(self, step: int) -> str:
        """Advice, once, when matching has learned nothing long after the warm-up; else an empty text."""
        late = step >= min(self.config.warmup_steps, self.total_steps // 2) + 500
        if self.warned or not late or self.itm_mean is None or abs(float(self.itm_mean) - losses.ITM_NO_SKILL) > 0.02:
            return ""
        self.warned = True
        return (
            f"ITM is at {float(self.itm_mean):.3f}; a model without skill stands at {losses.ITM_NO_SKILL:.4f}. What helps: "
            "start from released weights (init_from) or from ViT and BERT weights (vision_init, text_init), a larger "
            "global batch (batch_size, accumulation, processes), a lower lr, or more epochs. Check that captions say what images show: blip check-data."
        )

    def state(self) -> dict:
        """What a checkpoint holds beside weights and optimizer."""
        return {"twin": unique_state(self.twin), "queue": self.queue.state_dict()}

    def load(self, folder: Path, training: dict) -> None:
        """Continues from a checkpoint of this run."""
        load_strict(self.model, load_weights(folder)[0], str(folder))
        load_strict(self.twin, training["twin"], f"{folder} (momentum twin)")
        load_strict(self.queue, training["queue"], f"{folder} (queue)")

    def truncated(self, sample: int = 2000) -> float:
        """Share of captions, of the first `sample` records, that are cut at `max_text_tokens`."""
        captions = [text for i in range(min(sample, len(self.pairs))) for text in self.pairs.captions(i)]
        return sum(n > self.config.max_text_tokens for n in self.tokenizer.count(captions)) / len(captions)

    def _name(self, batch: Batch) -> str:
        return ", ".join(f"{self.pairs.image_path(i)} ({self.pairs.source(i)} record {i})" for i in batch.indices[:16])


def choose_tokenizer(config: PretrainConfig, pairs: Pairs, output: Path, resume: Path | None) -> Tokenizer:
    """The run's own tokenizer when there is one, else the configured one, saved with the run."""
    if resume is not None:
        return load_tokenizer(str(resume / TOKENIZER))
    saved = output / TOKENIZER
    # a run that was stopped before its first checkpoint keeps its tokenizer: training one is not reproducible
    if distributed.is_main() and not saved.exists():
        if config.tokenizer == "train":
            captions = itertools.chain.from_iterable(pairs.captions(i) for i in range(len(pairs)))
            tokenizer = Tokenizer.train(captions, config.vocab_size)
        else:
            tokenizer = load_tokenizer(config.tokenizer)
        tokenizer.save(saved)
    distributed.barrier()
    return load_tokenizer(str(saved))


def build_validation(config: PretrainConfig, tokenizer: Tokenizer) -> EvalLoader | None:
    """This process's part of the validation files, or None where there are none."""
    if not config.val_file:
        return None
    pairs = read_pairs(list(config.val_file), config.image_root)
    dataset = EvalPairs(
        pairs, tokenizer, eval_transform(config.image_size), config.max_text_tokens, text_cleaning=config.text_cleaning
    )
    return eval_loader(
        dataset, config.batch_size, distributed.rank(), distributed.world_size(), config.num_workers, tokenizer.pad_id
    )


def run(config: PretrainConfig, output: Path, resume: str, device: torch.device) -> None:
    """Trains, from the start or from a checkpoint, and leaves the result in `output`."""
    folder = find_checkpoint(resume, output) if resume else None
    if not resume and (complete_checkpoints(output) or (output / METRICS).exists()):
        raise ConfigError(f"{output} holds a run already: continue it with --resume auto, or choose another --output_dir")
    output.mkdir(parents=True, exist_ok=True)
    changed = changed_keys(config, output / "config.yaml") if folder else []
    distributed.barrier()
    if distributed.is_main():
        dump_config(config, output / "config.yaml")

    task = Pretraining(config, output, folder, device)
    training = load_training(folder) if folder else {}
    start = training.get("step", 0)
    global_batch = config.batch_size * config.accumulation * distributed.world_size()
    lr = scaled_lr(config.lr, global_batch, config.lr_reference_batch)
    optimizer = build_optimizer(task.model, lr, config.weight_decay, config.decay_norms_and_biases)
    per_epoch = task.batches_per_epoch / config.accumulation
    log = RunLog(output, start, task.total_steps, config.tensorboard)
    checkpoints = Checkpointer(output, config.keep_checkpoints, build.describe(config, task.model), output / TOKENIZER)
    loop = Loop(
        task.parallel,
        optimizer,
        lambda step: lr_at(
            step, task.total_steps, lr, config.min_lr, config.warmup_steps, config.schedule, config.lr_decay, per_epoch
        ),
        LoopOptions(
            task.total_steps,
            config.accumulation,
            config.clip_norm,
            config.precision,
            config.log_every_steps,
            config.save_every_steps or round(per_epoch),
            config.save_every_minutes,
            measure_peak(device, config.precision),
        ),
        log,
        lambda step, state: checkpoints.save(
            step, unique_state(task.model), {**task.state(), "optimizer": optimizer.state_dict(), "loop": state}
        ),
        start,
    )
    if folder:
        task.load(folder, training)
        optimizer.load_state_dict(training["optimizer"])
        loop.load(training["loop"])
        same = restore_random_state(training["random"])
        log.say(f"continuing {folder} after step {start}")
        if not same:
            log.say("another number of processes wrote it: random numbers and the order of samples differ from here on")
        if changed:
            log.say(f"changed since this run began: {', '.join(changed)}", style="yellow")
    parameters = sum(p.numel() for p in task.model.parameters()) / 1e6
    log.say(
        f"{len(task.pairs)} pairs, {per_epoch:.4g} steps an epoch, {task.total_steps} steps, global batch {global_batch}, "
        f"{parameters:.1f} M parameters on {device}, {config.precision}; ITM without skill is {losses.ITM_NO_SKILL:.4f}"
    )
    log.say(f"{task.truncated():.1%} of captions are longer than max_text_tokens {config.max_text_tokens} and are cut")

    def at_step_end(step: int) -> dict | None:
        if step % config.log_every_steps == 0 and (advice := task.plateau(step)):
            log.say(advice, style="yellow")
        return task.at_step_end(step)

    try:
        finished = loop.run(task.batches(start), task.step, task.after_update, at_step_end)
    finally:
        log.close()
    if finished:
        log.say(f"done: {output / 'checkpoints' / 'latest'}")


def changed_keys(config: PretrainConfig, saved: Path) -> list[str]:
    """Options that differ from those that the run was started with."""
    if not saved.is_file():
        return []
    before = load_config(saved)
    return [f"{k} {getattr(before, k)} -> {v}" for k, v in config if getattr(before, k) != v]


def main(
    config: Annotated[Path, typer.Option(help="a file of configs/, or your own")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="where checkpoints and logs go")] = Path("runs/pretrain"),
    resume: Annotated[str, typer.Option(help="auto, or a checkpoint folder: continue this run")] = "",
    init_from: Annotated[str, typer.Option("--init_from", help="checkpoint whose weights a new run starts from")] = "",
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, overrides the file")] = None,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="build everything, run one step on made-up data, print sizes")] = False,
) -> None:
    """Pre-trains BLIP on image-caption files."""
    try:
        if resume and init_from:
            raise ConfigError("--resume continues a run, --init_from starts a new one: give one of them")
        overrides = [*(set_ or []), *([f"init_from={init_from}"] if init_from else [])]
        settings = load_config(config, overrides)
        device = distributed.start(settings.device)
        if dry_run:
            run_once(settings, device)
        else:
            run(settings, output_dir, resume, device)
    except USER_ERRORS as error:
        if os.environ.get("BLIP_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        distributed.stop()


if __name__ == "__main__":
    typer.run(main)
