"""What each of two processes does for test_sharding.py: whole runs whose weights are divided, and others."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from blip import distributed
from blip.config import PretrainConfig, load_config
from blip.tasks import pretrain
from blip.tasks.config import FineTuneConfig
from helpers.fine_tuning import be_quick, train
from helpers.running import join

CPU = torch.device("cpu")
needs_sums = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"), reason="torch divides weights on a CPU since 2.8"
)
STEPS, HALF = 4, 2
OPTIONS = {
    "max_steps": STEPS,
    "batch_size": 4,
    "save_every_steps": HALF,
    "keep_checkpoints": 2,
    "accumulation": 2,
    "clip_norm": 0.5,
    "momentum": 0.9,
    "lr": 0.01,
    "drop_path": 0.1,
    "eval_every_epochs": 1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with options": {
        "activation_checkpointing": "torch",
        "layer_decay": 0.8,
        "decay_norms_and_biases": False,
        "freeze": "[image_encoder]",
    },
}


def configured(path: Path, parallel: str, **more: Any) -> PretrainConfig:
    options = {**OPTIONS, "parallel": parallel, **more}
    return load_config(path, PretrainConfig, [f"{key}={value}" for key, value in options.items()])


def process(rank: int, port: int, folder: Path, config: Path, tuned: dict[str, FineTuneConfig]) -> None:
    """Runs of every variant and of every task in both ways, and some that go on from the half of another."""
    join(rank, port)
    be_quick()
    # gradients that are zero but for rounding, such as those of keys' biases, would be divided by their own size
    setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=0.01))  # noqa: B010
    for name, options in VARIANTS.items():
        for parallel in ("ddp", "fsdp"):
            pretrain.run(configured(config, parallel, **options), folder / f"{name}-{parallel}", "", device=CPU)
    for before, after in (("fsdp", "fsdp"), ("fsdp", "ddp"), ("ddp", "fsdp")):
        half = folder / f"plain-{before}" / "checkpoints" / f"step-{HALF:08d}"
        pretrain.run(configured(config, after), folder / f"{before}-then-{after}", str(half), device=CPU)
    for task, given in tuned.items():
        for parallel in ("ddp", "fsdp"):
            train(task, given.model_copy(update={"parallel": parallel}), folder / f"{task}-{parallel}")
    distributed.stop()
    torch.save({}, folder / f"{rank}.pt")
