"""`blip capfilt report`: one page on the texts that a filter kept and dropped, for inspection before training.

Shards are read twice: for the scores, and for the few lines that are shown.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blip.capfilt.candidates import paths_of
from blip.capfilt.merge import MergeError, Rule, scored_lines, settled
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.jsonl_shards import Line
from blip.data.pictures import open_pictures
from blip.html_page import Html, histogram, image, page, table, write_page

BINS = 40
SIDE = 160  # pixels of an image's longer side on the page
MOST_PICTURES = 4  # of an item on the page


@dataclass
class Scores:
    """Of all scored texts, in the order of the shards."""

    match: np.ndarray  # (n,) float64, as they are written: a threshold may be one of them
    itc: np.ndarray  # (n,) float64
    source: np.ndarray  # (n,) which of `sources`
    sources: list[str]
    problems: list[str]  # images that could not be read, the first hundred
    unreadable: int


def read_scores(folders: Sequence[Path]) -> Scores:
    match, itc, source = array("d"), array("d"), array("h")
    sources: dict[str, int] = {}
    problems: list[str] = []
    unreadable = 0
    for line in scored_lines(folders):
        if "problem" in line:
            unreadable += 1
            problems += [f"{paths_of(line)[0]}: {line['problem']}"] if len(problems) < 100 else []
            continue
        match.append(line["match"])
        itc.append(line["itc"])
        source.append(sources.setdefault(line["source"], len(sources)))
    if not match:
        raise MergeError(f"{', '.join(map(str, folders))}: no text has a score")
    arrays = np.frombuffer(match), np.frombuffer(itc), np.frombuffer(source, np.int16)
    return Scores(*arrays, list(sources), problems, unreadable)


def write_report(
    folders: Sequence[Path],
    out: Path,
    rule: Rule,
    *,
    examples: int = 50,
    seed: int = 0,
    limits: ImageLimits = LIMITS,
) -> None:
    """Writes the page: histograms by source, counts, random kept and dropped pairs, those nearest the threshold, and
    those about which matching and contrast differ most."""
    rule = settled(rule, folders)
    scores = read_scores(folders)
    kept = np.ones(len(scores.match), bool)
    kept &= scores.match >= rule.match if rule.match is not None else True
    kept &= scores.itc >= rule.itc if rule.itc is not None else True
    rng = np.random.default_rng(seed)
    nearest = np.abs(scores.match - (rule.match if rule.match is not None else 0.5)).argsort(kind="stable")
    differ = np.abs(_ranks(scores.match) - _ranks(scores.itc)).argsort(kind="stable")[::-1]
    shown = {
        "Kept, drawn at random": _some(rng, np.flatnonzero(kept), examples),
        "Dropped, drawn at random": _some(rng, np.flatnonzero(~kept), examples),
        "Nearest the threshold": nearest[:examples],
        "Where matching and contrast differ most": differ[:examples],
    }
    wanted = {int(i) for several in shown.values() for i in several}
    lines: dict[int, Line] = {}
    number = 0
    for line in scored_lines(folders):
        if "problem" not in line:
            if number in wanted:
                lines[number] = line
            number += 1
    examples_of = {
        title: [_pair(lines[int(i)], bool(kept[i]), limits) for i in numbers] for title, numbers in shown.items()
    }
    content = page(
        "capfilt/report.html",
        title="CapFilt: what was kept",
        heading="CapFilt: what was kept and what was dropped",
        counts=_counts(scores, kept),
        histograms=_histograms(scores, rule),
        examples=examples_of,
        unreadable=scores.unreadable,
        problems=scores.problems,
    )
    write_page(out, content)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Place of each value among all, as a share."""
    ranks = np.empty(len(values))
    ranks[values.argsort(kind="stable")] = np.arange(len(values))
    return ranks / max(len(values) - 1, 1)


def _some(rng: np.random.Generator, numbers: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(numbers, min(count, len(numbers)), replace=False) if len(numbers) else numbers


def _counts(scores: Scores, kept: np.ndarray) -> Html:
    rows = []
    for number, name in enumerate(scores.sources):
        own = scores.source == number
        texts, stays = int(own.sum()), int((own & kept).sum())
        rows.append((name, texts, stays, texts - stays, f"{100 * stays / max(texts, 1):.1f} %"))
    return table(rows, ("source", "texts", "kept", "dropped", "kept"))


def _histograms(scores: Scores, rule: Rule) -> Iterator[Html]:
    """Of both scores, for each source."""
    for name, values, low, high, threshold in (
        ("match probability (ITM)", scores.match, 0.0, 1.0, rule.match),
        ("cosine (ITC)", scores.itc, float(scores.itc.min()), float(scores.itc.max()) + 1e-6, rule.itc),
    ):
        for number, source in enumerate(scores.sources):
            counts, _ = np.histogram(values[scores.source == number], bins=BINS, range=(low, high))
            yield histogram(f"{name}, {source}", counts.tolist(), low, high=high, mark=threshold)


def _pair(line: Line, kept: bool, limits: ImageLimits) -> dict[str, object]:
    """What the page shows of a pair; of an image that cannot be read, why."""
    paths, pictures, problem = paths_of(line), list[Html](), ""
    try:
        opened = open_pictures(paths, limits)
        for one in opened[:MOST_PICTURES]:
            one.thumbnail((SIDE, SIDE) if len(opened) == 1 else (SIDE // 2, SIDE // 2))
            pictures.append(image(one, "JPEG", 80))
    except UnreadableImage as error:
        problem = str(error)
    others = f" and {len(opened) - 1} more" if pictures and len(opened) > 1 else ""
    about = {"text": line["text"], "source": line["source"], "name": f"{Path(paths[0]).name}{others}"}
    scores = {"match": f"{line['match']:.3f}", "itc": f"{line['itc']:.3f}"}
    return about | scores | {"state": "kept" if kept else "dropped", "pictures": pictures, "problem": problem}
