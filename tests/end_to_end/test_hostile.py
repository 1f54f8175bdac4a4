"""Hostile images, annotations, checkpoints and training states, given to commands as a user would give them.

Each case ends within its time with status 1 and a message, without a traceback, and changes no file that is not its
own. The tables are in `helpers/hostile_files.py`.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import hostile_files
from helpers.hostile_files import ANNOTATIONS, CHECKPOINTS, ESCAPE, IMAGES, TRAINING, damaged, picture, tree
from helpers.random_checkpoints import all_checkpoints
from helpers.running import run_verb

from blip.config import PretrainConfig
from blip.tasks import pretrain
from blip.tasks.dry_run import run_once
from blip.train.launch import launch

pytestmark = pytest.mark.slow  # all of them together

SECONDS = 60  # that a case may take; most take a tenth of a second


class TookTooLong(BaseException):
    """A case that hangs."""


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends a case that hangs."""

    def end(*_: object) -> None:
        raise TookTooLong(f"more than {SECONDS} s")

    monkeypatch.delenv("BLIP_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "400")
    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return all_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good image and a file of the user's."""
    (tmp_path / "good.png").write_bytes(picture("PNG"))
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def refused(run: Callable[[], tuple[int, str]], pattern: str, *, folder: Path, own: tuple[str, ...] = ()) -> str:
    """What a command printed that had to end with status 1 and a message.

    `own` are the beginnings of the names, below the folder, of what the command may write.
    """
    before = tree(folder)
    code, shown = run()
    assert code == 1, shown
    assert "Traceback" not in shown and "defect" not in shown, shown
    assert re.search(pattern, shown, re.IGNORECASE), f"no {pattern!r} in: {shown}"
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", shown), repr(shown)
    assert len(shown) < 20_000, "a message that nobody reads"
    after = {name: content for name, content in tree(folder).items() if not name.startswith(own or ("\0",))}
    assert after == {name: content for name, content in before.items() if name in after}
    assert before.keys() - after.keys() <= {name for name in before if name.startswith(own or ("\0",))}
    return shown


def verb(*arguments: object) -> Callable[[], tuple[int, str]]:
    """A verb to run: its exit code and what it printed."""

    def run() -> tuple[int, str]:
        result = run_verb(*arguments)
        return result.exit_code, result.output

    return run


def pretraining(capsys: pytest.CaptureFixture, config: Path, *options: object) -> Callable[[], tuple[int, str]]:
    """`python pretrain.py` with these options, in this process."""

    def run() -> tuple[int, str]:
        before, sys.argv = sys.argv, ["pretrain.py", "--config", str(config), *map(str, options)]
        try:
            with pytest.raises(SystemExit) as ended:
                launch(pretrain.run, PretrainConfig, default_output="runs/pretrain", dry_run=run_once)
        finally:
            sys.argv = before
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return run


# ---- images ----------------------------------------------------------------------------------------------------------

ASKED = {"caption": (), "match": ("a lesion",), "answer": ("is there a lesion",)}
TASK_OF = {"caption": "caption", "match": "retrieval", "answer": "vqa"}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", ASKED)
def test_an_image(name: str, kind: str, folder: Path, checkpoints: dict[str, Path]) -> None:
    make, pattern = IMAGES[kind]
    make(folder / "scan.png")
    refused(
        verb(name, folder / "scan.png", *ASKED[name], "--checkpoint", checkpoints[TASK_OF[name]], "--device", "cpu"),
        pattern,
        folder=folder,
    )


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_of_a_record(kind: str, folder: Path) -> None:
    make, pattern = IMAGES[kind]
    make(folder / "scan.png")
    records = [{"image": name, "caption": "a lesion"} for name in ("good.png", "scan.png")]
    (folder / "set.json").write_text(json.dumps(records))
    shown = refused(verb("check-data", folder / "set.json", "--num_workers", "0"), pattern, folder=folder)
    assert "scan.png" in shown


def test_one_bad_image_costs_itself(folder: Path, checkpoints: dict[str, Path]) -> None:
    """All of them in one folder with a good one: its caption is written, and status 1 tells of the others."""
    for number, (make, _) in enumerate(IMAGES.values()):
        make(folder / f"{number:02d}.png")
    out = folder / "new" / "rows.json"
    result = run_verb("caption", folder, "--checkpoint", checkpoints["caption"], "--out", out, "--device", "cpu")
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    assert [Path(row["image"]).name for row in json.loads(out.read_text())] == ["good.png"]


# ---- annotations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_annotations(kind: str, folder: Path) -> None:
    make, pattern = ANNOTATIONS[kind]
    make(folder / "set.json")
    refused(verb("check-data", folder / "set.json", "--num_workers", "0"), pattern, folder=folder)


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_annotations_of_a_run(kind: str, folder: Path, tiny_config: Path, capsys: pytest.CaptureFixture) -> None:
    make, pattern = ANNOTATIONS[kind]
    make(folder / "set.json")
    run = pretraining(
        capsys, tiny_config, "--output_dir", folder / "run", "--set", f"train_file=[{folder / 'set.json'}]",
        "--set", "val_file=[]", "--set", "max_steps=1",
    )  # fmt: skip
    refused(run, pattern, folder=folder, own=("run",))
    assert not list(folder.glob("run/checkpoints/*"))


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint(kind: str, folder: Path, checkpoints: dict[str, Path]) -> None:
    make, pattern = CHECKPOINTS[kind]
    damaged(checkpoints["caption"], folder / "model", make)
    arguments = ("caption", folder / "good.png", "--checkpoint", folder / "model", "--device", "cpu")
    shown = refused(verb(*arguments), pattern, folder=folder)
    assert "model" in shown
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "kind", ["NaN weights", "integer weights", "depth of 10^7", "weights cut", "model.json is deep"]
)
def test_a_checkpoint_that_is_converted(kind: str, folder: Path, checkpoints: dict[str, Path]) -> None:
    make, pattern = CHECKPOINTS[kind]
    damaged(checkpoints["caption"], folder / "model", make)
    refused(verb("convert", folder / "model", folder / "out", "--to", "huggingface"), pattern, folder=folder)


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pickled code", "text", "cut zip", "pipe", "device"])
def test_a_foreign_file(name: str, kind: str, folder: Path) -> None:
    path = folder / name
    hostile_files.FOREIGN[kind](path)
    refused(verb("caption", folder / "good.png", "--checkpoint", path, "--device", "cpu"), ".", folder=folder)
    assert not Path("owned").exists()


