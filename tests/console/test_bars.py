"""Bars of progress: in a terminal and in a notebook, silent elsewhere, whatever happens to the work or the terminal."""

import importlib.util
import io
import sys
import warnings
from collections.abc import Iterator

import pytest

from blip.console.bars import Bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error as a terminal of 80 columns; within a test, since pytest replaces the stream before it."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return stream


def test_a_bar_counts_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    assert list(Bars().over(range(3), "an [bold]odd name[/bold]")) == [0, 1, 2]
    shown = terminal.getvalue()
    assert "an [bold]odd name[/bold]" in shown and "0/3" in shown and "ETA" in shown
    assert "\x1b[2K" in shown[-12:], "it vanishes at the end"


def test_two_bars_and_a_line_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    bars = Bars()
    run = bars.begin("training", 10, 4)
    for _ in bars.over([1, 2], "evaluating"):
        bars.console.print("a line")
        bars.move(run, 5, "loss 0.5", what="epoch 1.25 of 3")
    assert list(bars._progress.task_ids) == [run]
    assert bars._progress.live.is_started
    bars.close()
    assert not bars._progress.live.is_started
    shown = terminal.getvalue()
    assert all(text in shown for text in ("a line", "evaluating", "5/10", "loss 0.5", "epoch 1.25 of 3"))


def test_silent_where_lines_cannot_be_written_over(capsys: pytest.CaptureFixture) -> None:
    assert list(Bars().over(iter("ab"), "work", 2)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_silent_in_processes_that_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    assert list(Bars(quiet=True).over([1], "work")) == [1]
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("end", ["error", "early"])
def test_work_that_ends_early_leaves_no_bar(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal_of(monkeypatch)
    bars = Bars()

    def items() -> Iterator[int]:
        yield 1
        raise OSError("no such image")

    if end == "error":
        with pytest.raises(OSError, match="no such image"):
            list(bars.over(items(), "work", 2))
    else:
        work = bars.over([1, 2], "work")
        next(work)
        work.close()  # type: ignore[attr-defined]
    assert not bars._progress.live.is_started and not bars._progress.task_ids


def test_a_terminal_that_closes_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    work = Bars().over([1, 2, 3], "work")
    assert next(work) == 1
    terminal.close()
    assert list(work) == [2, 3]


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_needs_ipywidgets_for_bars(widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them rich warns at each change."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "blip.console.bars.find_spec", lambda name: found("json") if widgets and name == "ipywidgets" else None
    )
    assert Bars().live == widgets
    if not widgets:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(Bars().over([1], "work")) == [1]
