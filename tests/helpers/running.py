"""Running a command, a script or a function as a user would, in this process or another."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_script(
    *arguments: str | Path,
    processes: int = 1,
    env: dict | None = None,
    timeout: float = 120,
    script: str = "pretrain.py",
):
    """Runs a script as a user would, alone or under torchrun, from the project's root -> CompletedProcess."""
    return subprocess.run(
        script_command(*arguments, processes=processes, script=script), cwd=ROOT, env=script_env(env), timeout=timeout,
        capture_output=True, text=True,
    )  # fmt: skip


def script_command(*arguments: str | Path, processes: int = 1, script: str = "pretrain.py") -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(ROOT / script), *map(str, arguments)]


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


def forked(target: Callable, *arguments: object) -> Any:
    """A process of its own, from a server that has imported torch once, of which nobody else has to."""
    # a fork of this process could not run backward passes
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [f"blip.tasks.{task}" for task in ("pretrain", "retrieval", "caption", "vqa", "nlvr")]
    )
    return context.Process(target=target, args=arguments)


def script_env(env: dict | None = None) -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(env or {})}
