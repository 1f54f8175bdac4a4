"""The processes that read data ahead: how they start and end, and how their errors reach the main process."""

import ctypes
import errno
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from blip.errors import BlipError

# of torch: a worker that was killed, or that ended by itself
DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)")


class WorkerError(BlipError):
    """A process that reads data ended before its work did."""


class Loader(DataLoader):
    """torch's loader without its warning about the number of workers, and with errors that are changed in two ways.

    An error of a worker that a user can mend arrives as it is. torch would call its class with a traceback in place of
    its arguments.

    The death of a worker is an error while a batch is waited for. torch raises one wherever the main process is at that
    moment, such as in the middle of an update of weights or of a file that is written.
    """

    def __init__(self, dataset: Dataset, *, num_workers: int, **options: Any):
        if num_workers:
            streamed = isinstance(dataset, IterableDataset)
            dataset = _CarryingStream(dataset) if streamed else _Carrying(dataset)
            if "collate_fn" in options:
                options["collate_fn"] = partial(_collate_or_carry, options["collate_fn"])
        super().__init__(dataset, num_workers=num_workers, **options)

    def check_worker_number_rationality(self) -> None:
        """torch warns here of more workers than CPUs, at each loader; a run has a line of its own about it."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            try:
                with _deaths_raise() if self.num_workers else nullcontext():  # not those of another loader's workers
                    batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                self._end_workers(batches)
                about = isinstance(error, RuntimeError | OSError | EOFError) and self.num_workers
                if about and (problem := _about_workers(error)):
                    raise WorkerError(problem) from error
                raise
            if isinstance(batch, _Carried):
                self._end_workers(batches)
                raise batch.error
            yield batch

    def _end_workers(self, batches: Any) -> None:
        """Ends them before an error is raised. Its traceback would keep them until Python collects garbage, where torch
        can no longer tell them to end and waits 5 s for each."""
        if self.num_workers:
            batches._shutdown_workers()
            self._iterator = None


@contextmanager
def _deaths_raise() -> Iterator[None]:
    """Within this block torch's handler of dead workers is in force, outside of it none is."""
    handler = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # without torch's handler, which needs the main thread, torch looks after its workers every 5 s
        return
    quiet = handler if isinstance(handler, _Quiet) else _Quiet(handler)
    signal.signal(signal.SIGCHLD, quiet.handler)
    try:
        quiet.handler(signal.SIGCHLD, None)  # for those that died before
        yield
    finally:
        signal.signal(signal.SIGCHLD, quiet)


class _Quiet:
    """Takes the place of a handler between batches."""

    def __init__(self, handler: Any):
        self.handler = handler

    def __call__(self, number: int, frame: Any) -> None:
        pass


def _about_workers(error: Exception) -> str:
    """The message of an error between the main process and its workers, or "" for a defect."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            f"workers and the main process hold too many open files: raise `ulimit -n`, or lower num_workers ({error})"
        )
    # a connection of the main process to a worker, which sends it the memory of a batch
    if not DEAD_WORKER.search(str(error)) and not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return ""
    advice = "often because memory ran out: lower num_workers"
    if "Bus error" in str(error):
        advice = "because shared memory ran out: enlarge /dev/shm (in a container: --shm-size), or set num_workers: 0"
    return f"a process that reads data was ended from outside, {advice} ({str(error).strip() or 'it is gone'})"


@dataclass
class _Carried:
    """An error on its way from a worker."""

    error: Exception


def _carried(error: Exception) -> _Carried:
    """Raises the error itself where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        raise error from None
    return _Carried(error)


class _Carrying(Dataset):
    """A dataset whose errors that a user can mend are samples."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except (BlipError, OSError) as error:
            return _carried(error)


class _CarryingStream(IterableDataset):
    """The same of a stream, which ends with the error."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except (BlipError, OSError) as error:
            yield _carried(error)


def _collate_or_carry(collate_batch: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    try:
        return next((one for one in samples if isinstance(one, _Carried)), None) or collate_batch(samples)
    except (BlipError, OSError) as error:
        return _carried(error)


def worker_context() -> str | None:
    """Start method of workers: fork, which shares the annotations' memory, or None for the platform's default."""
    # macOS offers fork too, but its system libraries fail after it
    return "fork" if sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods() else None


# of glibc's malloc.h: numbers of the options of mallopt, and what they are set to, in bytes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, MAPPED = 128 << 20, 32 << 20  # the latter is the largest that glibc takes


def keep_memory() -> bool:
    """Lets this process keep the memory of one image for the next, up to 128 MiB -> whether that could be set: other C
    libraries than glibc are left as they are.

    By default glibc returns each block above 128 KiB to the system when it is freed. A decoded photograph is such a
    block, and the next one costs thousands of page faults.
    """
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return False
    set_option = ctypes.CDLL(None).mallopt
    return bool(set_option(M_TRIM_THRESHOLD, KEPT) and set_option(M_MMAP_THRESHOLD, MAPPED))


def start_worker(worker: int) -> None:
    """What a worker does first."""
    torch.set_num_threads(1)
    keep_memory()
    sys.excepthook = _show_but_hang_ups
    # what ends or warns a job reaches its whole process group, but the main process finishes its step first
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _show_but_hang_ups(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What the thread that hands the memory of batches to the main process calls with its errors: where the main
    process hangs up, it ends with an error of its own, such as the death of another worker."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _obey_parent() -> None:
    """Ends this worker at a SIGTERM of its main process, which sends it to remaining workers when it exits; others are
    ignored."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
