"""What the steps over many files share: several processes whose results keep the order, and summaries that add up."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from blip.errors import BlipError

In = TypeVar("In")
Out = TypeVar("Out")
NAMED = 100  # problems that a summary names
BLOCK = 2000  # items that are submitted at once
CHUNK = 8  # items that are sent to a process together


class WorkError(BlipError):
    """A process ended unexpectedly."""


def in_order(function: Callable[[In], Out], items: Iterator[In], num_workers: int) -> Iterator[Out]:
    """The results of a function in the order of its arguments.

    Args:
        function: sent to the processes again and again, so it should be small; what is costly to make, such as a
            model, it should make once in each process and keep.
        items: arguments, read as results are taken.
        num_workers: processes; 1 is this process.

    Raises:
        WorkError: a process was killed.
    """
    if num_workers < 2:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
        try:
            while block := list(islice(items, BLOCK)):  # an executor reads all the items that it is given at once
                yield from pool.map(function, block, chunksize=CHUNK)
        except BrokenProcessPool:
            raise WorkError("a process ended unexpectedly, perhaps out of memory: try fewer workers") from None
        except BaseException:  # the results are not wanted any more, or Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def add(summary: Any, part: Any) -> None:
    """Adds the counts of a part to those of a whole, and its named problems up to `NAMED`."""
    for name, value in vars(part).items():
        if isinstance(value, Counter):
            getattr(summary, name).update(value)
        elif isinstance(value, list):
            getattr(summary, name).extend(value[: NAMED - len(getattr(summary, name))])
        elif isinstance(value, int):
            setattr(summary, name, getattr(summary, name) + value)
