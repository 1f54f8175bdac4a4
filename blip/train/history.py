"""What a run has logged: the names of its files, and `read_history`, which reads them for tables, curves and pages.

metrics.jsonl        a line every few steps, and one at the end of each epoch and at each evaluation
samples.jsonl        of each evaluation: what the model makes of the same few validation records
similarities.jsonl   of each evaluation of contrast: histograms of the similarities of matched and unmatched pairs
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.files import JSON_ERRORS, ReadError, json_problem, raw_lines

METRICS, SAMPLES, SIMILARITIES = "metrics.jsonl", "samples.jsonl", "similarities.jsonl"
LOGS = (METRICS, SAMPLES, SIMILARITIES)
LINE, EVALUATION = "line", "evaluation"  # what follows the update of a step, in this order
OF_STEPS = "lr"  # an entry that the lines of steps have, and no other line


@dataclass
class History:
    """The log of a run, in the order in which it was written; `docs/metrics.md` explains every entry.

    Args:
        run: the run's folder.
        steps: lines between epochs: `step`, `epoch` (a fraction), means since the line before, `lr`, speed.
        epochs: lines of epochs and evaluations: `step`, `epoch` (whole), `train_...` and, where there was an
            evaluation, `val_...`.
        samples: a line for each record and evaluation: `step`, `epoch`, `index`, `image`, `text`, `truth`, `output`.
        similarities: a line for each evaluation: `step`, `epoch`, `edges` (n + 1), `matched` and `unmatched` (n).
    """

    run: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    similarities: list[dict[str, Any]] = field(default_factory=list)


def read_history(run: str | Path) -> History:
    """The log of the run in a folder, which may be going on. Runs of earlier versions have fewer entries; their lines
    of steps get the `epoch` that follows from those of evaluations, where there are any.

    Example:
        >>> history = read_history("runs/vqa")
        >>> [(line["epoch"], line["train_loss"], line.get("val_loss")) for line in history.epochs]

    Raises:
        ReadError: the folder has no `metrics.jsonl`, or a line of it, or of the other files, is damaged.
    """
    folder = Path(run)
    metrics = _lines(folder / METRICS)
    steps = {line["step"]: line for line in metrics if OF_STEPS in line}  # by step: a line that was written twice
    epochs = {line["step"]: line for line in metrics if OF_STEPS not in line}
    history = History(folder, [*steps.values()], [*epochs.values()])
    _add_epochs(history)
    for name, lines in ((SAMPLES, history.samples), (SIMILARITIES, history.similarities)):
        if (folder / name).exists():
            lines += _lines(folder / name)
    return history


def _add_epochs(history: History) -> None:
    """Adds `epoch` to lines of steps that lack it."""
    # the line of a run that ended within an epoch has the whole epochs before, which are too few for its step
    rate = max((line.get("epoch", 0) / max(1, line["step"]) for line in history.epochs), default=0)
    if rate:
        for line in history.steps:
            line.setdefault("epoch", round(line["step"] * rate, 6))


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, checked for a step. One at the end that is being written, or was cut by a kill, is left
    out. pydantic's check of each line would take the larger part of the time."""
    rows = []
    for number, line, _ in raw_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except JSON_ERRORS as error:
            if not line.endswith(b"\n"):
                break
            raise ReadError(path, f"line {number}", json_problem(error)) from error
        if not isinstance(row, dict) or type(row.get("step")) is not int or not _is_number(row.get("epoch", 0)):
            raise ReadError(path, f"line {number}", "not a line of a run's log, which has a step and an epoch")
        rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
