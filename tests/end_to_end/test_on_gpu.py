"""The measurements of a GPU run on a CPU at a tiny size; times are not checked."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


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


def test_what_only_a_gpu_can_tell_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    options = [
        "--device",
        "cpu",
        "--size",
        "small",
        "--batches",
        "4",
        "--profiled",
        "4",
        "--repeats",
        "1",
        "--backend",
        "eager",
    ]
    monkeypatch.setattr(sys, "argv", ["benchmarks/on_gpu.py", *options, "--out", str(out)])
    on_gpu = importlib.import_module("benchmarks.on_gpu")
    monkeypatch.setattr(on_gpu, "measure_peak", lambda *_: 1e9)
    on_gpu.main()
    result = json.loads(out.read_text())
    assert result["seconds"].keys() == set(on_gpu.PARTS)
    assert not [part for part in on_gpu.PARTS if isinstance(result[part], dict) and "error" in result[part]]
    assert [row["compiled"] for row in result["steps"]] == [False, True]
    assert result["waits"]["steps"] == 4 and result["parity"]["largest_difference"] == 0
    assert result["raising"]["ended"] and result["raising"]["message"]
    assert all(row["by_time"] for row in result["profile"])


def test_parts_of_it_fail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    options = ["--device", "cpu", "--size", "small", "--parts", "waits", "card", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/on_gpu.py", *options])
    on_gpu = importlib.import_module("benchmarks.on_gpu")
    monkeypatch.setattr(on_gpu, "measure_peak", lambda *_: 1e9)

    def fails(it: object) -> None:
        raise ValueError("no room")

    monkeypatch.setitem(on_gpu.PARTS, "waits", fails)
    on_gpu.main()
    result = json.loads(out.read_text())
    assert result["waits"] == {"error": "ValueError: no room"} and result["card"]["copy_tb_per_second"] > 0
