"""Signals to a run: those that ask it to stop, and the death of a child process."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP = (signal.SIGTERM, signal.SIGINT)  # the second of these ends the process at once
WARN = (signal.SIGHUP, signal.SIGUSR1)  # of a closed terminal, and of schedulers before they end a job


class Signals:
    """Records SIGTERM, SIGINT, SIGHUP and SIGUSR1, so that the step can end and be saved.

    A second SIGTERM or SIGINT ends the process at once. The same signal within a second counts once: a signal to a
    whole job reaches each process twice, directly and from torchrun.

    torch's loaders raise an error wherever the program is when one of their workers dies. Here this happens in the
    blocks of `children_raise` alone: anywhere else it could leave half of an update.
    """

    def __init__(self) -> None:
        self.seen = False
        self._first = (0, 0.0)  # which of STOP, and when
        self._before: dict[int, Any] = {}
        self._of_children: Any = signal.SIG_DFL  # the handler of SIGCHLD outside of this class
        self._child_died = False

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python handles signals in the main thread alone
        for number in (*STOP, *WARN):
            if number in WARN and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, self._note)
        self._of_children = signal.signal(signal.SIGCHLD, self._note_child)
        self._before[signal.SIGCHLD] = None
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._before.pop(signal.SIGCHLD, self) is None:
            # torch's handler, unless a worker has died: it would raise the same error again while the run ends
            signal.signal(signal.SIGCHLD, self._of_children if kind is None else signal.SIG_DFL)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def children_raise(self) -> Iterator[None]:
        """Within this block the death of a loader's worker is an error, also of one that died before it."""
        if signal.SIGCHLD not in self._before:
            yield
            return
        signal.signal(signal.SIGCHLD, self._of_children)
        try:
            if self._child_died and callable(self._of_children):
                self._child_died = False
                self._of_children(signal.SIGCHLD, None)
            yield
        finally:
            self._of_children = signal.signal(signal.SIGCHLD, self._note_child)

    def _note(self, number: int, _: object) -> None:
        self.seen = True
        if number not in STOP:
            return
        if not self._first[0]:
            self._first = (number, time.monotonic())
        elif number != self._first[0] or time.monotonic() - self._first[1] > 1:
            os._exit(128 + number)

    def _note_child(self, number: int, _: object) -> None:
        self._child_died = True
