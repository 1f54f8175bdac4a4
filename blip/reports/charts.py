"""What the log of a run has to draw: charts of lines over steps, which `curves.py` draws.

A chart holds the lines of one or several runs. A quantity that no run has gives no chart.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip.models.losses import ITM_NO_SKILL
from blip.train.history import History

Floats = NDArray[np.float64]
MOST = 1000  # points of a line on a page
SMOOTH_FROM = 150  # points from which on a running mean is drawn over a line
MAJORITY = 2 / 3  # of the pairs of matching, that do not match
OBJECTIVES = {
    "loss": "Loss", "itc": "Contrast (ITC)", "itm": "Matching (ITM)", "lm": "Language modelling (LM)",
    "ce": "True or false (cross-entropy)",
}  # fmt: skip
NO_SKILL = {"itm": ITM_NO_SKILL, "ce": float(np.log(2))}  # losses of a model that has learned nothing
TRAIN, VALIDATION = "training", "validation"
RECALL = re.compile(r"val_(?:(itc|itm)_)?(i2t|t2i)_r(1|5|10)")
SCORE_NAMES = {
    "token_f1": "Token F1", "bleu1": "BLEU-1", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "cider": "CIDEr",
    "meteor": "METEOR", "vqa_accuracy": "VQA accuracy", "exact": "Exact captions", "rouge-l": "ROUGE-L",
    "bleu-1": "BLEU-1", "bleu-2": "BLEU-2", "bleu-3": "BLEU-3", "bleu-4": "BLEU-4", "spice": "SPICE",
    "bertscore": "BERTScore", "rouge-1": "ROUGE-1", "rouge_1": "ROUGE-1", "mrr": "MRR", "r1": "R@1", "r5": "R@5",
    "r10": "R@10", "mean_rank": "Mean rank", "ndcg": "NDCG",
}  # fmt: skip
WHOLE = {*SCORE_NAMES, "exact_match", "token_recall", "accuracy"}  # scores that are no part of another one
SPREAD = 30.0  # of the values of a logarithmic scale at least; within less there are hardly any ticks
WAYS = {"i2t": "image to text", "t2i": "text to image"}
COUNTS = re.compile(
    r"val_(loss|itc|itm|lm|ce|questions|dialogues|images.*|pairs|unreadable|statements|majority.*|chance|itm_(un)?matched"
    r"|.*(candidates|chance_r1|median_rank|r_mean))"
)


@dataclass
class Line:
    """A quantity of a run over steps or epochs."""

    label: str
    x: Floats
    y: Floats
    colour: int = 0  # which of the palette
    dashed: bool = False
    points: bool = False  # marks each value, for the few of evaluations


@dataclass
class Chart:
    """Lines with a common scale."""

    name: str  # by which code finds it, such as `loss` or `lr`
    title: str
    unit: str = ""  # of the values; "" for plain numbers
    lines: list[Line] = field(default_factory=list)
    levels: list[tuple[str, float]] = field(default_factory=list)  # (label, value) of levels to compare with
    x: str = "step"
    logarithmic: bool = False
    share: bool = False  # values from 0 to 1


def values(lines: Iterable[dict[str, Any]], key: str, x: str = "step") -> tuple[Floats, Floats]:
    """The finite numbers of an entry, and where they were measured."""
    lines = list(lines)
    table = np.stack([_column(lines, x), _column(lines, key)], axis=1)
    table = table[np.isfinite(table).all(axis=1)]
    return table[:, 0], table[:, 1]


def _column(lines: list[dict[str, Any]], key: str) -> Floats:
    """An entry of all lines, as numbers; NaN where it is none."""
    found = [line.get(key) for line in lines]
    if not set(map(type, found)) <= {int, float, type(None)}:
        found = [value if type(value) in (int, float) else None for value in found]
    try:
        return np.array(found, np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        return np.array([value if isinstance(value, float) else None for value in found], np.float64)


def thinned(x: Floats, y: Floats, most: int = MOST) -> tuple[Floats, Floats]:
    """At most `most` points, among them the first, the last, and the lowest and highest of each part of the line."""
    if len(x) <= most:
        return x, y
    parts = np.array_split(np.arange(1, len(x) - 1), max(1, most // 2 - 1))
    kept = {0, len(x) - 1}
    for part in parts:
        kept |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
    order = np.array(sorted(kept))
    return x[order], y[order]


def smoothed(y: Floats) -> Floats:
    """The running mean over a fiftieth of the line; at its ends over what there is."""
    half, places = max(1, len(y) // 100), np.arange(len(y))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(y))
    sums = np.concatenate([[0.0], np.cumsum(y)])
    return (sums[high] - sums[low]) / (high - low)


def score_name(name: str) -> str:
    """The name of a score as people write it; what follows a comma, such as a source, stays as it is."""
    score, comma, part = name.partition(", ")
    return (SCORE_NAMES.get(score.lower()) or score.replace("_", " ").capitalize()) + comma + part


# ---- charts ----------------------------------------------------------------------------------------------------------


def x_of(histories: Sequence[History]) -> str:
    """Runs of different batches are compared by epochs, where all of them have any; a run alone is drawn by steps."""
    counted = all(any("epoch" in line for line in [*h.steps, *h.epochs]) for h in histories)
    return "epoch" if len(histories) > 1 and counted else "step"


def charts_of(histories: Sequence[History], names: Sequence[str] = ()) -> dict[str, list[Chart]]:
    """The charts of each part of a report: losses, optimisation, matching, scores, speed.

    Args:
        histories: as `read_history` gives them.
        names: of the runs, for the legend where there are several.
    """
    names = list(names) or [history.run.name for history in histories]
    make = _Maker(list(zip(names, histories, strict=True)), x_of(histories))
    parts = {
        "losses": [make.chart(key, title, (key, f"val_{key}")) for key, title in make.objectives()],
        "optimisation": [
            make.chart("lr", "Learning rate", ("lr", "")),
            make.chart("grad_norm", "Norm of the gradient", ("grad_norm", ""), logarithmic=True),
            make.chart("temperature", "Temperature of contrast", ("temperature", "")),
            make.chart("alpha", "Weight of the momentum targets (alpha)", ("alpha", "")),
        ],
        "matching": [
            make.chart("itm_matched", "Pairs that match, recognised", ("itm_matched", "val_itm_matched"), share=True),
            make.chart("itm_unmatched", "Pairs that do not match", ("itm_unmatched", "val_itm_unmatched"), share=True),
            make.matching(),
        ],
        "scores": make.scores(),
        "speed": [
            make.chart("images_per_s", "Images a second, all processes", ("images_per_s", "")),
            make.chart("memory_mb", "Memory", ("memory_mb", ""), unit="MB"),
            make.chart("mfu", "Share of the device's peak (model FLOPs)", ("mfu", ""), share=True),
        ],
    }
    return {part: [chart for chart in charts if chart.lines] for part, charts in parts.items()}


@dataclass
class _Maker:
    """Makes charts of several runs."""

    runs: list[tuple[str, History]]
    x: str

    def objectives(self) -> list[tuple[str, str]]:
        """(entry, title) of each loss, without one that equals the only other."""
        keys = {key for _, history in self.runs for line in history.steps[-1:] for key in line if key in OBJECTIVES}
        if len(keys) == 2 and "loss" in keys:
            (other,) = keys - {"loss"}
            keys -= {other if all(_equal(history, other) for _, history in self.runs) else ""}
        return [(key, title) for key, title in OBJECTIVES.items() if key in keys]

    def chart(self, name: str, title: str, keys: tuple[str, str], **more: Any) -> Chart:
        """Lines of the entry `keys[0]` of steps and of `keys[1]` of evaluations."""
        chart = Chart(name, title, x=self.x, **more)
        for number, (run, history) in enumerate(self.runs):
            self._add(chart, number, run, history.steps, keys[0], TRAIN)
            self._add(chart, number, run, history.epochs, keys[1], VALIDATION)
        if chart.lines and name in NO_SKILL:
            chart.levels = [("without skill", NO_SKILL[name])]
        return chart

    def _add(self, chart: Chart, number: int, run: str, lines: Sequence[dict], key: str, what: str) -> None:
        x, y = values(lines, key, self.x)
        if not len(x):
            return
        several, val = len(self.runs) > 1, what == VALIDATION
        label = f"{run}, {what}" if several else what
        chart.lines.append(Line(label, x, y, number if several else int(val), dashed=several and val, points=val))

    def matching(self) -> Chart:
        """The share of all pairs that are classified right, of which one in three matches."""
        chart = Chart("itm_accuracy", "All pairs, classified right", x=self.x, share=True)
        for number, (run, history) in enumerate(self.runs):
            lines = [
                {self.x: line.get(self.x), "right": (line["itm_matched"] + 2 * line["itm_unmatched"]) / 3}
                for line in history.steps if {"itm_matched", "itm_unmatched"} <= line.keys()
            ]  # fmt: skip
            self._add(chart, number, run, lines, "right", TRAIN)
        chart.levels = [("without skill (2/3)", MAJORITY)]
        return chart

    def scores(self) -> list[Chart]:
        """Recall of each direction, then one chart for each other score of the evaluations."""
        keys = list(dict.fromkeys(key for _, history in self.runs for line in history.epochs for key in line))
        recalls: dict[tuple[str, str], list[str]] = {}
        others = []
        for key in keys:
            if found := RECALL.fullmatch(key):
                recalls.setdefault((found[1] or "", found[2]), []).append(key)
            elif key.startswith("val_") and not COUNTS.fullmatch(key):
                others.append(key)
        charts = [
            self._recall(by, way, found)
            for (by, way), found in recalls.items()
            if by != "itc" or ("itm", way) not in recalls
        ]
        return charts + [self._score(group) for group in _families(others)]

    def _recall(self, by: str, way: str, keys: list[str]) -> Chart:
        title = f"Retrieval, {WAYS[way]}" + (" (after matching)" if by == "itm" else "")
        keys = keys if len(self.runs) == 1 else keys[:1]
        chart = self._lines(f"{by}_{way}", title, [(key, f"R@{key.rpartition('r')[2]}") for key in keys])
        for _, history in self.runs:
            for chance in (f"val_{way}_chance_r1", "val_chance"):
                _, y = values(history.epochs, chance, self.x)
                if len(y) and not chart.levels:
                    chart.levels = [("chance of R@1", float(y[-1]))]
        return chart

    def _score(self, keys: list[str]) -> Chart:
        """A score, with its parts by type of question."""
        first = keys[0]
        keys = keys if len(self.runs) == 1 else keys[:1]
        labels = [(key, "all" if key == first else key.removeprefix(f"{first}_")) for key in keys]
        chart = self._lines(first, score_name(first.removeprefix("val_")), labels)
        if first in ("val_exact_match", "val_accuracy"):
            for _, history in self.runs:
                _, y = values(history.epochs, "val_majority", self.x)
                if len(y) and not chart.levels:
                    chart.levels = [("most frequent answer", float(y[-1]))]
        return chart

    def _lines(self, name: str, title: str, keys: list[tuple[str, str]]) -> Chart:
        chart = Chart(name, title, x=self.x)
        for number, (run, history) in enumerate(self.runs):
            for place, (key, label) in enumerate(keys):
                x, y = values(history.epochs, key, self.x)
                if len(x):
                    several = len(self.runs) > 1
                    own = f"{run}, {label}" if several and len(keys) > 1 else run if several else label
                    chart.lines.append(Line(own, x, y, number if several else place, points=True))
                    chart.title = title + (f", {label}" if several and len(keys) == 1 and label != "all" else "")
        chart.share = bool(chart.lines) and all(((line.y >= 0) & (line.y <= 1)).all() for line in chart.lines)
        return chart


def _families(keys: list[str]) -> list[list[str]]:
    """Scores with their parts: `val_exact_match` with `val_exact_match_closed`; at most six lines to one."""
    families: dict[str, list[str]] = {}
    for key in sorted(keys, key=len):
        parts_of = [name for name in families if key.startswith(f"{name}_")]
        whole = "" if key.removeprefix("val_") in WHOLE else max(parts_of, key=len, default="")
        families.setdefault(whole or key, []).append(key)
    order = {key: place for place, key in enumerate(keys)}
    return [found[:6] for _, found in sorted(families.items(), key=lambda one: order[one[0]])]


def _equal(history: History, key: str) -> bool:
    return all(line.get(key) == line.get("loss") for line in history.steps[-20:])
