"""Probes: what a linear read-out of states predicts, by point, with controls (Alain and Bengio 2017).

A label with classes is told apart by logistic regression and scored by accuracy; a number is predicted by ridge
regression and scored by R². Records about one image are never in training and test at once. Beside each score stand
that of the same probe on shuffled labels, which it can only learn by heart (Hewitt and Liang 2019), and that of a guess
that ignores the states: the share of the most frequent class, or R² = 0 of the mean. A probe that succeeds shows that
the states hold something, not that the model uses it.

Shapes: N records, D width.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip.errors import BlipError, InputError
from blip.evaluation.bootstrap import Interval, bootstrap, bootstrap_sums
from blip.interpret.causes.labelled import Labelled
from blip.interpret.features.labels import Labels

KINDS = ("auto", "logistic", "linear")
NEEDS_SKLEARN = "probes need scikit-learn: pip install 'blip[probes]'"
Floats = NDArray[np.float64]


class ProbeError(BlipError):
    """Labels that nothing can be learnt from; the message gives the reason."""


@dataclass(frozen=True)
class Settings:
    """How probes are trained.

    Args:
        kind: `logistic`, `linear`, or `auto`: linear where all labels are numbers.
        folds: of the cross-validation, by image.
        strength: of the L2 penalty; 1 is scikit-learn's own.
        seed: of the folds and the shuffled labels.
    """

    kind: str = "auto"
    folds: int = 5
    strength: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Probe:
    """The scores of one probe.

    Args:
        measure: `accuracy` or `R2`.
        score, shuffled: with the true labels, and with shuffled ones.
        floor: of a guess that ignores the states.
        records, images: that have the label.
        classes: how often each class occurs; empty for numbers.
    """

    point: str
    label: str
    measure: str
    score: Interval
    shuffled: Interval
    floor: float
    records: int
    images: int
    classes: dict[str, int]


def probe(states: np.ndarray, labels: Labels, *, point: str, settings: Settings | None = None) -> Probe:
    """Trains and tests a probe on states (N, D) of the records that have the label.

    Raises:
        ProbeError: scikit-learn is not installed; one class; fewer images than folds; a fold lacks a class.
    """
    settings = settings or Settings()
    _check(labels, settings)
    kind = settings.kind if settings.kind != "auto" else "linear" if labels.numeric else "logistic"
    if kind == "linear" and not labels.numeric:
        raise ProbeError(f"{labels.name} has labels that are no numbers: a linear probe predicts numbers")
    generator = np.random.default_rng(settings.seed)
    folds = _folds(labels.groups, settings.folds, generator)
    x = np.asarray(states, dtype=np.float64)[labels.rows]
    values = np.asarray(labels.values, dtype=np.float64) if kind == "linear" else np.asarray([*map(str, labels.values)])

    def scored(y: np.ndarray) -> Interval:
        predicted = _predicted(x, y, folds, kind=kind, strength=settings.strength, name=labels.name)
        return _score(y, predicted, labels.groups, kind)

    names, counts = np.unique(values, return_counts=True)
    classes = {} if kind == "linear" else dict(zip(names.tolist(), counts.tolist(), strict=True))
    floor = 0.0 if kind == "linear" else float(counts.max()) / len(values)
    measure = "R2" if kind == "linear" else "accuracy"
    of_true, of_shuffled = scored(values), scored(generator.permutation(values))
    images = len(set(labels.groups))
    return Probe(point, labels.name, measure, of_true, of_shuffled, floor, len(values), images, classes)


def table(probes: Sequence[Probe], which: str = "score") -> Labelled:
    """`score`, `shuffled` or `floor` of all probes, points down and labels across."""
    points = list(dict.fromkeys(one.point for one in probes))
    labels = list(dict.fromkeys(one.label for one in probes))
    values = np.full((len(points), len(labels)), np.nan)
    for one in probes:
        found = getattr(one, which)
        values[points.index(one.point), labels.index(one.label)] = getattr(found, "mean", found)
    measures = " or ".join(dict.fromkeys(one.measure for one in probes))
    return Labelled(values, ("point", "label"), {"point": points, "label": labels}, which, measures)


def as_rows(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """A flat row for each probe, for a table."""
    rows = []
    for one in probes:
        row: dict[str, Any] = {"point": one.point, "label": one.label, "measure": one.measure}
        for name, interval in (("score", one.score), ("shuffled", one.shuffled)):
            row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row | {"floor": one.floor, "records": one.records, "images": one.images})
    return rows


def as_json(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """All that is known of each probe."""
    return [asdict(one) for one in probes]


def _check(labels: Labels, settings: Settings) -> None:
    """ProbeError and InputError for what cannot be trained."""
    if importlib.util.find_spec("sklearn") is None:
        raise ProbeError(NEEDS_SKLEARN)
    if settings.kind not in KINDS:
        raise InputError(f"kind is {settings.kind!r}; it can be {', '.join(KINDS)}")
    if settings.folds < 2 or not 0 < settings.strength < np.inf:
        raise InputError(f"folds ({settings.folds}) are 2 or more, and strength ({settings.strength}) is above 0")
    if labels.numeric and not np.isfinite(labels.values).all():
        raise ProbeError(f"{labels.name} has labels that are no finite numbers")
    if len(set(map(str, labels.values))) < 2:
        raise ProbeError(f"all {len(labels.values)} labels of {labels.name} are {labels.values[0]!r}: nothing to tell")
    if len(set(labels.groups)) < settings.folds:
        raise ProbeError(
            f"{labels.name} is known of {len(set(labels.groups))} images, fewer than the {settings.folds} folds"
        )


def _folds(groups: Sequence[str], folds: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The fold (N,) of each record; all records of an image are in one."""
    names = list(dict.fromkeys(groups))
    fold = dict(zip(names, generator.permutation(np.arange(len(names)) % folds).tolist(), strict=True))
    return np.array([fold[name] for name in groups])


def _predicted(x: Floats, y: np.ndarray, folds: np.ndarray, *, kind: str, strength: float, name: str) -> np.ndarray:
    """What a probe that was trained on the other folds predicts (N,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = Ridge(alpha=strength) if kind == "linear" else LogisticRegression(C=1 / strength, max_iter=300)
    predicted = np.empty_like(y)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        if kind == "logistic" and len(np.unique(y[train])) < 2:
            raise ProbeError(f"{name} has one class outside a fold: take fewer folds, or more records")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are enough for a table
            predicted[test] = make_pipeline(StandardScaler(), model).fit(x[train], y[train]).predict(x[test])
    return predicted


def _score(y: np.ndarray, predicted: np.ndarray, groups: Sequence[str], kind: str) -> Interval:
    """Accuracy or R² with its interval over images."""
    if kind == "logistic":
        return bootstrap((y == predicted).astype(float), groups, shares=True)
    centred = y - y.mean()  # without cancellation in the sums of squares
    columns = np.stack([(y - predicted) ** 2, centred, centred**2, np.ones_like(y)], axis=1)
    return bootstrap_sums(columns, _r_squared, groups)


def _r_squared(sums: Floats) -> Floats:
    """Sums (R, 4) of squared errors, labels, their squares and ones -> R² (R,)."""
    errors, labels, squares, counts = sums.T
    spread = squares - labels**2 / counts
    return 1 - errors / np.maximum(spread, 1e-12)
