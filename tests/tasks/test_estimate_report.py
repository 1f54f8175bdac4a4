"""`--dry_run --gpu`: what it prints and warns of, without a GPU, and the options that exclude each other."""

import re
import runpy
from pathlib import Path

import pytest
from helpers.fine_tuning import TASKS, configure
from helpers.running import ROOT

from blip.config import PretrainConfig, load_config
from blip.hardware.cards import CARDS, Card
from blip.tasks.dry_run import plan_for, trained_on_meta
from blip.tasks.estimate import GIB, plan
from blip.tasks.rehearsal import rehearsals
from blip.train.launch import launch

pytestmark = pytest.mark.slow

SLOW = Card("slow", 0.001, 0, 0, 10, 500, 0.001, 0.001, "invented: little memory, no bf16, slow links")
FAST = Card("fast", 100.0, 1e6, 5e5, 1e6, 1e7, 1e4, 1e6, "invented: the CPU and the loader cannot keep up")


@pytest.fixture(autouse=True)
def invented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CARDS, "slow", SLOW)
    monkeypatch.setitem(CARDS, "fast", FAST)


def shown(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out


def test_what_limits_a_run(tiny_config: Path, capsys: pytest.CaptureFixture) -> None:
    config = load_config(tiny_config, PretrainConfig, ["precision=bf16", "batch_size=32", "num_workers=0"])
    plan_for(config, "slow", 64)
    said = shown(capsys)
    assert "64 x slow, estimated: nothing ran on a GPU" in said
    assert "computes no bf16" in said and "do not fit into 90% of the 0.001 GiB of slow; the largest batch_size" in said
    assert "of a step waits for the network" in said and "ms at 100 Gb/s; behind the last backward pass" in said
    plan_for(config, "fast", 1)
    said = shown(capsys)
    assert "less than half of the card is used" in said and "the CPU takes about as long to launch" in said
    assert "num_workers: 0 is too slow for COCO" in said and "gradients:" not in said
    plan_for(
        config.model_copy(update={"activation_checkpointing": "torch", "compile": True, "patch_dropout": 0.5}),
        "fast",
        8,
    )
    said = shown(capsys)
    assert "whole images of the last epochs are counted" in said
    assert "recomputed, as configured" in said and "compiled, at best" in said
    assert "it fits without recomputation" in said and "ms within a host" in said


@pytest.mark.parametrize("task", TASKS)
def test_each_task(task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    """From a checkpoint's sizes, and from the configuration's where the checkpoint is elsewhere."""
    more = ["negative_all_rank=true"] if task == "retrieval" else []
    config = configure(task, phantoms, tmp_path, *more, init_from=tiny_checkpoint)
    files = set(tmp_path.rglob("*"))
    rehearsals(TASKS[task][2])["plan"](config, "h100", 8)
    said = shown(capsys)
    assert "kernel launches" in said and ("negatives: " in said) == (task == "retrieval")
    assert set(tmp_path.rglob("*")) == files


def test_weights_and_words_of_other_machines_are_not_fetched(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "own.yaml"
    sizes = "vit: tiny\ntext_width: 32\ntext_heads: 2\ntext_hidden: 64\ntext_layers: 2\nvocab_size: 1000\n"
    sizes += "image_size: 32\nbatch_size: 4\ntokenizer: hub:nobody/words\n"
    path.write_text(f"{sizes}init_from: hub:nobody/nothing\n")
    rehearsals(TASKS["caption"][2])["plan"](load_config(path, TASKS["caption"][1]), "h100", 1)
    path.write_text(f"{sizes}queue_size: 8\n")
    plan_for(load_config(path, PretrainConfig, ["vision_init=timm/none"]), "h100", 1)
    assert shown(capsys).count("estimated: nothing ran on a GPU") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dry_run", "--gpu", "a100"], "gpu is 'a100', which is not known here; there are a100-40, a100-80"),
        (["--gpu", "h100"], "--gpu is for --dry_run"),
        (["--world_size", "8"], "--world_size is for --dry_run --gpu"),
        (["--dry_run", "--world_size", "8"], "--world_size is for --dry_run --gpu"),
        (["--evaluate", "--gpu", "h100"], "--gpu is for --dry_run"),
        (["--dry_run", "--gpu", "h100", "--world_size", "0"], "greater than or equal to 1"),
    ],
)
def test_options(options: list[str], message: str, tiny_config: Path, monkeypatch, capsys) -> None:
    def run(*_: object, **__: object) -> bool:
        raise AssertionError("a run began")

    monkeypatch.setattr("sys.argv", ["pretrain.py", "--config", str(tiny_config), *options])
    with pytest.raises(SystemExit) as ended:
        launch(run, PretrainConfig, default_output="runs/x", plan=plan_for, evaluate=run)
    assert ended.value.code and message in " ".join("".join(capsys.readouterr()).replace("│", " ").split())


# ---- the shipped configurations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pretrain", "pretrain_40gb", "pretrain_large", "pretrain_large_40gb"])
def test_shipped_configurations_fit_the_card_that_they_name(name: str) -> None:
    """With a tenth free, without recomputation, in the memory that the header states, and with the paper's batch."""
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    command = rf"^#   python pretrain.py --config configs/{name}.yaml --dry_run --gpu (\S+) --world_size 8$"
    card = re.search(command, text, re.M)
    stated = float(re.search(r"^# Memory: ([\d.]+) GiB", text, re.M)[1])
    config = load_config(ROOT / "configs" / f"{name}.yaml", PretrainConfig)
    found = plan(trained_on_meta, config, card[1], world=8)
    assert found.fits and config.activation_checkpointing == "none"
    assert found.counted.peak / GIB == pytest.approx(stated, rel=0.02)
    assert 8 * found.samples == config.lr_reference_batch == (2400 if "large" in name else 2880)
    memory = re.search(r"8 GPUs of (\d+) GB", text)[1]
    assert card[1].endswith(memory)


def test_the_page_has_todays_estimates() -> None:
    """One line of its tables, within a tenth: small changes of a model do not make the page wrong."""
    made = runpy.run_path(str(ROOT / "docs" / "make_performance.py"))
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    (line,) = [line for line in made["parts"](page)["options"].splitlines() if line.startswith("| as shipped ")]
    there, today = ([float(cell) for cell in row.split("|")[2:-1]] for row in (line, made["option_row"]("as shipped")))
    assert today == pytest.approx(there, rel=0.1), "run: python docs/make_performance.py"
