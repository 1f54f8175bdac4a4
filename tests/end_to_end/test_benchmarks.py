"""The benchmarks run, and both sides compute the same; times are not checked."""

import importlib
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", ["rerank", "frames", "generate", "vqa_rank", "taps", "capfilt", "loader", "dicom_decode", "attribution"]
)
def test_benchmark(
    name: str,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "result.json"
    arguments = ["--size", "tiny", "--repeats", "1", "--threads", "1", "--precision", precision, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *arguments])
    importlib.import_module(f"benchmarks.{name}").main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(out.read_text()) == last
    assert last["name"] == name and last["precision"] == precision and last["ratio"] > 0
    assert last["torch"] == torch.__version__ and last["command"].startswith(f"python benchmarks/{name}.py --size tiny")
    if name == "taps":
        assert last["outputs_equal"]
        return
    if name == "dicom_decode":
        assert last["agreement"]["sizes_equal"] and set(last["ratios"]) == {"plain", "jpeg", "jpeg2000", "rle"}
        return
    if name == "loader":
        assert all(one["psnr"] > 28 for one in last["agreement"].values()) and last["ratio_shards"] > 0
        return
    if precision == "bf16":
        return  # rounding may change an order
    agreement = last["agreement"]
    if name == "capfilt":
        assert agreement["captions"]["equal"] == agreement["captions"]["texts"]
        assert max(agreement["largest difference"].values()) < 1e-5
    elif name == "generate":
        assert all(kind["equal"] == kind["texts"] for kind in agreement.values())
    else:
        assert agreement["largest_difference"] < 1e-4
    if name == "rerank":
        assert agreement["same_order"] == agreement["queries"]
    if name == "vqa_rank":
        assert agreement["same_best"] == 4


@pytest.mark.parametrize("part", ["stage1"])
def test_blip2(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--part",
        part,
        "--size",
        "tiny",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "x.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["benchmarks/blip2.py", *arguments])
    monkeypatch.setattr(
        f"benchmarks.blip2_{part}.peak_memory", lambda *_: 0.0, raising=False
    )  # in processes of their own
    importlib.import_module("benchmarks.blip2").main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["name"] == f"blip2_{part}" and last["ratio"] > 0
    if part == "stage1":
        assert max(last["agreement"]["largest_difference"]) < 1e-4
        assert last["ratio_of_counts"] > 1


def test_profile_of_a_step(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    trace = tmp_path / "trace.json"
    options = ["--config", str(tiny_config), "--set", "device=cpu", "--steps", "1", "--trace", str(trace)]
    monkeypatch.setattr(sys, "argv", ["benchmarks/profile_step.py", *options])
    importlib.import_module("benchmarks.profile_step").main()
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::addmm" in names and "aten::addmm" in capsys.readouterr().out


def test_waits_of_a_step_are_counted_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.profile_step import WAIT, waits_of
    from blip.models.losses import draw_negatives

    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def draw(*_: object) -> torch.Tensor:
        warnings.warn(f"{WAIT} (somewhere)", stacklevel=1)
        return torch.zeros(2, 1, dtype=torch.int64)

    monkeypatch.setattr(torch.Tensor, "multinomial", draw)
    found = waits_of(lambda: [draw_negatives(torch.ones(2, 2)) for _ in range(3)])
    (line,) = found
    assert "blip/models/losses.py:" in line and found[line] == 3 and modes == ["warn", "default"]


def test_fewer_flops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--size", "tiny", "--repeats", "2", "--threads", "1", "--out", str(tmp_path / "result.json")]
    monkeypatch.setattr(sys, "argv", ["benchmarks/fewer_flops.py", *arguments, "--folder", str(tmp_path / "seeds")])
    benchmark = importlib.import_module("benchmarks.fewer_flops")
    benchmark.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["name"] == "fewer_flops" and last["ratio"] > 0 and last["not_reached"] == 0
    assert last["ratios"]["step"] == [1, 1] and last["whole_run_tflop_ratio"] > 1
    assert last["final_scores"].keys() == {"all", "fewer"}
    for run in last["runs"]:
        assert [len(curve) for curve in run["curves"].values()] == [6, 6]  # 18 steps, each third
    monkeypatch.setattr(benchmark, "train", None)  # seeds whose results are there are not trained again
    benchmark.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == last["runs"]
