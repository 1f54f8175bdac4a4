"""What the others learn when one process of several fails."""

import hashlib
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from blip.distributed.collectives import gather_objects
from blip.distributed.group import is_main, long_waits, rank, world_size
from blip.distributed.watch import ANOTHER_FAILED
from blip.errors import BlipError

T = TypeVar("T")
# of gloo and NCCL, when the process at the other end has ended
LOST = re.compile(r"Connection (closed|reset) by (remote )?peer|Broken pipe|remote process exited|gloo.*connect", re.I)


class OtherProcessError(BlipError):
    """Another process of the run failed, and this one ends with it."""

    def __init__(self) -> None:
        super().__init__(ANOTHER_FAILED)


def from_main(call: Callable[[], T]) -> T:
    """What `call` returns in the main process, which alone runs it, on every process. T can be pickled.

    Raises:
        OtherProcessError: on the other processes, where it failed in the main one.
    """
    if world_size() == 1:
        return call()
    error: BaseException | None = None
    answer: list[Any] = [False, None]
    if is_main():
        try:
            answer = [True, call()]
        except BaseException as caught:
            error = caught
    dist.broadcast_object_list(answer, src=0, group=long_waits())
    if error is not None:
        raise error
    if not answer[0]:
        raise OtherProcessError
    return answer[1]


def agree(error: Exception | None) -> None:
    """Raises on every process where one has an error: its own, or OtherProcessError. All have to call this."""
    failed = any(gather_objects(error is not None))
    if error is not None:
        raise error
    if failed:
        raise OtherProcessError


def all_reach(place: str, seconds: float = 10.0) -> bool:
    """Whether every process calls this with the same `place` within so many seconds.

    A process that waits in a collective operation for one that failed never does. No collective operation is used.
    """
    if world_size() == 1:
        return True
    try:
        store, end = dist.distributed_c10d._get_default_store(), time.monotonic() + seconds
        store.add(place, 1)
        while 0 <= store.add(place, 0) < world_size():
            if time.monotonic() > end:
                store.add(place, -2 * world_size())  # nobody else counts on this process
            time.sleep(0.02)
        return store.add(place, 0) > 0
    except RuntimeError:  # the process that keeps the store has ended
        return False


def is_first(text: str) -> bool:
    """Whether no other process has called this with an equal text before; True where the others cannot be asked."""
    if world_size() == 1:
        return True
    key, own = f"first: {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}", str(rank())
    try:
        return dist.distributed_c10d._get_default_store().compare_set(key, "", own).decode() == own
    except RuntimeError:
        return True


def lost_peer(error: BaseException) -> bool:
    """Whether an error of a collective operation means that another process has ended."""
    return isinstance(error, RuntimeError) and world_size() > 1 and LOST.search(str(error)) is not None
