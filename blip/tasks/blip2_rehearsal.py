"""`--dry_run` of both stages of BLIP-2: everything is built, one step runs on random data, nothing is saved."""

import tempfile
from pathlib import Path

import torch
from rich.console import Console

from blip import distributed
from blip.config import annotation_files
from blip.errors import BlipError, printable
from blip.hardware.precision import products
from blip.tasks import blip2_start
from blip.tasks.blip2_config import Blip2Config
from blip.tasks.blip2_run import Blip2Run
from blip.tasks.item_pictures import of_several, pictures_of_run
from blip.tasks.pretrain_data import NoData, open_training
from blip.tasks.rehearsal import parameters_of, two_steps, without_data
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


def _data(config: Blip2Config) -> str:
    """A line on the training files: the number of pairs, or what is wrong with them."""
    if not config.train_file:
        return "data: train_file is empty; --set 'train_file=[captions.json]'"
    try:
        with tempfile.TemporaryDirectory() as folder:
            return f"data: {len(open_training(config, annotation_files(config), Path(folder)))} pairs"
    except (BlipError, OSError) as error:
        return f"data: {error}"
