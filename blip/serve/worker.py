"""One thread in which everything of one checkpoint runs, one call after the other."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from blip.errors import BlipError

T = TypeVar("T")


class BusyError(BlipError):
    """A call that did not end in time."""


class Worker:
    """Runs functions in a thread of its own.

    A single thread keeps memory flat: the caches of allocators belong to threads. The thread ends with the program,
    also in the middle of a call.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=f"blip serve: {name}", daemon=True).start()

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """What `function` returns or raises.

        Raises:
            BusyError: it has not ended after `seconds`. Where it has not begun by then, it never does.
        """
        future: Future[T] = Future()
        self._calls.put((future, function))
        try:
            return future.result(timeout=seconds)
        except FutureTimeout:
            if future.done():  # the function itself raised this error
                raise
            future.cancel()
            message = f"the model did not answer within {seconds:.0f} seconds: it is busy, or the request is too large"
            raise BusyError(f"{message}; try again in a minute") from None

    def _run(self) -> None:
        while True:
            future, function = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # of whatever kind, it belongs to the caller
                future.set_exception(error)
            del future, function  # otherwise the last image would stay in memory until the next call
