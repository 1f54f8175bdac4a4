"""Agreement of generated reports with their references in what a labeller finds in both, such as CheXbert.

The labeller runs elsewhere, on the tables of `table_of`; what it writes is read here. Of
each condition they have 1 where a report states it, 0 where it denies it, -1 where it is unsure, and nothing where it
does not mention it (Irvin et al. 2019, Smit et al. 2020).

N reports, C conditions, R repeats of the bootstrap.
"""

import csv
import io
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blip.errors import InputError
from blip.evaluation.bootstrap import Floats, Interval, MetricError, bootstrap_sums
from blip.files import read_text

CONDITIONS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")  # those that are often given apart
REPORT = "Report Impression"  # the column that CheXbert reads and writes
VALUES = {"1": 1, "0": 0, "-1": -1, "": 0}
UNSURE = ("positive", "negative")


@dataclass(frozen=True)
class Labels:
    """The table of a labeller: reports, "" where it leaves them out, and what it says of each condition (N, C)."""

    path: Path
    reports: list[str]
    values: NDArray[np.int8]  # 1 stated, -1 unsure, 0 denied or not mentioned


@dataclass(frozen=True)
class Agreement:
    """F1 of the conditions of the references that predictions state."""

    scores: dict[str, Interval]  # micro, macro, micro_5, macro_5
    conditions: dict[str, Interval]
    stated: dict[str, tuple[int, int]]  # condition -> how many references and how many predictions state it


def read_labels(path: str | Path) -> Labels:
    """Reads a table with the columns `CONDITIONS`; an index and other columns are ignored.

    Raises:
        InputError: it is no such table; the message names the line.
        ReadError: it cannot be read.
    """
    path = Path(path)
    rows: list[list[int]] = []
    reports: list[str] = []
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        if missing := [name for name in CONDITIONS if name not in (table.fieldnames or [])]:
            raise InputError(f"{path} is no table of labels: it has no column {missing[0]!r}")
        for row in table:
            rows.append([_value(row[name], path, table.line_num, name=name) for name in CONDITIONS])
            reports.append(row.get(REPORT) or "")
    except csv.Error as error:
        raise InputError(f"{path}, line {table.line_num}: not a valid table ({error})") from None
    if not rows:
        raise InputError(f"{path} holds no reports")
    return Labels(path, reports, np.array(rows, dtype=np.int8))


def _value(text: str | None, path: Path, line: int, *, name: str) -> int:
    short = (text or "").strip().removesuffix(".0")
    if short not in VALUES:
        raise InputError(f"{path}, line {line}: {name} is {text!r}; it can be 1, 0, -1 or nothing")
    return VALUES[short]


def check_order(labels: Labels, reports: Sequence[str]) -> None:
    """InputError where a table is of other reports than these, or has them in another order."""
    if len(labels.reports) != len(reports):
        raise InputError(f"{labels.path} has {len(labels.reports)} reports, and there are {len(reports)}")
    for number, (own, report) in enumerate(zip(labels.reports, reports, strict=True), start=1):
        if own and own.split() != report.split():
            raise InputError(f"{labels.path}: report {number} is another one, {own[:60]!r}: keep their order")


def agreement(
    references: Labels,
    predictions: Labels,
    groups: Sequence[Hashable] | None = None,
    *,
    unsure: str = "positive",
    seed: int = 0,
) -> Agreement:
    """Scores predictions by the labels of both, each score with a 95 % interval over groups.

    A condition that neither side states has an F1 of 0, which is part of the macro means, as in scikit-learn.

    Args:
        groups: (N,) patient of each report, see `blip.evaluation.bootstrap.bootstrap`.
        unsure: what -1 counts as: positive, as CheXbert's authors count it, or negative.

    Raises:
        MetricError: tables of different lengths, or another `unsure`.
    """
    if unsure not in UNSURE:
        raise MetricError(f"unsure is {unsure!r}; it can be {' or '.join(UNSURE)}")
    if len(references.values) != len(predictions.values):
        counts = f"{len(references.values)} reports and {predictions.path} {len(predictions.values)}"
        raise MetricError(f"{references.path} has {counts}: they are labels of the same images in the same order")
    true, given = (x.values != 0 if unsure == "positive" else x.values == 1 for x in (references, predictions))
    columns = np.concatenate([true & given, true, given], axis=1).astype(np.float64)  # (N, 3C)
    scored = partial(bootstrap_sums, columns, groups=groups, seed=seed)
    some = [CONDITIONS.index(name) for name in FIVE]
    every = list(range(len(CONDITIONS)))
    scores = {
        f"{kind}{ending}": scored(partial(f1, chosen=chosen, macro=kind == "macro"))
        for ending, chosen in (("", every), ("_5", some))
        for kind in ("micro", "macro")
    }
    each = {name: scored(partial(f1, chosen=[i], macro=False)) for i, name in enumerate(CONDITIONS)}
    stated = zip(true.sum(axis=0).tolist(), given.sum(axis=0).tolist(), strict=True)
    return Agreement(scores, each, dict(zip(CONDITIONS, stated, strict=True)))


def f1(sums: Floats, *, chosen: Sequence[int], macro: bool) -> Floats:
    """F1 (R,) of the `chosen` conditions from sums (R, 3C): reports where both sides state each, the references, the
    predictions; of all of them together, or with `macro` the mean over conditions."""
    both, true, given = (part[:, list(chosen)] for part in np.split(sums, 3, axis=1))
    if not macro:
        both, true, given = (part.sum(axis=1, keepdims=True) for part in (both, true, given))
    each: Floats = (2 * both / np.maximum(true + given, 1)).mean(axis=1)
    return each


def table_of(reports: Sequence[str]) -> str:
    """The table that a labeller reads: one column, `REPORT`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([REPORT])
    writer.writerows([" ".join(report.split())] for report in reports)
    return text.getvalue()
