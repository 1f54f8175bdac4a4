"""Of two processes one fails: both end soon, with a message, and save where both can."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.fine_tuning import assert_same_run
from helpers.running import ROOT, WORLD, Program, free_port, torchrun_env

from blip.train.checkpoint import complete_checkpoints

pytestmark = pytest.mark.slow  # all of them together

SCRIPT = str(ROOT / "pretrain.py")
STEPS = 8
# runs pretrain.py after PATCH, in which `rank` is the number of the process and `fail_at` makes a call fail
PATCHED = """
import os, sys
sys.path.insert(0, {root!r})
from blip.data.pairs import PairDataset
from blip.tasks import pretrain
from blip.train.log import RunLog
from blip.train.checkpoint import Checkpointer
rank = int(os.environ["RANK"])

def fail_at(owner, name, at):
    call, count = getattr(owner, name), [0]
    def called(*given, **named):
        count[0] += 1
        if count[0] == at:
            raise RuntimeError("a defect")
        return call(*given, **named)
    setattr(owner, name, called)

{patch}
pretrain.main()
"""


def arguments(config: Path, output: Path, *more: str) -> list[str]:
    options = [f"max_steps={STEPS}", "epochs=100", "batch_size=4", "save_every_steps=100", "log_every_steps=2", *more]
    return ["--config", str(config), "--output_dir", str(output), *(x for o in options for x in ("--set", o))]


def start(program: str, *given: str) -> list[Program]:
    port = free_port()
    return [Program(program, *given, env=torchrun_env(rank, WORLD, port)) for rank in range(WORLD)]


def ended(programs: list[Program], seconds: float = 60) -> list:
    begin = time.monotonic()
    done = [program.finish(90) for program in programs]
    assert time.monotonic() - begin < seconds
    return done


@pytest.fixture(scope="module")
def whole(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an undisturbed run of two processes."""
    output = tmp_path_factory.mktemp("whole") / "run"
    done = ended(start(SCRIPT, *arguments(tiny_config, output)), 90)
    assert [one.returncode for one in done] == [0, 0], done
    yield output


# what fails -> the step that is saved; all processes can save, or one of them is stuck and none can
CASES = {
    "the data of one": ("rank == 1 and fail_at(PairDataset, '__getitem__', 15)", 3),
    "the log of the main one": ("fail_at(RunLog, '_append', 2)", 4),
    "the evaluation of both": ("fail_at(pretrain, 'evaluate_pretraining', 1)", 6),
    "a step of one": ("rank == 1 and fail_at(pretrain.Pretraining, 'step', 4)", 0),
    "the evaluation of one": ("rank == 1 and fail_at(pretrain, 'evaluate_pretraining', 1)", 0),
    "the checkpoint": ("fail_at(Checkpointer, '_write_files', 1)", 0),
}  # fmt: skip


# of these cases: one process waits for the other, which no longer comes; to wait for that is all that takes long
STUCK = "from blip.distributed import failures; failures.all_reach.__defaults__ = (2.0,)\n"


@pytest.mark.slow
@pytest.mark.parametrize(("patch", "saved"), CASES.values(), ids=CASES)
def test_a_failure(patch: str, saved: int, whole: Path, tiny_config: Path, tmp_path: Path) -> None:
    output, script = tmp_path / "run", tmp_path / "script.py"
    script.write_text(PATCHED.format(root=str(ROOT), patch=patch if saved else STUCK + patch))
    done = ended(start(str(script), *arguments(tiny_config, output)))
    said = [one.stderr for one in done]
    assert [one.returncode for one in done] == [1, 1], said
    assert any("a defect" in text for text in said)
    assert [int(path.name[-8:]) for path in complete_checkpoints(output)] == [saved][: bool(saved)], said
    if not saved:
        assert "is not saved: " in said[0], said
        return
    assert f"step {saved} is saved; continue with --resume auto" in said[0]
    assert (
        "another process of this run failed" in said[0] + said[1]
        or "evaluation of both" in str(patch)
        or ("evaluate_pretraining" in patch)
    )
    done = ended(start(SCRIPT, *arguments(tiny_config, output), "--resume", "auto"))
    assert [one.returncode for one in done] == [0, 0], done
    assert_same_run(whole, output)


@pytest.mark.slow
def test_a_killed_worker_of_one(tiny_config: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    programs = start(SCRIPT, *arguments(tiny_config, output, "num_workers=1", "max_steps=5000", "warmup_steps=4"))
    while not (output / "metrics.jsonl").exists() or not (output / "metrics.jsonl").read_text():
        time.sleep(0.02)
        assert all(program.poll() is None for program in programs)
    process = programs[1].process.pid
    for worker in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        os.kill(int(worker), signal.SIGKILL)
    said = [one.stderr for one in ended(programs)]
    assert "a process that reads data was ended from outside" in said[1], said[1]
    assert "another process of this run failed" in said[0] and "is saved" in said[0]
    assert complete_checkpoints(output)


@pytest.mark.slow
def test_two_jobs_on_one_folder(tiny_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    first = start(SCRIPT, *arguments(tiny_config, output, "max_steps=5000"))
    while not (output / "metrics.jsonl").exists():
        time.sleep(0.02)
    second = ended(start(SCRIPT, *arguments(tiny_config, output), "--resume", "auto"))
    assert [one.returncode for one in second] == [1, 1]
    assert f"is being written by process {first[0].process.pid} on " in second[0].stderr
    assert "another process of this run failed" in second[1].stderr
    for program in first:
        os.kill(program.process.pid or 0, signal.SIGTERM)
    assert [one.returncode for one in ended(first)] == [0, 0]
