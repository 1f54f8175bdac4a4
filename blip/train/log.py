"""The log of a run: `metrics.jsonl`, a progress bar, and TensorBoard if the configuration enables it."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from blip import distributed
from blip.errors import BlipError, printable
from blip.files import ReadError, parse_json, raw_lines, read_json_lines, write_error, write_whole

METRICS = "metrics.jsonl"


class MetricsLine(TypedDict):
    """A line of `metrics.jsonl`: a step, and what was measured at it."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    step: Annotated[int, Field(ge=0)]


class RunLog:
    """Writes from the main process; in the others every call does nothing.

    Args:
        output: the run's folder.
        start_step: the number of steps done before. Lines of later steps, left by a run that was killed after its last
            checkpoint, are removed.
        total_steps: length of the progress bar.
        tensorboard: also write event files to `output/tensorboard`.
    """

    def __init__(self, output: Path, start_step: int, total_steps: int, *, tensorboard: bool = False):
        self.active = distributed.is_main()
        self.console = LastingConsole(stderr=True, quiet=not self.active)
        self.writer: Any = None
        if not self.active:
            return
        self.path = Path(output) / METRICS
        _truncate(self.path, start_step)
        if tensorboard:
            self.writer = _summary_writer(Path(output) / "tensorboard", start_step + 1)
        self.total_steps = total_steps
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=self.console)
        self.bar = self.progress.add_task("training", total=total_steps, completed=start_step)
        self.live = sys.stderr is not None and sys.stderr.isatty()
        if self.live:
            self.progress.start()

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        if self.active and not self.console.quiet:
            self.progress.update(self.bar, completed=step)

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line to `metrics.jsonl` and shows its main numbers."""
        if not self.active:
            return
        line = {"step": step, **{k: _rounded(v) for k, v in values.items()}}
        self._append(json.dumps(line) + "\n")
        shown = "  ".join(f"{k} {_short(v)}" for k, v in line.items() if k != "step" and not isinstance(v, list | dict))
        self.message(f"step {step}/{self.total_steps}  {shown}")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._to_tensorboard("add_scalar", name, value, step)

    def _append(self, line: str) -> None:
        """Adds a line to `metrics.jsonl`, all of it or nothing."""
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, size)
            raise write_error(self.path, error) from error

    def sample(self, step: int, number: int, image: Tensor, *, text: str) -> None:
        """Writes an image (3, S, S), values 0 to 1, and a text to TensorBoard."""
        self._to_tensorboard("add_image", f"sample/{number}", image, step)
        self._to_tensorboard("add_text", f"sample/{number}", text, step)

    def _to_tensorboard(self, method: str, *values: Any) -> None:
        """The training does not end when TensorBoard's files cannot be written: `metrics.jsonl` has all numbers."""
        if not self.writer:
            return
        try:
            getattr(self.writer, method)(*values)
        except OSError as error:
            self.writer = None
            self.message(f"TensorBoard's files can no longer be written ({error})", style="yellow")

    def message(self, text: str, style: str = "") -> None:
        """Shows a line; `style` is a style of rich, such as "yellow" for warnings."""
        self.console.print(printable(text), style=style, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Ends the progress bar and the files."""
        if self.active and self.live:
            with suppress(OSError, ValueError):
                self.progress.stop()
        if self.writer:
            with suppress(OSError):
                self.writer.close()


class LastingConsole(Console):
    """A console that falls silent when nobody reads it any more, such as behind a closed pipe."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except (OSError, ValueError):  # ValueError: a closed file
            self.quiet = True

    def on_broken_pipe(self) -> None:
        """Without this, rich ends the program."""
        self.quiet = True


class Meter:
    """Running means of named numbers between two lines of the log; part of a checkpoint, so resuming changes none."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor | float]) -> None:
        for name, value in values.items():
            value = (
                value.detach().double()
                if isinstance(value, Tensor)
                else torch.tensor(float(value), dtype=torch.float64)
            )
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means over steps and processes; the next call of `add` begins new ones."""
        names = sorted(self.sums)
        device = next((t.device for t in self.sums.values() if t.device.type != "cpu"), torch.device("cpu"))
        means = torch.stack([self.sums[n].to(device) / self.counts[n] for n in names]) if names else torch.zeros(0)
        self.sums, self.counts = {}, {}
        return dict(zip(names, distributed.all_reduce(means).tolist(), strict=True))

    def state(self) -> dict:
        """A copy, whose tensors are on their devices."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load(self, state: dict) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


def read_metrics(output: str | Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`."""
    return [dict(line) for _, line in read_json_lines(Path(output) / METRICS, MetricsLine)]


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for _, line, _ in raw_lines(path):
        with suppress(ReadError):  # a line cut short by the kill
            if parse_json(line, MetricsLine, path)["step"] <= step:
                kept.append(line.rstrip(b"\n") + b"\n")
    write_whole(path, b"".join(kept) if step else b"")


def _rounded(value: Any) -> Any:
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _summary_writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BlipError("tensorboard: true needs an extra: pip install -e '.[tensorboard]'") from error
    return SummaryWriter(str(folder), purge_step=first_step)
