"""`blip capfilt report`: one page on the texts that a filter kept and dropped, for inspection before training.

Shards are read twice: for the scores, and for the few lines that are shown.
"""

import base64
import html
import io
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blip.capfilt.merge import MergeError, Rule, scored_lines, settled
from blip.data.images import UnreadableImage, open_image
from blip.data.jsonl_shards import Line
from blip.files import write_whole

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


def write_report(folders: Sequence[Path], out: Path, rule: Rule, *, examples: int = 50, seed: int = 0) -> None:
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
    body = [_counts(scores, kept), _histograms(scores, rule)]
    for title, numbers in shown.items():
        body.append(f"<h2>{title} ({len(numbers)})</h2>")
        body += [_pair(lines[int(i)], bool(kept[i])) for i in numbers]
    if scores.unreadable:
        body.append(f"<h2>Images that could not be read ({scores.unreadable})</h2>")
        body.append("<ul>" + "".join(f"<li>{html.escape(problem)}</li>" for problem in scores.problems) + "</ul>")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, PAGE.replace("BODY", "\n".join(body)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Place of each value among all, as a share."""
    ranks = np.empty(len(values))
    ranks[values.argsort(kind="stable")] = np.arange(len(values))
    return ranks / max(len(values) - 1, 1)


def _some(rng: np.random.Generator, numbers: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(numbers, min(count, len(numbers)), replace=False) if len(numbers) else numbers


def _counts(scores: Scores, kept: np.ndarray) -> str:
    rows = ""
    for number, name in enumerate(scores.sources):
        own = scores.source == number
        stays = int((own & kept).sum())
        share = 100 * stays / max(int(own.sum()), 1)
        rows += (
            f"<tr><td>{html.escape(name)}<td>{int(own.sum())}<td>{stays}<td>{int(own.sum()) - stays}<td>{share:.1f} %"
        )
    return f"<h2>Counts</h2><table><tr><th>source<th>texts<th>kept<th>dropped<th>kept{rows}</table>"


def _histograms(scores: Scores, rule: Rule) -> str:
    parts = ["<h2>Scores by source</h2><p>The line is the threshold.</p>"]
    for name, values, low, high, threshold in (
        ("match probability (ITM)", scores.match, 0.0, 1.0, rule.match),
        ("cosine (ITC)", scores.itc, float(scores.itc.min()), float(scores.itc.max()) + 1e-6, rule.itc),
    ):
        for number, source in enumerate(scores.sources):
            counts, _ = np.histogram(values[scores.source == number], bins=BINS, range=(low, high))
            parts.append(_bars(f"{name}, {source}", counts, low, high, threshold))
    return "\n".join(parts)


def _bars(title: str, counts: np.ndarray, low: float, high: float, threshold: float | None) -> str:
    """A histogram as SVG."""
    top, width = max(int(counts.max()), 1), 400 / BINS
    bars = "".join(
        f'<rect x="{i * width:.1f}" y="{100 - 100 * count / top:.1f}" width="{width - 1:.1f}" '
        f'height="{100 * count / top:.1f}"><title>{count}</title></rect>'
        for i, count in enumerate(counts.tolist())
    )
    mark = ""
    if threshold is not None:
        x = 400 * (threshold - low) / (high - low)
        mark = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="100" stroke="#c00"/>'
    return (
        f'<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox="0 0 400 118" width="400" height="118">'
        f'{bars}{mark}<text x="0" y="114">{low:.2f}</text><text x="400" y="114" text-anchor="end">{high:.2f}</text>'
        f"</svg><figcaption>highest bar: {top}</figcaption></figure>"
    )


def _pair(line: Line, kept: bool) -> str:
    try:
        image = open_image(line["image"])
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        picture = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    except UnreadableImage as error:
        picture = f"<p>{html.escape(str(error))}</p>"
    return (
        f'<article class="{"kept" if kept else "dropped"}">{picture}<p>{html.escape(line["text"])}</p>'
        f"<small>{html.escape(line['source'])}, {'kept' if kept else 'dropped'}<br>ITM {line['match']:.3f}, "
        f"ITC {line['itc']:.3f}<br>{html.escape(Path(line['image']).name)}</small></article>"
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>CapFilt: what was kept</title><style>
body { font: 15px/1.4 sans-serif; margin: 2em; }
table { border-collapse: collapse; } td, th { border: 1px solid #bbb; padding: 0.2em 0.7em; text-align: right; }
figure { display: inline-block; margin: 0.5em 1em 0.5em 0; } rect { fill: #468; } text { font-size: 11px; }
article { display: inline-block; vertical-align: top; width: 180px; margin: 4px; padding: 6px; border: 2px solid #9b9; }
article.dropped { border-color: #c99; } article p { margin: 4px 0; overflow-wrap: anywhere; }
article img { max-width: 160px; min-width: 96px; image-rendering: auto; }
</style></head><body>
<h1>CapFilt: what was kept and what was dropped</h1>
BODY
</body></html>
"""
