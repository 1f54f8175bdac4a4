"""What users get wrong, and the message that they get: broken files, images, checkpoints, options and command lines.

Nothing here may end in a traceback: each case ends with status 1 and one message on standard error.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import bad_checkpoint_cases, bad_data_cases
from helpers.running import message_of, run_verb
from PIL import Image

from blip.config import PretrainConfig
from blip.tasks import pretrain
from blip.tasks.dry_run import run_once
from blip.tokenizer import Tokenizer
from blip.train.launch import launch

Arguments = list[str | Path]


def pretraining(*arguments: str | Path, output: Path, config: Path) -> None:
    """`python pretrain.py ...` in this process."""
    given = [str(a) for a in arguments]
    given += [] if "--config" in given else ["--config", str(config)]
    given += [] if "--output_dir" in given else ["--output_dir", str(output)]
    sys.argv = ["pretrain.py", *given]
    launch(pretrain.run, PretrainConfig, default_output="runs/pretrain", dry_run=run_once)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.delenv("BLIP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def finished(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step."""
    output = tmp_path_factory.mktemp("finished") / "run"
    before, sys.argv = sys.argv, ["pretrain.py"]
    with pytest.raises(SystemExit) as ended:
        pretraining("--set", "max_steps=1", "--set", "val_file=[]", output=output, config=tiny_config)
    sys.argv = before
    assert ended.value.code == 0
    return output


CASES = bad_data_cases.CASES + bad_checkpoint_cases.CASES


