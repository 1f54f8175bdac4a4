"""A run from its start, or from a checkpoint, to its end: what all tasks have in common."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from blip import distributed
from blip.checkpoints.format import TOKENIZER
from blip.config import ConfigError, RunConfig, dump_config, load_config
from blip.train.checkpoint import (
    TRAINING,
    Checkpointer,
    complete_checkpoints,
    find_checkpoint,
    load_training,
    restore_random_state,
)
from blip.train.log import METRICS, RunLog
from blip.train.loop import Loop, LoopOptions, Step
from blip.train.optim import build_optimizer
from blip.train.parallel import OptionError, measure_peak
from blip.train.schedule import Epochs, lr_at, scaled_lr
from blip.train.state import check_optimizer


class Task(Protocol):
    """A task as `fit` needs it: a model, its data, and a training step."""

    epochs: Epochs

    @property
    def model(self) -> nn.Module:
        """The parts that are trained and saved."""

    @property
    def parallel(self) -> nn.Module:
        """The model, wrapped where there are several processes."""

    def batches(self, start_step: int) -> Iterator[Any]:
        """Batches without end, from the first one of optimizer step `start_step` (counted from 0)."""

    def step(self, batch: Any, step: int) -> Step:
        """The losses of a batch."""

    def after_update(self, step: int) -> None:
        """Follows each optimizer step."""

    def at_step_end(self, step: int, log: RunLog) -> dict[str, Any] | None:
        """An evaluation if one is due, else None."""

    def describe(self) -> tuple[str, dict]:
        """(a line for the log, the content of `model.json`)."""

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors, as a checkpoint holds them."""

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds beside weights and optimizer."""

    def load(self, folder: Path, training: dict) -> None:
        """Continues from what `state` gave."""


def prepare(config: RunConfig, output: Path, resume: str) -> tuple[Path | None, list[str]]:
    """Makes the output folder -> (the checkpoint to continue from, the options that changed since the run began).

    Raises:
        ConfigError: without `resume`, the folder holds a run.
        CheckpointError: `resume` names no checkpoint.
    """
    folder = find_checkpoint(resume, output) if resume else None
    if not resume and (complete_checkpoints(output) or (output / METRICS).exists()):
        raise ConfigError(f"{output} holds a run: continue it with --resume auto, or choose another --output_dir")
    changed = _changed_options(config, output / "config.yaml") if folder else []
    distributed.barrier()
    if distributed.is_main():
        output.mkdir(parents=True, exist_ok=True)
        dump_config(config, output / "config.yaml")
    distributed.barrier()
    return folder, changed


def fit(task: Task, config: RunConfig, output: Path, *, checkpoint: Path | None, changed: list[str]) -> bool:
    """Trains; `checkpoint` and `changed` as from `prepare`. False when a signal ended the run early."""
    training = load_training(checkpoint) if checkpoint else {}
    start = training.get("step", 0)
    log = RunLog(output, start, task.epochs.total_steps, tensorboard=config.tensorboard)
    global_batch = config.batch_size * config.accumulation * distributed.world_size()
    lr = scaled_lr(config.lr, global_batch, config.lr_reference_batch)
    optimizer = build_optimizer(
        task.model,
        lr,
        config.weight_decay,
        decay_norms_and_biases=config.decay_norms_and_biases,
        layer_decay=config.layer_decay,
    )
    line, info = task.describe()
    checkpoints = Checkpointer(output, config.keep_checkpoints, info, tokenizer_file=output / TOKENIZER)

    def save(step: int, loop_state: dict) -> None:
        state = {**task.state(), "optimizer": optimizer.state_dict(), "loop": loop_state}
        checkpoints.save(step, task.weights(), state)

    options = _loop_options(config, task, next(task.model.parameters()).device)
    schedule = _schedule(config, task, lr)
    loop = Loop(task.parallel, optimizer, schedule, options=options, log=log, save=save, start_step=start)
    log.message(
        f"{line}, global batch {global_batch}, {task.epochs.total_steps} steps, {task.epochs.steps:.4g} an epoch"
    )
    if checkpoint:
        task.load(checkpoint, training)
        _load_optimizer(optimizer, training["optimizer"], checkpoint)
        loop.load(training["loop"])
        log.message(f"continuing {checkpoint} after step {start}")
        if not restore_random_state(training["random"]):
            log.message(
                "another number of processes wrote it: random numbers and the order of samples change from here on"
            )
        if changed:
            log.message(f"changed since this run began: {', '.join(changed)}", style="yellow")
    try:
        finished = loop.run(
            task.batches(start), task.step, task.after_update, at_step_end=lambda step: task.at_step_end(step, log)
        )
    except torch.cuda.OutOfMemoryError as error:
        raise OptionError(
            "the GPU's memory is too small for this run: lower batch_size (and raise accumulation), or set "
            f"activation_checkpointing: torch; {error}"
        ) from error
    finally:
        log.close()
    if finished:
        log.message(f"done: {output / 'checkpoints' / 'latest'}")
    return finished


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict, folder: Path) -> None:
    """Restores the moments; every option, such as weight decay, is that of the current configuration."""
    counts = [len(group["params"]) for group in optimizer.param_groups]
    if [len(group.get("params") or ()) for group in state["param_groups"]] != counts:
        raise ConfigError(
            f"{folder} was trained with other groups of parameters: leave layer_decay, decay_norms_and_biases, freeze "
            "and lora as they were"
        )
    optimizer.load_state_dict(check_optimizer(state, optimizer, folder / TRAINING))


def _schedule(config: RunConfig, task: Task, lr: float) -> Callable[[int], float]:
    return lambda step: lr_at(
        step,
        task.epochs.total_steps,
        lr,
        min_lr=config.min_lr,
        warmup_steps=config.warmup_steps,
        schedule=config.schedule,
        decay=config.lr_decay,
        steps_per_epoch=task.epochs.steps,
    )


def _loop_options(config: RunConfig, task: Task, device: torch.device) -> LoopOptions:
    return LoopOptions(
        task.epochs.total_steps,
        config.accumulation,
        config.clip_norm,
        precision=config.precision,
        log_every=config.log_every_steps,
        save_every=config.save_every_steps or max(1, round(task.epochs.steps)),
        save_every_minutes=config.save_every_minutes,
        peak_flops=measure_peak(device, config.precision),
    )


def _changed_options(config: RunConfig, saved: Path) -> list[str]:
    if not saved.is_file():
        return []
    try:
        before = load_config(saved, type(config))
    except ConfigError as error:  # of another version, or damaged; nothing else depends on it
        return [f"cannot compare with {saved} ({error})"]
    return [f"{key} {getattr(before, key)} -> {value}" for key, value in config if getattr(before, key) != value]
