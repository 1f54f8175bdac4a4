"""Both stages of BLIP-2 as runs: what they train, save, resume and log."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blip2_runs import (
    equal_captions_file,
    of_two,
    stage1,
    stage2,
    three_steps,
    train,
    write_language_model,
)
from helpers.fine_tuning import assert_same_run
from helpers.hub_server import HubServer
from helpers.running import start_two

from blip.checkpoints.format import load_weights
from blip.tasks import blip2, blip2_start
from blip.tasks.blip2_rehearsal import run_once
from blip.train.log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]


@pytest.fixture(scope="module")
def language(phantoms: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random language model."""
    return write_language_model(tmp_path_factory.mktemp("language") / "model", phantoms)


@pytest.fixture(scope="module")
def first(phantoms: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the first stage."""
    output = tmp_path_factory.mktemp("first") / "run"
    train(stage1(phantoms, val_file=f"[{phantoms}/captions.json]"), output)
    return output


def test_first_stage(first: Path) -> None:
    lines = read_metrics(first)
    steps = [line for line in lines if "itc" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["loss"] == pytest.approx(line["itc"] + line["itm"] + line["lm"]) for line in steps)
    assert {"val_i2t_r1", "val_itm_matched", "val_itc", "val_itm", "val_lm"} <= lines[-1].keys()
    tensors, info = load_weights(first / "checkpoints" / "latest")
    assert info["task"] == "blip2" and info["qformer"]["queries"] == 4 and "temperature" in tensors


def test_second_stage_starts_from_the_folder_of_the_first(
    first: Path, language: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = stage2(phantoms, language, init_from=first, val_file=f"[{phantoms}/captions.json]")
    saved = load_weights(train(config, tmp_path / "run"))
    shown = capsys.readouterr().err
    assert "trained: image_encoder 64 of" in shown and "frozen: language_model (" in shown
    before = load_weights(first / "checkpoints" / "latest")
    tensors, info = saved
    assert info["task"] == "blip2_language" and info["language_model"]["kind"] == "causal"
    assert not any(name.startswith("language_model") for name in tensors)
    kept = [name for name in before[0] if name.startswith(("image_encoder.blocks.", "image_encoder.patch"))]
    assert kept and all(torch.equal(before[0][name], tensors[name]) for name in kept)  # the tower is frozen
    assert not torch.equal(before[0]["qformer.queries"], tensors["qformer.queries"])
    lines = read_metrics(tmp_path / "run")
    assert "val_lm" in lines[-1] and [line["step"] for line in lines if "lr" in line] == [1, 2, 3, 4]
    samples = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 16


LORA = "lora={rank: 2, language_model: [q_proj, v_proj], qformer: [query]}"


@pytest.mark.parametrize(("stage", "options"), [(1, ()), (2, ()), (2, (LORA,))], ids=["first", "second", "lora"])
def test_resumed_bit_for_bit(
    stage: int, options: tuple[str, ...], language: Path, phantoms: Path, tmp_path: Path
) -> None:
    """As if killed in step 4, before its checkpoint."""
    val = {"val_file": f"[{phantoms}/captions.json]", "dropout": 0.1}
    config = stage1(phantoms, *options, **val) if stage == 1 else stage2(phantoms, language, *options, **val)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, whole)
    shutil.copytree(whole, killed, symlinks=True)
    shutil.rmtree(killed / "checkpoints" / "step-00000004")
    train(config, killed, "auto")
    assert_same_run(whole, killed)


def test_adapters_do_not_freeze_what_was_trained(
    first: Path, language: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = stage2(phantoms, language, "lora={rank: 2, language_model: [q_proj, v_proj]}", init_from=first)
    source = blip2_start.read_source(config)
    made = blip2.Stage2(blip2_start.with_sizes_of(config, source), source, tmp_path / "run", resume=None,
                        device=torch.device("cpu"))  # fmt: skip
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert {"qformer.queries", "language_proj.weight", "image_encoder.norm.weight"} <= trained
    inside = {name for name in trained if name.startswith("language_model.")}
    assert inside and all(".lora_" in name for name in inside) and len(inside) == 2 * 2 * 2
    assert not any(name.startswith("image_encoder.blocks") for name in trained)
    saved = made.weights()
    assert sum(name.startswith("language_model.") for name in saved) == len(inside)
    assert made.info()["lora"]["parts"] == {"language_model": ["q_proj", "v_proj"]}


def test_a_frozen_tower_stays_in_evaluation_mode(first: Path, phantoms: Path, tmp_path: Path) -> None:
    config = stage1(phantoms, drop_path=0.5)
    made = blip2.Stage1(config, None, tmp_path / "run", resume=None, device=torch.device("cpu"))
    made.model.train()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(made.model.image_encoder(images), made.model.image_encoder(images))
    assert made.model.qformer.training and not made.model.image_encoder.training


def test_two_processes_equal_one_with_their_batches_together(
    first: Path, language: Path, phantoms: Path, tmp_path: Path
) -> None:
    file = equal_captions_file(phantoms, tmp_path / "captions.json")
    given = {"train_file": f"[{file}]", "dropout": 0, "crop_scale": "null"}
    two = [stage1(phantoms, batch_size=2, **given), stage2(phantoms, language, batch_size=2, init_from=first, **given)]
    one = [stage1(phantoms, batch_size=4, **given), stage2(phantoms, language, batch_size=4, init_from=first, **given)]
    seen = start_two(of_two, tmp_path, two)
    for number, config in enumerate(one):
        expected = three_steps(config, tmp_path / f"one-{number}")
        for name, tensor in expected.items():
            torch.testing.assert_close(seen[0][number][name], seen[1][number][name], rtol=0, atol=0)
            if not name.endswith(".k.bias"):  # whose gradient is zero but for rounding
                torch.testing.assert_close(seen[0][number][name], tensor, rtol=1e-3, atol=2e-4, msg=name)


def test_a_language_model_of_the_hub_stays_the_same_within_a_run(
    first: Path, language: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Whatever its branch stands for later; and no progress of its weights is among the lines of the log."""
    with HubServer() as hub:
        hub.use_here(monkeypatch, tmp_path / "cache")
        commit = hub.add("models", "lab/language", language)
        config = stage2(phantoms, Path("hub:lab/language"), init_from=first, max_steps=1)
        train(config, tmp_path / "run")
        assert "Loading weights" not in capfd.readouterr().err
        assert f"language_model: hub:lab/language@{commit}" in (tmp_path / "run" / "config.yaml").read_text()
        other = write_language_model(tmp_path / "other", phantoms, width=32)
        assert hub.add("models", "lab/language", other) != commit
        resumed = stage2(phantoms, Path("hub:lab/language"), init_from=first, max_steps=2)
        assert load_weights(train(resumed, tmp_path / "run", "auto"))[1]["language_model"]["revision"] == commit


def test_what_a_step_costs(first: Path, language: Path, phantoms: Path, capsys: pytest.CaptureFixture) -> None:
    for config in (stage1(phantoms), stage2(phantoms, language, "language_dtype=bf16", init_from=first)):
        run_once((blip2.Stage1, blip2.Stage2), config, torch.device("cpu"))
        shown = capsys.readouterr().out
        for word in ("qformer", "weights (MB)", "trained: ", "GFLOP", "pairs a second", "MB at most", "data: 48 pairs"):
            assert word in shown, word
    assert "language_model" in shown and "frozen: language_model" in shown
