"""Readings of a caption: which candidates are labels, which words belong to which label, or to all, and their scores.

A reading of a group of candidates tags each atom:

L lead                N words of the next label        P words of the label before
S shared, behind the last label of a sentence          Q words of a label before that also has words before it
T tail                 M words that the next labels of the sentence share, as in "(A) Text. Plots of (B) x and (C) y."
B a label before its words                             D a label behind its words
A candidate with one of the tags L to M is no label.

Its score is the sum of learned weights of each atom's features with its tag, and of each pair of successive tags, less
the score of the reading without labels. The best reading is found by dynamic programming (Viterbi).
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from blip.pubmed.panels.caption_atoms import Atom, atoms_of, sentence_bounds
from blip.pubmed.panels.caption_features import features_of
from blip.pubmed.panels.caption_labels import Group, groups
from blip.pubmed.panels.caption_rows import row_of

L, N, P, Q, S, T, M, B, D = range(9)
TAGS = "LNPQSTMBD"
NO_LABEL = len(TAGS)  # column of the weights of a candidate that is none
COLUMNS = TAGS + "-"
# tag -> tags that may follow, before one of any kind of gap
AFTER = {L: (L, N, B), N: (N, D), P: (P, B, N, T, S, M), Q: (Q, N, B, T, S, M), S: (S, N, B, T, M), T: (T,), M: (B,),
         B: (P,), D: (Q, N, S, T, B, M)}  # fmt: skip
BEGIN = (L, N, B)
END = (L, P, Q, S, T, D)
TEXT, LABEL, ENCLOSED = range(3)  # kinds of atoms, and the tags of each; words in brackets are those of their label
MAY = ((L, N, P, Q, S, T, M), tuple(range(len(TAGS))), (L, P, Q, T))
# [kind of an atom][kind of the next one] -> its tags: each with the column of its score and the tags before it
MOVES = [[tuple((tag, NO_LABEL if kind == LABEL and tag < B else tag,
                 tuple(first for first in MAY[before] if tag in AFTER[first])) for tag in MAY[kind])
          for kind in range(3)] for before in range(3)]  # fmt: skip
NEVER = float("-inf")
START = len(TAGS)  # before the first atom
LONGEST = 50_000  # characters of a caption that is divided: longer ones stay whole
Tally = dict[str, int]
WEIGHTS = Path(__file__).with_name("caption_weights.json")


@dataclass
class Reading:
    """A group of candidates with the tag of each atom."""

    group: Group
    atoms: list[Atom]
    tags: list[int]
    score: float  # above the reading without labels
    scores: list[list[float]]  # of each atom's tags, as `emissions` gives them
    margin: float = 0.0  # above the best reading of another group, or without labels


def no_pairs() -> list[list[list[float]]]:
    """Weights of pairs of tags, all 0: [gap][second][first], where the first may be `START`."""
    return [[[0.0] * len(COLUMNS) for _ in COLUMNS] for _ in range(4)]


class Weights:
    """Weights of features: name -> one for each tag, and one for a candidate that is no label."""

    def __init__(self, table: dict[str, list[float]], confidence: list[float]) -> None:
        self.rows = {name: at + 1 for at, name in enumerate(table)}
        self.matrix = np.zeros((len(table) + 1, len(COLUMNS)))
        for name, at in self.rows.items():
            self.matrix[at] = table[name]
        self.confidence = confidence
        self.tags = no_pairs()
        for name, values in table.items():
            if name[:2] == "t>":
                first, gap = int(name[2]), int(name[3])
                for second in range(len(TAGS)):
                    self.tags[gap][second][first] = values[second]

    @classmethod
    def of(cls, table: dict[str, Any]) -> "Weights":
        """From the content of a file of weights."""
        rows = {name: [columns.get(column, 0) / table["scale"] for column in COLUMNS]
                for name, columns in table["weights"].items()}  # fmt: skip
        return cls(rows, table["confidence"] or [0.0])

    def of_group(self, group: Group) -> float:
        """The weight of a group as such."""
        at = [self.rows.get(name, 0) for name in group_features(group)]
        return float(self.matrix[at, 0].sum())


@lru_cache(maxsize=1)
def shipped() -> Weights:
    """The weights of the package, which `train_captions.py` learned."""
    return Weights.of(json.loads(WEIGHTS.read_text(encoding="utf-8")))


def group_features(group: Group) -> list[str]:
    """Features of a group: its form, its kind and its number of labels."""
    return [f"G={group.form}", f"G={group.kind}", f"G{min(len(group.names), 4)}{group.form}"]


def emissions(weights: Weights, features: list[list[str]]) -> np.ndarray:
    """(atoms, columns): the score of each tag of each atom, and of a candidate that is no label."""
    rows, offsets = list[int](), list[int]()
    get = weights.rows.get
    for some in features:
        offsets.append(len(rows))
        rows += map(get, some, repeat(0))
    return np.add.reduceat(weights.matrix.take(rows, axis=0), offsets, axis=0)


def best_tags(table: list[list[list[float]]], atoms: list[Atom],
              scores: list[list[float]]) -> tuple[list[int], float, float]:  # fmt: skip
    """The tags of the best reading, its score, and that of the reading without labels.

    Args:
        table: weights of pairs of tags, as `Weights.tags`.
        scores: (atoms, columns) from `emissions`.
    """
    kind, row = _kind(atoms[0]), scores[0]
    values = [NEVER] * len(TAGS)
    for tag, column, _ in MOVES[kind][kind]:
        if tag in BEGIN:
            values[tag] = table[3][tag][START] + row[column]
    plain = values[L]
    trail: list[list[int]] = []
    for atom, row in zip(atoms[1:], scores[1:], strict=True):
        step, new, back, before = table[atom.gap], [NEVER] * len(TAGS), [0] * len(TAGS), kind
        kind = _kind(atom)
        for tag, column, sources in MOVES[before][kind]:
            best, weights = NEVER, step[tag]
            for source in sources:
                total = values[source] + weights[source]
                if total > best:
                    best, back[tag] = total, source
            new[tag] = best + row[column]
        plain += step[L][L] + row[NO_LABEL if kind == LABEL else L]
        values = new
        trail.append(back)
    tag = max(END, key=values.__getitem__)
    score, tags = values[tag], [tag]
    for back in reversed(trail):
        tags.append(back[tags[-1]])
    return tags[::-1], score, plain


def _kind(atom: Atom) -> int:
    return LABEL if atom.label else ENCLOSED if atom.enclosed else TEXT


def read_group(weights: Weights, text: str, bounds: list[tuple[int, int]], group: Group) -> Reading:
    """The best reading of one group."""
    atoms = atoms_of(text, bounds, group.labels)
    scores = emissions(weights, features_of(text, atoms, group)).tolist()
    tags, score, plain = best_tags(weights.tags, atoms, scores)
    return Reading(group, atoms, tags, score - plain + weights.of_group(group), scores)


def best_reading(text: str, weights: Weights | None = None) -> Reading | None:
    """The best reading of a caption with single blanks; None where it is the one without labels, or too long."""
    weights = weights or shipped()
    found = groups(text) if len(text) <= LONGEST else []
    if not found:
        return None
    bounds = sentence_bounds(text)
    readings = [read_group(weights, text, bounds, group) for group in found]
    readings = [one for one in readings if len(labels_of(one)) > 1]
    if not readings:
        return None
    readings.sort(key=lambda one: -one.score)
    best = readings[0]
    best.margin = best.score - max([0.0] + [one.score for one in readings[1:]])
    return best if best.score > 0 else None


def doubts(weights: Weights, reading: Reading) -> list[float]:
    """How much lower the score of a reading is with the next best tag of one atom, for each that may have another."""
    tags, found = [START, *reading.tags], list[float]()
    for at, (atom, row) in enumerate(zip(reading.atoms, reading.scores, strict=True)):
        kind, tag, before = _kind(atom), tags[at + 1], tags[at]
        allowed, own = MAY[kind], row[NO_LABEL if kind == LABEL and tag < B else tag]
        after, gap = (tags[at + 2], reading.atoms[at + 1].gap) if at + 2 < len(tags) else (None, 0)
        best: float | None = None
        step = weights.tags[atom.gap]
        for other in AFTER[before] if at else BEGIN:
            if other == tag or other not in allowed or not (other in END if after is None else after in AFTER[other]):
                continue
            loss = own - row[NO_LABEL if kind == LABEL and other < B else other]
            loss = loss + step[tag][before] - step[other][before]
            if after is not None:
                next_step = weights.tags[gap][after]
                loss += next_step[tag] - next_step[other]
            best = loss if best is None or loss < best else best
        if best is not None:
            found.append(best)
    return found


def signs_of_doubt(weights: Weights, reading: Reading) -> list[float]:
    """What the confidence in a reading is computed from; the first is 1."""
    losses = doubts(weights, reading) or [40.0]
    used = [
        atom.label.names for atom, tag in zip(reading.atoms, reading.tags, strict=True) if atom.label and tag in (B, D)
    ]
    names = [name for some in used for name in some]
    last = max((at for at, tag in enumerate(reading.tags) if tag in (B, D)), default=0)
    behind = [
        tag for atom, tag in zip(reading.atoms[last + 1 :], reading.tags[last + 1 :], strict=True) if atom.gap == 2
    ]
    return [
        1.0,
        math.log1p(max(0.0, min(losses))),
        math.log(0.01 + sum(math.exp(-max(0.0, loss) / 4) for loss in losses)),
        math.log1p(max(0.0, reading.margin)),
        float(D in reading.tags),
        float(S in reading.tags),
        math.log(len(set(names))),
        float(reading.tags[-1] == P and not reading.atoms[-1].label),
        math.log1p(sum(1 for atom in reading.atoms if atom.label) - len(used)),  # candidates that are no labels
        math.log1p(len(names) - len(set(names))),  # labels that occur again
        math.log1p(sum(tag in (P, Q) for tag in behind)),  # sentences after the last label that are its own
        float(T in behind),
        float(reading.group.kind != "p" and len(row_of(set(names))) < len(set(names))),  # a row with a gap
        float(reading.group.form not in ("P", "K", "H", "C")),
    ]


def labels_of(reading: Reading) -> set[str]:
    """The names of the labels of a reading."""
    return {name for atom, tag in zip(reading.atoms, reading.tags, strict=True) if tag in (B, D) and atom.label
            for name in atom.label.names}  # fmt: skip
