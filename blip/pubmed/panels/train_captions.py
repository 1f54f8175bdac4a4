"""Learns the weights of readings of captions from composed captions: `python -m blip.pubmed.panels.train_captions`.

An averaged structured perceptron: for each caption whose best reading is not the true one, the weights of the features
of the true reading grow by one and those of the other shrink by one. All steps are whole numbers, so the same
captions give the same weights on every machine.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from blip.files import write_whole
from blip.pubmed.panels.caption_atoms import Atom, atoms_of, sentence_bounds
from blip.pubmed.panels.caption_features import features_of
from blip.pubmed.panels.caption_labels import groups
from blip.pubmed.panels.caption_readings import (
    AFTER,
    BEGIN,
    COLUMNS,
    END,
    NO_LABEL,
    START,
    TAGS,
    WEIGHTS,
    B,
    D,
    L,
    Weights,
    best_reading,
    best_tags,
    group_features,
    no_pairs,
    signs_of_doubt,
)
from blip.pubmed.panels.caption_score import same, truth
from blip.pubmed.panels.caption_writer import GLUE, LABEL, Composed
from blip.pubmed.panels.captions import parts_of
from blip.pubmed.panels.compose_captions import STRUCTURES, Structures, captions

SCALE = 10  # weights are written in parts of this


class Case:
    """A composed caption with the atoms, the features and the true tags of each of its groups."""

    def __init__(self, made: Composed) -> None:
        text = made.caption
        bounds = sentence_bounds(text)
        self.groups = groups(text)
        self.atoms = [atoms_of(text, bounds, group.labels) for group in self.groups]
        self.features = [features_of(text, atoms, group) for atoms, group in zip(self.atoms, self.groups, strict=True)]
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []  # of features, set by a learner
        self.true: tuple[int, list[int]] | None = None  # the group and its tags; None where no group has the labels
        self.labelled = any(role == LABEL for _, _, role, _ in made.spans)
        for at, atoms in enumerate(self.atoms):
            if self.labelled and (tags := true_tags(made, atoms)):
                self.true = at, tags
                break


def true_tags(made: Composed, atoms: list[Atom]) -> list[int] | None:
    """The tags of the truth, or None where the atoms cannot have it."""
    labels = [(a, b, names) for a, b, role, names in made.spans if role == LABEL]
    texts = [(a, b, role) for a, b, role, _ in made.spans if role not in (LABEL, GLUE)]
    tags, found, place = list[int](), 0, 0
    for atom in atoms:
        declared = next((one for one in labels if atom.label and one[2] == atom.label.names
                         and one[0] < atom.end and atom.start < one[1]), None)  # fmt: skip
        if declared:
            tags.append(D if tags and tags[-1] == TAGS.index("N") else B)
            found += 1
            continue
        while place < len(texts) - 1 and texts[place][1] <= (atom.start + atom.end) // 2:
            place += 1
        tags.append(TAGS.index(texts[place][2]))
    if found != len(labels) or not _possible(tags):
        return None
    return tags


def _possible(tags: list[int]) -> bool:
    return tags[0] in BEGIN and tags[-1] in END and all(b in AFTER[a] for a, b in pairwise(tags))


class Learner:
    """An averaged perceptron over the readings of cases.

    Attributes:
        matrix: (features, columns) weights so far, whole numbers; the first row is that of unknown features.
        tags: the weights of pairs of tags, as `Weights` has them.
    """

    def __init__(self, cases: list["Case"], least: int) -> None:
        count = Counter(name for case in cases for some in case.features for names in some for name in set(names))
        kept = sorted(name for name, times in count.items() if times >= least)
        kept += [f"t>{first}{gap}" for first in range(len(COLUMNS)) for gap in range(4)]
        kept += sorted({name for case in cases for group in case.groups for name in group_features(group)})
        self.rows = {name: at + 1 for at, name in enumerate(kept)}
        self.matrix = np.zeros((len(kept) + 1, len(COLUMNS)), np.int64)
        self.sums = np.zeros_like(self.matrix)  # of each change times the number of its step
        self.tags = no_pairs()
        self.step = 0
        for case in cases:
            case.rows = [self._rows(some) for some in case.features]
            case.features = []

    def _rows(self, features: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the features of all atoms, and where each atom begins."""
        rows = [[self.rows.get(name, 0) for name in names] for names in features]
        starts = np.cumsum([0] + [len(some) for some in rows[:-1]])
        return np.array([one for some in rows for one in some]), starts

    def pass_over(self, cases: list["Case"]) -> int:
        """One step for each case; returns the number of wrong readings."""
        wrong = 0
        for case in cases:
            self.step += 1
            at, tags = self._best(case)
            true = case.true or (-1, [])
            if (at, tags) != (true if case.true else (-1, [])):
                wrong += 1
                if case.true:
                    self._add(case, *true, sign=1)
                if at >= 0:
                    self._add(case, at, tags, sign=-1)
        return wrong

    def _best(self, case: "Case") -> tuple[int, list[int]]:
        """Number of the group of the best reading and its tags; -1 where it has no labels."""
        best, found = 0, (-1, list[int]())
        for at, (group, atoms) in enumerate(zip(case.groups, case.atoms, strict=True)):
            rows, starts = case.rows[at]
            scores = np.add.reduceat(self.matrix[rows], starts, axis=0).tolist()
            tags, score, plain = best_tags(self.tags, atoms, scores)
            gain = int(score - plain) + int(self.matrix[[self.rows[name] for name in group_features(group)], 0].sum())
            if gain > best and any(tag in (B, D) for tag in tags):
                best, found = gain, (at, tags)
        return found

    def _add(self, case: "Case", at: int, tags: list[int], *, sign: int) -> None:
        """Adds the features of a reading, less those of the one without labels."""
        rows, starts = case.rows[at]
        ends = [*starts[1:].tolist(), len(rows)]
        for way, some in ((sign, tags), (-sign, [L] * len(tags))):
            before = START
            for atom, tag, start, end in zip(case.atoms[at], some, starts.tolist(), ends, strict=True):
                column = NO_LABEL if atom.label and tag not in (B, D) else tag
                self._change(rows[start:end], column, way)
                self._change(self.rows[f"t>{before}{atom.gap}"], tag, way)
                self.tags[atom.gap][tag][before] += way
                before = tag
        self._change([self.rows[name] for name in group_features(case.groups[at])], 0, sign)

    def _change(self, rows: Any, column: int, way: int) -> None:
        np.add.at(self.matrix, (rows, column), way)
        np.add.at(self.sums, (rows, column), way * self.step)
        self.matrix[0] = 0  # features that are too rare have no weight, as in captions that are read later

    def averaged(self) -> dict[str, list[int]]:
        """Feature -> its weights, the sum of those after each step."""
        mean = self.matrix * (self.step + 1) - self.sums
        return {name: mean[at].tolist() for name, at in self.rows.items()}


