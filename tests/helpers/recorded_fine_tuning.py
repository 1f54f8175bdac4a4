"""Fine-tuning of all four tasks, recorded in each of two processes: what they do for test_finetune_distributed.py."""

import shutil
from pathlib import Path
from typing import Any

import torch

from blip import distributed
from blip.tasks import start
from blip.tasks.config import FineTuneConfig
from blip.tasks.finetune import FineTuning
from blip.train.loop import LoopOptions
from helpers.fine_tuning import CPU, TASKS, be_quick, train
from helpers.recorded_pretraining import CLIP, record
from helpers.running import join

STEPS = 2  # of the recorded run


def build(task: str, config: FineTuneConfig, output: Path) -> Any:
    """The task as a run of this configuration begins with it."""
    source = start.read_source(config)
    return TASKS[task][2](start.with_sizes_of(config, source), source, output, resume=None, device=CPU)


def process(
    rank: int,
    port: int,
    folder: Path,
    evaluated: dict[tuple[str, int], FineTuneConfig],
    trained: dict[str, FineTuneConfig],
    recorded: FineTuneConfig,
) -> None:
    """Evaluates; trains, and again from the middle as if it had been killed; records retrieval; writes RANK.pt."""
    join(rank, port)
    be_quick()
    found: dict = {"evaluate": {}}
    for (task, count), config in evaluated.items():
        made: FineTuning = build(task, config, folder / f"{task}-{count}-two")
        found["evaluate"][task, count] = made.scores("val")
    for task, config in trained.items():
        whole, killed = folder / f"{task}-whole", folder / f"{task}-killed"
        train(task, config, whole)
        distributed.barrier()
        if rank == 0:
            shutil.copytree(whole, killed, symlinks=True)
            shutil.rmtree(killed / "checkpoints" / "step-00000004")
        distributed.barrier()
        train(task, config.model_copy(update={"init_from": "", "tokenizer": ""}), killed, "auto")
    retrieval = build("retrieval", recorded, folder / "recorded")
    found["record"] = record(retrieval, LoopOptions(STEPS, 1, CLIP), ("itc", "itm"))
    distributed.stop()
    torch.save(found, folder / f"{rank}.pt")
