"""Processes that read data: their errors arrive as they were, and their death is an error, never a hang."""

import contextlib
import copy
import ctypes
import importlib
import multiprocessing
import os
import pickle
import pkgutil
import platform
import resource
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.resource_sharer import DupFd
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.running import forked
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import blip
from blip import errors
from blip.data import check
from blip.data.check import check_data
from blip.data.formats import AnnotationError
from blip.data.image_bytes import UnreadableImage
from blip.data.loader import data_loader
from blip.data.skipped import TooManySkipped
from blip.data.workers import M_MMAP_THRESHOLD, WorkerError, keep_memory
from blip.distributed import OtherProcessError
from blip.errors import BlipError, InputError, MissingFile
from blip.files import ReadError, WriteError

pytestmark = pytest.mark.slow  # all of them together

ERRORS = [
    AnnotationError("a.json", "line 3", "is empty"), UnreadableImage("a.png", "truncated"), InputError("k is 0"),
    ReadError("a.json", "record 2", "is damaged"), TooManySkipped("11 images"), MissingFile("no file x"),
    WriteError("full"), OtherProcessError(), FileNotFoundError(2, "No such file or directory", "a.png"),
]  # fmt: skip


class Broken(Dataset):
    def __init__(self, error: Exception):
        self.error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2:
            raise self.error
        return index


class BrokenStream(IterableDataset):
    def __init__(self, error: Exception):
        self.error = error

    def __iter__(self) -> Iterator[int]:
        yield 1
        raise self.error


def same(one: BaseException, other: BaseException) -> bool:
    return (type(one), str(one), vars(one)) == (type(other), str(other), vars(other))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("workers", [0, 2])
def test_errors_arrive_as_they_were(error: Exception, workers: int) -> None:
    for loader in (
        data_loader(Broken(error), [[0, 1], [2, 3]], list, num_workers=workers),
        data_loader(Broken(InputError("not this one")), [[0], [3]], Refusing(error), num_workers=workers),
        data_loader(BrokenStream(error), None, num_workers=min(workers, 1)),
    ):
        seen: list[Any] = []
        others = multiprocessing.active_children()
        with pytest.raises(type(error)) as caught:
            for batch in loader:
                seen.append(batch)
        assert same(caught.value, error)
        assert set(multiprocessing.active_children()) <= set(others), "the workers have ended"


class Refusing:
    """A function that puts samples together, or does not."""

    def __init__(self, error: Exception):
        self.error = error

    def __call__(self, samples: list[int]) -> list[int]:
        if samples == [3]:
            raise self.error
        return samples


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="Caught ZeroDivisionError in DataLoader worker"):
        list(data_loader(Broken(ZeroDivisionError("a defect")), [[2]], list, num_workers=1))


def subclasses(kind: type) -> list[type]:
    return [one for direct in kind.__subclasses__() for one in (direct, *subclasses(direct))]


def test_every_error_of_the_package_can_be_sent() -> None:
    """Whatever its class is called with."""
    modules = [module.name for module in pkgutil.walk_packages(blip.__path__, "blip.")]
    for name in modules:
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            importlib.import_module(name) if name != "blip.__main__" else None
    assert len(subclasses(BlipError)) > 20
    for kind in subclasses(BlipError):
        error = kind.__new__(kind)
        error.args, error.note = ("what is wrong",), [1]  # type: ignore[attr-defined]
        for sent in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(sent) is kind and sent.args == error.args and vars(sent) == vars(error)
    assert errors.BlipError("x", 2).args == pickle.loads(pickle.dumps(BlipError("x", 2))).args


# ---- dead workers ----------------------------------------------------------------------------------------------------


class Killed(Dataset):
    """Kills the process that reads record 5."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_dead_worker_is_an_error_while_a_batch_is_waited_for() -> None:
    loader = iter(data_loader(Killed(), [[i] for i in range(8)], list, num_workers=2))
    first = next(loader)
    time.sleep(1)  # torch would raise here
    assert first == [0]
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"was ended from outside, often because memory ran out: lower num_workers"):
        list(loader)
    assert time.monotonic() - begin < 15


class Tensors(Dataset):
    """Whose memory a worker hands to the main process, by a thread that answers connections one after the other."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), index)


