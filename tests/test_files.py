"""Files that have their name are whole, whoever writes them."""

import os
from pathlib import Path

import pytest

from blip.files import WriteError, rename_whole, write_one_of_many


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