# ---- the state of training -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_of_two_steps(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    before, sys.argv = sys.argv, ["pretrain.py", "--config", str(tiny_config), "--output_dir", str(output)]
    sys.argv += ["--set", "max_steps=2", "--set", "val_file=[]", "--set", "save_every_steps=1"]
    with pytest.raises(SystemExit) as ended:
        launch(pretrain.run, PretrainConfig, default_output="runs/pretrain", dry_run=run_once)
    sys.argv = before
    assert ended.value.code == 0
    return output


@pytest.mark.parametrize("kind", TRAINING)
def test_a_training_state(
    kind: str, folder: Path, run_of_two_steps: Path, tiny_config: Path, capsys: pytest.CaptureFixture
) -> None:
    make, pattern = TRAINING[kind]
    run = damaged(run_of_two_steps, folder / "run", lambda run: make(run / "checkpoints" / "step-00000001"))
    options = ("--output_dir", run, "--set", "max_steps=3", "--set", "val_file=[]", "--resume")
    refused(
        pretraining(capsys, tiny_config, *options, run / "checkpoints" / "step-00000001"), pattern,
        folder=folder, own=("run/.blip",),
    )  # fmt: skip
    assert not Path("owned").exists()


# ---- names -----------------------------------------------------------------------------------------------------------

NAMES = [
    b"caf\xe9.png",
    f"a{ESCAPE}.png".encode(),
    b"two\nlines.png",
    b"-rf.png",
    b"'; touch owned; '.png",
    b'a,b\t"c".png',
    "\u202egnp.exe.png".encode(),
    b"=cmd()|x.png",
    b"[red]markup[red].png",
    b"n" * 251 + b".png",
]


@pytest.mark.parametrize("name", NAMES, ids=[str(i) for i in range(len(NAMES))])
def test_a_name_of_any_bytes(name: bytes, folder: Path, checkpoints: dict[str, Path]) -> None:
    """Captions of a folder with it, as JSON; and the data check of a set that names it."""
    scans = folder / "scans"
    scans.mkdir()
    (Path(os.fsdecode(os.path.join(os.fsencode(scans), name)))).write_bytes(picture("PNG"))
    out = folder / "rows.json"
    result = run_verb("caption", scans, "--checkpoint", checkpoints["caption"], "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_bytes())
    assert os.path.basename(os.fsencode(row["image"])) == name
    (folder / "set.json").write_text(json.dumps([row]))
    result = run_verb("check-data", folder / "set.json", "--num_workers", "0")
    assert result.exit_code == 0, result.output
    result = run_verb("caption", scans, "--checkpoint", checkpoints["caption"], "--device", "cpu")
    assert result.exit_code == 0 and "\x1b]" not in result.output and "\u202e" not in result.output, result.output


def test_there_are_at_least_two_hundred_cases() -> None:
    count = (len(ASKED) + 1) * len(IMAGES) + 2 * len(ANNOTATIONS) + len(CHECKPOINTS) + len(TRAINING) + len(NAMES)
    assert count >= 200
