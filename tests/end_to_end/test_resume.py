"""A run that was stopped by a kill or a signal ends as an undisturbed one: same log, same weights, bit for bit."""

import json
import random
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers.running import ROOT, Program, run_script, script_command, script_env

from blip.checkpoints.format import load_weights
from blip.train.checkpoint import complete_checkpoints
from blip.train.log import read_metrics

SCRIPT = str(ROOT / "pretrain.py")
STEPS = 30
TIMES = {"images_per_s", "memory_mb", "mfu"}  # what may differ between runs


def arguments(config: Path, output: Path, *more: str) -> list[str]:
    options = [f"max_steps={STEPS}", "epochs=100", "save_every_steps=2", "accumulation=2", "log_every_steps=3", *more]
    return ["--config", str(config), "--output_dir", str(output), *(x for o in options for x in ("--set", o))]


def result(output: Path) -> tuple[list[dict], dict[str, torch.Tensor], dict]:
    """The log without times, the weights, and the training state of a finished run."""
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(output)]
    last = complete_checkpoints(output)[-1]
    return lines, load_weights(last)[0], torch.load(last / "training.pt", weights_only=True)


def assert_same(one: Path, other: Path) -> None:
    lines, weights, training = result(one)
    other_lines, other_weights, other_training = result(other)
    assert lines == other_lines
    assert lines[-1]["step"] == STEPS
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    for part in ("twin", "queue"):
        assert all(torch.equal(t, other_training[part][name]) for name, t in training[part].items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """The output folder of a run that nothing stopped."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    command = script_command(*arguments(tiny_config, output))
    done = subprocess.run(command, cwd=ROOT, env=script_env(), timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output


@pytest.mark.slow
def test_killed_at_five_random_moments(undisturbed: Path, tiny_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    moments = random.Random(0)
    for _ in range(5):
        before = len(complete_checkpoints(output)) and complete_checkpoints(output)[-1].name
        program = Program(SCRIPT, *arguments(tiny_config, output), "--resume", "auto")
        while program.poll() is None:  # until it has got somewhere, then a little more
            found = complete_checkpoints(output)
            if found and found[-1].name != before:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.15))
        program.kill()
        for checkpoint in complete_checkpoints(output):  # whatever carries the final name is whole
            load_weights(checkpoint)
    done = run_script(*arguments(tiny_config, output), "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert_same(undisturbed, output)


@pytest.mark.slow
def test_stopped_by_sigterm_and_resumed_with_workers(undisturbed: Path, tiny_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    program = Program(SCRIPT, *arguments(tiny_config, output, "num_workers=2"))
    while not complete_checkpoints(output):
        time.sleep(0.01)
        assert program.poll() is None
    program.process.terminate()  # SIGTERM
    done = program.finish(60)
    assert done.returncode == 0, done.stderr
    assert "stopped by a signal" in done.stderr
    stopped_at = int(complete_checkpoints(output)[-1].name.removeprefix("step-"))
    assert 0 < stopped_at < STEPS
    done = run_script(*arguments(tiny_config, output, "num_workers=1"), "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "num_workers 2 -> 1" in done.stderr
    assert_same(undisturbed, output)


def test_half_written_checkpoint_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-00000004.partial").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000002").mkdir()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000002"]


@pytest.mark.slow
def test_last_checkpoints_are_kept_and_latest_points_to_the_newest(undisturbed: Path) -> None:
    output = undisturbed
    assert [path.name for path in complete_checkpoints(output)] == [f"step-{STEPS - 2:08d}", f"step-{STEPS:08d}"]
    assert (output / "checkpoints" / "latest").resolve().name == f"step-{STEPS:08d}"
    assert json.loads((output / "checkpoints" / "latest" / "model.json").read_text())["task"] == "pretrain"
