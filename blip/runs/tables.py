"""Tables that notebooks show: of pandas where it is installed, otherwise plain lists with the same look."""

from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

from blip.errors import visible
from blip.train.history import History

SHOWN = 10  # rows of a long table, half of them from its end
FIRST = ("step", "epoch", "train_loss", "val_loss", "lr")  # columns
LOSS, TRAIN = "loss", "train_loss"


class Rows(list[dict[str, Any]]):
    """Rows of a table, each a dictionary by column; a notebook shows them as a table.

    Example:
        >>> print(Rows([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]))
        step  loss
        1     0.5
        2     0.25
    """

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order in which they first occur."""
        return list(dict.fromkeys(name for row in self for name in row))

    def __str__(self) -> str:
        lines = [self.columns, *([_short(row.get(name)) for name in self.columns] for row in self._shown())]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in zip(line, widths, strict=True)).rstrip()
                         for line in lines)  # fmt: skip

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self.columns, [[_short(row.get(name)) for name in self.columns] for row in self._shown()])

    def _shown(self) -> list[dict[str, Any]]:
        if len(self) <= SHOWN:
            return list(self)
        return [*self[: SHOWN // 2], dict.fromkeys(self.columns, "..."), *self[-SHOWN // 2 :]]


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> Any:
    """Rows as a DataFrame of pandas where it is installed, else as `Rows`; `columns` of a table without rows."""
    if find_spec("pandas") is None:
        return Rows(rows)
    import pandas

    found = list(dict.fromkeys(name for row in rows for name in row)) or list(columns)
    return pandas.DataFrame(list(rows), columns=found)


def epochs_of(history: History) -> list[dict[str, Any]]:
    """A row for each epoch: step, epoch, means of training, validation, learning rate.

    A run that is within an epoch has a last row of the steps since the epoch before it.
    """
    rows, lr, waiting = [], None, {line["step"]: line for line in history.steps}
    for line in history.epochs:
        for step in [step for step in waiting if step <= line["step"]]:
            lr = waiting.pop(step).get("lr")
        rows.append(line if lr is None else {**line, "lr": lr})
    if waiting:
        last = waiting[max(waiting)]
        rows.append({TRAIN if name == LOSS else name: last[name] for name in ("step", "epoch", LOSS, "lr")
                     if name in last})  # fmt: skip
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)]
    return [{name: row[name] for name in names if name in row} for row in rows]


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small table; every text is escaped."""
    head = "".join(f"<th>{escape(visible(name))}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(visible(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _short(value: Any) -> str:
    """A value of a cell: at most four digits that count."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
