"""Files that have their name are whole, whoever writes them."""

import os
from pathlib import Path

import pytest
import torch

from blip.checkpoints.format import save_tensors
from blip.files import WriteError, hidden_beside, partial_path, rename_whole, write_one_of_many, write_whole


def test_one_of_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a0" / "piece.jpg"
    write_one_of_many(path, b"first")
    write_one_of_many(path, b"second")
    assert path.read_bytes() == b"second" and list(path.parent.iterdir()) == [path]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match="No space left on device"):
        write_one_of_many(path, b"third")
    assert path.read_bytes() == b"second" and list(path.parent.iterdir()) == [path]


def test_a_file_that_was_written_over_several_runs_gets_its_name(tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("new")
    (tmp_path / "out").write_text("old")
    rename_whole(tmp_path / "out.partial", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["x" * 255, "\u00e4" * 127, "a" * 250 + ".json", ".hidden", "x.partial"])
def test_names_of_any_length(tmp_path: Path, name: str) -> None:
    for content in ("first", "second"):
        write_whole(tmp_path / name, content)
        assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == content
    write_one_of_many(tmp_path / name, b"third")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (
        partial_path(tmp_path / name).name.startswith(".")
        and len(os.fsencode(partial_path(tmp_path / name).name)) < 256
    )


def test_files_of_the_user_beside_an_output_stay(tmp_path: Path) -> None:
    (tmp_path / "out.json.partial").write_text("mine")
    (tmp_path / "elsewhere").write_text("mine")
    partial_path(tmp_path / "out.json").symlink_to(tmp_path / "elsewhere")
    write_whole(tmp_path / "out.json", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "out.json": "new",
        "out.json.partial": "mine",
        "elsewhere": "mine",
    }


@pytest.mark.parametrize("link", [os.symlink, os.link, lambda _, path: os.mkfifo(path)])
def test_nothing_is_written_through_what_lies_in_the_place_of_a_part(tmp_path: Path, link) -> None:
    other = tmp_path / "elsewhere"
    other.write_text("mine")
    for write, ending in ((write_whole, ".partial"), (write_one_of_many, f".{os.getpid()}.partial")):
        link(other, hidden_beside(tmp_path / "out", ending))
        write(tmp_path / "out", b"new")
        assert other.read_text() == "mine" and (tmp_path / "out").read_text() == "new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o007)
    try:
        write_whole(tmp_path / "a", "")
        save_tensors({"x": torch.zeros(2)}, tmp_path / "b.safetensors")
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o660}
