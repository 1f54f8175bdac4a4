"""One process or many: the few collective operations that the package needs, each working without a process group, and
locks, which keep processes that do not belong together out of one another's folders."""

import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from pydantic import BaseModel, Field
from torch import Tensor

from blip.errors import BlipError, InputError
from blip.files import ReadError, WriteError, hidden_beside, read_json, write_error, write_whole

LOCK = ".blip.lock"
OWNER_BYTES = 4096  # of the file with the name of a lock's holder
OWNER_SECONDS = 2.0  # how long that name is waited for
T = TypeVar("T")
# of gloo and NCCL, when the process at the other end has ended
LOST = re.compile(r"Connection (closed|reset) by (remote )?peer|Broken pipe|remote process exited|gloo.*connect", re.I)


class LockedError(BlipError):
    """A folder that another process is writing to."""


class OtherProcessError(BlipError):
    """Another process of the run failed, and this one ends with it."""

    def __init__(self) -> None:
        super().__init__("another process of this run failed; its message has the reason")


def start(device: str = "auto", hours: float = 0.5) -> torch.device:
    """Joins torchrun's process group where there is one and returns this process's device.

    `device`: `auto` is a GPU if there is one, `cpu` or `cuda`. The processes communicate by gloo on CPU, NCCL on GPU.
    `hours`: the time after which a process that waits for another one fails.

    Raises:
        InputError: `device` is another word, or there is no such GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}; it can be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch finds no GPU here; use device=cpu or device=auto")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    local = int(os.environ.get("LOCAL_RANK", 0))
    target = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this host has no GPU, there are {torch.cuda.device_count()}: "
                "set --nproc_per_node to that number"
            )
        torch.cuda.set_device(target)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=hours))
    return target


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and the log."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process has reached this line."""
    if world_size() > 1:
        dist.barrier()


def all_gather(x: Tensor) -> Tensor:
    """Equal shapes (B, ...) of every rank, concatenated in the order of the ranks: (world * B, ...). No gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def all_gather_with_gradient(x: Tensor) -> Tensor:
    """As `all_gather`; the gradients of all ranks' losses with respect to this rank's part are summed on it."""
    return x if world_size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce(gradient, "sum").chunk(world_size())[rank()]


def all_reduce(x: Tensor, op: str = "mean") -> Tensor:
    """The mean, sum or maximum of a tensor over ranks, as a new tensor; `op` is `mean`, `sum` or `max`."""
    x = x.clone()
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
        if op == "mean":
            x /= world_size()
    return x


def gather_objects(item: object) -> list:
    """Every rank's (picklable) item, on every rank, in the order of the ranks."""
    if world_size() == 1:
        return [item]
    items: list = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


# ---- failures --------------------------------------------------------------------------------------------------------


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
    dist.broadcast_object_list(answer, src=0)
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


def lost_peer(error: BaseException) -> bool:
    """Whether an error of a collective operation means that another process has ended."""
    return isinstance(error, RuntimeError) and world_size() > 1 and LOST.search(str(error)) is not None


def share(count: int) -> tuple[int, int]:
    """This process's part of `count` items as (start, end). Parts differ by at most one, in the order of ranks."""
    own, world = rank(), world_size()
    return count * own // world, count * (own + 1) // world


# ---- which process writes --------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: str | Path, *, name: str = LOCK, place: Path | None = None) -> Iterator[None]:
    """Within this block no other process can enter a `locked` block of the same folder, which is made if absent.

    The lock ends with the process, however it ends: processes that it forked, such as workers, do not keep it.

    Args:
        name: of the lock's file, where one folder has several.
        place: what is written, for messages; the folder unless given.

    Raises:
        LockedError: another process is writing there; the message names host and process.
        WriteError: the folder cannot be made or written to.
    """
    folder, lasts = Path(folder), os.path.lexists(Path(folder) / name)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(folder / name, place or folder)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield
        lasts = True
    finally:
        with suppress(OSError):  # the folder may be gone
            _owner_file(folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            if not lasts or (made and set(os.listdir(folder)) <= {name}):  # an error, or nothing was written
                (folder / name).unlink(missing_ok=True)  # while it is held: nobody else can hold a file without a name
                for place in made:
                    place.rmdir()
        lock.release()


def locked_file(path: Path) -> AbstractContextManager[None]:
    """`locked` for one file that is written over time."""
    return locked(path.parent, name=hidden_beside(path, ".lock").name, place=path)


class _Owner(BaseModel):
    """The process that holds a lock."""

    host: str
    process: int = Field(gt=0, lt=1 << 31, strict=True)


def _acquired(path: Path, place: Path) -> FileLock:
    """The lock, which only the system can take from its holder: what lies beside it about its owner may be outdated."""
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # some versions of filelock empty what they lock
            raise WriteError(f"{path}, a lock, is a link to another file or no file: remove it")
    lock, end = FileLock(str(path)), time.monotonic() + OWNER_SECONDS
    while True:
        with suppress(Timeout):
            lock.acquire(timeout=0)
            break
        owner = _owner(path)
        ended = owner is not None and owner.host == socket.gethostname() and not _alive(owner.process)
        if (owner and not ended) or time.monotonic() > end:
            name = f"process {owner.process} on {owner.host}" if owner else "a process that left no name"
            about = f"a process that belonged to {name}, which has ended" if ended else name
            raise LockedError(f"{place} is being written by {about}: wait for it, or choose another output")
        time.sleep(0.1)  # the holder writes its name a moment after it has the lock
    try:
        write_whole(_owner_file(path), json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
    except BaseException:
        lock.release()
        raise
    return lock


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _owner(path: Path) -> _Owner | None:
    with suppress(ReadError):
        return read_json(_owner_file(path), _Owner, OWNER_BYTES)
    return None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
