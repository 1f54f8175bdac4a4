"""The log of a run: its files, lines and a bar on the terminal, and TensorBoard if the configuration enables it."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from blip import distributed
from blip.console.bars import Bars
from blip.errors import BlipError, printable
from blip.files import ReadError, parse_json, raw_lines, read_json_lines, write_error, write_whole
from blip.train.history import EVALUATION, LINE, LOGS, METRICS, OF_STEPS
from blip.train.report import Reporter
from blip.train.schedule import Epochs

# what a line on the terminal shows, the most important first; the file has all of it
OF_A_STEP = ("loss", "itc", "itm", "lm", "accuracy", "lr", "images_per_s", "grad_norm")
OF_AN_EPOCH = ("train_loss", "val_loss")
SHOWN = 6  # figures of a line
UNITS = (
    "The terminal shows the main numbers of metrics.jsonl: losses in nats (lm: a token), accuracies and scores as "
    "shares from 0 to 1, lr as it is, speed in images a second. docs/metrics.md explains every entry."
)


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
        epochs: of the run, for the bar.
        pending: what the step before lacks, see `LastStep`: its line or its evaluation, which are written again.
        scores: the most important scores of an evaluation, for the terminal.
        tensorboard: also write event files to `output/tensorboard`.
        report: make the page of the run after each epoch.
    """

    def __init__(
        self,
        output: Path,
        start_step: int,
        total_steps: int,
        *,
        epochs: Epochs | None = None,
        pending: Sequence[str] = (),
        scores: Sequence[str] = (),
        tensorboard: bool = False,
        report: bool = False,
    ):
        self.active = distributed.is_main()
        self.bars = Bars(quiet=not self.active)
        self.console = self.bars.console
        self.writer: Any = None
        self.reporter: Reporter | None = None
        if not self.active:
            return
        self.output, self.path, self.epochs = Path(output), Path(output) / METRICS, epochs
        self.waiting: list[tuple[str, list[dict[str, Any]]]] = []  # of the evaluation whose line comes next
        for name in LOGS:
            _truncate(self.output / name, start_step, pending)
        if report:
            self.reporter = Reporter(self.output, lambda text: self.message(text, style="yellow"))
        if tensorboard:
            self.writer = _summary_writer(self.output / "tensorboard", start_step + 1)
        self.total_steps = total_steps
        self.shown = (*OF_A_STEP, *OF_AN_EPOCH, *scores)
        self.bar = self.bars.begin("training", total_steps, start_step)

    def advance(self, step: int, *, loss: float) -> None:
        """Moves the progress bar, which shows the epoch and the loss of the step."""
        if self.active:
            what = "training"
            if self.epochs is not None:
                what = f"epoch {self.epochs.fraction(step):.2f} of {self.epochs.fraction(self.total_steps):.4g}"
            self.bars.move(self.bar, step, f"loss {_short(float(loss))}", what=what)

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line to `metrics.jsonl` and shows its main numbers."""
        if not self.active:
            return
        for name, rows in self.waiting:
            place = {"step": step, **({"epoch": values["epoch"]} if "epoch" in values else {})}
            self._append("".join(json.dumps({**place, **row}) + "\n" for row in rows), name)
        self.waiting = []
        line = {"step": step, **{k: _rounded(v) for k, v in values.items()}}
        self._append(json.dumps(line) + "\n")
        self.message(f"step {step}/{self.total_steps}  {self._main_numbers(line)}")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._to_tensorboard("add_scalar", name, value, step)
        if self.reporter and OF_STEPS not in values:
            self.reporter.begin()

    def add(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Lines for another file of the log, which are written before the line of the evaluation that they are of."""
        if self.active and rows:
            self.waiting.append((name, rows))

    def _main_numbers(self, line: dict[str, Any]) -> str:
        """The epoch, and at most `SHOWN` numbers of a line: the most important, else the first."""
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
        if numbers.get("lm") == numbers.get("loss"):  # of a task with one loss
            numbers.pop("lm", None)
        names = [name for name in self.shown if name in numbers] or [*numbers]
        names = [name for name in names if name not in ("step", "epoch")][:SHOWN]
        return "  ".join(f"{name} {_short(numbers[name])}" for name in ["epoch", *names] if name in numbers)

    def _append(self, lines: str, name: str = METRICS) -> None:
        """Adds lines to a file of the log, all of them or nothing."""
        path = self.output / name
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, size)
            raise write_error(path, error) from error

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
        """Ends the progress bar and the files, and makes the run's page."""
        self.bars.close()
        if self.reporter:
            self.reporter.end()
        if self.writer:
            with suppress(OSError):
                self.writer.close()


def read_metrics(output: str | Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`."""
    return [dict(line) for _, line in read_json_lines(Path(output) / METRICS, MetricsLine)]


def _truncate(path: Path, step: int, pending: Sequence[str]) -> None:
    """Keeps the lines up to a step, without those of it that are `pending`, and none that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for _, line, _ in raw_lines(path):
        with suppress(ReadError):
            values = parse_json(line, MetricsLine, path)
            part = LINE if OF_STEPS in values else EVALUATION
            if values["step"] < step or (values["step"] == step and part not in pending):
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
