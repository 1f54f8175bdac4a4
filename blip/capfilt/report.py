"""`blip capfilt report`: one page on the texts that a filter kept and dropped, for inspection before training.

Shards are read twice: for the scores, and for the few lines that are shown.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blip.capfilt.merge import MergeError, Rule, scored_lines, settled
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import open_image
from blip.data.jsonl_shards import Line
from blip.html_page import Html, element, histogram, image, page, table, write_page

BINS = 40
SIDE = 160  # pixels of an image's longer side on the page


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
            problems += [f"{line['image']}: {line['problem']}"] if len(problems) < 100 else []
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
    body = [element("h2", "Counts"), _counts(scores, kept), *_histograms(scores, rule)]
    for title, numbers in shown.items():
        body.append(element("h2", f"{title} ({len(numbers)})"))
        body += [_pair(lines[int(i)], bool(kept[i]), limits) for i in numbers]
    if scores.unreadable:
        body.append(element("h2", f"Images that could not be read ({scores.unreadable})"))
        body.append(element("ul", *(element("li", problem) for problem in scores.problems)))
    write_page(out, page("CapFilt: what was kept", "CapFilt: what was kept and what was dropped", STYLE, body=body))


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
    yield element("h2", "Scores by source")
    yield element("p", "The line is the threshold.")
    for name, values, low, high, threshold in (
        ("match probability (ITM)", scores.match, 0.0, 1.0, rule.match),
        ("cosine (ITC)", scores.itc, float(scores.itc.min()), float(scores.itc.max()) + 1e-6, rule.itc),
    ):
        for number, source in enumerate(scores.sources):
            counts, _ = np.histogram(values[scores.source == number], bins=BINS, range=(low, high))
            yield histogram(f"{name}, {source}", counts.tolist(), low, high=high, mark=threshold)


def _pair(line: Line, kept: bool, limits: ImageLimits) -> Html:
    try:
        opened = open_image(line["image"], limits)
        opened.thumbnail((SIDE, SIDE))
        picture = image(opened, "JPEG", 80)
    except UnreadableImage as error:
        picture = element("p", str(error))
    state, br = "kept" if kept else "dropped", element("br")
    scores = f"ITM {line['match']:.3f}, ITC {line['itc']:.3f}"
    about = element("small", f"{line['source']}, {state}", br, scores, br, Path(line["image"]).name)
    return element("article", picture, element("p", line["text"]), about, class_=state)


STYLE = """
body { font: 15px/1.4 sans-serif; margin: 2em; }
table { border-collapse: collapse; } td, th { border: 1px solid #bbb; padding: 0.2em 0.7em; text-align: right; }
figure { display: inline-block; margin: 0.5em 1em 0.5em 0; } rect { fill: #468; } text { font-size: 11px; }
article { display: inline-block; vertical-align: top; width: 180px; margin: 4px; padding: 6px; border: 2px solid #9b9; }
article.dropped { border-color: #c99; } article p { margin: 4px 0; overflow-wrap: anywhere; }
article img { max-width: 160px; min-width: 96px; image-rendering: auto; }
"""
