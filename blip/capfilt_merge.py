"""The last step of CapFilt: scored texts that pass, and those that people wrote, become training data.

A text passes at a threshold of the match probability, of the cosine, or both; or the share of texts with the best match
that is asked for. Everything streams: of a text no more than its score stays in memory.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blip.data.candidates import HUMAN
from blip.data.pairs import read_pairs
from blip.data.shards import Line, read_lines, settings_of, write_lines, write_whole
from blip.errors import BlipError

ENDINGS = (".json", ".jsonl")


class MergeError(BlipError):
    """Texts that cannot be merged; the message says why."""


@dataclass
class Rule:
    """What passes. With `fraction`, the threshold of the match probability follows from the data."""

    match: float | None = 0.5
    itc: float | None = None
    fraction: float | None = None  # of all scored texts, those of highest match probability

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise MergeError(f"fraction is {self.fraction}; it is a share, above 0 and at most 1")
        if self.match is not None and not 0 <= self.match <= 1:
            raise MergeError(f"threshold is {self.match}; a match probability lies between 0 and 1")
        if self.itc is not None and not -1 <= self.itc <= 1:
            raise MergeError(f"itc_threshold is {self.itc}; a cosine lies between -1 and 1")

    def passes(self, line: Line) -> bool:
        return (self.match is None or line["match"] >= self.match) and (self.itc is None or line["itc"] >= self.itc)


@dataclass
class Merged:
    """What was kept and dropped, by source."""

    rule: Rule
    kept: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    problems: int = 0  # images that could not be read


def scored_lines(folders: Sequence[Path]) -> Iterator[Line]:
    """Lines with scores, and those with a problem; MergeError for shards that are not scored."""
    for folder in folders:
        if (step := settings_of(folder).get("step")) != "score":
            raise MergeError(f"{folder} holds shards of `{step}`, not of `filter`: score them first")
        yield from read_lines(folder)


def threshold_of(folders: Sequence[Path], fraction: float) -> float:
    """The match probability that this share of all texts reaches."""
    scores = np.fromiter((line["match"] for line in scored_lines(folders) if "match" in line), np.float32)
    if not len(scores):
        raise MergeError(f"{', '.join(map(str, folders))}: no text has a score")
    return float(np.quantile(scores, 1 - fraction, method="higher"))


def merge(folders: Sequence[Path], out: Path, rule: Rule, keep: Sequence[str] = (), image_root: str = "") -> Merged:
    """Writes one record a text, `{image, caption, source, round}`, and beside it `OUT.merge.json`: rule and counts.

    Args:
        folders: shards of `capfilt.score`.
        out: .json or .jsonl; it has its name only when it is whole.
        rule: what passes.
        keep: annotation files of texts that people wrote, all of which are kept.

    Raises:
        MergeError: wrong ending, or nothing passes.
    """
    if out.suffix not in ENDINGS:
        raise MergeError(f"{out}: merged annotations end in {' or '.join(ENDINGS)}")
    if rule.fraction is not None:
        rule = Rule(threshold_of(folders, rule.fraction), rule.itc, rule.fraction)
    found = Merged(rule)
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = _records(folders, rule, keep, image_root, found)
    if out.suffix == ".jsonl":
        write_lines(out, lines)
    else:
        _write_list(out, lines)
    if not found.kept:
        out.unlink()
        raise MergeError(f"nothing passes {rule}: of {sum(found.dropped.values())} texts none is kept")
    about: dict[str, Any] = {**asdict(rule), "kept": found.kept, "dropped": found.dropped, "unreadable": found.problems}
    write_whole(out.with_name(f"{out.name}.merge.json"), json.dumps(about, indent=1) + "\n")
    return found


def _records(
    folders: Sequence[Path], rule: Rule, keep: Sequence[str], image_root: str, found: Merged
) -> Iterator[Line]:
    if keep:
        pairs = read_pairs(list(keep), image_root)
        for i in range(len(pairs)):
            for text in pairs.captions(i):
                found.kept[HUMAN] += 1
                yield {"image": os.path.abspath(pairs.image_path(i)), "caption": text, "source": HUMAN, "round": 0}
    for line in scored_lines(folders):
        if "problem" in line:
            found.problems += 1
        elif rule.passes(line):
            found.kept[line["source"]] += 1
            yield {"image": line["image"], "caption": line["text"], "source": line["source"], "round": line["round"]}
        else:
            found.dropped[line["source"]] += 1


def _write_list(path: Path, lines: Iterator[Line]) -> None:
    """A JSON list, one record a line."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write("[")
        for number, line in enumerate(lines):
            file.write((",\n" if number else "\n") + json.dumps(line, ensure_ascii=False))
        file.write("\n]\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
