"""Weights that are divided among processes train as whole ones do: the same losses, weights and checkpoints."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.fine_tuning import configure
from helpers.running import start_two
from helpers.sharded_training import HALF, STEPS, VARIANTS, needs_sums, process
from torch import Tensor

from blip.checkpoints.format import load_weights
from blip.train.log import read_metrics
from blip.train.parts import load_training

pytestmark = [pytest.mark.slow, needs_sums]
TUNED = ("retrieval", "vqa", "nlvr")
TIMES = {"images_per_s", "memory_mb", "mfu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, tiny_config: Path, tiny_checkpoint: Path) -> Path:
    folder, configs = tmp_path_factory.mktemp("sharded"), tmp_path_factory.mktemp("configs")
    given = ["max_steps=3", "save_every_steps=2", "batch_size=2", "clip_norm=1"]
    tuned = {task: configure(task, phantoms, configs, *given, init_from=tiny_checkpoint) for task in TUNED}
    start_two(process, folder, tiny_config, tuned)
    return folder


def state_of(run: Path, step: int = STEPS) -> dict[str, Tensor]:
    """Every tensor of a checkpoint but random numbers."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    training = load_training(folder)
    moments = {
        f"{name} of {number}": tensor
        for number, entry in training["optimizer"]["state"].items()
        for name, tensor in entry.items()
    }
    return {
        **load_weights(folder)[0],
        **{f"{part}.{name}": x for part in ("twin", "queue") for name, x in training.get(part, {}).items()},
        **moments,
    }


def assert_close(one: Path, other: Path, most: float = 1e-6, step: int = STEPS) -> None:
    states = [state_of(run, step) for run in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.shape == states[1][name].shape, name
        assert (tensor - states[1][name]).abs().max() <= most, name


def assert_same_log(one: Path, other: Path, most: float) -> None:
    lines = [read_metrics(run) for run in (one, other)]
    assert len(lines[0]) == len(lines[1]) >= STEPS
    for line, twin in zip(*lines, strict=True):
        assert line.keys() == twin.keys()
        for name in line.keys() - TIMES:
            assert math.isclose(line[name], twin[name], rel_tol=most, abs_tol=most), (line["step"], name)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_sharded_run_is_the_run_of_ddp(runs: Path, name: str) -> None:
    sharded, whole = runs / f"{name}-fsdp", runs / f"{name}-ddp"
    assert_same_log(sharded, whole, 1e-5)
    assert_close(sharded, whole, step=HALF)
    assert_close(sharded, whole)


def test_a_sharded_run_goes_on_as_if_it_had_not_stopped(runs: Path) -> None:
    assert_close(runs / "fsdp-then-fsdp", runs / "plain-fsdp", most=0.0)
    assert_same_log(runs / "fsdp-then-fsdp", runs / "plain-fsdp", 0.0)


@pytest.mark.parametrize("name", ["fsdp-then-ddp", "ddp-then-fsdp"])
def test_checkpoints_do_not_depend_on_how_they_were_trained(runs: Path, name: str) -> None:
    assert_close(runs / name, runs / "plain-ddp")


@pytest.mark.parametrize("task", TUNED)
def test_fine_tuning_is_that_of_ddp(runs: Path, task: str) -> None:
    sharded, whole = runs / f"{task}-fsdp", runs / f"{task}-ddp"
    assert_close(sharded, whole, step=2)
    assert_close(sharded, whole, step=3)
    best, twin = (load_weights(run / "best")[0] for run in (sharded, whole))
    assert best.keys() == twin.keys()
    assert all((best[name] - twin[name]).abs().max() <= 1e-6 for name in best)
    tests = [json.loads((run / "test.json").read_text()) for run in (sharded, whole)]
    for name, value in tests[0].items():
        if isinstance(value, float):
            assert math.isclose(value, tests[1][name], abs_tol=1e-4), name


def test_parts_are_written_by_all_and_the_last_checkpoint_is_whole(runs: Path) -> None:
    half, end = (runs / "plain-fsdp" / "checkpoints" / f"step-{step:08d}" for step in (HALF, STEPS))
    parts = sorted(path.name for path in half.glob("training-*"))
    assert parts == [f"training-0000{rank}-of-00002.safetensors" for rank in range(2)]
    training = torch.load(half / "training.pt", weights_only=True)
    assert not training["twin"] and sum("exp_avg" in one for one in training["optimizer"]["state"].values()) == 1
    assert not list(end.glob("training-*"))
    assert not [path for path in half.parent.iterdir() if path.name.endswith(".partial")]
