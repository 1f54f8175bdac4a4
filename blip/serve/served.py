"""The checkpoints of a server: each under a name, with what it can do and the thread in which it runs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from blip.errors import InputError, visible
from blip.inference.load import load
from blip.inference.load_blip2 import only_blip
from blip.inference.predictor import Predictor
from blip.interpret.objectives import EXPLAINED, OBJECTIVES
from blip.models.factory import spec_of
from blip.serve.worker import Worker

T = TypeVar("T")
# folders inside a run; the run's own name says more
INSIDE_A_RUN = re.compile(r"best|latest|last|checkpoints?|step-\d+|run", re.IGNORECASE)
LONGEST_NAME = 60
# what a checkpoint can do, as the page puts it, the most telling ability first
TITLES = {
    "answer": "answers questions",
    "judge": "judges statements about two images",
    "caption": "writes captions",
    "match": "matches images and texts",
}


@dataclass
class ServedModel:
    """A checkpoint under the name that the page shows."""

    name: str
    model: Predictor
    worker: Worker

    @property
    def can(self) -> frozenset[str]:
        """What its task can do, as in `TaskSpec.can`."""
        return spec_of(self.model.info["task"]).can

    @property
    def explains(self) -> tuple[str, ...]:
        """The objectives whose maps it has, the usual one of its task first."""
        usual = spec_of(self.model.info["task"]).explained_as
        able = [name for name in EXPLAINED if OBJECTIVES[name].of_image or OBJECTIVES[name].ability in self.can]
        return tuple(sorted(able, key=lambda name: (name != usual, OBJECTIVES[name].of_image)))

    @property
    def title(self) -> str:
        """What it does, in words."""
        return ", ".join(title for ability, title in TITLES.items() if ability in self.can)

    def layers(self, objective: str) -> int:
        """The number of layers whose maps can be chosen; none of the image alone, whose maps are of all layers."""
        return 0 if OBJECTIVES[objective].of_image else OBJECTIVES[objective].layers(self.model)

    def call(self, function: Callable[[Predictor], T], seconds: float) -> T:
        """What `function` makes of the model, in the model's own thread; BusyError after `seconds`."""
        return self.worker.call(lambda: function(self.model), seconds)


def load_all(checkpoints: Sequence[str], device: str, *, tokenizer: str = "") -> dict[str, ServedModel]:
    """The checkpoints in their order, by name; errors of `blip.load`."""
    from blip import distributed

    target = distributed.start(device)
    served: dict[str, ServedModel] = {}
    for given in checkpoints:
        name, path = named(given)
        name = _new_name(name, served)
        model = only_blip(load(path, device=target, tokenizer=tokenizer or None), "blip serve")
        served[name] = ServedModel(name, model, Worker(name))
    return served


def named(checkpoint: str) -> tuple[str, str]:
    """(name, path) of a checkpoint that is given as PATH or NAME=PATH; a name tells nothing of where it lies.

    Raises:
        InputError: the name is empty.
    """
    name, separator, path = checkpoint.partition("=")
    if separator and not re.search(r"[/\\:]", name) and not Path(checkpoint).exists():  # else part of an address
        if not name.strip() or not path:
            raise InputError(f"{checkpoint}: give NAME=CHECKPOINT, or the checkpoint alone")
        return _shown(name), path
    parts = [part for part in re.split(r"[/\\]", checkpoint.removeprefix("hub:")) if part not in ("", ".", "..")]
    while len(parts) > 1 and INSIDE_A_RUN.fullmatch(parts[-1]):
        parts.pop()
    return _shown(parts[-1] if parts else "model"), checkpoint


def _shown(name: str) -> str:
    return visible(name.strip())[:LONGEST_NAME]


def _new_name(name: str, taken: dict[str, ServedModel]) -> str:
    """The name, with a number where another checkpoint has it."""
    number = 2
    new = name
    while new in taken:
        new, number = f"{name} ({number})", number + 1
    return new
