"""`--dry_run` of both stages of BLIP-2: everything is built, one step runs on random data, nothing is saved. Or without
running anything, for GPUs that are not here: `plan_for`, of the first stage.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from blip import distributed
from blip.checkpoints.places import is_remote
from blip.config import ConfigError, annotation_files
from blip.errors import BlipError, printable
from blip.hardware.as_on_gpu import META
from blip.hardware.precision import products
from blip.tasks import blip2_start
from blip.tasks.blip2_config import Blip2Config
from blip.tasks.blip2_run import Blip2Run
from blip.tasks.counted import Trained
from blip.tasks.estimate_report import report
from blip.tasks.item_pictures import of_several, pictures_of_run
from blip.tasks.pretrain_data import NoData, open_training
from blip.tasks.rehearsal import RANDOM, parameters_of, two_steps, without_data
from blip.train.parallel import memory_mb


def run_once(stages: tuple[type[Blip2Run], type[Blip2Run]], config: Blip2Config, device: torch.device) -> None:
    """Prints parameters and memory of each part, FLOPs and time of a step on this device, and the number of pairs.

    The frozen language model counts in the type that its weights have.

    Raises:
        BlipError: the configuration cannot be used, or `init_from` or the language model cannot be read.
    """
    console = Console(quiet=not distributed.is_main())
    source = blip2_start.read_source(config)
    config = blip2_start.with_sizes_of(config, source)
    make = stages[blip2_start.is_stage2(config, source)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty = without_data(config, folder)
        task = make(empty, source, folder, resume=None, device=device, data=NoData())
    task.pictures = pictures_of_run(config)
    with products(device, config.precision):
        loss, seconds, flops = two_steps(task)
    console.print(parameters_of(task))
    for line in (
        task.trained,
        f"a step of {config.batch_size} pairs{of_several(task.pictures)}, {config.max_text_tokens} tokens each, on "
        f"{device} in {config.precision}",
        f"loss: {loss:.3f}",
        f"compute: {flops / 1e9:.4g} GFLOP, {flops / config.batch_size / 1e9:.4g} a pair",
        f"time: {seconds:.2f} s, {config.batch_size / seconds:.1f} pairs a second",
        f"memory: {memory_mb(device):.0f} MB at most",
        _data(config),
    ):
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def plan_for(make: type[Blip2Run], config: Blip2Config, gpu: str, world: int) -> None:
    """Prints what a run of the first stage costs on `world` cards of a name; see `blip.tasks.estimate_report`.

    The sizes are those of `init_from`, or of the configuration where that is on another machine: nothing is downloaded.

    Raises:
        ConfigError: the run is of the second stage, whose language model would have to be loaded.
    """
    there = config.model_copy(update={"init_from": ""}) if is_remote(config.init_from) else config
    source = blip2_start.read_source(there)
    if blip2_start.is_stage2(config, source):
        raise ConfigError(
            "--gpu knows of BLIP-2 the first stage alone: docs/blip2.md has the memory of the second, and --dry_run "
            "measures it"
        )
    sized = blip2_start.with_sizes_of(there, source)
    empty = {"init_from": "", "vision_init": "", "text_init": "", "tokenizer": "train"}
    report(partial(trained_on_meta, make), sized.model_copy(update=empty), gpu, world)


def trained_on_meta(make: type[Blip2Run], config: Blip2Config) -> Trained:
    """The parts of a step of the first stage on the device `meta`, without content."""
    with tempfile.TemporaryDirectory() as name:
        plain = without_data(config.model_copy(update={"compile": False}), Path(name))
        task: Any = make(plain, None, Path(name), resume=None, device=META, data=NoData())
    task.pictures = pictures_of_run(config)
    batch = RANDOM[task.collate_fn](task)
    tensors = [x for x in vars(batch).values() if isinstance(x, Tensor)]
    return Trained(task.model, [], tensors, lambda: task.step(batch, 0).loss, lambda: task.after_update(1))


def _data(config: Blip2Config) -> str:
    """A line on the training files: the number of pairs, or what is wrong with them."""
    if not config.train_file:
        return "data: train_file is empty; --set 'train_file=[captions.json]'"
    try:
        with tempfile.TemporaryDirectory() as folder:
            return f"data: {len(open_training(config, annotation_files(config), Path(folder)))} pairs"
    except (BlipError, OSError) as error:
        return f"data: {error}"
