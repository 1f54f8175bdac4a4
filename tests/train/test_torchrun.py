"""Several processes with one mistake: one message; `blip torchrun` adds no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.running import ROOT, run_in_two, script_env

from blip import command_line
from blip.errors import BlipError

pytestmark = pytest.mark.slow
SCRIPT = """
import os, sys, time
from blip.command_line import user_errors
from blip.errors import BlipError
rank = os.environ["RANK"]
with user_errors():
    if sys.argv[1] == "killed":
        if rank == "1":
            os.kill(os.getpid(), 9)
        time.sleep(60)
    if sys.argv[1] == "defect":
        raise ValueError(f"defect {rank}")
    if sys.argv[1] == "all" or rank == "1":
        raise BlipError("a mistake")
    time.sleep(60 if sys.argv[1] == "one" else 0)
"""


def torchrun(tmp_path: Path, *given: str, processes: int = 2) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [sys.executable, "-m", "blip", "torchrun", "--standalone", f"--nproc_per_node={processes}", script, *given]
    env = {**script_env(), "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=tmp_path, env=env, timeout=200, capture_output=True, text=True)


def lines(done: subprocess.CompletedProcess) -> list[str]:
    """What was printed, but for torchrun's note about threads."""
    return [line for line in done.stderr.splitlines() if line and "OMP_NUM_THREADS" not in line and "***" not in line]


@pytest.mark.parametrize("who", ["all", "one"])
def test_a_mistake_is_one_line(who: str, tmp_path: Path) -> None:
    done = torchrun(tmp_path, who)
    assert done.returncode == 1 and lines(done) == ["error: a mistake"]


def test_a_defect_and_a_kill(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "defect")
    assert done.returncode == 1 and "ValueError: defect" in done.stderr and "ChildFailedError" not in done.stderr
    done = torchrun(tmp_path, "killed")
    assert done.returncode == 137 and lines(done) == [
        "error: process 1 was ended from outside by SIGKILL; SIGKILL often means that memory was short"
    ]


def test_an_end_without_error(tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text("print('fine')")
    words = [sys.executable, "-m", "blip", "torchrun", "--standalone", "fine.py"]
    env = {**script_env(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=env, timeout=200, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "fine\n" and not lines(done)


def test_a_script_without_torchruns_agent_says_it_everywhere_in_the_end() -> None:
    """Other launchers do not end the second process: each has a log of its own."""
    done = run_in_two(str(ROOT / "train_vqa.py"), "--config", "vqa_raf")
    assert [one.returncode for one in done] == [1, 1]
    assert all("no configuration vqa_raf; did you mean 'vqa_rad'" in one.stderr for one in done)


def test_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(command_line.time, "sleep", waited.append)
    other = command_line.distributed.OtherProcessError()
    for world, rank, error, seconds in (
        ("2", "0", BlipError("x"), []), ("2", "1", BlipError("x"), [command_line.OWN_SECONDS]),
        ("2", "1", ValueError("x"), []), ("2", "0", other, [command_line.OTHERS_SECONDS]), ("1", "0", other, []),
    ):  # fmt: skip
        waited.clear()
        monkeypatch.setitem(os.environ, "RANK", rank)
        monkeypatch.setitem(os.environ, "WORLD_SIZE", world)
        command_line._let_others_speak(error)
        assert waited == seconds
