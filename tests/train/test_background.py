"""Checkpoints that are written beside the training: of the state as it was, whole after kills, errors not lost."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.fine_tuning import CPU, assert_same_run, same_tensors
from helpers.running import ROOT, Program, free_port, torchrun_env

from blip.checkpoints.format import CheckpointError, load_weights
from blip.config import PretrainConfig, load_config
from blip.tasks import pretrain
from blip.train.background import Background, Copies
from blip.train.checkpoint import Checkpointer, complete_checkpoints
from blip.train.parts import load_training
from blip.train.record import Record, own
from blip.train.run import saves_in_background

pytestmark = [pytest.mark.usefixtures("no_java_nor_peak"), pytest.mark.slow]
OPTIONS = ["max_steps=6", "save_every_steps=2", "keep_checkpoints=9", "batch_size=4", "val_file=[]"]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpointer:
    (tmp_path / "tokenizer.json").write_text("{}")
    about = {"task": "pretrain"}
    return Checkpointer(tmp_path, 2, about, tokenizer_file=tmp_path / "tokenizer.json", background=Background())


def joined(checkpoints: Checkpointer) -> Exception | None:
    assert checkpoints.background is not None
    return checkpoints.background.join()


def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Checkpoints are written when this is set."""
    gate, write = threading.Event(), Checkpointer._write

    def later(*given: object) -> None:
        assert gate.wait(60)
        write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpointer, "_write", later)
    return gate


def test_the_state_is_that_of_the_call(
    checkpoints: Checkpointer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = held(monkeypatch)
    layer = torch.nn.Linear(2, 2)
    state = {"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.5}]}, "loop": {}}
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    checkpoints.save(1, layer.state_dict(), state)
    assert not complete_checkpoints(tmp_path)
    with torch.no_grad():
        layer.weight.zero_()
        state["optimizer"]["state"][0]["step"] += 1  # type: ignore[index]
        state["optimizer"]["param_groups"][0]["lr"] = 0.1  # type: ignore[index]
    gate.set()
    assert joined(checkpoints) is None
    (folder,) = complete_checkpoints(tmp_path)
    same_tensors(load_weights(folder)[0], before)
    training = torch.load(folder / "training.pt", weights_only=True)
    assert training["optimizer"] == {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.5}]}


