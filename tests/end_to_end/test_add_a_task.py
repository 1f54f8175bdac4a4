"""The steps of CONTRIBUTING's "Add a task", followed once with a toy task whose files lie outside the package.

`tests/fixtures/added_task` has the files of the steps: the model, its spec and its `FineTuning`, the launcher and the
configuration. The spec is in the table of tasks only while a test runs.
"""

import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

import pytest
import torch
from helpers.fine_tuning import assert_same_run, write_part
from helpers.running import ROOT, Program
from helpers.tiny import MODEL_SIZES, specials_of, spread, tiny_text, tiny_vit

import blip
from blip.models.factory import TASKS
from blip.train.log import read_metrics

FILES = ROOT / "tests" / "fixtures" / "added_task"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the toy task, registered for the length of a test."""
    monkeypatch.syspath_prepend(FILES)
    import brightness_task

    monkeypatch.setitem(TASKS, "brightness", brightness_task.SPEC)
    return brightness_task


def run(phantoms: Path, output: Path, *more: str | Path, sizes: bool = True) -> CompletedProcess:
    """`python train_brightness.py` on some phantoms."""
    values: dict[str, object] = {**MODEL_SIZES} if sizes else {}
    values |= {f"{part}_file": f"[{output.parent / part}.json]" for part in ("train", "val", "test")}
    for part, start, end in (("train", 0, 12), ("val", 12, 19), ("test", 20, 25)):
        write_part(phantoms, "caption", start, end, output.parent / f"{part}.json")
    options = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    command = ["--config", FILES / "brightness.yaml", "--output_dir", output, *options, *more]
    return Program(str(FILES / "train_brightness.py"), *command).finish()


def test_it_trains_and_is_scored(task: ModuleType, tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = run(phantoms, output, "--init_from", tiny_checkpoint, sizes=False)
    assert done.returncode == 0, done.stderr
    assert "brightness: 12 records" in done.stderr and "test_accuracy" in done.stdout
    assert [line["step"] for line in read_metrics(output) if "loss" in line] == [1, 2]
    assert "start at random" not in done.stderr  # the spec names the new part
    done = run(phantoms, output, "--evaluate", sizes=False)
    assert done.returncode == 0, done.stderr
    assert "val_accuracy" in done.stdout
    model = blip.load(output / "best").model
    assert isinstance(model, task.BrightnessModel)


def test_it_resumes_as_if_undisturbed(phantoms: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--set", "max_steps=4", "--set", "save_every_steps=2", "--set", f"tokenizer={phantoms}/tokenizer.json"]
    done = run(phantoms, whole, *options)
    assert done.returncode == 0, done.stderr
    shutil.copytree(whole, killed, symlinks=True)
    shutil.rmtree(killed / "checkpoints" / "step-00000004")  # as if killed in step 4, before its checkpoint
    done = run(phantoms, killed, *options, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "step-00000002 after step 2" in done.stderr
    assert_same_run(whole, killed)


@torch.no_grad()
def test_its_model_equals_pair_by_pair(task: ModuleType) -> None:
    text = tiny_text()
    model = spread(task.BrightnessModel(tiny_vit(), text, specials_of(text)), std=0.3).eval()
    lengths = torch.tensor([7, 4, 5])
    images, ids = torch.randn(3, 3, 32, 32), torch.randint(1, 48, (3, 7))
    alone = [model(images[i : i + 1], ids[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths.tolist())]
    torch.testing.assert_close(model(images, ids, lengths), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_task_without_a_spec_is_an_error(task: ModuleType) -> None:
    from blip.errors import InputError
    from blip.models.factory import spec_of

    assert spec_of("brightness") is task.SPEC
    with pytest.raises(InputError, match="there is no task 'darkness'"):
        spec_of("darkness")


def test_the_steps_are_those_of_the_page() -> None:
    """Each step names the file that stands for it here."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\d\. `([^`]+)`", page.partition("## Add a task")[2].partition("\n## ")[0], flags=re.MULTILINE)
    assert steps == ["blip/models/TASK.py", "blip/models/factory.py", "blip/data/", "blip/tasks/TASK.py",
                     "train_TASK.py", "configs/TASK.yaml"]  # fmt: skip
    here = {path.name for path in FILES.iterdir() if path.is_file()}
    assert here == {"brightness_model.py", "brightness_task.py", "train_brightness.py", "brightness.yaml"}
