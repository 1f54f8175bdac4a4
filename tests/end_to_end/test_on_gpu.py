"""The measurements of a GPU run on a CPU at a tiny size; times are not checked."""

import importlib
import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blip import distributed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]


def test_a_training_step_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "result.json"
    options = ["--size", "small", "--batch", "4", "--repeats", "1", "--threads", "1", "--precision", "bf16", "--alone"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/train_step.py", *options, "--out", str(out)])
    train_step = importlib.import_module("benchmarks.train_step")
    monkeypatch.setattr(train_step, "measure_peak", lambda *_: 1e9)
    train_step.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(out.read_text()) == last
    assert last["mfu"] == pytest.approx(last["gflop_per_second"]["ours"])
    assert last["seconds"].keys() == last["peak_memory_gib"].keys() == {"ours"}
    assert last["command"].endswith("--repeats 1 --alone")


@pytest.fixture
def on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, on the CPU with small models; `run(*options)` calls it and returns its result."""
    module, out = importlib.import_module("benchmarks.on_gpu"), tmp_path / "result.json"
    monkeypatch.setattr(module.gpu_parts, "measure_peak", lambda *_: 1e9)

    def run(*options: str) -> dict[str, Any]:
        given = ["--device", "cpu", "--size", "small", "--repeats", "1", "--out", str(out), *options]
        monkeypatch.setattr(sys, "argv", ["benchmarks/on_gpu.py", *given])
        module.main()
        return json.loads(out.read_text())

    return SimpleNamespace(module=module, run=run, parts=module.gpu_parts, runs=module.gpu_runs, out=out)


def test_what_only_a_gpu_can_tell_runs_on_a_cpu(
    on_gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(on_gpu.runs, "ANNOTATIONS", {"nlvr": "statements.json"})  # other tests train the others
    result = on_gpu.run("--batches", "4", "--profiled", "4", "--backend", "eager")
    assert result["seconds"].keys() == set(on_gpu.module.PARTS)
    assert '"error"' not in on_gpu.out.read_text()
    (step,), (later,) = result["steps"], result["compiled"]["steps"]
    assert (step["compiled"], later["compiled"]) == (False, True)
    assert result["runs"]["nlvr"]["steps"] == 4 and result["parity"]["largest_difference"] == 0
    assert result["raising"]["ended"] and result["raising"]["message"]
    assert all(row["by_time"] for row in (*result["profile"], result["compiled"]["profile"]))
    utilisation = result["bars"]["utilisation"]
    assert utilisation["found"].keys() == {"4", "4 compiled"} and utilisation["reached"]  # of a peak that is too low
    assert result["bars"]["time of the estimate"]["found"].keys() == {"4"}
    said = capsys.readouterr().out
    assert "reached: utilisation" in said and "not measured: waits" in said


def test_parts_and_rows_of_it_fail_alone(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = on_gpu.parts.timed

    def fails(it: object, *given: Any) -> Any:
        if not given:
            raise ValueError("no time")
        if given[1] == 5:
            raise torch.cuda.OutOfMemoryError("no room")
        return timed(it, *given)

    monkeypatch.setitem(on_gpu.module.PARTS, "runs", fails)
    monkeypatch.setattr(on_gpu.parts, "timed", fails)
    result = on_gpu.run("--parts", "runs", "steps", "--batches", "5", "3")
    assert result["runs"] == {"error": "ValueError: no time"}
    assert result["steps"][0] == {"error": "OutOfMemoryError: no room"} and result["steps"][1]["batch"] == 3


def test_what_was_measured_is_on_disk_before_the_part_ends(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(it: object, run: object, count: int, precision: str) -> dict[str, Any]:
        if count == 2:
            raise KeyboardInterrupt
        return {"batch": count, "compiled": False, "mfu": 0.5}

    monkeypatch.setattr(on_gpu.parts, "timed", killed)
    with pytest.raises(KeyboardInterrupt):
        on_gpu.run("--parts", "steps", "--batches", "1", "2")
    assert json.loads(on_gpu.out.read_text())["steps"] == [{"batch": 1, "compiled": False, "mfu": 0.5}]


def test_no_part_begins_without_time(on_gpu: Any) -> None:
    result = on_gpu.run("--parts", "compiled", "--batches", "2", "--backend", "eager", "--minutes", "0.9")
    assert result["compiled"] == {"steps": [{"left_out": "there was no time left"}], "profile": None}
    assert "left_out" in on_gpu.run("--parts", "card", "--minutes", "0")["card"]


def test_bars(on_gpu: Any) -> None:
    row = {"batch": 64, "compiled": False, "mfu": 0.44}
    estimate = {"batch": 64, "estimated_over_measured": {"gib": 1.11, "seconds": 0.8}}
    result: dict[str, Any] = {"device": "cuda", "steps": [row], "estimate": [estimate, {"error": "no room"}]}
    result["runs"] = {"vqa": {"steps": 4, "waits_a_step": {"blip/models/vqa.py:86": 1.0}}}

    def reached() -> list[bool | None]:
        return [bar["reached"] for bar in on_gpu.module.bars(result).values()]

    assert reached() == [False, False, True, False]
    result["compiled"] = {"steps": [{**row, "compiled": True, "mfu": 0.46}], "profile": None}
    result["runs"] = {"vqa": {"steps": 4, "waits_a_step": {}}, "nlvr": {"steps": 4, "waits_a_step": {}}}
    assert reached() == [True, False, True, True]
    result["runs"]["caption"] = {"error": "RuntimeError: two devices"}
    assert reached() == [True, False, True, False]
    assert [bar["reached"] for bar in on_gpu.module.bars({"device": "cuda"}).values()] == [None] * 4


def test_waits_are_counted_by_the_line_of_the_package(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not torch's own warning, when it is asked to warn, that it may overlook synchronizing operations."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def waits() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def step() -> None:
        warnings.warn("a prototype feature and does not yet detect all synchronizing operations", stacklevel=1)
        waits()
        distributed.from_main(waits)  # a line of the package calls it

    found = on_gpu.runs.waits_of(step)
    assert found.pop("torch") == 1 and modes == ["warn", "default"]
    ((line, count),) = found.items()
    assert line.startswith("blip/distributed/failures.py:") and count == 1
