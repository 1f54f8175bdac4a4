"""Fine-tunes captioning, and scores captions.

    python train_caption.py --config configs/caption_coco.yaml --output_dir runs/coco --init_from model_base.pth
    python train_caption.py --config configs/caption_coco.yaml --output_dir runs/coco --evaluate

The loss is in blip/models/caption.py, what the tasks share in blip/tasks/finetune.py, generation in
blip/models/generation.py.

What a run does is in blip/tasks/captioning.py; of BLIP-2, which the configuration or the checkpoint asks for, in
blip/tasks/blip2_finetune.py.
"""

from pathlib import Path
from typing import Any

import torch

from blip.tasks.blip2_finetune import Blip2Captioning
from blip.tasks.blip2_kind import Kinds
from blip.tasks.captioning import Captioning
from blip.tasks.config import CaptionConfig
from blip.tasks.rehearsal import rehearsals
from blip.tasks.run import evaluate, train
from blip.train.launch import launch

KINDS = Kinds(Captioning, Blip2Captioning)


def run(config: CaptionConfig, output: Path, resume: str, *, device: torch.device, **options: bool) -> bool:
    """Trains and writes the result to `output`; `options` as in `open_run`. False when a signal ended it."""
    return train(KINDS, config, output, resume=resume, device=device, **options)


def score(config: CaptionConfig, output: Path, device: torch.device, **options: Any) -> Path:
    """Evaluates without training -> the folder of the results; `options` as in `blip.tasks.run.evaluate`."""
    return evaluate(KINDS, config, output, device=device, **options)


def main(help: str | None = None) -> None:
    """The command line of the task; `help` is shown with `--help`."""
    offered = rehearsals(KINDS)
    launch(run, CaptionConfig, default_output="runs/caption", evaluate=score, help=help or __doc__, **offered)


if __name__ == "__main__":
    main()
