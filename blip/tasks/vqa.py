"""Fine-tunes visual question answering, and scores answers.

    python train_vqa.py --config configs/vqa_rad.yaml --output_dir runs/vqa_rad --init_from model_base.pth
    python train_vqa.py --config configs/vqa_rad.yaml --output_dir runs/vqa_rad --evaluate

The loss is in blip/models/vqa.py, ranking of answers in blip/models/ranking.py, scores in blip/evaluation/answers.py.

What a run does is in blip/tasks/answering.py; of BLIP-2, which the configuration or the checkpoint asks for, in
blip/tasks/blip2_answering.py.
"""

from pathlib import Path
from typing import Any

import torch

from blip.tasks.answering import Answering
from blip.tasks.blip2_answering import Blip2Answering
from blip.tasks.blip2_kind import Kinds
from blip.tasks.config import VqaConfig
from blip.tasks.rehearsal import rehearsals
from blip.tasks.run import evaluate, train
from blip.train.launch import launch

KINDS = Kinds(Answering, Blip2Answering)


def run(config: VqaConfig, output: Path, resume: str, *, device: torch.device, **options: bool) -> bool:
    """Trains and writes the result to `output`; `options` as in `open_run`. False when a signal ended it."""
    return train(KINDS, config, output, resume=resume, device=device, **options)


def score(config: VqaConfig, output: Path, device: torch.device, **options: Any) -> Path:
    """Evaluates without training -> the folder of the results; `options` as in `blip.tasks.run.evaluate`."""
    return evaluate(KINDS, config, output, device=device, **options)


def main(help: str | None = None) -> None:
    """The command line of the task; `help` is shown with `--help`."""
    offered = rehearsals(KINDS)
    launch(run, VqaConfig, default_output="runs/vqa", evaluate=score, help=help or __doc__, **offered)


if __name__ == "__main__":
    main()
