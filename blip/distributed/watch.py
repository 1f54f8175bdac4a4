"""A process that fails tells the others so, and ends; one that waits for it would otherwise do so for half an hour.

torchrun ends the processes of its own host when one fails. Those of other hosts, and all where there is no torchrun,
learn of it here: each looks once a second for a word in the store in which the processes met. No collective operation
is used, since some of the processes may be waiting in one.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

import torch.distributed as dist

FAILED = "blip: a process has failed"  # a key of the store
LOOK_SECONDS = 1.0
TELL_SECONDS = 3.0  # that a process which fails takes at most to tell the others
GRACE_SECONDS = 20.0  # for what a process does by itself once it notices that another has ended
WRITE_SECONDS = 600.0  # for threads that write a file
ANOTHER_FAILED = "another process of this run failed; its message has the reason"
STORE_LOST = "the process that all others met by has ended, or cannot be reached"


class Watch:
    """Ends this process where another one fails and this one does not notice it."""

    def __init__(self) -> None:
        store = dist.distributed_c10d._get_default_store()
        # a connection of its own, where torch has that: this process may wait in a call of the other
        self._store = store.clone() if hasattr(store, "clone") else store
        self._over = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def end(self) -> None:
        """Stops looking."""
        self._over.set()

    def tell(self) -> None:
        """Tells the others that this process fails."""
        self.end()
        thread = threading.Thread(target=self._mark, daemon=True)  # the store may be gone, or out of reach
        thread.start()
        thread.join(TELL_SECONDS)
        if keeps_the_store():
            time.sleep(2 * LOOK_SECONDS)  # until the others have looked

    def _mark(self) -> None:
        with suppress(RuntimeError):
            self._store.set(FAILED, "")

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                reason = ANOTHER_FAILED if self._store.check([FAILED]) else ""
            except RuntimeError:
                reason = STORE_LOST
            if reason:
                if not self._over.wait(GRACE_SECONDS):
                    _end(reason)
                return


def keeps_the_store() -> bool:
    """Whether the store ends with this process; torchrun keeps it in a process of its own."""
    return dist.get_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def leave(status: int) -> NoReturn:
    """Ends this process at once: neither threads nor the process group, whose end other processes take part in, are
    waited for. Locks and open files end with the process."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


def _end(reason: str) -> NoReturn:
    end = time.monotonic() + WRITE_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:  # such as one that writes a checkpoint
            thread.join(max(0.0, end - time.monotonic()))
    with suppress(OSError, ValueError):
        print(f"error: {reason}", file=sys.stderr, flush=True)
    leave(1)
