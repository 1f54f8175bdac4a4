"""`blip.finetune`, `blip.pretrain` and `blip.evaluate` do what the scripts do, in the process that calls them."""

import json
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fine_tuning import TIMES
from helpers.tiny import MODEL_SIZES

import blip
from blip.checkpoints.format import load_weights
from blip.config import ConfigError, load_config
from blip.data.formats import AnnotationError
from blip.errors import InputError
from blip.runs.session import new_folder
from blip.runs.settings import settings
from blip.tasks import vqa
from blip.tasks.config import VqaConfig
from blip.tasks.entries import ENTRIES, entry_of
from blip.tokenizer import Tokenizer
from blip.train.log import read_metrics

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {
    "image_size": 32, "crop_scale": None, "randaugment": None, "batch_size": 4, "precision": "fp32", "num_workers": 0,
    "log_every_steps": 1, "max_text_tokens": 32, "device": "cpu",
}  # fmt: skip
NEW: dict[str, Any] = {**SMALL, **MODEL_SIZES, "tokenizer": "words.json", "lr": 3e-3, "warmup_steps": 2}
QUESTIONS = {**NEW, "drop_path": 0, "k_test": 3, "max_answer_tokens": 8, "max_steps": 3}


@pytest.fixture(scope="module")
def data(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about phantoms, with absolute paths: train.json and val.json."""
    folder = tmp_path_factory.mktemp("questions")
    records = json.loads((phantoms / "questions.json").read_text())
    for record in records:
        record["image"] = str(phantoms / record["image"])
    (folder / "train.json").write_text(json.dumps(records[:12]))
    (folder / "val.json").write_text(json.dumps(records[20:26]))
    return folder


@pytest.fixture
def here(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_java_nor_peak: None) -> Path:
    monkeypatch.chdir(tmp_path)
    words = [f"{one['question']} {one['answer']}" for one in json.loads((data / "train.json").read_text())]
    Tokenizer.train(words, 120).save("words.json")  # once for all runs of a test: it breaks ties at random
    return tmp_path


def lines(folder: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(folder)]


def test_it_is_the_run_of_the_script(data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = blip.finetune("vqa", data / "train.json", val=str(data / "val.json"), **QUESTIONS)
    assert run.folder == Path("runs/vqa-1") and "run: runs/vqa-1" in capsys.readouterr().err
    config = load_config(run.folder / "config.yaml", VqaConfig)
    vqa.run(config, here / "script", "", device=torch.device("cpu"))
    assert lines(run.folder) == lines(here / "script") and len(lines(run.folder)) == 4
    one, other = (load_weights(folder / "checkpoints/latest")[0] for folder in (run.folder, here / "script"))
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


def test_data_sets_lists_and_limits_are_trained_on(data: Path, here: Path) -> None:
    records = blip.data(data / "train.json", limit=8)
    run = blip.finetune("vqa", [records, str(data / "val.json")], val=records, **QUESTIONS)
    config = load_config(run.folder / "config.yaml", VqaConfig)
    first, second = config.train_file
    assert not isinstance(first, str) and first.limit == 8 and Path(first.path).is_absolute()
    assert second == str(data / "val.json") and len(config.val_file) == 1
    table = run.history
    assert run.scores["val_questions"] == 8 and list(table["step"]) == [3]


def test_a_run_goes_on_and_another_one_follows_in_the_same_process(data: Path, here: Path) -> None:
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    run = blip.finetune("vqa", data / "train.json", **{**QUESTIONS, "max_steps": None, "epochs": 1})
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    assert run.resume(epochs=2) is run and list(run.history["epoch"]) == [1, 2]
    second = blip.finetune("vqa", data / "train.json", **{**QUESTIONS, "max_steps": None, "epochs": 2})
    assert second.folder == Path("runs/vqa-2")
    # the first epoch followed the schedule of a shorter run
    assert lines(second.folder)[0]["loss"] == lines(run.folder)[0]["loss"]
    with pytest.raises(ConfigError, match="holds a run"):
        blip.finetune("vqa", data / "train.json", output_dir=run.folder, **QUESTIONS)
    more = blip.finetune("vqa", data / "train.json", output_dir=run.folder, resume=True,
                         **{**QUESTIONS, "max_steps": None, "epochs": 3})  # fmt: skip
    assert more.folder == run.folder and list(more.history["epoch"]) == [1, 2, 3]


def test_it_trains_in_another_thread(data: Path, here: Path) -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(blip.finetune("vqa", data / "train.json", **QUESTIONS)))
    thread.start()
    thread.join()
    assert made and len(made[0].history) == 1


def test_weights_of_another_run_and_published_options(
    data: Path, here: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**SMALL, "max_steps": 1, "k_test": 3}
    run = blip.finetune("vqa", data / "train.json", init_from=tiny_checkpoint, **options)
    config = load_config(run.folder / "config.yaml", VqaConfig)
    assert (config.lr, config.warmup_steps, config.min_lr) == (2e-5, 0, 0.0)
    named = blip.finetune("vqa", data / "train.json", val=data / "val.json", init_from=str(tiny_checkpoint),
                          config="vqa_rad", split_shares=None, dataset="json", **{**options, "lr": 1e-4})  # fmt: skip
    config = load_config(named.folder / "config.yaml", VqaConfig)
    assert (config.lr, config.epochs, config.image_size) == (1e-4, 30, 32) and config.config_file.endswith("yaml")


def test_arguments_that_are_not_given_leave_those_of_the_configuration(here: Path) -> None:
    (here / "own.yaml").write_text("device: cpu\ninit_from: weights\n")
    for device, found in (("auto", "cpu"), ("cuda", "cuda")):
        given = {"device": device, "init_from": ""}
        made = settings(entry_of("vqa"), "a call", config="own.yaml", data={}, options=given)
        assert (made.device, made.init_from) == (found, "weights")


def test_messages_are_those_of_python(data: Path, here: Path) -> None:
    with pytest.raises(ConfigError, match="train is not given"):
        blip.finetune("vqa", val=data / "val.json", **QUESTIONS)
    with pytest.raises(ConfigError, match="train is not given"):
        blip.pretrain()
    (here / "own/checkpoints/step-00000003").mkdir(parents=True)
    (here / "own/checkpoints/step-00000003/training.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"own holds a run: resume=True continues it"):
        blip.finetune("vqa", data / "train.json", output_dir="own", **QUESTIONS)
    for given, name in (
        (blip.data(data / "train.json")[:3], "Item"),
        ([{"image": "a.png"}], "a dictionary without path"),
    ):
        with pytest.raises(InputError, match=rf"{name} is no source of records: .* limit and split"):
            blip.finetune("vqa", given, **QUESTIONS)
    assert not (here / "runs").exists()


def test_runs_start_from_runs_and_paths_begin_at_home(data: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    shutil.copy(data / "train.json", here / "home")
    first = blip.finetune("vqa", "~/train.json", output_dir="~/first", **{**QUESTIONS, "max_steps": 1})
    assert first.folder == here / "home/first" and not (here / "~").exists()
    for start in (first, first.folder, "~/first"):
        run = blip.finetune("vqa", blip.data("~/train.json"), init_from=start, max_steps=1, k_test=3, **SMALL)
        assert load_config(run.folder / "config.yaml", VqaConfig).init_from == str(first.weights())
    assert (
        blip.evaluate("vqa", "~/first", "~/train.json", output_dir="~/results").folder.parent.parent
        == here / "home/results"
    )
    assert blip.runs.open("~/first").task == blip.load("~/first/checkpoints/latest").info["task"] == "vqa"
    for nothing in (None, "", 3):
        with pytest.raises(InputError, match="no checkpoint"):
            blip.evaluate("vqa", nothing, data / "train.json")  # type: ignore[arg-type]


def test_pretraining(phantoms: Path, here: Path) -> None:
    captions = phantoms / "captions.json"
    run = blip.pretrain(
        captions, val=captions, queue_size=8, max_steps=2, **{**NEW, "tokenizer": "train", "vocab_size": 120}
    )
    assert run.folder == Path("runs/pretrain-1") and run.task == "pretrain"
    assert isinstance(run.best("cpu").caption(str(phantoms / "images/000000.png"))[0], str)
    assert 0 <= run.scores["val_i2t_r1"] <= 1 and "val: R@1, image to text" in repr(run.scores)
    ranked, written = (blip.evaluate(task, run, captions, device="cpu", **options) for task, options in (
        ("retrieval", {"k_test": 4}), ("caption", {"max_new_tokens": 2})))  # fmt: skip
    assert ranked.folder.parent == written.folder.parent == Path("runs/evaluations/evaluation")
    assert ranked.folder.name == "pretrain-1-step-00000002-as-retrieval-captions" and "test_cider" in written
    with pytest.raises(ConfigError, match="holds an evaluation of another task"):
        blip.evaluate("caption", run, captions, name=ranked.folder.name, device="cpu")


@pytest.mark.parametrize("task", [name for name in ENTRIES if name != "vqa"])
def test_every_task_has_an_entry(task: str) -> None:
    assert entry_of(task).config().batch_size > 0


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_of_a_run_and_of_other_weights(data: Path, here: Path, tiny_checkpoint: Path) -> None:
    run = blip.finetune("vqa", data / "train.json", val=data / "val.json", **QUESTIONS)
    before = (run.folder / "config.yaml").read_bytes()
    scores = blip.evaluate("vqa", run, blip.data(data / "val.json"), batch_size=2, device="cpu")
    validation = run.history.iloc[-1]
    assert scores["test_exact_match"] == pytest.approx(validation["val_exact_match"])
    assert scores.folder.parent == run.folder / "evaluation" and (scores.folder / "answers_test.json").is_file()
    assert (run.folder / "config.yaml").read_bytes() == before
    assert "95 % interval" in repr(scores) and "<table>" in scores._repr_html_()
    again = blip.evaluate("vqa", str(run.folder), data / "val.json", name="again", device="cpu")
    assert dict(again) == pytest.approx(dict(scores)) and again.folder.name == "again"
    shutil.copytree(run.folder / "best", "elsewhere")
    alone = blip.evaluate("vqa", "elsewhere", data / "val.json", device="cpu", num_workers=0, precision="fp32")
    assert alone.folder.parent == Path("runs/evaluations/evaluation")
    assert alone["test_questions"] == scores["test_questions"]
    assert load_config(alone.folder / "config.yaml", VqaConfig).image_size == 32


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_are_told_and_leave_no_folder(data: Path, here: Path) -> None:
    train = data / "train.json"
    with pytest.raises(ConfigError, match="unknown key 'epoch'; did you mean 'epochs'"):
        blip.finetune("vqa", train, epoch=3)
    with pytest.raises(ConfigError, match="batch_size"):
        blip.finetune("vqa", train, batch_size="many")
    with pytest.raises(ConfigError, match="unknown key 'batchsize'"):
        blip.evaluate("vqa", "x", train, batchsize=3)
    with pytest.raises(InputError, match="did you mean 'vqa'"):
        blip.finetune("vqas", train)
    with pytest.raises(InputError, match=r"blip.pretrain"):
        blip.finetune("pretrain", train)
    with pytest.raises(InputError, match="int is no source of records"):
        blip.finetune("vqa", [3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="train is not given"):
        blip.finetune("vqa", **QUESTIONS)
    with pytest.raises(ConfigError, match="output_dir"):
        blip.finetune("vqa", train, resume=True)
    with pytest.raises(AnnotationError, match=r"absent.json"):
        blip.finetune("vqa", "absent.json", **QUESTIONS)
    with pytest.raises(InputError, match="no such folder"):
        blip.runs.open("runs/absent")
    assert not list(Path("runs").glob("*"))


def test_several_processes_are_for_the_scripts(data: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun"):
        blip.finetune("vqa", data / "train.json", **QUESTIONS)


def test_numbers_of_folders_only_rise(here: Path) -> None:
    Path("runs/vqa-7").mkdir(parents=True)
    Path("runs/vqa-x").mkdir()
    assert [new_folder("vqa"), new_folder("vqa"), new_folder("caption")] == [
        Path("runs/vqa-8"), Path("runs/vqa-9"), Path("runs/caption-1"),
    ]  # fmt: skip
