"""A run from its start, or from a checkpoint, to its end: what all tasks have in common."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from blip import distributed
from blip.checkpoints.format import TOKENIZER
from blip.config import ConfigError, RunConfig
from blip.hardware.precision import products, without_effect
from blip.train.background import Background
from blip.train.checkpoint import TRAINING, Checkpointer
from blip.train.folder import RunFolder
from blip.train.log import RunLog
from blip.train.loop import Loop, LoopOptions, Step
from blip.train.optim import build_optimizer
from blip.train.parallel import about_workers, measure_peak
from blip.train.parts import load_training, split
from blip.train.random_numbers import restore_random_state
from blip.train.schedule import Epochs, lr_at, scaled_lr
from blip.train.sharding import Sharded, about_one, whole
from blip.train.state import check_optimizer

LARGE = ("optimizer", "twin", "queue", "adapter")  # parts of a training state that nothing reads twice


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


def fit(task: Task, config: RunConfig, folder: RunFolder) -> bool:
    """Trains in a folder of `open_run`. False when a signal ended the run early."""
    device = next(task.model.parameters()).device
    with products(device, config.precision):
        return _fit(task, config, folder, device)


def _fit(task: Task, config: RunConfig, folder: RunFolder, device: torch.device) -> bool:
    output, checkpoint = folder.output, folder.checkpoint
    training = load_training(checkpoint) if checkpoint else {}
    start = training.get("step", 0)
    global_batch = config.batch_size * config.accumulation * distributed.world_size()
    lr = scaled_lr(config.lr, global_batch, config.lr_reference_batch)
    optimizer = build_optimizer(
        task.model,
        lr,
        config.weight_decay,
        decay_norms_and_biases=config.decay_norms_and_biases,
        layer_decay=config.layer_decay,
        betas=config.adam_betas,
        own=task.parallel.own if isinstance(task.parallel, Sharded) else None,
    )
    line, info = task.describe()
    if checkpoint:
        task.load(checkpoint, training)
        _load_optimizer(optimizer, training["optimizer"], checkpoint, task.parallel)
        for part in LARGE:
            training.pop(part, None)
    options = _loop_options(config, task, device)
    notes = folder.begin(config, start)
    log = _run_log(task, config, output, training)
    background = Background() if saves_in_background(config, device) else None
    loop = Loop(
        task.parallel,
        optimizer,
        _schedule(config, task, lr),
        options=options,
        log=log,
        save=_saving(task, optimizer, log, folder, config.keep_checkpoints, info=info, background=background),
        background=background,
        start_step=start,
    )
    log.message(
        f"{line}, global batch {global_batch}, {task.epochs.total_steps} steps, {task.epochs.steps:.4g} an epoch"
    )
    if checkpoint:
        _go_on(loop, training, f"continuing {checkpoint} after step {start}")
    about = (
        without_effect(config.precision, device),
        about_workers(getattr(config, "num_workers", 0)),
        about_one(config),
    )
    for note in filter(None, [*notes, *about]):
        log.message(note, style="yellow")
    try:
        finished = loop.run(
            task.batches(start),
            task.step,
            _and_note(task, folder),
            at_step_end=lambda step: task.at_step_end(step, log),
        )
    finally:
        log.close()
    if finished:
        log.message(f"done: {output / 'checkpoints' / 'latest'}")
    return finished


def _run_log(task: Task, config: RunConfig, output: Path, training: dict) -> RunLog:
    return RunLog(
        output,
        training.get("step", 0),
        task.epochs.total_steps,
        epochs=task.epochs,
        pending=tuple(training.get("loop", {}).get("pending", ())),
        scores=getattr(task, "main_scores", ()),
        tensorboard=config.tensorboard,
        report=config.report,
    )


def _go_on(loop: Loop, training: dict, message: str) -> None:
    """Random numbers and the state of the loop, from a checkpoint."""
    loop.log.message(message)
    if not restore_random_state(training["random"]):
        loop.log.message(
            "another number of processes wrote it: random numbers and the order of samples change from here on"
        )
    loop.load(training["loop"])


def _and_note(task: Task, folder: RunFolder) -> Callable[[int], None]:
    """`after_update` of the task, which shows that the run has gone on."""

    def after_update(step: int) -> None:
        task.after_update(step)
        folder.went_on()

    return after_update


def saves_in_background(config: RunConfig, device: torch.device) -> bool:
    """Whether checkpoints are written while the training goes on; on a CPU, which would write and train, if asked."""
    return config.save_async if config.save_async is not None else device.type == "cuda"


def _saving(
    task: Task,
    optimizer: torch.optim.Optimizer,
    log: RunLog,
    folder: RunFolder,
    keep: int,
    *,
    info: dict,
    background: Background | None,
) -> Callable[[int, dict], None]:
    """What writes a checkpoint of a step, with the state of the loop."""
    checkpoints = Checkpointer(
        folder.output,
        keep,
        info,
        tokenizer_file=folder.output / TOKENIZER,
        inputs=folder.inputs,
        background=background,
        tell=lambda text: log.message(text, style="yellow"),
    )

    def save(step: int, loop_state: dict) -> None:
        own = dict(loop_state)
        random = own.pop("random")
        moments = optimizer.state_dict()
        parts = None
        if isinstance(task.parallel, Sharded):
            moments = task.parallel.divided_state(moments, optimizer)
        state = {**task.state(), "optimizer": moments, "loop": own}
        if isinstance(task.parallel, Sharded) and step < task.epochs.total_steps:
            state, parts = split(state)  # each process writes what it has
        checkpoints.save(step, whole(task.weights()), whole(state), random=random, parts=parts)

    return save


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict, folder: Path, parallel: nn.Module) -> None:
    """Restores the moments; every option, such as weight decay, is that of the current configuration."""
    counts = [len(group["params"]) for group in optimizer.param_groups]
    if [len(group.get("params") or ()) for group in state["param_groups"]] != counts:
        raise ConfigError(
            f"{folder} was trained with other groups of parameters: leave layer_decay, decay_norms_and_biases, freeze "
            "and lora as they were"
        )
    if isinstance(parallel, Sharded):
        state = parallel.part_of_state(state, optimizer)
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
        epochs=task.epochs,
    )
