"""A fine-tuning run: training with an evaluation of the test files at the end, or an evaluation alone."""

import os
from pathlib import Path
from typing import Any

import torch

from blip import distributed
from blip.checkpoints import initialize, places
from blip.checkpoints.format import TOKENIZER, CheckpointError
from blip.config import ConfigError, dump_config
from blip.console.bars import LastingConsole
from blip.errors import printable
from blip.models.factory import spec_of
from blip.tasks import pins, start
from blip.tasks.blip2_kind import Kinds
from blip.tasks.config import FineTuneConfig
from blip.tasks.data_options import with_commits, with_pipeline_of_run
from blip.tasks.finetune import FineTuning
from blip.train.checkpoint import newest_checkpoint
from blip.train.evaluated import EVALUATIONS, evaluation_name, open_evaluation, weights_of
from blip.train.folder import BEST, CONFIG, open_run
from blip.train.record import Record, own
from blip.train.report import Reporter
from blip.train.run import fit


def train(
    kinds: type[FineTuning] | Kinds,
    config: FineTuneConfig,
    output: Path,
    *,
    resume: str,
    device: torch.device,
    **options: bool,
) -> bool:
    """Trains, from the start or from a checkpoint; then evaluates `test_file` with the best weights.

    `options`: `allow_changed` and `overwrite`, as in `open_run`. False when a signal ended the run.
    """
    if not config.train_file:
        raise ConfigError("train_file is empty; --set 'train_file=[FILE]'")
    config = with_commits(config)
    with open_run(config, output, resume, **options) as folder:
        begun = folder.checkpoint
        config = start.as_begun(config, begun) if begun else config
        config = with_pipeline_of_run(pins.pin(config, begun), begun)
        make = kinds.of(config, begun)
        source = make.starts.read_source(config, begun)
        config = make.starts.with_sizes_of(config, source)
        task = make(config, source, output, resume=begun, device=device)
        if task.warning and begun is None:
            warn(task.warning)
        finished = fit(task, config, folder)
        if finished and task.files("test"):
            best = output / BEST
            weights = best if best.is_dir() else newest_checkpoint(output) or best
            task.take(weights)
            report(task, {"weights": str(weights), **task.scores("test")}, "test.json")
            if config.report and distributed.is_main():
                Reporter(output, warn).end()
    return finished


def evaluate(
    kinds: type[FineTuning] | Kinds,
    config: FineTuneConfig,
    output: Path,
    *,
    device: torch.device,
    overwrite: bool = False,
    name: str = "",
) -> Path:
    """Evaluates `val_file` and `test_file` without training -> the folder of the results, `output`/evaluation/NAME.

    The weights are those of `init_from`, else the best or newest of the run in `output`, whose own files stay as they
    are. The folder holds scores, answers and the configuration.

    Args:
        name: of the folder; after weights and data unless given.
        overwrite: the folder may hold an evaluation with other settings, or files that no evaluation wrote.

    Raises:
        CheckpointError: there are no weights, or they are of a task that cannot be evaluated here.
        ConfigError: there are no files to evaluate.
        OutputError: the folder has a file that no evaluation wrote, and not `overwrite`.
    """
    weights = config.init_from or str(weights_of(output) or "")
    if not weights:
        raise CheckpointError(f"nothing to evaluate: {output} holds no checkpoint; give --init_from")
    if os.path.basename(name) != name or name in (".", ".."):
        raise ConfigError(f"--name {name}: the name of a folder, without separators")
    config = with_commits(config)
    weights = distributed.from_main(lambda: places.pinned(weights))
    config = config.model_copy(update={"init_from": weights})
    folder = output / EVALUATIONS / (name or evaluation_name(config, weights, output))
    with open_evaluation(folder, config, overwrite=overwrite):
        _evaluate(kinds, config, folder, device)
    return folder


def _evaluate(kinds: type[FineTuning] | Kinds, config: FineTuneConfig, folder: Path, device: torch.device) -> None:
    weights, given = config.init_from, config
    trained_on = config.train_file
    train_file = config.train_file if config.evaluates_with_training_files() else []
    if not (config.val_file or config.test_file or train_file):
        raise ConfigError("nothing to evaluate on: --set 'val_file=[FILE]', or test_file")
    config = config.model_copy(update={"train_file": train_file, "lora": None, "freeze": [], "parallel": "ddp"})
    make = kinds.of(config, None)
    source = make.starts.read_source(config)
    if source is not None:
        make.starts.check_task(make.task, source)
    place = places.local(weights)
    own_tokenizer = place if (place / TOKENIZER).is_file() else None
    config = make.starts.with_sizes_of(config, source)
    task = make(config, source, folder, resume=own_tokenizer, device=device, training=False)
    task.compare_with(trained_on)
    if source is not None and (other := start.other_settings(task.info(), source)):
        warn(f"{weights} was made with {'; '.join(other)}: scores depend on it")
    if unknown := [name for name in task.missing if name not in spec_of(task.task).may_lack]:
        parts = ", ".join(initialize.parts_of(unknown))
        raise CheckpointError(
            f"{weights} cannot be evaluated: it is a checkpoint of {source.info['task'] if source else ''}, and {parts}"
            f" would be random; fine-tune it for {task.task} first"
        )
    scores: dict[str, Any] = {"weights": weights}
    for split in ("val", "test"):
        if task.files(split):
            scores |= task.scores(split)
    distributed.from_main(lambda: _keep_config(given, folder))
    report(task, scores, "evaluation.json")


def _keep_config(config: FineTuneConfig, folder: Path) -> None:
    path, record = own(folder, CONFIG), Record(folder)
    record.unsign(CONFIG)
    dump_config(config, path)
    record.sign(CONFIG)


def warn(text: str) -> None:
    """Prints a warning from the main process."""
    if distributed.is_main():
        LastingConsole(stderr=True).print(
            printable(text), style="yellow", markup=False, highlight=False, soft_wrap=True
        )


def report(task: FineTuning, scores: dict[str, Any], name: str) -> None:
    """Writes scores to a file of the run and prints them."""
    task.write(name, scores)
    if distributed.is_main():
        console = LastingConsole()
        for key, value in scores.items():
            shown = f"{value:.4f}" if isinstance(value, float) else value
            if not isinstance(value, list | dict):
                console.print(printable(f"{key}: {shown}"), markup=False, highlight=False, soft_wrap=True)
        console.print(printable(task.output / name), markup=False, highlight=False, soft_wrap=True)
