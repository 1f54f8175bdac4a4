"""An error on one process of two ends both soon, whatever blocks: its message is printed first, and no status is 0."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.running import WORLD, Program, free_port, torchrun_env

from blip.distributed.watch import ANOTHER_FAILED, STORE_LOST

pytestmark = pytest.mark.slow
# `FAILING` fails by WHAT; the other waits as in a call of NCCL, which no error of another process ends. To leave the
# process group takes all of them, as with NCCL.
SCRIPT = """
import os, signal, sys, time
import torch, torch.distributed as dist
from blip import distributed
from blip.command_line import user_errors
from blip.data.skipped import TooManySkipped
from blip.distributed import watch
from blip.errors import BlipError
watch.GRACE_SECONDS, watch.LOOK_SECONDS = 1.0, 0.25
failing, what = sys.argv[1:]

def wait(*_):
    for _ in range(300):
        try:
            time.sleep(1)
        except BaseException:
            pass

with user_errors():
    distributed.start("cpu")
    distributed.barrier()
    dist.destroy_process_group = wait
    if failing == os.environ["RANK"]:
        exec(what)
    wait()
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
# what fails -> the exit status, and a part of the message
FAILURES = {
    "raise TooManySkipped('too many images were skipped')": (1, "error: too many images were skipped"),
    "raise torch.OutOfMemoryError('CUDA out of memory')": (1, "error: the GPU's memory is too small: lower the batch"),
    "open('gone.json')": (1, "error: gone.json: No such file"),
    "raise RuntimeError('a defect')": (1, "RuntimeError: a defect"),
    "raise SystemExit(3)": (3, ""),
    "raise KeyboardInterrupt": (130, "KeyboardInterrupt"),
}


def start(script: str, tmp_path: Path, *given: str, env: Callable[[int], dict] = lambda rank: {}) -> list[Program]:
    (tmp_path / "script.py").write_text(script)
    port = free_port()
    return [
        Program(str(tmp_path / "script.py"), *given, env={**torchrun_env(rank, WORLD, port), **env(rank)})
        for rank in range(WORLD)
    ]


def ended(programs: list[Program], seconds: float = 60) -> list:
    begin = time.monotonic()
    done = [program.finish(seconds) for program in programs]
    assert time.monotonic() - begin < seconds
    return done


@pytest.mark.parametrize("what", FAILURES)
def test_an_error_of_one(what: str, tmp_path: Path) -> None:
    status, message = FAILURES[what]
    waits, fails = ended(start(SCRIPT, tmp_path, "1", what))
    assert (fails.returncode, waits.returncode) == (status, 1), (fails, waits)
    assert message in fails.stderr
    assert waits.stderr.count(ANOTHER_FAILED) == 1, waits.stderr


@pytest.mark.parametrize(("what", "reason"), [("raise BlipError('x')", ANOTHER_FAILED), (KILL, STORE_LOST)])
def test_the_process_that_keeps_the_store(what: str, reason: str, tmp_path: Path) -> None:
    fails, waits = ended(start(SCRIPT, tmp_path, "0", what))
    assert fails.returncode == (1 if "Blip" in what else -9) and waits.returncode == 1
    assert reason in waits.stderr


def test_debugging(tmp_path: Path) -> None:
    programs = start(SCRIPT, tmp_path, "1", "raise BlipError('x')", env=lambda rank: {"BLIP_DEBUG": "1"})
    waits, fails = ended(programs)
    assert (fails.returncode, waits.returncode) == (1, 1)
    assert "Traceback" in fails.stderr and "BlipError: x" in fails.stderr


# a run of the loop, in which both processes fail and to save takes forever
SAVING = """
import os, time
import torch
from torch import nn
from blip import distributed
from blip.command_line import user_errors
from blip.errors import BlipError
from blip.train.last_step import LastStep

class Log:
    def message(self, text, style=""):
        print(text)

with user_errors():
    distributed.start("cpu")
    last = LastStep(lambda step, state: time.sleep(300), {}, Log())
    with last.rescued():
        last.number = 1
        raise BlipError("a mistake of both" if KIND == "equal" else f"a mistake of {os.environ['RANK']}")
"""


@pytest.mark.parametrize("kind", ["equal", "different"])
def test_the_message_comes_before_saving(kind: str, tmp_path: Path) -> None:
    programs = start(SAVING.replace("KIND", repr(kind)), tmp_path)
    try:
        wanted = {"error: a mistake of both"} if kind == "equal" else {f"error: a mistake of {r}" for r in range(WORLD)}
        end = time.monotonic() + 60
        while {line for one in programs for line in one.shown("stderr").splitlines() if "mistake" in line} != wanted:
            assert time.monotonic() < end, [one.shown("stderr") for one in programs]
            time.sleep(0.1)
        assert all(one.poll() is None for one in programs)
        assert sum(one.shown("stderr").count("mistake") for one in programs) == len(wanted)
    finally:
        for one in programs:
            one.kill()


LONG = """
import time
from datetime import timedelta
import torch
from blip import distributed
from blip.distributed import group
group.STEP = timedelta(seconds=1)
distributed.start("cpu")

def late():
    time.sleep(2)
    return 7

assert distributed.from_main(late) == 7
if distributed.is_main():
    time.sleep(2)
distributed.barrier()
if distributed.is_main():
    time.sleep(2)
assert distributed.gather_objects(distributed.rank()) == [0, 1]
distributed.all_reduce(torch.ones(1))
if distributed.is_main():
    time.sleep(2)
try:
    distributed.all_reduce(torch.ones(1))
except RuntimeError:
    print("a step does not wait so long")
"""


def test_waits_for_what_one_does_for_all_are_longer_than_those_of_a_step(tmp_path: Path) -> None:
    done = ended(start(LONG, tmp_path))
    assert "a step does not wait so long" in done[1].stdout, done
