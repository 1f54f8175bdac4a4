"""A file of lines over several runs: what both files have is kept, the rest is removed."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from blip.files import WriteError
from blip.outputs import OutputError
from blip.pubmed.panels.progress import Progress

SETTINGS = {"crops": "c"}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that was stopped after two figures of two lines each."""
    progress = Progress(tmp_path / "out.jsonl", SETTINGS)
    for figure in range(2):
        progress.add([{"line": 2 * figure + at, "text": "\u00e4"} for at in range(2)], {"figures": 1, "at": figure})
    progress.close()
    return tmp_path / "out.jsonl"


def finish(out: Path) -> list[int]:
    """Goes on with one more line; the numbers of all lines."""
    progress = Progress(out, SETTINGS)
    progress.add([{"line": 9}], {"figures": 1})
    progress.complete()
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]
    return [json.loads(line)["line"] for line in out.read_text(encoding="utf-8").splitlines()]


def test_a_run_goes_on(begun: Path) -> None:
    progress = Progress(begun, SETTINGS)
    progress.close()
    assert [counts["at"] for counts in progress.finished()] == [0, 1] and not begun.exists()
    assert finish(begun) == [0, 1, 2, 3, 9]


@pytest.mark.parametrize(("file", "cut"), [(".out.jsonl.partial", 1), (".out.jsonl.partial.progress", 1)])
def test_what_only_one_of_the_files_has_is_removed(begun: Path, file: str, cut: int) -> None:
    path = begun.parent / file
    path.write_bytes(path.read_bytes()[:-cut])
    assert finish(begun) == [0, 1, 9]


def test_counts_of_many_figures_are_not_kept_in_memory(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "out.jsonl", SETTINGS)
    for figure in range(2000):
        progress.add([], {"figures": 1, "text": "x" * 1000, "at": figure})
    progress.close()
    tracemalloc.start()
    progress = Progress(tmp_path / "out.jsonl", SETTINGS)
    assert sum(counts["at"] for counts in progress.finished()) == sum(range(2000))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    progress.close()
    assert most < 1_000_000, "2 MB of counts"


def test_lines_behind_the_last_figure_are_removed(begun: Path) -> None:
    with open(begun.parent / ".out.jsonl.partial", "a") as file:
        file.write('{"line": 7}\n{"li')
    assert finish(begun) == [0, 1, 2, 3, 9]


def test_other_settings_start_from_the_beginning_where_that_is_asked_for(begun: Path) -> None:
    with pytest.raises(OutputError, match=r'other settings.*"crops": "c".*--overwrite'):
        Progress(begun, {"crops": "d"})
    progress = Progress(begun, SETTINGS)
    progress.close()
    assert progress.begun == 2, "nothing was lost"
    progress = Progress(begun, {"crops": "d"}, restart=True)
    assert progress.begun == 0 and not list(progress.finished())
    progress.discard()
    assert not list(begun.parent.iterdir())


def test_the_message_names_the_settings_that_differ(begun: Path) -> None:
    with pytest.raises(OutputError) as caught:
        Progress(begun, {**SETTINGS, "shared": "own"})
    assert '"shared": null' in str(caught.value) and "crops" not in str(caught.value)


def test_a_full_disk_is_told_with_the_name_of_the_lines(begun: Path) -> None:
    """And closing the files, which tries to write the rest again, does not hide it."""
    progress = Progress(begun, SETTINGS)
    progress.lines.close()
    progress.lines = open("/dev/full", "ab")  # noqa: SIM115
    with pytest.raises(WriteError, match=r"out\.jsonl could not be written .*make room"):
        progress.add([{"line": 9}], {"figures": 1})
    progress.close()


@pytest.mark.parametrize("name", [".out.jsonl.partial", ".out.jsonl.partial.progress"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_nothing_is_written_through_a_link(begun: Path, name: str, link: Callable[[Path, Path], None]) -> None:
    other = begun.parent / "other"
    for content in (b"precious", (begun.parent / name).read_bytes()):
        (begun.parent / name).unlink()
        other.write_bytes(content)
        link(other, begun.parent / name)
        progress = Progress(begun, SETTINGS)
        progress.add([{"line": 9}], {"figures": 1})
        progress.close()
        assert other.read_bytes() == content and not (begun.parent / name).is_symlink()


def test_a_run_goes_on_in_files_that_have_two_names(begun: Path) -> None:
    """Such as those of a copy by `cp -al`."""
    files = list(begun.parent.iterdir())
    (begun.parent / "copy").mkdir()
    for path in files:
        os.link(path, begun.parent / "copy" / path.name)
    progress = Progress(begun, SETTINGS)
    progress.close()
    assert [counts["at"] for counts in progress.finished()] == [0, 1]


@pytest.mark.parametrize("name", [".out.jsonl.partial", ".out.jsonl.partial.progress"])
def test_what_is_no_file_is_removed_or_named(begun: Path, name: str) -> None:
    (begun.parent / name).unlink()
    os.mkfifo(begun.parent / name)
    assert finish(begun) == [9]
    (begun.parent / name).mkdir()
    with pytest.raises(WriteError, match="could not be written"):
        Progress(begun, SETTINGS)
