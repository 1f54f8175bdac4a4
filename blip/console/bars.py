"""Bars of progress on standard error: in a terminal and in a notebook, nowhere else."""

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


@contextmanager
def no_bars_of_transformers() -> Iterator[None]:
    """Without progress bars of transformers, which would fill a log with lines, such as one for each tensor read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class LastingConsole(Console):
    """A console that falls silent when nobody reads it any more, such as behind a closed pipe."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except (OSError, ValueError):  # ValueError: a closed file
            self.quiet = True

    def on_broken_pipe(self) -> None:
        """Without this, rich ends the program."""
        self.quiet = True


class Bars:
    """The bars of one command or run, one below the other. They vanish when their work is done.

    Args:
        quiet: shows nothing, such as in every process but the main one.

    Example:
        >>> for batch in Bars().over(batches, "evaluation"):
        ...     work(batch)
    """

    def __init__(self, *, quiet: bool = False):
        self.console = LastingConsole(stderr=True, quiet=quiet)
        self.live = not quiet and _can_move(self.console)
        self._open = 0  # bars that are not ended
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
        self._progress = Progress(
            *columns, TextColumn("{task.fields[note]}", markup=False), *times, console=self.console, transient=True
        )

    def begin(self, what: str, total: int | None, done: int = 0) -> TaskID:
        """A new bar, at `done` of `total`."""
        bar = self._progress.add_task(what, total=total, completed=done, note="")
        self._open += 1
        if self.live:
            with suppress(OSError, ValueError):
                self._progress.start()
        return bar

    def move(self, bar: TaskID, done: float, note: str = "", *, what: str | None = None) -> None:
        """Shows that so much is done, and a note behind the bar; `what`: another text before it."""
        if self.live and not self.console.quiet:
            self._progress.update(bar, completed=done, note=note, description=what)

    def end(self, bar: TaskID) -> None:
        """Removes a bar."""
        self._progress.remove_task(bar)
        self._open -= 1
        if not self._open:
            self.close()

    def over(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        """The items, with a bar that counts those that are done; `total` unless they have a length."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        bar = self.begin(what, total)
        try:
            for number, item in enumerate(items, start=1):
                yield item
                self.move(bar, number)
        finally:
            self.end(bar)

    def close(self) -> None:
        """Removes all bars from the terminal."""
        if self.live:
            with suppress(OSError, ValueError):
                self._progress.stop()


def _can_move(console: Console) -> bool:
    """Whether lines can be written over: in a terminal, and in a notebook with ipywidgets. Otherwise rich would warn
    at each change, or write one line after another."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return sys.stderr is not None and sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal
