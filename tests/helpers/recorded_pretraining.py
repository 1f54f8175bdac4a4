"""Pre-training whose every batch, loss, gradient and weight is recorded, in each of two processes.

`process` is what a process does for test_distributed.py; `record` and `hardest` serve fine-tuning as well.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.config import PretrainConfig, load_config
from blip.data.batches import Batch
from blip.data.loader import eval_loader
from blip.data.pairs import CaptionEncoder, EvalPairs, read_pairs
from blip.data.transforms import eval_transform
from blip.evaluation.pretraining import evaluate_pretraining
from blip.models.momentum import Queue, Twin
from blip.models.pretrain import PretrainModel
from blip.tasks.pretrain import Pretraining
from blip.tokenizer import Tokenizer
from blip.train.loop import Loop, LoopOptions, NonFiniteError, Step
from helpers.running import WORLD, join
from helpers.silent_log import SilentLog

BATCH, LR, CLIP = 4, 0.05, 1.0


@dataclass
class Scenario:
    """A short training run: how many micro-batches in a step, entries in the queue, steps."""

    accumulation: int
    queue_size: int
    steps: int
    poisoned: tuple[int, int] | None = None  # (rank, step counted from 1) whose images are not finite
    options: tuple[str, ...] = ()


SCENARIOS = {
    "one micro-batch": Scenario(1, 20, 3),  # 8 entries a step: the pointer wraps, and 8 does not divide 20
    "accumulation": Scenario(2, 20, 2),
    "small queue": Scenario(2, 6, 2),  # 16 entries a step into 6 places
    "one pushed over": Scenario(1, 9, 3),
    # six batches an epoch: the images grow after three steps, and the last step leaves out no patch
    "fewer image tokens": Scenario(
        2, 20, 4, options=("vit_patch=8", "image_sizes={0: 16, 1: 32}", "patch_dropout=0.5", "full_patches_epochs=0.3")
    ),
    "not finite": Scenario(1, 20, 3, poisoned=(1, 2)),
}
EVALUATED = (1, 7, 16)  # pairs: one process has none, the processes have 4 and 3, both have two batches


def hardest(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Given negatives: the arg-max in place of a draw."""
    return weights.argmax(dim=1), weights.sum(dim=1) > 0


def configure(path: Path, scenario: Scenario) -> PretrainConfig:
    options = {
        "dropout": 0, "batch_size": BATCH, "accumulation": scenario.accumulation, "queue_size": scenario.queue_size,
        "max_steps": scenario.steps, "momentum": 0.9, "alpha_ramp_epochs": 0.2, "val_file": "[]",
    }  # fmt: skip
    return load_config(path, PretrainConfig, [*(f"{key}={value}" for key, value in options.items()), *scenario.options])


def copy_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def train(config: PretrainConfig, scenario: Scenario, output: Path) -> dict:
    """A run of pre-training, recorded."""
    task = Pretraining(config, output, None, device=torch.device("cpu"))
    options = LoopOptions(scenario.steps, scenario.accumulation, CLIP)
    return record(task, options, ("itc", "itm", "lm"), scenario.poisoned)


def record(task: Any, options: LoopOptions, names: tuple[str, ...], poisoned: tuple[int, int] | None = None) -> dict:
    """Runs the loop and keeps every batch, loss (by `names`) and gradient, and all weights after each step."""
    wrapped, task.parallel = task.parallel, functools.partial(task.parallel, draw=hardest)
    seen: dict = {"start": copy_of(task.model.state_dict()), "batches": [], "losses": [], "gradients": [], "after": []}
    seen["random"] = []  # before each batch
    optimizer = torch.optim.SGD(task.model.parameters(), lr=LR, momentum=0.9)

    def gradients(*_: object) -> None:
        seen["gradients"].append({name: p.grad.clone() for name, p in task.model.named_parameters()})

    def step(batch: Batch, number: int) -> Step:
        if poisoned == (distributed.rank(), number + 1):
            batch.images[0, 0, 0, 0] = float("nan")
        seen["random"].append(torch.get_rng_state())
        out = task.step(batch, number)
        seen["batches"].append(batch)
        seen["losses"].append({name: torch.as_tensor(out.logs[name]).item() for name in names})
        return out

    def after_update(number: int) -> None:
        task.after_update(number)
        parts = (task.model, task.contrast.twin, task.contrast.queue)
        seen["after"].append([copy_of(part.state_dict()) for part in parts])

    optimizer.register_step_pre_hook(gradients)
    log: Any = SilentLog()
    loop = Loop(wrapped, optimizer, lambda _: LR, options=options, log=log, save=lambda *_: None)
    try:
        loop.run(task.batches(0), step, after_update, at_step_end=lambda _: None)
    except NonFiniteError as error:
        seen["error"] = str(error)
        seen["end"] = copy_of(task.model.state_dict())
    return seen


def evaluate(config: PretrainConfig, model: PretrainModel, file: Path, rank: int, world: int) -> dict[str, float]:
    """The numbers of a validation file, of which this process reads its part."""
    return evaluate_pretraining(model, part(config, file, rank, world), torch.device("cpu")).metrics


def part(config: PretrainConfig, file: Path, rank: int, world: int) -> list[Batch]:
    """Batches of one process's part of a validation file."""
    tokenizer = Tokenizer.from_file(config.tokenizer)
    encode = CaptionEncoder(tokenizer, config.max_text_tokens)
    data = EvalPairs(read_pairs([str(file)]), encode, eval_transform(config.image_size))
    return list(eval_loader(data, BATCH, rank=rank, world=world, pad_id=tokenizer.pad_id))


def process(rank: int, port: int, folder: Path, config_path: Path) -> None:
    """All of one process: joins the other, works, writes FOLDER/RANK.pt."""
    join(rank, port)
    found: dict = {"train": {}, "evaluate": {}}
    for name, scenario in SCENARIOS.items():
        found["train"][name] = train(configure(config_path, scenario), scenario, folder)
    config = configure(config_path, SCENARIOS["one micro-batch"])
    model = fresh_parts(config, folder)[0]
    for count in EVALUATED:
        found["evaluate"][count] = evaluate(config, model, folder / f"val-{count}.json", rank, WORLD)
    found["gathered"] = distributed.all_gather(torch.tensor([[rank, 10 * rank]]))
    found["reduced"] = {op: distributed.all_reduce(torch.tensor([1.0 + rank]), op) for op in ("mean", "sum", "max")}
    distributed.stop()
    torch.save(found, folder / f"{rank}.pt")


def fresh_parts(config: PretrainConfig, output: Path) -> tuple[PretrainModel, Twin, Queue]:
    """Model, twin and queue as a run of this configuration starts with them."""
    task = Pretraining(config, output, None, device=torch.device("cpu"))
    return task.model, task.contrast.twin, task.contrast.queue
