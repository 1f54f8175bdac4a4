"""A file of lines over several runs: what both files have is kept, the rest is removed."""

import json
from pathlib import Path

import pytest

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
    assert [counts["at"] for counts in progress.finished] == [0, 1] and not begun.exists()
    assert finish(begun) == [0, 1, 2, 3, 9]


@pytest.mark.parametrize(("file", "cut"), [(".out.jsonl.partial", 1), (".out.jsonl.partial.progress", 1)])
def test_what_only_one_of_the_files_has_is_removed(begun: Path, file: str, cut: int) -> None:
    path = begun.parent / file
    path.write_bytes(path.read_bytes()[:-cut])
    assert finish(begun) == [0, 1, 9]


def test_lines_behind_the_last_figure_are_removed(begun: Path) -> None:
    with open(begun.parent / ".out.jsonl.partial", "a") as file:
        file.write('{"line": 7}\n{"li')
    assert finish(begun) == [0, 1, 2, 3, 9]


def test_other_settings_start_from_the_beginning_where_that_is_asked_for(begun: Path) -> None:
    with pytest.raises(OutputError, match=r'other settings.*"crops": "c".*--overwrite'):
        Progress(begun, {"crops": "d"})
    progress = Progress(begun, SETTINGS)
    progress.close()
    assert len(progress.finished) == 2, "nothing was lost"
    progress = Progress(begun, {"crops": "d"}, restart=True)
    assert progress.finished == []
    progress.discard()
    assert not list(begun.parent.iterdir())
