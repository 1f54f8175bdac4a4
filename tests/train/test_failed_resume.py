"""A resumption that fails before its first step changes nothing in the folder of the run, whatever the cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fine_tuning import assert_same_run, configure, train, tree

from blip.errors import BlipError
from blip.tasks.config import FineTuneConfig
from blip.tasks.nlvr import Judging
from blip.train import run as train_run
from blip.train.before import Before
from blip.train.checkpoint import complete_checkpoints
from blip.train.loop import Loop
from blip.train.record import RECORD, Record

pytestmark = pytest.mark.usefixtures("no_java_nor_peak")
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def whole(phantoms: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, its images beside it."""
    place = tmp_path_factory.mktemp("whole")
    train("nlvr", configure("nlvr", phantoms, place, "keep_checkpoints=9", init_from=tiny_checkpoint), place / "run")
    return place / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run as if it had been killed after step 4."""
    output = shutil.copytree(whole, tmp_path / "run", symlinks=True)
    for checkpoint in complete_checkpoints(output)[4:]:
        shutil.rmtree(checkpoint)
        Record(output).forget([checkpoint.name])
    (output / "mine.txt").write_text("mine")
    return output


@pytest.fixture
def config(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> FineTuneConfig:
    config = configure("nlvr", phantoms, tmp_path, "keep_checkpoints=9", init_from=tiny_checkpoint)
    return config.model_copy(update={"init_from": "", "lr": 0.002})  # a change that a resumed run writes


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def damaged(run: Path, config: FineTuneConfig, patch: Patch) -> None:
    state = complete_checkpoints(run)[-1] / "training.pt"
    state.write_bytes(state.read_bytes()[:1000])


def no_weights(run: Path, config: FineTuneConfig, patch: Patch) -> None:
    (complete_checkpoints(run)[-1] / "model.safetensors").write_bytes(b"no weights")


def other_data(run: Path, config: FineTuneConfig, patch: Patch) -> None:
    path = Path(config.train_file[0])
    path.write_text(json.dumps(json.loads(path.read_text())[:8]))


def setting(**values: Any) -> Callable[[Path, FineTuneConfig, Patch], None]:
    def change(run: Path, config: FineTuneConfig, patch: Patch) -> None:
        for key, value in values.items():
            setattr(config, key, value)

    return change


def failing(owner: Any, name: str, error: BaseException) -> Callable[[Path, FineTuneConfig, Patch], None]:
    return lambda run, config, patch: patch.setattr(owner, name, raising(error))


def no_record(run: Path, config: FineTuneConfig, patch: Patch) -> None:
    (run / RECORD).unlink()
    patch.setattr(Judging, "step", raising(BlipError("no")))


CAUSES: dict[str, Callable[[Path, FineTuneConfig, Patch], None]] = {
    "damaged state": damaged,
    "damaged weights": no_weights,
    "other data": other_data,
    "other image size": setting(image_size=40),
    "batch too large": setting(batch_size=500),
    "frozen parts": setting(freeze=["image_encoder"]),
    "no such file": setting(val_file=["gone.json"]),
    "no such image": lambda run, config, patch: patch.setattr(
        "blip.data.statements.NlvrDataset.__getitem__", raising(FileNotFoundError(2, "gone", "x.png"))
    ),
    "no memory for a step": failing(Judging, "step", torch.OutOfMemoryError("no memory")),
    "a defect in a step": failing(Judging, "step", RuntimeError("a defect")),
    "no memory for an update": failing(torch.optim.AdamW, "step", torch.OutOfMemoryError("no memory")),
    "interrupted": failing(Judging, "step", KeyboardInterrupt()),
    "a loop that cannot continue": failing(Loop, "load", RuntimeError("other meters")),
    "random numbers": failing(train_run, "restore_random_state", RuntimeError("none")),
    "a run of an earlier version": no_record,
}


@pytest.mark.parametrize("cause", CAUSES)
def test_it_changes_nothing(cause: str, run: Path, config: FineTuneConfig, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        CAUSES[cause](run, config, patch)
        before = tree(run)
        with pytest.raises(BaseException) as caught:
            train("nlvr", config, run, "auto")
        assert not isinstance(caught.value, AssertionError | pytest.fail.Exception)
    assert tree(run) == before
    assert {path.name for path in run.iterdir()} >= {"mine.txt", "config.yaml"}


def test_tensorboard_and_an_empty_folder(run: Path, config: FineTuneConfig, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Judging, "step", raising(BlipError("no")))
    before = tree(run)
    for output in (run, tmp_path / "new"):
        with pytest.raises(BlipError, match=r"^no$"):
            train("nlvr", config.model_copy(update={"tensorboard": True}), output, str(complete_checkpoints(run)[-1]))
    assert tree(run) == before and not (tmp_path / "new").exists()


def test_a_run_that_went_on_keeps_what_it_wrote(
    run: Path, whole: Path, config: FineTuneConfig, monkeypatch: Patch
) -> None:
    config.lr = 0.003
    take, count = Judging.step, [0]

    def step(self: Judging, *given: Any) -> Any:
        count[0] += 1
        return take(self, *given) if count[0] == 1 else raising(BlipError("no"))()

    with monkeypatch.context() as patch:
        patch.setattr(Judging, "step", step)
        with pytest.raises(BlipError, match=r"^no$"):
            train("nlvr", config, run, "auto")
    assert complete_checkpoints(run)[-1].name == "step-00000005"
    train("nlvr", config, run, "auto")
    assert_same_run(whole, run)


def test_it_neither_reads_nor_changes_what_is_not_the_runs(tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"1")
    Record(tmp_path).add(["config.yaml"])
    before = Before(tmp_path)
    Record(tmp_path).add(["new.json", "best"])
    for name in ("big.bin", "new.json", "notes.txt", "config.yaml"):
        (tmp_path / name).write_bytes(b"2")
    (tmp_path / "best").mkdir()
    before.restore()
    assert tree(tmp_path).keys() == {"big.bin", "notes.txt", RECORD}
    assert (tmp_path / "big.bin").read_bytes() == b"2" and Record(tmp_path).files == ["config.yaml"]
