"""Weights that are divided among processes train as whole ones do: the same losses, weights and checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from helpers.running import start_two
from helpers.sharded_training import HALF, STEPS, VARIANTS, process
from torch import Tensor

from blip.checkpoints.format import load_weights
from blip.train.log import read_metrics

pytestmark = pytest.mark.slow
TIMES = {"images_per_s", "memory_mb", "mfu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    start_two(process, folder, tiny_config)
    return folder


def state_of(run: Path, step: int = STEPS) -> dict[str, Tensor]:
    """Every tensor of a checkpoint but random numbers."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    training = torch.load(folder / "training.pt", weights_only=True)
    moments = {
        f"{name} of {number}": tensor
        for number, entry in training["optimizer"]["state"].items()
        for name, tensor in entry.items()
    }
    return {
        **load_weights(folder)[0],
        **{f"twin.{name}": tensor for name, tensor in training["twin"].items()},
        **{f"queue.{name}": tensor for name, tensor in training["queue"].items()},
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
