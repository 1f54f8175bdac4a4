"""What the steps over many files share: processes that keep the order, counts that add up."""

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
BLOCK = 2000  # items that are under way at once


class WorkError(BlipError):
    """Processes that ended; the message says what to try."""


def in_order(
    function: Callable[[In], Out],
    items: Iterator[In],
    workers: int,
    start: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> Iterator[Out]:
    """The function's answers in the order of the items, from as many processes as wanted; 1 is this process.

    Args:
        start: called first in every process, with `given`; what it raises must have been tried before.
    """
    if workers < 2:
        if start:
            start(*given)
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=start, initargs=given) as pool:
        try:
            while some := list(islice(items, BLOCK)):  # an executor takes all that it is given at once
                yield from pool.map(function, some, chunksize=8)
        except BrokenProcessPool:
            raise WorkError("a process ended all at once, perhaps for want of memory: try fewer workers") from None
        except GeneratorExit:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def add(summary: Any, part: Any) -> None:
    """Adds the counts of a part to those of a whole; of named problems the first hundred stay."""
    for name, value in vars(part).items():
        if isinstance(value, Counter):
            getattr(summary, name).update(value)
        elif isinstance(value, list):
            getattr(summary, name).extend(value[: NAMED - len(getattr(summary, name))])
        elif isinstance(value, int):
            setattr(summary, name, getattr(summary, name) + value)
