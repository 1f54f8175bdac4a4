"""`report: true`: the page of `blip report`, made again after each evaluation, by a process of its own.

That process reads what the run has written. It delays no step, holds none of the run's memory, and whatever happens to
it, the run goes on.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

NAME = "report.html"  # in the run's folder
SECONDS = 120  # that the end of a run waits for its page
# of a process of torchrun, which the page's process is none of; and a GPU is not for pages
OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


class Reporter:
    """Makes the page of a run. Only the main process has one.

    Args:
        output: the run's folder.
        tell: gets a sentence where the page cannot be made.
    """

    def __init__(self, output: Path, tell: Callable[[str], None]):
        self.output, self.tell = output, tell
        self.process: subprocess.Popen[str] | None = None
        self.failed = False  # one message is enough

    def begin(self) -> None:
        """Starts to make the page, unless the one before is still being made."""
        if self.process is not None and self.process.poll() is None:
            return
        self._check()
        command = [sys.executable, "-m", "blip", "report", str(self.output), "--out", str(self.output / NAME)]
        environment = {key: value for key, value in os.environ.items() if key not in OF_TORCHRUN}
        package = str(Path(__file__).resolve().parents[2])  # scripts run from elsewhere as well
        paths = [package, *filter(None, [environment.get("PYTHONPATH", "")])]
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        try:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._failed(str(error))

    def end(self, seconds: float = SECONDS) -> None:
        """Makes the page once more, with everything that the run has written, and waits for it."""
        try:
            if self.process is not None:
                self.process.wait(seconds)
            self.begin()
            if self.process is not None:
                self.process.wait(seconds)
            self._check()
        except subprocess.TimeoutExpired:
            assert self.process is not None
            self.process.kill()
            self._failed(f"it took more than {seconds:.0f} seconds")

    def _check(self) -> None:
        """Tells of a page that could not be made."""
        process, self.process = self.process, None
        if process is None:
            return
        errors = process.stderr.read() if process.stderr else ""
        if process.returncode:
            lines = [line for line in errors.splitlines() if line.strip()]
            told = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "no message")
            self._failed(told.removeprefix("error: "))

    def _failed(self, reason: str) -> None:
        if not self.failed:
            self.failed = True
            self.tell(f"{NAME} could not be made ({reason}); the run is not affected")
