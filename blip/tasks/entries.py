"""What a run of each task is called with, for callers that have a task's name: its configuration and its functions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.config import ModelConfig, PretrainConfig
from blip.errors import InputError, did_you_mean
from blip.tasks import blip2, caption, dialogue, nlvr, pretrain, retrieval, vqa
from blip.tasks.blip2_config import Blip2Config
from blip.tasks.config import CaptionConfig, DialogueConfig, NlvrConfig, RetrievalConfig, VqaConfig


@dataclass(frozen=True)
class Entry:
    """A task.

    Args:
        config: the type of its configuration.
        run: trains, see `blip.train.launch.Run`.
        score: evaluates without training, see `blip.train.launch.Evaluate`; None where that is not offered.
        lr: of fine-tuning as published (Li et al. 2022, appendix), without warm-up; None for pre-training.
    """

    config: type[ModelConfig]
    run: Callable[..., bool]
    score: Callable[..., Path] | None = None
    lr: float | None = None

    @property
    def published(self) -> dict[str, Any]:
        """The published options of fine-tuning that starts from a checkpoint."""
        return {} if self.lr is None else {"lr": self.lr, "min_lr": 0.0, "warmup_steps": 0}


ENTRIES = {
    "pretrain": Entry(PretrainConfig, pretrain.run),
    "blip2": Entry(Blip2Config, blip2.run),
    "retrieval": Entry(RetrievalConfig, retrieval.run, retrieval.score, 1e-5),
    "caption": Entry(CaptionConfig, caption.run, caption.score, 1e-5),
    "vqa": Entry(VqaConfig, vqa.run, vqa.score, 2e-5),
    "nlvr": Entry(NlvrConfig, nlvr.run, nlvr.score, 3e-5),
    "dialogue": Entry(DialogueConfig, dialogue.run, dialogue.score, 2e-5),
}
PRETRAINING = {"blip": "pretrain", "blip2": "blip2"}  # argument of `blip.pretrain` -> task


def entry_of(task: str, *, fine_tuning: bool = False) -> Entry:
    """The task of a name.

    Args:
        fine_tuning: of the tasks but pre-training.

    Raises:
        InputError: there is no such task; the message names the nearest ones.
    """
    known = {name: entry for name, entry in ENTRIES.items() if entry.score is not None or not fine_tuning}
    if task not in known:
        if task in ENTRIES:
            raise InputError(f"{task} is no task of fine-tuning: blip.pretrain(...) trains it")
        raise InputError(f"there is no task {task!r}; {did_you_mean(task, known)}")
    return known[task]
