"""A caption of several panels -> each panel's own words, the words that all share, and a confidence.

`caption_labels.py` finds what may be labels, `caption_readings.py` scores what the caption may mean, and the best
reading becomes the parts here.
"""

import math
import re
from dataclasses import dataclass
from itertools import takewhile

from blip.pubmed.panels.caption_parts import Part, Split, Splitter
from blip.pubmed.panels.caption_readings import (
    B,
    D,
    L,
    M,
    N,
    Reading,
    S,
    T,
    Weights,
    best_reading,
    labels_of,
    shipped,
    signs_of_doubt,
)
from blip.pubmed.panels.caption_rules import split_by_rules

__all__ = ["Part", "Split", "Splitter", "split_by_rules", "split_caption"]
STYLES = {"P": "(A)", "K": "[A]", "H": "A)", "C": "A:", "D": "A.", "M": "A,", "E": "A =", "I": "A |", "B": "A Text",
          "W": "Panel A", "F": "Figure 1A", "L": "Left:"}  # fmt: skip
JOINED_BEFORE = re.compile(r"^(?:and|or|as well as|versus|vs\.?|while|whereas)\s")
CONJUNCTIONS = ("and", "or", "as well as", "versus", "vs", "vs.", "while", "whereas")
JOINED_BEHIND = re.compile(r"(?:^|[\s,;]{1,5})(?:and|or|as well as|versus|vs\.?|while|whereas)$")
EDGE = " ;:,"
HALF = re.compile(r"\s[A-Za-z]\d?\)\.?$")  # another panel that is named at the end, `see a)`


def split_caption(caption: str, weights: Weights | None = None) -> Split:
    """The parts of a caption; the whole caption as `lead` where there is no row of at least two labels."""
    text = " ".join(caption.split()).replace("\uff08", "(").replace("\uff09", ")")
    reading = best_reading(text, weights)
    if reading is None:
        return Split(text, [], whole=text)
    split = parts_of(text, reading)
    split.confidence = confidence(reading, weights or shipped())
    return split


def confidence(reading: Reading, weights: Weights) -> float:
    """The chance that labels and words are right: of composed captions, with templates that training lacks."""
    signs = signs_of_doubt(weights, reading)
    total = sum(weight * sign for weight, sign in zip(weights.confidence, signs, strict=True))
    return round(min(0.99, 1 / (1 + math.exp(-total))), 3)


SPLITTERS: dict[str, Splitter] = {"learned": split_caption, "rules": split_by_rules}


def parts_of(text: str, reading: Reading) -> Split:
    """The words of each label, the lead and the tail that a reading gives."""
    lead, tail, waiting = "", list[str](), ""
    parts: list[Part] = []
    runs: list[_Run] = []  # of labels
    every = labels_of(reading)
    found = _runs(text, reading)
    for at, run in enumerate(found):
        if run.tag in (B, D):
            parts.append(Part(list(run.names), waiting, (run.start, run.end), run.tag == D))
            runs.append(run)
            waiting = ""
        elif run.tag == L:
            lead = run.words
        elif run.tag == N:
            waiting = run.words
        elif run.tag == M and (later := [one for one in found[at:] if one.names]):
            names = [name for one in later if one.sentence == later[0].sentence for name in one.names]
            parts.append(Part(names, run.words, (run.start, run.start)))
        elif run.tag == T:
            tail.append(run.words)
        elif run.tag == S and (names := _shared_by(run, runs)):
            if every.issubset(names):
                tail.append(run.words)
            else:
                parts.append(Part(names, run.words, (run.start, run.start)))
        elif run.words:
            own = parts[-1].text
            own += "." if own and own[-1] not in ".!?" and run.begins and run.words[0].isupper() else ""
            parts[-1].text = f"{own} {run.words}".strip()
    form = "Left:" if reading.group.kind == "p" else STYLES.get(reading.group.form[0], "(A)")
    return Split(lead, parts, form, 0.0, text, " ".join(tail).strip())


def _shared_by(run: "_Run", labels: list["_Run"]) -> list[str]:
    """The names of the labels that share words at the end of their clause or sentence; empty for a single label."""
    for numbers in ("clause", "sentence"):
        own = getattr(run, numbers)
        some = list(takewhile(lambda one: getattr(one, numbers) == own, reversed(labels)))  # noqa: B023 (used at once)
        if len(some) > 1:
            return list(dict.fromkeys(name for one in reversed(some) for name in one.names))
    return []


@dataclass
class _Run:
    """Successive atoms of one tag."""

    tag: int
    start: int
    end: int
    sentence: int
    clause: int
    begins: bool = False  # a sentence
    names: tuple[str, ...] = ()
    words: str = ""


def _runs(text: str, reading: Reading) -> list[_Run]:
    runs: list[_Run] = []
    marks: list[tuple[int, str]] = []
    for atom, tag in zip(reading.atoms, reading.tags, strict=True):
        if tag in (B, D) and atom.label:
            runs.append(_Run(tag, atom.start, atom.end, atom.sentence, atom.clause, names=atom.label.names))
            marks.append((len(runs) - 1, atom.label.mark))
        elif runs and runs[-1].tag == tag and not runs[-1].names:
            runs[-1].end = atom.end
        else:
            runs.append(_Run(tag, atom.start, atom.end, atom.sentence, atom.clause, atom.gap == 2))
    for run in runs:
        run.words = text[run.start : run.end]
    for at, mark in marks:  # brackets that a label shared with other words
        if mark == "(" and at + 1 < len(runs):
            runs[at + 1].words = "(" + runs[at + 1].words
        elif mark == ")" and at:
            runs[at - 1].words = runs[at - 1].words.rstrip() + ")"
    for run in runs:
        run.words = _trimmed(run.words, first=run.tag == L)
    return runs


def _trimmed(words: str, *, first: bool) -> str:
    """Words without signs and conjunctions at their ends, and without half a pair of brackets."""
    words = words.strip(EDGE) if first else words.strip(EDGE).lstrip(" .:;,)|=\u2013\u2014")
    words = words.removeprefix("- ")
    words = words if first or words[:1] not in "aovw" else JOINED_BEFORE.sub("", words)
    words = (JOINED_BEHIND.sub("", words) if words.endswith(CONJUNCTIONS) else words).strip(EDGE)
    surplus = words.count("(") - words.count(")")
    if surplus > 0:
        words = words.removesuffix("(").rstrip(EDGE)
    elif surplus < 0 and not HALF.search(words):
        words = re.sub(r"\)(?=\.?$)", "", words, count=1)
    if first and words.endswith(("Panels", "panels", "Panel", "panel")):
        words = words.rpartition(" ")[0]
    return words
