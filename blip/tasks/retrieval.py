"""Fine-tunes image-text retrieval, and scores it.

    python train_retrieval.py --config configs/retrieval_roco.yaml --output_dir runs/roco --init_from model_base.pth
    python train_retrieval.py --config configs/retrieval_roco.yaml --output_dir runs/roco --evaluate

The losses are in blip/models/retrieval.py, twin and queue in blip/tasks/contrast.py, re-ranking in
blip/evaluation/retrieval.py.

What a run does is in blip/tasks/retrieving.py; of BLIP-2, which the configuration or the checkpoint asks for, in
blip/tasks/blip2_finetune.py.
"""

from pathlib import Path
from typing import Any

import torch

from blip.tasks.blip2_finetune import Blip2Retrieving
from blip.tasks.blip2_kind import Kinds
from blip.tasks.config import RetrievalConfig
from blip.tasks.rehearsal import rehearsals
from blip.tasks.retrieving import Retrieving
from blip.tasks.run import evaluate, train
from blip.train.launch import launch

KINDS = Kinds(Retrieving, Blip2Retrieving)


def run(config: RetrievalConfig, output: Path, resume: str, *, device: torch.device, **options: bool) -> bool:
    """Trains and writes the result to `output`; `options` as in `open_run`. False when a signal ended it."""
    return train(KINDS, config, output, resume=resume, device=device, **options)


def score(config: RetrievalConfig, output: Path, device: torch.device, **options: Any) -> Path:
    """Evaluates without training -> the folder of the results; `options` as in `blip.tasks.run.evaluate`."""
    return evaluate(KINDS, config, output, device=device, **options)


def main(help: str | None = None) -> None:
    """The command line of the task; `help` is shown with `--help`."""
    offered = rehearsals(KINDS)
    launch(run, RetrievalConfig, default_output="runs/retrieval", evaluate=score, help=help or __doc__, **offered)


if __name__ == "__main__":
    main()