def test_the_next_one_waits_and_an_error_comes_with_it(
    checkpoints: Checkpointer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = Checkpointer._write_files, []

    def full(self: Checkpointer, *given: object) -> None:
        calls.append(given)
        time.sleep(0.2)
        if len(calls) == 2:
            raise CheckpointError("the disk is full")
        write(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpointer, "_write_files", full)
    for step in (1, 2):
        checkpoints.save(step, {"w": torch.full((2,), float(step))}, {})
    assert [load_training(one)["step"] for one in complete_checkpoints(tmp_path)] == [1]
    with pytest.raises(CheckpointError, match="the disk is full"):
        checkpoints.save(3, {"w": torch.zeros(2)}, {})
    assert len(calls) == 2 and joined(checkpoints) is None
    checkpoints.save(3, {"w": torch.zeros(2)}, {})
    assert joined(checkpoints) is None
    assert [path.name[-1] for path in complete_checkpoints(tmp_path)] == ["1", "3"]


def test_records_change_in_two_threads(checkpoints: Checkpointer, tmp_path: Path) -> None:
    for step in range(1, 20):
        checkpoints.save(step, {"w": torch.zeros(1)}, {})
        own(tmp_path, f"result-{step}.json")
    assert joined(checkpoints) is None
    record = Record(tmp_path)
    assert record.files == sorted(f"result-{step}.json" for step in range(1, 20))
    assert record.checkpoints == ["step-00000018", "step-00000019"]


def test_copies_use_the_memory_of_those_before() -> None:
    copies, queue = Copies(), torch.nn.BatchNorm1d(3).state_dict()
    first = copies.of({"queue": queue, "list": [torch.ones(2), (torch.zeros(()), "text", None)]})
    second = copies.of({"queue": queue, "list": [torch.full((2,), 2.0), (torch.zeros(()), "text", None)]})
    assert second["list"][0].tolist() == [2, 2] and second["list"][1][1:] == ("text", None)
    assert first["list"][0].data_ptr() == second["list"][0].data_ptr()
    assert type(second["queue"]) is type(queue) and second["queue"]._metadata == queue._metadata
    assert second["queue"]["running_mean"].data_ptr() != queue["running_mean"].data_ptr()
    assert copies.of({"list": [torch.ones(3)]})["list"][0].tolist() == [1, 1, 1]  # of another shape


# ---- runs ------------------------------------------------------------------------------------------------------------


def run(config: Path, output: Path, *options: str, resume: str = "") -> None:
    pretrain.run(load_config(config, PretrainConfig, [*OPTIONS, *options]), output, resume, device=CPU)


@pytest.fixture(scope="module")
def whole(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that writes before it goes on."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run(tiny_config, output)
    return output


def test_writes_the_same_and_goes_on_from_it(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    run(tiny_config, tmp_path / "run", "save_async=true")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")  # as if killed before it was written
    run(tiny_config, tmp_path / "run", "save_async=true", resume="auto")
    assert_same_run(whole, tmp_path / "run")
    for one, other in zip(complete_checkpoints(whole), complete_checkpoints(tmp_path / "run"), strict=True):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
        assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_error_ends_the_run_with_its_message(
    call: int, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write, calls = Checkpointer._write_files, []

    def full(self: Checkpointer, final: Path, *given: object) -> None:
        calls.append(final)
        if len(calls) == call:
            raise CheckpointError(f"{final}/training.pt could not be written")
        write(self, final, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpointer, "_write_files", full)
    with pytest.raises(CheckpointError, match=f"step-0000000{2 * call}/training.pt could not be written"):
        run(tiny_config, tmp_path / "run", "save_async=true")
    assert len(complete_checkpoints(tmp_path / "run")) == call - 1 == len(calls) - 1
    said = " ".join(capsys.readouterr().err.split())
    assert "is not saved: see the error; " in said
    last = f"the last checkpoint is of step {2 * call - 2}" if call > 1 else "there is no checkpoint yet"
    assert last in said


def test_where_it_writes_in_the_background() -> None:
    config, gpu = PretrainConfig(), torch.device("cuda")
    assert saves_in_background(config, gpu) and not saves_in_background(config, CPU)
    for chosen in (True, False):
        config = PretrainConfig(save_async=chosen)
        assert saves_in_background(config, gpu) is saves_in_background(config, CPU) is chosen


# runs pretrain.py; PATCH changes how checkpoints are written, `writing` is a file that tells of it
PATCHED = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from blip.checkpoints import format
from blip.tasks import pretrain
from blip.train import checkpoint
from blip.train.checkpoint import Checkpointer
save_weights, calls = checkpoint.save_weights, []

def write(*given, **named):
    calls.append(1)
    save_weights(*given, **named)
    if len(calls) == 2:
        Path({writing!r}).touch()
        {patch}

checkpoint.save_weights = write
{more}
pretrain.main()
"""
# a defect in the step after that of the second checkpoint, while this is being written
BROKEN = """
defects, after_update = [], pretrain.Pretraining.after_update
def broken(self, number):
    if number == 5:
        while len(calls) < 2:
            time.sleep(0.01)
        defects.append(number)
        raise RuntimeError("a defect")
    after_update(self, number)
pretrain.Pretraining.after_update = broken
"""


def started(
    tmp_path: Path, config: Path, patch: str, *options: str, world: int = 1, more: str = ""
) -> tuple[list[Program], Path]:
    """The processes of a run, and the file that is there when the second checkpoint is being written."""
    writing, script = tmp_path / "writing", tmp_path / "script.py"
    script.write_text(PATCHED.format(root=str(ROOT), writing=str(writing), patch=patch, more=more))
    given = ["--config", config, "--output_dir", tmp_path / "run"]
    for option in (*OPTIONS, "save_async=true", "epochs=100", *options):
        given += ["--set", option]
    port = free_port()
    envs = [torchrun_env(rank, world, port) if world > 1 else {} for rank in range(world)]
    return [Program(str(script), *given, env=env) for env in envs], writing


def wait_for(condition: Callable[[], bool], programs: list[Program]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, [one.shown("stderr") for one in programs]
        time.sleep(0.02)


def test_a_kill_while_it_writes(whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    programs, writing = started(tmp_path, tiny_config, "time.sleep(60)")
    wait_for(writing.exists, programs)
    programs[0].kill()
    (left,) = complete_checkpoints(tmp_path / "run")
    assert left.name == "step-00000002" and load_training(left)["step"] == 2
    run(tiny_config, tmp_path / "run", "save_async=true", resume="auto")
    assert_same_run(whole, tmp_path / "run")


def test_a_signal_while_it_writes(tiny_config: Path, tmp_path: Path) -> None:
    programs, writing = started(tmp_path, tiny_config, "time.sleep(2)", "max_steps=5000", "save_every_steps=100")
    wait_for(writing.exists, programs)
    os.kill(programs[0].process.pid or 0, signal.SIGTERM)
    done = programs[0].finish(60)
    assert done.returncode == 0 and "stopped by a signal after step" in done.stderr, done.stderr
    found = complete_checkpoints(tmp_path / "run")
    assert [int(path.name[-8:]) for path in found][:2] == [100, 200] and len(found) == 3
    assert load_training(found[-1])["step"] == int(found[-1].name[-8:])


def test_an_error_in_one_of_two_processes(tiny_config: Path, tmp_path: Path) -> None:
    full = "raise OSError(28, 'No space left on device')"
    programs, _ = started(tmp_path, tiny_config, full, "max_steps=5000", world=2)
    said = [one.finish(60) for one in programs]
    assert [one.returncode for one in said] == [1, 1], said
    assert "step-00000004/model.safetensors could not be written: " in said[0].stderr, said[0].stderr
    assert "the last checkpoint is of step 2" in said[0].stderr
    assert "another process of this run failed" in said[1].stderr
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["step-00000002"]


def test_an_error_elsewhere_waits_for_what_is_written(tiny_config: Path, tmp_path: Path) -> None:
    slowly = "while not defects: time.sleep(0.01)\n        time.sleep(0.5)"
    programs, _ = started(tmp_path, tiny_config, slowly, "max_steps=5000", more=BROKEN)
    done = programs[0].finish(60)
    assert done.returncode == 1 and "a defect" in done.stderr
    assert "is not saved" not in done.stderr, done.stderr
    assert [path.name[-1] for path in complete_checkpoints(tmp_path / "run")] == ["2", "4"]