def learn(
    seed: int, count: int, epochs: int, *, structures: Structures = STRUCTURES, tell: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """Feature -> its weights for `count` composed captions; one that occurs less than count / 200 times has none."""
    cases = [Case(made) for made in captions(seed, count, structures=structures)]
    impossible = sum(bool(case.labelled and not case.true) for case in cases)
    tell(f"{count} captions, {impossible} of which have labels or words that no reading has")
    cases = [case for case in cases if case.groups and (case.true or not case.labelled)]
    learner = Learner(cases, least=max(2, count // 200))
    order = random.Random(seed)
    for epoch in range(epochs):
        order.shuffle(cases)
        tell(f"epoch {epoch + 1}: {learner.pass_over(cases)} of {len(cases)} readings wrong")
    return {name: [value / learner.step for value in row] for name, row in learner.averaged().items()}


def mean_of(runs: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """The mean weights of several trainings; a feature that one of them lacks has the weight 0 there."""
    none = [0.0] * len(COLUMNS)
    names = sorted(set().union(*runs))
    return {name: [sum(some) / len(runs) for some in zip(*(run.get(name, none) for run in runs), strict=True)]
            for name in names}  # fmt: skip


def packed(weights: dict[str, list[float]], least: int = 25) -> dict[str, dict[str, int]]:
    """Weights in tenths, without those that are smaller than `least` tenths."""
    found = {}
    for name, row in weights.items():
        tenths = [round(value * SCALE) for value in row]
        if some := {COLUMNS[at]: value for at, value in enumerate(tenths) if abs(value) >= least}:
            found[name] = some
    return found


Signs = list[tuple[list[float], bool]]  # of doubt, each with whether the split was exact


def signs_of(weights: Weights, captions: Iterable[Composed]) -> Signs:
    """What the confidence is learned from."""
    found = []
    for made in captions:
        if reading := best_reading(made.caption, weights):
            found.append((signs_of_doubt(weights, reading), same(truth(made), parts_of(made.caption, reading))))
    return found


def unlike(seed: int, count: int, epochs: int, parts: int = 4) -> Signs:
    """The same on captions unlike all that training had: of structures that it lacked, in reserved templates."""
    found: Signs = []
    for part in range(parts):
        left_out = STRUCTURES[part::parts]
        kept = tuple(one for one in STRUCTURES if one not in left_out)
        weights = table_of(learn(seed, count, epochs, structures=kept, tell=lambda line: None))
        found += signs_of(Weights.of(weights), captions(seed + 1, count // 8, "test", structures=left_out))
    return found


def fitted(some: Signs) -> list[float]:
    """Weights of the signs of doubt: a logistic regression of whether splits are exact, by Newton's method."""
    signs, exact = np.array([signs for signs, _ in some]), np.array([right for _, right in some], float)
    found = np.zeros(signs.shape[1])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-signs @ found))
        slope = signs.T @ (exact - chance) - found * 1e-2
        curve = (signs.T * (chance * (1 - chance))) @ signs + np.eye(len(found)) * 1e-2
        found += np.linalg.solve(curve, slope)
    return [round(float(value), 2) for value in found]


def train(
    seed: int = 1, count: int = 60000, epochs: int = 4, runs: int = 8, *, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """The content of the file of weights: the mean of `runs` trainings, each on other captions."""
    table = table_of(mean_of([learn(seed + run, count, epochs, tell=tell) for run in range(runs)]))
    signs = signs_of(Weights.of(table), captions(seed + runs, max(200, count // 24), "test"))
    signs += unlike(seed + runs + 1, max(100, count // 6), min(3, epochs))
    tell(f"confidence: {len(signs)} splits, {sum(right for _, right in signs) / len(signs):.1%} of them exact")
    return {"seed": seed, "captions": count, "epochs": epochs, "runs": runs, **table, "confidence": fitted(signs)}


def table_of(weights: dict[str, list[float]]) -> dict[str, Any]:
    """What `Weights.of` reads, without a confidence."""
    return {"scale": SCALE, "confidence": [], "weights": packed(weights)}


def main(
    out: Annotated[Path, typer.Option(help="file to write: .json")] = WEIGHTS,
    seed: Annotated[int, typer.Option(help="of the composed captions")] = 1,
    count: Annotated[int, typer.Option(min=100, help="composed captions of a training")] = 60000,
    epochs: Annotated[int, typer.Option(min=1, help="passes over them")] = 4,
    runs: Annotated[int, typer.Option(min=1, help="trainings, on other captions each, to be averaged")] = 8,
) -> None:
    """Learns the weights of readings of captions from composed captions."""
    table = train(seed, count, epochs, runs, tell=typer.echo)
    write_whole(out, json.dumps(table, separators=(",", ":"), sort_keys=True, ensure_ascii=False) + "\n")
    typer.echo(f"{len(table['weights'])} features: {out}")


if __name__ == "__main__":
    typer.run(main)
