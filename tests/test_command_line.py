"""How errors end a command: one line for what a user can mend, a traceback for a defect."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.running import message_of
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset

from blip.checkpoints import convert
from blip.checkpoints.format import CheckpointError
from blip.command_line import REPORT, user_errors, user_message
from blip.config import PretrainConfig
from blip.data.formats import AnnotationError
from blip.errors import BlipError, InputError, MissingFile
from blip.tasks import pretrain
from blip.train.launch import launch


@pytest.fixture(autouse=True)
def _no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLIP_DEBUG", raising=False)


def fails(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


class Broken(Dataset):
    """A data set whose samples cannot be made."""

    def __init__(self, error: Exception):
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise self.error


def shown(call: Callable[[], None], capsys: pytest.CaptureFixture) -> str:
    """What the call prints as an error; it ends with status 1."""
    with pytest.raises(SystemExit) as ended, user_errors():
        call()
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BlipError("use another file"), "error: use another file\n"),
        (InputError("k is 0"), "error: k is 0\n"),
        (MissingFile("no file x"), "error: no file x\n"),
        (AnnotationError("a.json", "line 3", "is empty"), "error: a.json, line 3: is empty\n"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "error: a.json: No such file or directory\n"),
        (OSError(28, "No space left on device", "a.pt"), "error: a.pt: No space left on device\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_user_can_mend_is_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture) -> None:
    assert shown(fails(error), capsys) == message


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes differ"), ValueError("not enough values to unpack"), KeyError("images"), OSError("no errno")],
    ids=lambda error: type(error).__name__,
)
def test_a_defect_shows_its_traceback_and_where_to_report_it(error: Exception, capsys: pytest.CaptureFixture) -> None:
    text = shown(fails(error), capsys)
    assert text.startswith("Traceback (most recent call last):") and "raise error" in text
    assert f"{type(error).__name__}: {error}" in text
    assert text.endswith(f"{REPORT}\n") and "report" in REPORT
    assert "\nerror: " not in text


def load(error: Exception) -> None:
    next(iter(DataLoader(Broken(error), num_workers=1)))


def test_errors_of_loader_workers(capsys: pytest.CaptureFixture) -> None:
    """The worker's traceback is part of the message that arrives."""
    assert message_of(lambda: load(InputError("text_cleaning is 'no'")), capsys) == "error: text_cleaning is 'no'\n"
    text = shown(lambda: load(ValueError("a defect")), capsys)
    assert "ValueError: Caught ValueError in DataLoader worker" in text and "ValueError: a defect" in text
    assert REPORT in text


def test_debugging_shows_every_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("BLIP_DEBUG", "1")
    with pytest.raises(InputError, match="k is 0"), user_errors():
        raise InputError("k is 0")
    assert capsys.readouterr().err == ""  # Python itself prints the traceback


def test_interrupts_and_exits_pass() -> None:
    with pytest.raises(KeyboardInterrupt), user_errors():
        raise KeyboardInterrupt
    with pytest.raises(SystemExit) as ended, user_errors():
        raise SystemExit(3)
    assert ended.value.code == 3


def start() -> None:
    launch(pretrain.run, PretrainConfig, default_output="runs/pretrain")


def test_an_output_folder_without_permission(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output, mkdir = tmp_path / "closed" / "run", os.mkdir

    def refused(path: str | Path, *arguments: int, **options: int) -> None:
        if Path(path) in (output, output.parent):  # also where the tests run as root
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", refused)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--config", str(tiny_config), "--output_dir", str(output)])
    assert message_of(start, capsys).endswith("could not be written (Permission denied)\n")


def test_an_output_folder_below_a_file(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "run"
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--config", str(tiny_config), "--output_dir", str(output)])
    assert "is not a folder" in message_of(start, capsys)


def test_a_full_disk_without_a_file_name_and_full_memory_are_the_users() -> None:
    assert "No space left" in (user_message(OSError(errno.ENOSPC, "No space left on device")) or "")
    assert "lower the batch size" in (user_message(torch.cuda.OutOfMemoryError("CUDA out of memory")) or "")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (caught.value, MemoryError()):
        assert "not enough memory: lower the batch size" in (user_message(error) or "")
    assert user_message(OSError(errno.EIO, "Input/output error")) is None
    assert user_message(RuntimeError("shapes do not match")) is None


@pytest.mark.parametrize("to", ["blip", "salesforce", "huggingface"])
def test_a_full_disk_leaves_no_half_checkpoint(
    to: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("blip.checkpoints.format.save_file", full)
    monkeypatch.setattr("torch.save", full)
    tensors, info = convert.read(tiny_checkpoint)
    with pytest.raises(CheckpointError, match=r"could not be written to .*No space left"):
        convert.write(
            tmp_path / "out",
            tensors,
            info,
            to=to,
            tokenizer_file=tiny_checkpoint / "tokenizer.json",
            hf_class="caption",
        )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
