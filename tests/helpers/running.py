"""How tests run commands, scripts and functions: in this process, in another one, or in two that belong together."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import blip.train.run

ROOT = Path(__file__).resolve().parents[2]
WORLD = 2  # processes of `start_two`

# ---- in this process -------------------------------------------------------------------------------------------------


def run_verb(*arguments: object, env: dict | None = None) -> Result:
    """`blip VERB ...` -> exit code, what it printed and its errors."""
    from blip.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def code_and_text(*arguments: object) -> tuple[int, str]:
    """`run_verb` -> exit code, and everything that was printed as one line, since messages are wrapped."""
    result = run_verb(*arguments)
    return result.exit_code, " ".join(result.output.split())


def message_of(call: Callable[[], None], capsys: pytest.CaptureFixture) -> str:
    """The message with which the call ends, after a check that it is one: status 1, no traceback, one paragraph."""
    from blip.command_line import user_errors

    with pytest.raises(SystemExit) as ended, user_errors():
        call()
    shown = capsys.readouterr().err
    assert ended.value.code == 1, shown
    message = shown[shown.rindex("error: ") :]
    assert "Traceback" not in shown
    assert message.strip() and "\n\n" not in message.strip()
    return message


# ---- in another process ----------------------------------------------------------------------------------------------

PRELOADED = [f"blip.tasks.{task}" for task in ("pretrain", "retrieval", "caption", "vqa", "nlvr")]
PRELOADED += ["blip.cli", "blip.capfilt.steps", "blip.capfilt.merge", "blip.evaluation.retrieval", "blip.pubmed.fetch"]
PRELOADED += ["helpers.frozen"]  # the last one


def forked(target: Callable, *arguments: object) -> Any:
    """A process that calls target(*arguments), started by a server that has imported torch once for all of them."""
    context = multiprocessing.get_context("forkserver")  # a fork of this process could not run backward passes
    context.set_forkserver_preload(PRELOADED)
    return context.Process(target=target, args=arguments)


class Program:
    """A script, or a module as by `python -m`, that runs in a process of `forked`: it starts without importing torch.

    Its command line, environment, folder, exit code and output are those of a program that a user starts.
    """

    def __init__(
        self,
        program: str,
        *arguments: str | Path,
        env: dict | None = None,
        folder: Path = ROOT,
        redirect: Callable[[], object] | None = None,
    ):
        """`redirect` is called in the process before the program, and may give its streams another end."""
        self._output, words = tempfile.TemporaryDirectory(), [program, *map(str, arguments)]
        self.process = forked(_as_main, words, script_env(env), str(folder), self._output.name, redirect)
        self.process.start()

    def poll(self) -> int | None:
        """The exit code, None as long as it runs."""
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL, and waits for its end."""
        self.process.kill()
        self.process.join()

    def finish(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """Waits for its end."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()
            pytest.fail(f"{self.process} took longer than {timeout} s:\n{self.shown('stderr')}")
        code, shown = self.process.exitcode, (self.shown("stdout"), self.shown("stderr"))
        return subprocess.CompletedProcess([], code, *shown)

    def shown(self, stream: str) -> str:
        """What it has printed so far to `stdout` or `stderr`."""
        path = Path(self._output.name, stream)
        return path.read_text() if path.exists() else ""


def _as_main(arguments: list[str], env: dict, folder: str, output: str, redirect: Callable[[], object] | None) -> None:
    for descriptor, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(output, stream), os.O_WRONLY | os.O_CREAT), descriptor)
    if redirect:
        redirect()
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # the server of processes found its own already; TMPDIR of `env` counts
    os.chdir(folder)
    torch.set_num_threads(1)
    blip.train.run.measure_peak = lambda *_: 0.0  # type: ignore[assignment]  # a run begins with it
    sys.argv = arguments
    if arguments[0].endswith(".py"):
        sys.path.insert(0, os.path.dirname(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def run_script(
    *arguments: str | Path,
    processes: int = 1,
    env: dict | None = None,
    timeout: float = 300,
    script: str = "pretrain.py",
) -> subprocess.CompletedProcess:
    """Runs a script of the root as a user would, alone or under torchrun, from there."""
    if processes == 1:
        return Program(str(ROOT / script), *arguments, env=env).finish(timeout)
    return subprocess.run(
        script_command(*arguments, processes=processes, script=script), cwd=ROOT, env=script_env(env), timeout=timeout,
        capture_output=True, text=True,
    )  # fmt: skip


def script_command(*arguments: str | Path, processes: int = 1, script: str = "pretrain.py") -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(ROOT / script), *map(str, arguments)]


def script_env(env: dict | None = None) -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(env or {})}


# ---- in two processes ------------------------------------------------------------------------------------------------


def start_two(target: Callable, folder: Path, *arguments: object, world: int = WORLD) -> list[Any]:
    """Runs target(rank, port, folder, *arguments) in two processes or more -> what each left in FOLDER/RANK.pt."""
    port = free_port()
    running = [forked(target, rank, port, folder, *arguments) for rank in range(world)]
    for one in running:
        one.start()
    for one in running:
        one.join(timeout=300)
        if one.is_alive():
            one.kill()
    assert [one.exitcode for one in running] == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def join(rank: int, port: int, world: int = WORLD) -> None:
    """Joins the other processes as under torchrun."""
    from blip import distributed

    torch.set_num_threads(1)
    os.environ |= torchrun_env(rank, world, port)
    distributed.start("cpu")


def run_in_two(program: str, *arguments: str | Path, timeout: float = 300) -> list[subprocess.CompletedProcess]:
    """Two processes of a `Program` in the environment that torchrun gives them."""
    port = free_port()
    running = [Program(program, *arguments, env=torchrun_env(rank, WORLD, port)) for rank in range(WORLD)]
    return [one.finish(timeout) for one in running]


def torchrun_env(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets for each process."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    return {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
