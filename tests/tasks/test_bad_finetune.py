"""What users get wrong with the fine-tuning scripts and the verbs over images, and unusual input that works.

No case ends in a traceback: status 1, one message on standard error, nothing trained.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.bad_finetune_cases import NO_WORD, RETRIEVAL, SCRIPTS, VERBS, Make
from helpers.fine_tuning import TASKS, configure, evaluations, score, script_of, train, write_part
from helpers.running import message_of, run_verb
from PIL import Image

from blip.config import ConfigError
from blip.tasks.records import NothingToScore
from blip.train.launch import launch


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.delenv("BLIP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PATH", "")  # no Java
    monkeypatch.setattr("blip.train.run.measure_peak", lambda *_: 0.0)


def arguments(make: Make, folder: Path, start: Path, phantoms: Path) -> list[str]:
    places = {"FOLDER": str(folder), "START": str(start), "DATA": str(phantoms)}
    found = make(folder, start)
    for name, path in places.items():
        found = [argument.replace(name, path) for argument in found]
    return found


def test_at_least_twenty_five_cases() -> None:
    assert len(SCRIPTS) + len(VERBS) >= 25


@pytest.mark.parametrize(("task", "make", "pattern"), [c[1:] for c in SCRIPTS], ids=[c[0] for c in SCRIPTS])
def test_scripts(
    task: str, make: Make, pattern: str,
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    configure(task, phantoms, tmp_path, init_from=tiny_checkpoint)
    script, kind = TASKS[task][:2]
    given = arguments(make, tmp_path, tiny_checkpoint, phantoms)
    sys.argv = [script_of(task), "--config", str(tmp_path / f"{task}.yaml"), *given]
    sys.argv += ["--output_dir", str(tmp_path / "out")]
    message = message_of(lambda: launch(script.run, kind, default_output="runs/x", evaluate=script.score), capsys)
    assert re.search(pattern, message), message
    assert not list((tmp_path / "out").glob("checkpoints/*")), "nothing was trained"


@pytest.mark.parametrize(("make", "pattern"), [c[1:] for c in VERBS], ids=[c[0] for c in VERBS])
def test_verbs(make: Make, pattern: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = run_verb(*arguments(make, tmp_path, tiny_checkpoint, phantoms))
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    assert re.search(pattern, result.stderr), result.stderr
    assert not result.stdout


def test_a_batch_of_nothing_is_no_option(phantoms: Path, tiny_checkpoint: Path) -> None:
    result = run_verb("caption", phantoms, "--checkpoint", tiny_checkpoint, "--batch_size", 0)
    assert result.exit_code == 2 and "--batch_size" in result.stderr


# ---- a checkpoint of another task ------------------------------------------------------------------------------------


def test_a_start_of_another_task_is_said_to_be_one(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = RETRIEVAL(tmp_path, tiny_checkpoint)
    config = configure("caption", phantoms, tmp_path, "max_steps=1", "val_file=[]", "test_file=[]", init_from=other)
    train("caption", config, tmp_path / "run")
    shown = capsys.readouterr().err
    assert f"{other} is a checkpoint of retrieval, not one that caption usually starts from: " in shown
    assert "tensors of text_decoder start at random" in shown
    assert (tmp_path / "run" / "checkpoints" / "latest").exists()


# ---- images that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"], ids=["empty", "no image"])
@pytest.mark.parametrize("task", TASKS)
def test_no_validation_image_can_be_read(
    task: str, content: bytes, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = with_images(task, configure(task, phantoms, tmp_path, "max_steps=1", init_from=tiny_checkpoint), [content])
    with pytest.raises(NothingToScore, match=r"no image of .*bad\.json could be read, such as .*0\.png"):
        train(task, config, tmp_path / "run")


@pytest.mark.parametrize("task", TASKS)
def test_one_broken_image_among_good_ones_is_listed(
    task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    good = (phantoms / "images" / "000000.png").read_bytes()
    config = configure(task, phantoms, tmp_path, "max_steps=1", "test_file=[]", init_from=tiny_checkpoint)
    train(task, with_images(task, config, [good, b"", good]), tmp_path / "run")
    listed = json.loads((tmp_path / "run" / "unreadable_val.json").read_text())
    assert [Path(path).name for path in listed] == ["1.png"]
    found = json.loads((tmp_path / "run" / f"{TASKS[task][4]}_val.json").read_text())
    assert len(found["images"] if task == "retrieval" else found) == 2


def with_images(task: str, config, images: list[bytes]):
    """The configuration with a validation file of records with these images."""
    folder = Path(config.train_file[0]).parent
    records = json.loads(Path(config.train_file[0]).read_text())[: len(images)]
    for i, (record, content) in enumerate(zip(records, images, strict=True)):
        (folder / f"{i}.png").write_bytes(content)
        record |= {"images": [f"{i}.png", f"{i}.png"]} if task == "nlvr" else {"image": f"{i}.png"}
    (folder / "bad.json").write_text(json.dumps(records))
    return config.model_copy(update={"val_file": [str(folder / "bad.json")]})


# ---- what looks wrong but works --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_one_record_is_enough(task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    one = write_part(phantoms, task, 0, 1, tmp_path / "one.json")
    given = [f"{name}_file=[{one}]" for name in ("train", "val", "test")]
    best = ["best_metric=val_exact"] if task == "caption" else []
    config = configure(
        task, phantoms, tmp_path, *given, *best, "batch_size=1", "max_steps=2", init_from=tiny_checkpoint
    )
    train(task, config, tmp_path / "run")
    assert len(evaluations(tmp_path / "run")) == 2


@pytest.mark.parametrize("task", ["retrieval", "caption"])
def test_captions_without_words(task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = configure(task, phantoms, tmp_path, "max_steps=1", init_from=tiny_checkpoint)
    for name in (config.train_file[0], *config.val_file):
        records = json.loads(Path(name).read_text())
        for record in records[::2]:
            record["caption"] = NO_WORD
        Path(name).write_text(json.dumps(records))
    train(task, config, tmp_path / "run")
    assert evaluations(tmp_path / "run")


@pytest.mark.parametrize(("task", "given"), [("vqa", "k_test=1000"), ("retrieval", "k_test=1000")])
def test_k_above_the_list_means_all_of_it(
    task: str, given: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = configure(task, phantoms, tmp_path, given, "max_steps=1", init_from=tiny_checkpoint)
    train(task, config, tmp_path / "run")
    score(task, config.model_copy(update={"init_from": ""}), tmp_path / "run")
    written = json.loads((tmp_path / "run/evaluation/best-val-test" / f"{TASKS[task][4]}_val.json").read_text())
    if task == "retrieval":
        assert len(written["image_to_text"][0]["candidates"]) == 7


def test_a_metric_that_the_validation_does_not_give(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = configure("vqa", phantoms, tmp_path, "best_metric=val_exact_match_plane", init_from=tiny_checkpoint)
    with pytest.raises(ConfigError, match=r"'val_exact_match_plane', .* none is plane; there are closed, open"):
        train("vqa", config, tmp_path / "run")


@pytest.mark.parametrize("words", [["caption"], ["match", "a lesion"]], ids=["caption", "match"])
def test_verbs_go_on_behind_a_broken_image(
    words: list[str], phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, made: Callable
) -> None:
    result = run_verb(words[0], made, *words[1:], "--checkpoint", tiny_checkpoint, "--json", "--batch_size", 2)
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert [Path(row["image"]).name for row in rows] == ["0.png", "2.png", "3.png"]
    assert "1.png" in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with four images, of which the second is none."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("L", (40, 40), 60 * i).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "1.png").write_bytes(b"GIF89a")
    return tmp_path / "images"
