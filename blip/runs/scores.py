"""Scores of a run or of an evaluation, with their intervals."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blip.files import read_json
from blip.runs.tables import html_table
from blip.train.folder import BEST
from blip.train.history import METRICS as LOG
from blip.train.history import read_history

EVALUATION, TEST, METRICS = "evaluation.json", "test.json", "metrics.json"


class Scores(Mapping[str, float]):
    """Scores by name, such as `scores["test_exact_match"]`; printed, or shown by a notebook, they are a table.

    Attributes:
        folder: where they were read; also the answers, captions or ranks that were scored.
        rows: (score, value, 95 % interval, number of records, what a model without skill reaches), as text.
    """

    def __init__(self, values: Mapping[str, Any], rows: list[tuple[str, ...]], folder: Path):
        self.values_by_name = {name: value for name, value in values.items() if _is_number(value)}
        self.rows, self.folder = rows or [(name, f"{value:.4g}") for name, value in self.values_by_name.items()], folder

    def __getitem__(self, name: str) -> float:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __repr__(self) -> str:
        if not self.rows:
            return f"<no scores in {self.folder}>"
        lines = [self._headers(), *self.rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in zip(line, widths, strict=True)).rstrip()
                         for line in lines)  # fmt: skip

    def _repr_html_(self) -> str:
        return html_table(self._headers(), self.rows) if self.rows else f"<p>{self!r}</p>"

    def _headers(self) -> tuple[str, ...]:
        from blip.reports.scores import HEADERS

        return HEADERS[: len(self.rows[0])]


def scores_of_evaluation(folder: Path) -> Scores:
    """Those of the folder of an evaluation. ReadError where its files are damaged."""
    return Scores(read_json(folder / EVALUATION, dict[str, Any]), _rows(folder), folder)


def scores_of_run(folder: Path) -> Scores:
    """Those of the best weights on validation records, else of the last validation; and of the test.

    The table has intervals where the last evaluation is that of the best weights.
    """
    best, test = (read_json(path, dict[str, Any]) if path.is_file() else {}
                  for path in (folder / BEST / METRICS, folder / TEST))  # fmt: skip
    last = best or _last_validation(folder)  # pre-training keeps no best weights
    values = {**{name: value for name, value in last.items() if name.startswith("val_")}, **test}
    return Scores(values, _rows(folder, best or None), folder)


def _last_validation(folder: Path) -> dict[str, Any]:
    """The entries of the last evaluation in a run's log."""
    lines = read_history(folder).epochs if (folder / LOG).is_file() else []
    return next((line for line in reversed(lines) if any(name.startswith("val_") for name in line)), {})


def _rows(folder: Path, best: Mapping[str, Any] | None = None) -> list[tuple[str, ...]]:
    """With `best`, the validation is left to its values unless the last evaluation is of these weights."""
    from blip.reports.run_files import read_run
    from blip.reports.scores import all_scores

    run = read_run(folder)
    rows: list[tuple[str, ...]] = []
    for split, scores in all_scores(run).items():
        if split == "val" and best is not None and run.last("step") != best.get("step"):
            rows += [(name, f"{value:.3f}", "", "", "") for name, value in best.items()
                     if name.startswith("val_") and isinstance(value, float)]  # fmt: skip
        else:
            rows += [(f"{split}: {one.cells[0]}", *one.cells[1:]) for one in scores]
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
