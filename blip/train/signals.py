"""Signals that ask a run to stop."""

import os
import signal
import sys
import threading
import time
from typing import Any

STOP = (signal.SIGTERM, signal.SIGINT)  # the second of these ends the process at once
WARN = (signal.SIGHUP, signal.SIGUSR1)  # of a closed terminal, and of schedulers before they end a job


class Signals:
    """Records SIGTERM, SIGINT, SIGHUP and SIGUSR1, so that the step can end and be saved.

    A second SIGTERM or SIGINT ends the process at once; in an interactive session a second SIGINT is a
    KeyboardInterrupt instead, since variables are worth more there than the rest of a step. The same signal within a
    second counts once: a signal to a whole job reaches each process twice, directly and from torchrun.
    """

    def __init__(self) -> None:
        self.seen = False
        self._first = (0, 0.0)  # which of STOP, and when
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python handles signals in the main thread alone
        for number in (*STOP, *WARN):
            if number in WARN and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.seen = True
        if number not in STOP:
            return
        if not self._first[0]:
            self._first = (number, time.monotonic())
        elif number != self._first[0] or time.monotonic() - self._first[1] > 1:
            if number == signal.SIGINT and in_a_session():
                raise KeyboardInterrupt
            os._exit(128 + number)


def in_a_session() -> bool:
    """Whether somebody types commands to this process: in a notebook, or in Python's or IPython's shell."""
    return hasattr(sys, "ps1")