@pytest.mark.parametrize(("trigger", "kind", "pattern"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_data_and_checkpoints(
    trigger: Callable, kind: type[Exception], pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        trigger(tmp_path)

    def again() -> None:
        raise caught.value

    assert str(caught.value)[:40] in message_of(again, capsys)


def test_at_least_thirty_cases() -> None:
    assert len(CASES) + len(COMMANDS) >= 30


# ---- command lines ---------------------------------------------------------------------------------------------------


def option(*options: str) -> Callable[[Path, Path], Arguments]:
    """These `--set` options."""
    return lambda folder, finished: [x for o in options for x in ("--set", o)]


def arguments(*given: str) -> Callable[[Path, Path], Arguments]:
    """These arguments; FOLDER and RUN in them stand for an empty folder and for a finished run."""
    return lambda folder, finished: [g.replace("FOLDER", str(folder)).replace("RUN", str(finished)) for g in given]


def records(count: int, readable: int, *more: str) -> Callable[[Path, Path], Arguments]:
    """A training file of `count` records, of which the first `readable` have an image."""

    def write(folder: Path, finished: Path) -> Arguments:
        for i in range(readable):
            Image.new("L", (40, 40), i).save(folder / f"{i}.png")
        listed = [{"image": f"{i}.png", "caption": f"a lesion in place {i}"} for i in range(count)]
        (folder / "set.json").write_text(json.dumps(listed))
        return option(f"train_file=[{folder}/set.json]", "val_file=[]", *more)(folder, finished)

    return write


def no_training_state(folder: Path, finished: Path) -> Arguments:
    weights = folder / "weights"
    shutil.copytree(finished / "checkpoints" / "latest", weights)
    (weights / "training.pt").unlink()
    return ["--resume", weights]


def other_words(folder: Path, finished: Path) -> Arguments:
    """As many words as the finished run has, but others."""
    size = Tokenizer.from_file(finished / "tokenizer.json").size
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(size - 7))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return ["--init_from", finished / "checkpoints" / "latest", "--set", f"tokenizer={folder}/vocab.txt"]


def resumed_with_another_size(folder: Path, finished: Path) -> Arguments:
    shutil.copytree(finished, folder / "run", symlinks=True)
    return ["--resume", "auto", "--output_dir", folder / "run", "--set", "text_hidden=32"]


def damaged_state(folder: Path, finished: Path) -> Arguments:
    shutil.copytree(finished, folder / "run", symlinks=True)
    state = folder / "run" / "checkpoints" / "latest" / "training.pt"
    state.write_bytes(state.read_bytes()[:1000])
    return ["--resume", "auto", "--output_dir", folder / "run"]


def file_as_output(folder: Path, finished: Path) -> Arguments:
    (folder / "notes.txt").write_text("mine")
    return ["--output_dir", folder / "notes.txt"]


def no_bert(folder: Path, finished: Path) -> Arguments:
    (folder / "bert").mkdir()
    return option(f"text_init={folder}/bert")(folder, finished)


LATEST = "RUN/checkpoints/latest"
COMMANDS: list[tuple[str, Callable[[Path, Path], Arguments], str]] = [
    ("no such configuration", arguments("--config", "FOLDER/x.yaml"), r"no configuration .*x\.yaml"),
    ("unknown key", option("bach_size=8"), "unknown key 'bach_size'; did you mean 'batch_size'"),
    ("a list in two words", arguments("--set", "train_file=[a.json,", "b.json]"), "belongs to no option: type"),
    ("a list as a text", option("train_file=a.json"), r"it takes a list: --set 'train_file=\[a\.json\]'"),
    ("max_steps 0", option("max_steps=0"), "max_steps: .*greater than 0"),
    ("crop_scale reversed", option("crop_scale=[1.0, 0.2]"), "crop_scale .*0 < low <= high <= 1"),
    ("fp16", option("precision=fp16"), "precision: .*'fp32', 'tf32' or 'bf16'"),
    ("unknown device", option("device=mps"), "device: .*'auto', 'cpu' or 'cuda'"),
    # folders and checkpoints
    ("resume and init_from", arguments("--resume", "auto", "--init_from", "x"), "give one of them"),
    ("resume nothing", arguments("--resume", "FOLDER/no"), "no: there is no such folder; .*auto"),
    ("resume a folder without state", no_training_state, r"no training\.pt there.*--init_from"),
    ("resume another size", resumed_with_another_size, "(?s)does not fit the model.*wrong shape"),
    ("resume a damaged state", damaged_state, r"training\.pt is damaged or cut short"),
    ("output holds a run", arguments("--output_dir", "RUN"), "holds a run: continue it with --resume auto, or choose"),
    ("output is a file", file_as_output, r"notes\.txt"),
    ("init_from nothing", arguments("--init_from", "FOLDER/x.pth"), r"x\.pth does not exist"),
    ("init_from a number", arguments("--init_from", "2024"), "2024 does not exist"),
    ("init_from other words", other_words, "another tokenizer.*set tokenizer: .*latest/tokenizer.json"),
    ("init_from other sizes", arguments("--init_from", LATEST, "--set", "text_width=48"), "(?s)wrong shape"),
    ("init_from other depth", arguments("--init_from", LATEST, "--set", "text_layers=1"), r"(?s)not known.*layers\.1"),
    ("vision_init not of timm", option("vision_init=vit_base"), "expected timm/NAME"),
    ("vision_init unknown", option("vision_init=timm/vit_bse"), "vision_init: timm/vit_bse: .*[Uu]nknown"),
    ("text_init empty folder", no_bert, "bert"),
    # tokenizers
    ("tokenizer a bare name", option("tokenizer=bert-base-uncased"), "hub:bert-base-uncased, which is downloaded"),
    ("tokenizer missing", option("tokenizer=FOLDER/vocab.txt"), r"no tokenizer file .*vocab\.txt"),
    ("vocabulary too small", option("tokenizer=train", "vocab_size=3"), "vocab_size: .*16"),
    # data
    ("no training file", option("train_file=[]"), r"train_file is empty; --set 'train_file=\[captions\.json\]'"),
    ("training file missing", option("train_file=[no.json]"), r"no\.json: does not exist"),
    ("validation file missing", option("val_file=[no.json]"), r"no\.json: does not exist"),
    ("empty training file", records(0, 0), r"set\.json: holds no records"),
    ("batch larger than the set", records(3, 3), "3 records.*batch of 8: set batch_size to 3"),
    ("one pair, large batch", records(1, 1), "1 records.*set batch_size to 1"),
    ("too many broken images", records(40, 36, "batch_size=20"), r"of 40 records \(limit 1\.00%\).*no such file"),
    ("no readable image", records(40, 0), "images in a row could not be read.*image_root"),
    ("no readable image, workers", records(40, 0, "num_workers=1"), "images in a row could not be read.*image_root"),
    # sizes that do not fit
    ("image size", option("image_size=40"), "image size 40 must be a multiple of patch 16"),
    ("heads of the ViT", option("vit_heads=5"), "width 32 of heads 5"),
    ("fairscale, bf16", option("activation_checkpointing=fairscale", "precision=bf16"), "use activation_ch.*: torch"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "pattern"), [c[1:] for c in COMMANDS], ids=[c[0] for c in COMMANDS])
def test_command_lines(
    given: Callable, pattern: str, tiny_config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = given(tmp_path, finished)
    message = message_of(lambda: pretraining(*command, output=tmp_path / "out", config=tiny_config), capsys)
    assert re.search(pattern, message), message
    assert not list((tmp_path / "out").glob("checkpoints/*")), "nothing was trained"


def test_the_finished_run_was_left_alone(finished: Path) -> None:
    assert (finished / "checkpoints" / "latest" / "training.pt").is_file()


@pytest.mark.parametrize(
    ("given", "pattern"),
    [([], "--config"), (["--config", "x.yaml", "--dryrun"], "--dryrun"), (["--config"], "--config")],
)
def test_wrong_arguments(given: list[str], pattern: str, capsys: pytest.CaptureFixture) -> None:
    sys.argv = ["pretrain.py", *given]
    with pytest.raises(SystemExit) as ended:
        launch(pretrain.run, PretrainConfig, default_output="runs/pretrain", dry_run=run_once)
    assert ended.value.code == 2
    assert pattern in capsys.readouterr().err


def test_dry_run_goes_on_without_data(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        pretraining("--dry_run", "--set", "train_file=[no.json]", output=tmp_path / "out", config=tiny_config)
    assert ended.value.code == 0
    assert "data: no.json: does not exist" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_one_pair_is_enough(tiny_config: Path, tmp_path: Path) -> None:
    given = records(1, 1, "batch_size=1", "max_steps=2")(tmp_path, tmp_path)
    with pytest.raises(SystemExit) as ended:
        pretraining(*given, output=tmp_path / "out", config=tiny_config)
    assert ended.value.code == 0
    assert (tmp_path / "out" / "checkpoints" / "latest" / "model.safetensors").is_file()


def test_debugging_shows_the_traceback(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_DEBUG", "1")
    with pytest.raises(ValueError, match="must be a multiple"):
        pretraining("--set", "image_size=40", output=tmp_path / "out", config=tiny_config)


VERBS = [
    (["phantoms", "FOLDER/new", "--count", "0"], "count is 0"),
    (["phantoms", "FOLDER/new", "--noise", "2"], "noise is 2.0"),
    (["convert", "FOLDER/no.pth", "FOLDER/out"], "no.pth does not exist"),
    (["check-data", "FOLDER/no.json", "--tokenizer", "FOLDER/no.txt"], "no tokenizer file"),
    (["answer", "FOLDER/a.png", "is it", "--checkpoint", "c", "--answers", "FOLDER/pipe"], "pipe: is not a regular"),
    (["answer", "FOLDER/a.png", "is it", "--checkpoint", "c", "--answers", "/dev/zero"], "zero: is not a regular"),
]
SEEDS = (
    ["phantoms", "FOLDER", "--seed", "-1"],
    ["caption", "FOLDER/a.png", "--checkpoint", "c", "--sample", "--seed", str(1 << 63)],
    ["capfilt", "report", "--scored", "FOLDER", "--out", "FOLDER/a.html", "--seed", "-1"],
    ["localise", "FOLDER/a.json", "--checkpoint", "c", "--limit", "-1"],
)


@pytest.mark.parametrize(("given", "pattern"), VERBS, ids=[" ".join(v[0][:1]) + str(i) for i, v in enumerate(VERBS)])
def test_verbs(given: list[str], pattern: str, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    result = run_verb(*(word.replace("FOLDER", str(tmp_path)) for word in given))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert pattern in result.stderr


@pytest.mark.parametrize("given", SEEDS, ids=lambda given: given[0])
def test_numbers_out_of_range(given: list[str], tmp_path: Path) -> None:
    result = run_verb(*(word.replace("FOLDER", str(tmp_path)) for word in given))
    assert result.exit_code == 2 and "Invalid value for" in result.stderr
    assert not list(tmp_path.iterdir())
