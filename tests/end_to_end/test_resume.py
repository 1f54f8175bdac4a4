"""A run that was stopped by a kill or a signal ends as an undisturbed one: same log, same weights, bit for bit."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.running import ROOT, Program, run_script, script_command, script_env

from blip.checkpoints.format import load_weights
from blip.train.checkpoint import complete_checkpoints
from blip.train.history import read_history
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
    logs = [read_history(run) for run in (one, other)]
    assert logs[0].samples == logs[1].samples and logs[0].similarities == logs[1].similarities
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
@pytest.mark.parametrize("times", [5, 3], ids=["", "in the background"])
def test_killed_at_random_moments(times: int, undisturbed: Path, tiny_config: Path, tmp_path: Path) -> None:
    output, more = tmp_path / "run", ["save_async=true"] if times == 3 else []
    moments = random.Random(0)
    for _ in range(times):
        before = len(complete_checkpoints(output)) and complete_checkpoints(output)[-1].name
        program = Program(SCRIPT, *arguments(tiny_config, output, *more), "--resume", "auto")
        while program.poll() is None:  # until it has got somewhere, then a little more
            found = complete_checkpoints(output)
            if found and found[-1].name != before:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.15))
        program.kill()
        for checkpoint in complete_checkpoints(output):  # whatever carries the final name is whole
            load_weights(checkpoint)
    done = run_script(*arguments(tiny_config, output, *more), "--resume", "auto")
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


@pytest.mark.slow
def test_patches_left_out_and_sizes_of_images_go_on_in_mid_epoch(tiny_config: Path, tmp_path: Path) -> None:
    fewer = ["vit_patch=8", "image_sizes={0: 16, 3: 24, 6: 32}", "patch_dropout=0.5", "full_patches_epochs=2"]
    whole, output = tmp_path / "whole", tmp_path / "run"
    done = run_script(*arguments(tiny_config, whole, *fewer))
    assert done.returncode == 0, done.stderr
    tokens = [line["image_tokens"] for line in read_metrics(whole) if "lr" in line]  # a line for each epoch
    assert tokens == [3] * 3 + [5] * 3 + [9] * 2 + [17] * 2
    for kills, workers in enumerate(("num_workers=0", "num_workers=2")):
        program = Program(SCRIPT, *arguments(tiny_config, output, *fewer, workers), "--resume", "auto")
        while (
            len(complete_checkpoints(output)) < 1 or complete_checkpoints(output)[-1].name < f"step-{8 + 8 * kills:08d}"
        ):
            time.sleep(0.01)
            assert program.poll() is None
        program.kill()
    done = run_script(*arguments(tiny_config, output, *fewer, "num_workers=1"), "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert_same(whole, output)


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


# ---- what ends a job without asking it -------------------------------------------------------------------------------


def started(config: Path, output: Path, *more: str) -> Program:
    """A run that is beyond its first checkpoint, of those that it writes rarely."""
    program = Program(SCRIPT, *arguments(config, output, "save_every_steps=7", *more))
    while not complete_checkpoints(output):
        time.sleep(0.01)
        assert program.poll() is None, program.finish().stderr
    return program


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def go_on(config: Path, output: Path, *more: str) -> None:
    done = run_script(*arguments(config, output, *more), "--resume", "auto")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1], ids=["SIGHUP", "SIGUSR1"])
def test_a_hangup_and_a_warning_stop_a_run(
    number: signal.Signals, undisturbed: Path, tiny_config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    program = started(tiny_config, output, "num_workers=1")
    for worker in children(program.process.pid or 0):  # the terminal's signal reaches them too
        os.kill(worker, number)
    os.kill(program.process.pid or 0, number)
    done = program.finish(60)
    assert done.returncode == 0 and "stopped by a signal" in done.stderr, done.stderr
    assert read_metrics(output)[-1]["step"] < STEPS
    go_on(tiny_config, output)
    assert_same(undisturbed, output)


@pytest.mark.slow
def test_a_killed_worker_costs_no_step(undisturbed: Path, tiny_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    program = started(tiny_config, output, "num_workers=2")
    os.kill(children(program.process.pid or 0)[0], signal.SIGKILL)
    done = program.finish(60)
    assert done.returncode == 1
    assert "error: a process that reads data was ended from outside, often because" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    go_on(tiny_config, output)
    assert_same(undisturbed, output)


def print_to(*command: str) -> None:
    """As `2>&1 | COMMAND` in a shell."""
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert reader.stdin is not None
    for descriptor in (1, 2):
        os.dup2(reader.stdin.fileno(), descriptor)
    reader.stdin.close()
    if command == ("true",):
        reader.wait()


def print_to_a_full_disk() -> None:
    for descriptor in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirect",
    [partial(print_to, "head", "-n", "3"), partial(print_to, "true"), print_to_a_full_disk],
    ids=["head", "true", "full"],
)
def test_nobody_reads_what_a_run_prints(
    redirect: Callable[[], None], undisturbed: Path, tiny_config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    done = Program(SCRIPT, *arguments(tiny_config, output), redirect=redirect).finish(120)
    assert done.returncode == 0 and not done.stdout + done.stderr
    assert_same(undisturbed, output)


@pytest.mark.slow
@pytest.mark.parametrize("streams", [">&- 2>&-", "<&- >&- 2>&-", "2>&-"])
def test_streams_that_are_closed(streams: str, undisturbed: Path, tiny_config: Path, tmp_path: Path) -> None:
    """From the start of Python on, which a process of `Program` has behind it."""
    output = tmp_path / "run"
    command = " ".join(map(shlex.quote, script_command(*arguments(tiny_config, output))))
    shell = ["bash", "-c", f"{command} {streams}"]
    done = subprocess.run(shell, cwd=ROOT, env=script_env(), timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(undisturbed, output)


@pytest.mark.slow
def test_images_that_vanish_cost_no_step(tiny_config: Path, tmp_path: Path) -> None:
    data, run, whole = tmp_path / "data", tmp_path / "run", tmp_path / "whole"
    shutil.copytree(tiny_config.parent, data)
    options = [f"image_root={data}", "max_skipped_fraction=0", "val_file=[]", "num_workers=1"]
    program = started(tiny_config, run, *options)
    (data / "images").rename(data / "gone")
    done = program.finish(60)
    assert done.returncode == 1 and "no such file" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "is saved; continue with --resume auto" in done.stderr
    (data / "gone").rename(data / "images")
    go_on(tiny_config, run, *options)
    done = run_script(*arguments(tiny_config, whole, *options))
    assert done.returncode == 0, done.stderr
    assert_same(whole, run)


@pytest.mark.slow
def test_two_processes_on_one_folder(undisturbed: Path, tiny_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    program = started(tiny_config, output)
    os.kill(program.process.pid or 0, signal.SIGSTOP)
    for more in ([], ["--resume", "auto"]):
        begin = time.monotonic()
        second = run_script(*arguments(tiny_config, output), *more, timeout=60)
        assert second.returncode == 1 and time.monotonic() - begin < 30
        assert f"is being written by process {program.process.pid} on " in second.stderr, second.stderr
    os.kill(program.process.pid or 0, signal.SIGCONT)
    assert program.finish(60).returncode == 0
    assert_same(undisturbed, output)


@pytest.mark.slow
def test_a_disk_that_is_full(undisturbed: Path, tiny_config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]).returncode:
        pytest.skip("mounting a small disk takes a permission that is missing here")
    try:
        output = disk / "run"
        program = started(tiny_config, output, "save_every_steps=3")
        with open(disk / "filler", "wb") as filler:
            filler.write(bytes(shutil.disk_usage(disk).free - 65536))
        done = program.finish(60)
        assert done.returncode == 1
        assert "could not be written" in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert "the checkpoint before it is whole" in done.stderr
        load_weights(complete_checkpoints(output)[-1])
        (disk / "filler").unlink()
        go_on(tiny_config, output)
        assert_same(undisturbed, output)
    finally:
        subprocess.run(["umount", disk], check=True)
