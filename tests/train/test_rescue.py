"""Whatever ends a run leaves its last finished step in a checkpoint, from which it goes on as if undisturbed."""

import builtins
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fine_tuning import CPU, TASKS, assert_same_run, configure, evaluations, result, train
from safetensors import SafetensorError

from blip.checkpoints import format as checkpoint_format
from blip.config import PretrainConfig, load_config
from blip.data.webdataset import write_tar_shards
from blip.errors import BlipError
from blip.files import WriteError, partial_path
from blip.tasks import nlvr, pretrain
from blip.tasks.config import FineTuneConfig
from blip.train.checkpoint import complete_checkpoints
from blip.train.log import RunLog, read_metrics

pytestmark = [pytest.mark.usefixtures("no_java_nor_peak"), pytest.mark.slow]  # all of them together
SAVED = "is saved; continue with --resume auto"


class Broken(Exception):
    """A defect."""


def steps(output: Path) -> list[int]:
    return [int(path.name[-8:]) for path in complete_checkpoints(output)]


def failing(call: Callable, at: int, error: type[Exception] = Broken) -> Callable:
    """The function, which fails when it is called for the `at`-th time, from 1, after it has done its work."""
    count = 0

    def called(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        done = call(*given, **named)
        if count == at:
            raise error(f"call {count}")
        return done

    return called


# ---- an error anywhere in a step -------------------------------------------------------------------------------------

OPTIONS = ("accumulation=2", "save_every_steps=100", "log_every_steps=2", "batch_size=2", "max_steps=7")
# what fails -> the call that fails, and the step that is saved then
PLACES = {"step": (6, 2), "evaluate": (1, 3), "_keep_best": (1, 3), "after_update": (4, None)}


@pytest.fixture(scope="module")
def whole(phantoms: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an undisturbed run of a task."""
    made: dict[str, Path] = {}

    def of(task: str) -> Path:
        if task not in made:
            place = tmp_path_factory.mktemp(task)
            train(task, configure(task, phantoms, place, *OPTIONS, init_from=tiny_checkpoint), place / "run")
            made[task] = place / "run"
        return made[task]

    return of


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("task", ["retrieval", "nlvr"])
def test_fine_tuning(
    task: str, place: str, whole: Callable, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    config = configure(task, phantoms, tmp_path, *OPTIONS, init_from=tiny_checkpoint)
    kind, output, (call, saved) = TASKS[task][2], tmp_path / "run", PLACES[place]
    with monkeypatch.context() as patch:
        patch.setattr(kind, place, failing(getattr(kind, place), call))
        with pytest.raises(Broken):
            train(task, config, output)
    said = capsys.readouterr().err
    if saved is None:
        assert "step 3 is not saved: step 4 had begun to change the weights; there is no checkpoint yet" in said
        assert not complete_checkpoints(output)
        return
    assert f"step {saved} {SAVED}" in said
    assert steps(output) == [saved]
    train(task, config.model_copy(update={"init_from": ""}), output, "auto")
    assert_same_run(whole(task), output)
    assert [line["step"] for line in evaluations(output)] == [3, 6, 7]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_evaluation_that_the_last_step_lacks_is_made_up_for(
    at: int, whole: Callable, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third is that of the last step, after which there is nothing to train."""
    config = configure("nlvr", phantoms, tmp_path, *OPTIONS, init_from=tiny_checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(nlvr.Judging, "evaluate", failing(nlvr.Judging.evaluate, at))
        with pytest.raises(Broken):
            train("nlvr", config, tmp_path / "run")
    train("nlvr", config.model_copy(update={"init_from": ""}), tmp_path / "run", "auto")
    assert_same_run(whole("nlvr"), tmp_path / "run")
    before = complete_checkpoints(tmp_path / "run")[-1].stat().st_mtime_ns
    train("nlvr", config.model_copy(update={"init_from": ""}), tmp_path / "run", "auto")
    assert len(evaluations(tmp_path / "run")) == 3, "once is enough"
    assert complete_checkpoints(tmp_path / "run")[-1].stat().st_mtime_ns == before


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_line_of_the_log_that_could_not_be_written_comes_later(
    at: int, whole: Callable, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure("nlvr", phantoms, tmp_path, *OPTIONS, init_from=tiny_checkpoint)
    plain, count = RunLog._append, 0

    def append(log: RunLog, *line: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise WriteError(f"{log.path} could not be written")
        plain(log, *line)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "_append", append)
        with pytest.raises(WriteError):
            train("nlvr", config, tmp_path / "run")
    train("nlvr", config.model_copy(update={"init_from": ""}), tmp_path / "run", "auto")
    assert_same_run(whole("nlvr"), tmp_path / "run")


def shards(phantoms: Path, folder: Path) -> Path:
    """The phantoms as webdataset shards whose pairs name their sources."""
    images = sorted((phantoms / "images").glob("*.png"))
    rows = ({"png": p.read_bytes(), "json": {"caption": f"a lesion {i}", "source": f"s{i % 3}"}}
            for i, p in enumerate(images))  # fmt: skip
    write_tar_shards(folder, rows, 20)
    return folder


@pytest.mark.parametrize(("call", "saved"), [(2, 0), (7, 3), (10, 4)])
def test_pretraining(
    call: int, saved: int, tiny_config: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The means of ITM and the counts of sources are those of the finished steps."""
    pytest.importorskip("webdataset")
    data = shards(phantoms, tmp_path / "shards")
    options = [f"train_file=[{data}]", "val_file=[]", "accumulation=2", "max_steps=6", "log_every_steps=4"]
    config = load_config(tiny_config, PretrainConfig, [*options, "save_every_steps=100"])
    pretrain.run(config, tmp_path / "whole", "", device=CPU)
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Pretraining, "step", failing(pretrain.Pretraining.step, call))
        with pytest.raises(Broken):
            pretrain.run(config, output, "", device=CPU)
    assert steps(output) == [saved][: bool(saved)]
    pretrain.run(config, output, "auto", device=CPU)
    assert_same_run(tmp_path / "whole", output)
    assert sum(result(output)[2]["progress"]["seen"].values()) == 6 * 2 * 8


# ---- a full disk, at each file ---------------------------------------------------------------------------------------


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, name: str, at: int = 1) -> Iterator[None]:
    """Within this block the disk is full when a file of this name is written for the `at`-th time, and from then on."""
    count = 0

    def refuse(path: object, error: Exception) -> None:
        nonlocal count
        if Path(os.fsdecode(path)).name in (name, partial_path(Path(name)).name):  # type: ignore[call-overload]
            count += 1
        if count >= at:
            raise error

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    plain_open, plain_save, plain_tensors = builtins.open, torch.save, checkpoint_format.save_file

    def open_(path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        if isinstance(path, str | Path) and set(mode) & set("wax+") and ".safetensors" not in str(path):
            refuse(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)))
        return plain_open(path, mode, *given, **named)

    def save(state: Any, path: Any) -> None:
        refuse(path, RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"))
        plain_save(state, path)

    def tensors(state: Any, path: Any, *given: Any) -> None:
        refuse(path, SafetensorError(f"Error while serializing: I/O error: {full}"))
        plain_tensors(state, path, *given)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", open_)
        patch.setattr("io.open", open_)
        patch.setattr(torch, "save", save)
        patch.setattr(checkpoint_format, "save_file", tensors)
        yield


# file, the how-manieth time, the last step of a whole checkpoint
FILES = [
    ("config.yaml", 1, 0), (".blip.run.json", 1, 0), ("metrics.jsonl", 5, 3), ("model.safetensors", 2, 1),
    ("model.safetensors", 3, 2), ("model.json", 2, 1), ("model.json", 3, 2), ("tokenizer.json", 1, 0),
    ("tokenizer.json", 3, 1), ("tokenizer.json", 4, 2), ("metrics.json", 1, 2), ("inputs.json", 3, 2),
    ("training.pt", 3, 2),
    ("judgements_val.json", 2, 5), ("scores_val.json", 1, 2), ("test.json", 1, 6), ("evaluation.json", 1, 6),
]  # fmt: skip


@pytest.fixture
def small(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> FineTuneConfig:
    return configure("nlvr", phantoms, tmp_path, init_from=tiny_checkpoint)


@pytest.mark.parametrize(("name", "at", "last"), FILES, ids=[f"{name}-{at}" for name, at, _ in FILES])
def test_full_disk(
    name: str, at: int, last: int, small: FineTuneConfig, phantoms: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """The message names the file; the checkpoint before is whole; with room the run goes on as if undisturbed."""
    output = tmp_path / "run"
    if name == "evaluation.json":
        train("nlvr", small, output)
    with full_disk(monkeypatch, name, at), pytest.raises((BlipError, OSError), match=name) as caught:
        (TASKS["nlvr"][0].score(small.model_copy(update={"init_from": ""}), output, CPU)
         if name == "evaluation.json" else train("nlvr", small, output))  # fmt: skip
    assert "No space left" in str(caught.value) or "Is the disk full?" in str(caught.value)
    found = steps(output)
    assert not [path for path in output.rglob("*.partial") if path.is_dir()], "room is not wasted"
    assert (found[-1] if found else 0) == last
    for checkpoint in complete_checkpoints(output):
        checkpoint_format.load_weights(checkpoint)
    train("nlvr", small.model_copy(update={"init_from": "" if found else small.init_from}), output, "auto")
    train("nlvr", small, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", output)
    assert len(read_metrics(output)) == len({(*line, line["step"]) for line in read_metrics(output)})
