"""`--dry_run` of the fine-tuning scripts: costs of a step on random data, without data, and nothing is saved."""

import json
import os
import re
from pathlib import Path

import pytest
from helpers.fine_tuning import CPU, TASKS, configure, script_of
from helpers.running import ROOT, Program

from blip.config import ConfigError, load_config
from blip.errors import BlipError
from blip.tasks.captioning import Captioning
from blip.tasks.rehearsal import rehearse

pytestmark = pytest.mark.usefixtures("no_java_nor_peak")


@pytest.mark.parametrize("task", TASKS)
def test_costs_of_a_step(
    task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = configure(task, phantoms, tmp_path, init_from=tiny_checkpoint)
    files = set(tmp_path.rglob("*"))
    rehearse(TASKS[task][2], config, CPU)
    shown = capsys.readouterr().out
    for word in ("image_encoder", "parameters (M)", "GFLOP", "samples a second", "MB at most", "loss: "):
        assert word in shown, word
    assert float(re.search(r"compute: ([\d.e-]+) GFLOP", shown)[1]) > 0
    assert "data: train_file: 12 records" in shown and "data: val_file: 7 records" in shown
    assert "data: test_file: 5 records" in shown
    assert set(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("task", TASKS)
def test_without_weights_and_without_data(task: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Options alone are enough: a tokenizer that would be trained has a stand-in of its size."""
    path = tmp_path / "own.yaml"
    sizes = "vit: tiny\ntext_width: 32\ntext_heads: 2\ntext_hidden: 64\ntext_layers: 2\nvocab_size: 1000\n"
    path.write_text(f"{sizes}image_size: 32\nbatch_size: 2\ndevice: cpu\nprecision: fp32\n")
    for tokenizer in ("", "train"):
        more = {"retrieval": ["queue_size=9"], "dialogue": ["text_width=192"]}  # as wide as the image encoder
        options = [f"tokenizer={tokenizer}", *more.get(task, [])]
        rehearse(TASKS[task][2], load_config(path, TASKS[task][1], options), CPU)
        assert "train_file is empty" in capsys.readouterr().out


def test_flops_grow_with_the_batch(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    found = []
    for size in (2, 4):
        config = configure("caption", phantoms, tmp_path, f"batch_size={size}", init_from=tiny_checkpoint)
        rehearse(Captioning, config, CPU)
        found.append(float(re.search(r"compute: ([\d.e-]+) GFLOP, ([\d.e-]+)", capsys.readouterr().out)[2]))
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_wrong_data_is_told_and_wrong_options_end_it(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = configure("vqa", phantoms, tmp_path, "val_file=[gone.json]", init_from=tiny_checkpoint)
    rehearse(TASKS["vqa"][2], config, CPU)
    shown = capsys.readouterr().out
    assert "data: train_file: 12 records" in shown and "data: val_file: gone.json" in shown
    for option in ("freeze=[vision]", "image_size=40", "init_from=gone.pth"):
        with pytest.raises(BlipError):
            rehearse(TASKS["vqa"][2], configure("vqa", phantoms, tmp_path, option, init_from=tiny_checkpoint), CPU)
    assert issubclass(ConfigError, BlipError)


def test_lora_and_frozen_parts_are_in_the_table(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("peft")
    config = configure("nlvr", phantoms, tmp_path, "lora={rank: 2, targets: [qkv]}", init_from=tiny_checkpoint)
    rehearse(TASKS["nlvr"][2], config, CPU)
    row = next(line for line in capsys.readouterr().out.splitlines() if " all " in line)
    whole, trained = (float(one) for one in re.findall(r"\d+\.\d+", row))
    assert trained < whole


@pytest.mark.parametrize("task", TASKS)
def test_as_a_program(task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    configure(task, phantoms, tmp_path, init_from=tiny_checkpoint)
    command = ("--config", tmp_path / f"{task}.yaml", "--output_dir", tmp_path / "run", "--dry_run")
    done = Program(str(ROOT / script_of(task)), *command, env={"PATH": os.environ["PATH"]}).finish()
    assert done.returncode == 0 and "GFLOP" in done.stdout, done.stderr
    assert not (tmp_path / "run").exists()


def test_what_a_set_leaves_out_is_told_once(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Files are looked into for the number of pictures, and read for the number of records."""
    pictures = sorted(str(path) for path in (phantoms / "images").glob("*.png"))[:4]
    studies = [{"id": f"CXR{i}_1", "report": "clear lungs ." * (i < 3), "image_path": pictures[:2]} for i in range(4)]
    (tmp_path / "annotation.json").write_text(json.dumps({"train": studies, "val": [], "test": []}))
    files = (f"train_file=[{tmp_path / 'annotation.json'}]", "val_file=[]", "test_file=[]")
    config = configure("caption", phantoms, tmp_path, "dataset=iu_xray", *files, init_from=tiny_checkpoint)
    rehearse(Captioning, config, CPU)
    out, told = capsys.readouterr()
    assert "4 samples of 2 pictures" in out and "data: train_file: 3 records" in out
    assert told.count("left out: 1 with no report") == 1, told