def test_a_worker_shows_nothing_when_the_main_process_hangs_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """As it does in the midst of an exchange, when another worker has died."""
    hung_up, detach = [], DupFd.detach

    def hang_up_first(self: Any) -> int:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._id[0])
        hung_up.append(self)
        return detach(self)

    monkeypatch.setattr(DupFd, "detach", hang_up_first)
    batches = list(data_loader(Tensors(), [[0, 1], [2, 3]], torch.stack, num_workers=1))
    assert [batch[:, 0].tolist() for batch in batches] == [[0, 1], [2, 3]] and len(hung_up) == 2
    assert capfd.readouterr().err == ""


def test_reading_without_workers_hears_of_no_other_loaders_death() -> None:
    """Such as of one that was left with its workers, and not yet cleaned away."""

    def tell(number: int, frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    before = signal.signal(signal.SIGCHLD, tell)
    try:
        assert list(data_loader(Broken(InputError("unread")), [[0], [1]], list)) == [[0], [1]]
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_no_more_processes_than_there_is_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool starts all that it is given at once."""
    asked: list[int] = []
    plain = check.ProcessPoolExecutor
    monkeypatch.setattr(check, "ProcessPoolExecutor", lambda count, context: asked.append(count) or plain(1, context))
    for i in range(20):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    lines = [f'{{"image": "{i}.png", "caption": "a lesion"}}\n' for i in range(20)]
    (tmp_path / "set.jsonl").write_text("".join(lines))
    assert check_data([str(tmp_path / "set.jsonl")], num_workers=100_000).images == 20
    assert asked == [2]


def inspect_and_die(path: str, limits: object) -> check.Inspected:
    """As the plain function, but for one image that ends every process, and one that ends the first."""
    if path.endswith("7.png") or (path.endswith("3.png") and not Path(path + ".seen").exists()):
        Path(path + ".seen").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return PLAIN(path, limits)  # type: ignore[arg-type]


PLAIN = check._inspect


def check_with_deaths(folder: str) -> None:
    check._inspect = inspect_and_die  # type: ignore[assignment]
    report = check_data([f"{folder}/set.jsonl"], num_workers=2)
    Path(folder, "found").write_text(repr([report.images, report.broken_images, report.duplicate_images]))


def test_check_data_outlives_its_processes(tmp_path: Path) -> None:
    lines = []
    for i in range(40):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i:02d}.png")
        lines.append(f'{{"image": "{i:02d}.png", "caption": "a lesion"}}\n')
    (tmp_path / "set.jsonl").write_text("".join(lines))
    process = forked(check_with_deaths, str(tmp_path))
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
        pytest.fail("it hangs")
    images, broken, duplicates = eval((tmp_path / "found").read_text())
    assert (images, duplicates) == (40, 0)
    assert [(Path(path).name, reason) for path, reason in broken] == [
        (f"{tens}7.png", "the process that read it was ended, by the system or by this image") for tens in range(4)
    ]


def test_the_number_of_workers_is_no_warning_of_torch(recwarn: pytest.WarningsRecorder) -> None:
    """More of them than any computer has CPUs; torch warns when a loader is made, or when it begins."""
    loader = data_loader(Broken(ValueError()), [[0]], list, num_workers=3000)
    loader.check_worker_number_rationality()
    assert not [str(warning.message) for warning in recwarn]


def page_faults_of_blocks(kept: bool, results: Any) -> None:
    """How many pages twenty blocks of 16 MiB, one after the other, take from the system."""
    # glibc raises its limit where a large block was freed before, as by other tests in this process
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 << 10)
    # and takes what this process, forked from one that ran other tests, has free before it asks the system
    held = [bytearray(b"x") * (16 << 20) for _ in range(12)]
    if kept:
        assert keep_memory() == (platform.libc_ver()[0] == "glibc")
    before = 0
    for turn in range(21):
        before = before or (resource.getrusage(resource.RUSAGE_SELF).ru_minflt if turn else 0)
        bytearray(b"x") * (16 << 20)
    results.put(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    held.clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_workers_keep_the_memory_of_an_image_for_the_next() -> None:
    results: Any = multiprocessing.get_context("fork").Queue()
    counts = []
    for kept in (False, True):
        process = multiprocessing.get_context("fork").Process(target=page_faults_of_blocks, args=(kept, results))
        process.start()
        counts.append(results.get(timeout=60))
        process.join()
    pages = 20 * (16 << 20) // resource.getpagesize()
    assert counts[1] < pages / 20 and counts[1] < counts[0] / 4
