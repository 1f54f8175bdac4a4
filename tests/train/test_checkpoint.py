"""Checkpoints of a run: kept, removed, found, whole after kills."""

import shutil
from pathlib import Path

import pytest
import torch

from blip.checkpoints.format import CheckpointError, load_weights
from blip.train.checkpoint import TRAINING, Checkpointer, complete_checkpoints, find_checkpoint
from blip.train.parts import load_training
from blip.train.record import Record


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpointer:
    (tmp_path / "tokenizer.json").write_text("{}")
    return Checkpointer(tmp_path, 2, {"task": "pretrain"}, tokenizer_file=tmp_path / "tokenizer.json")


def names(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def test_keeps_the_last_and_cleans_up_after_kills(checkpoints: Checkpointer, tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoints.save(step, {"w": torch.full((2,), float(step))}, {"loop": {}})
    (tmp_path / "checkpoints" / ".step-00000003.partial").mkdir()  # killed while writing,
    (tmp_path / "checkpoints" / ".latest.partial").symlink_to("step-00000002")  # or while pointing to the newest
    (tmp_path / "checkpoints" / ".step-00000001.old.partial").mkdir()  # or while removing
    checkpoints.save(3, {"w": torch.full((2,), 3.0)}, {"loop": {}})
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000003"]
    newest = find_checkpoint("auto", tmp_path)
    assert newest == (tmp_path / "checkpoints" / "latest").resolve()
    assert load_weights(newest)[0]["w"].tolist() == [3, 3]
    assert load_training(newest)["step"] == 3


def test_going_back_leaves_the_later_checkpoints_behind(checkpoints: Checkpointer, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        checkpoints.save(step, {"w": torch.zeros(1)}, {})
    assert find_checkpoint(str(tmp_path / "checkpoints" / "step-00000004"), tmp_path).name == "step-00000004"
    checkpoints.save(5, {"w": torch.ones(1)}, {})  # continued after step 4
    assert names(tmp_path) == ["latest", "step-00000004", "step-00000005"]
    assert find_checkpoint(str(tmp_path), tmp_path).name == "step-00000005"
    checkpoints.save(5, {"w": torch.zeros(1)}, {})  # written again
    assert load_weights(complete_checkpoints(tmp_path)[-1])[0]["w"].tolist() == [0]


def test_damaged_training_state(checkpoints: Checkpointer, tmp_path: Path) -> None:
    checkpoints.save(1, {"w": torch.zeros(1)}, {})
    path = complete_checkpoints(tmp_path)[0] / TRAINING
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"training\.pt is damaged or cut short"):
        load_training(path.parent)


def test_checkpoints_of_the_user_are_never_pruned(checkpoints: Checkpointer, tmp_path: Path) -> None:
    checkpoints.save(2, {"w": torch.zeros(1)}, {})
    for name in ("step-00000001", "step-00000009"):
        shutil.copytree(tmp_path / "checkpoints" / "step-00000002", tmp_path / "checkpoints" / name)
    for step in (4, 6, 8):
        checkpoints.save(step, {"w": torch.zeros(1)}, {})
    kept = ["latest", "step-00000001", "step-00000006", "step-00000008", "step-00000009"]
    assert names(tmp_path) == kept
    assert Record(tmp_path).checkpoints == ["step-00000006", "step-00000008"]
