"""The scores of a run's evaluations with their intervals, and the levels that a model without skill reaches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blip.evaluation.bootstrap import Interval, bootstrap
from blip.reports.charts import RECALL, WAYS, score_name
from blip.reports.run_files import SPLITS, RunFiles

HEADERS = ("score", "value", "95 % interval", "number", "without skill")
BOUNDS = ("mean", "low", "high")  # of an interval in a file of results
MOST_FOR_WILSON = 200_000  # pairs of an evaluation whose intervals are computed here


@dataclass(frozen=True)
class Score:
    """A score of a split, of all its records or of one type of question."""

    split: str  # val or test
    name: str
    kind: str  # "all", or closed, open, modality ...
    interval: Interval
    floor: float | None = None  # what a model without skill reaches
    floor_name: str = ""

    @property
    def label(self) -> str:
        return self.name if self.kind == "all" else f"{self.name}, {self.kind}"

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Under `HEADERS`."""
        one = self.interval
        has_interval = one.low < one.high
        return (
            self.label,
            number(one.mean),
            f"{number(one.low)} to {number(one.high)}" if has_interval else "",
            f"{one.count:,}" if one.count else "",
            "" if self.floor is None else f"{number(self.floor)} ({self.floor_name})",
        )


def number(value: float) -> str:
    """A score in three digits behind the point; whole numbers as they are."""
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def scores_of(run: RunFiles, split: str) -> list[Score]:
    """The scores of a split; none where it was not evaluated."""
    content, metrics = run.scores.get(split, {}), _metrics(run, split)
    scores = [*_answers(content, split, metrics), *_captions(content, split), *_retrieval(content, split, metrics)]
    if "accuracy" in content and (interval := _interval(content["accuracy"])):
        floor = metrics.get(f"{split}_majority")
        scores.append(Score(split, "Accuracy", "all", interval, floor, "the more frequent label"))
    return scores or _of_pretraining(split, metrics)


def all_scores(run: RunFiles) -> dict[str, list[Score]]:
    """The scores of each split that has any."""
    found = {split: scores_of(run, split) for split in SPLITS}
    return {split: scores for split, scores in found.items() if scores}


def _metrics(run: RunFiles, split: str) -> dict[str, Any]:
    """The entries of the last evaluation of a split."""
    if split == "test":
        return run.test or run.evaluated
    lines = reversed(run.history.epochs)
    return next((line for line in lines if any(k.startswith("val_") for k in line)), run.evaluated)


def _answers(content: dict[str, Any], split: str, metrics: dict[str, Any]) -> Iterator[Score]:
    """By type of question, then exact match by its category."""
    majority = {**_means(content.get("majority_by_type")), "all": metrics.get(f"{split}_majority")}
    for name, kinds in _dict(content.get("by_type")).items():
        for kind in sorted(_dict(kinds), key=lambda one: (one != "all", one)):
            if interval := _interval(kinds[kind]):
                floor = majority.get(kind) if name == "exact_match" else None
                yield Score(split, score_name(name), kind, interval, floor, "most frequent training answer")
    for kind, about in _dict(_dict(content.get("by_category")).get("exact_match")).items():
        if kind != "all" and (interval := _interval(about)):
            yield Score(split, "Exact match", kind, interval)
    for about in _dict(_dict(content.get("vqa_accuracy")).get("vqa_accuracy")).values():
        if interval := _interval(about):
            yield Score(split, "VQA accuracy", "all", interval)


def _means(by_kind: Any) -> dict[str, float]:
    return {kind: one.mean for kind, about in _dict(by_kind).items() if (one := _interval(about))}


def _captions(content: dict[str, Any], split: str) -> Iterator[Score]:
    for name, about in _dict(content.get("scores")).items():
        if interval := _interval(about):
            yield Score(split, score_name(name), "all", interval)


def _retrieval(content: dict[str, Any], split: str, metrics: dict[str, Any]) -> Iterator[Score]:
    """Recall in both directions, after matching; the chance of R@k is that of R@1 times k."""
    metrics = {f"{split}_{key}": value for key, value in _dict(content.get("metrics")).items()} or metrics
    for key, about in _dict(content.get("intervals")).items():
        found, interval = RECALL.fullmatch(f"val_{key}"), _interval(about)
        if found and interval:
            chance = metrics.get(f"{split}_{found[2]}_chance_r1")
            floor = None if chance is None else min(1.0, chance * int(found[3]))
            yield Score(split, f"R@{found[3]}, {WAYS[found[2]]}", "all", interval, floor, "chance")


def _of_pretraining(split: str, metrics: dict[str, Any]) -> list[Score]:
    """Recall and matching over pairs that count as independent: Wilson's intervals."""
    pairs: int = int(metrics.get(f"{split}_pairs") or 0)
    chance: Any = metrics.get(f"{split}_chance")
    scores = []
    for key, recall in metrics.items():
        found = RECALL.fullmatch(key)
        if found and not found[1] and 0 < pairs <= MOST_FOR_WILSON and _is_share(recall):
            hits = round(recall * pairs)
            floor = None if chance is None else min(1.0, chance * int(found[3]))
            interval = bootstrap([1.0] * hits + [0.0] * (pairs - hits))
            scores.append(Score(split, f"R@{found[3]}, {WAYS[found[2]]}", "all", interval, floor, "chance"))
    for name, of in (("matched", "match"), ("unmatched", "do not match")):
        value: Any = metrics.get(f"{split}_itm_{name}")
        if _is_share(value) and 0 < pairs <= MOST_FOR_WILSON:
            hits = round(value * pairs)
            interval = bootstrap([1.0] * hits + [0.0] * (pairs - hits))
            scores.append(Score(split, f"Matching, pairs that {of}", "all", interval))
    return scores


def _is_share(value: Any) -> bool:
    """Whether it is a number from 0 to 1; a run whose losses are not finite logs NaN."""
    return isinstance(value, int | float) and 0 <= value <= 1


def _interval(about: Any) -> Interval | None:
    """An interval as results hold it; None for what is none."""
    if not isinstance(about, dict) or not all(isinstance(about.get(key), int | float) for key in BOUNDS):
        return None
    mean, low, high = (float(about[key]) for key in BOUNDS)
    count = about.get("count")
    return Interval(mean, low, high, count if isinstance(count, int) else 0)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
