"""`blip pubmed report`: one HTML page on a data set, to be read before training; it loads nothing from elsewhere."""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageDraw

from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import open_plain
from blip.errors import BlipError
from blip.html_page import Html, element, image, page, table_of_counts, write_page
from blip.pubmed.card import most_first
from blip.pubmed.rules import NAMES

Line = dict[str, Any]
T = TypeVar("T")
SIDE, WIDE = 220, 420  # pixels of the longer side of pairs and of split figures on the page
FAILURES = 30  # problems that the page names
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .5em 0 1.5em } td, th { padding: .2em .9em .2em 0; text-align: left }
td:nth-child(2) { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #4a7ebb; height: .8em; display: block }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1em }
.pair, .figure { border: 1px solid #ddd; padding: .6em; font-size: 13px } .pair img { max-width: 100% }
.figure { display: flex; gap: 1em; margin-bottom: 1em } .figure img { align-self: flex-start; max-width: 45% }
.meta { color: #777; font-size: 12px; overflow-wrap: anywhere }
"""


class ReportError(BlipError):
    """There is no data set to report on."""


def write_report(
    dataset: Path, out: Path, pairs: int = 24, *, figures: int = 10, seed: int = 0, limits: ImageLimits = LIMITS
) -> None:
    """Writes the page: counts for each stage, licences, years, lengths, random pairs, split figures, failures.

    Args:
        dataset: folder written by `blip pubmed build`.
        out: .html.
        pairs, figures: numbers of examples.
        seed: of the choice of examples.

    Raises:
        ReportError: the folder holds no data set.
        WriteError: the page cannot be written.
    """
    if not (dataset / "build.json").is_file():
        raise ReportError(f"{dataset} holds no build.json: make the data set with `blip pubmed build`")
    built = json.loads((dataset / "build.json").read_text())
    pairs_file = Path(built["pairs_file"])
    stages = _summaries(pairs_file)
    rng = random.Random(seed)
    body = [
        *_counts(stages, built),
        *_failures(stages, built),
        element("h2", "Pairs"),
        element("div", *_pairs(dataset, pairs, rng, limits=limits), class_="pairs"),
        element("h2", "Split figures"),
        *_figures(pairs_file, figures, rng, limits=limits),
    ]
    write_page(out, page("Pairs of PubMed Central", dataset.name, STYLE, body=body))


def _summaries(pairs: Path) -> dict[str, Any]:
    """Summaries of the stages before the build, as far as their files still exist."""
    found: dict[str, Any] = {}
    while (path := pairs.with_name(f"{pairs.name}.summary.json")).is_file():
        summary = json.loads(path.read_text())
        found["split" if "why_whole" in summary else "extract"] = summary
        if not summary.get("made_from") or "extract" in found:
            break
        pairs = Path(summary["made_from"])
    return found


# ---- counts ----------------------------------------------------------------------------------------------------------


def _counts(stages: dict[str, Any], built: dict[str, Any]) -> Iterator[Html]:
    """A heading and a table for each kind of count."""
    parts = [(name, built["pairs"].get(name, 0), f"{built['articles'].get(name, 0)} articles") for name in NAMES]
    words = sorted(built["words"].items(), key=lambda one: int(one[0]))
    tables: dict[str, Iterable[tuple[Any, ...]]] = {
        "From articles to pairs": _stages(stages, built),
        "Parts": parts,
        "Left out": most_first(built["out"]),
        "Licences": most_first(built["licenses"]),
        "Years": sorted(built["years"].items()),
        "Words of captions": [(f"{low} to {int(low) + 9}" if low != "30" else "30 and more", n) for low, n in words],
        "How pairs were made": most_first(built["how"]),
    }
    for title, rows in tables.items():
        yield element("h2", title)
        yield table_of_counts(rows)


def _stages(stages: dict[str, Any], built: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    if extract := stages.get("extract"):
        yield "articles read", extract["articles"]
        yield "figures", extract["figures"]
        yield "figures with a file", extract["files"]
    if split := stages.get("split"):
        yield "figures that stayed whole", split["how"].get("whole", 0)
        yield "figures that were split", sum(split["how"].values()) - split["how"].get("whole", 0)
    yield "pairs before filters", built["read"]
    yield "pairs in the data set", sum(built["pairs"].values())


def _failures(stages: dict[str, Any], built: dict[str, Any]) -> Iterator[Html]:
    """Failures by kind, and the first of them by name."""
    rows: list[tuple[Any, ...]] = []
    if extract := stages.get("extract"):
        rows += [("article that is not readable", extract["unreadable"]), ("figure without a file", extract["no_file"]),
                 ("figure without a caption", extract["no_caption"])]  # fmt: skip
        rows += [(f"image of {tag}, no figure", count) for tag, count in most_first(extract["other_graphics"])]
    if split := stages.get("split"):
        rows += [("figure whose image is not readable", split["unreadable"])]
        rows += [(f"stayed whole: {why}", count) for why, count in most_first(split["why_whole"])]
    yield element("h2", "Failures by kind")
    yield table_of_counts(rows)
    problems = [text for stage in (*stages.values(), built) for text in stage["problems"]][:FAILURES]
    if problems:
        yield element("h3", "The first of them")
        yield element("ul", *(element("li", text) for text in problems), class_="meta")


# ---- examples --------------------------------------------------------------------------------------------------------


def _pairs(dataset: Path, most: int, rng: random.Random, *, limits: ImageLimits) -> Iterator[Html]:
    """Pairs drawn from all parts, each with its image and its source."""
    records: Iterator[Line] = (
        record for name in NAMES for record in json.loads((dataset / f"{name}.json").read_text(encoding="utf-8"))
    )
    for record in _sample(records, most, rng):
        certainty = f"{record['how']} {record['confidence']:.2f}" if "how" in record else ""
        about = (record.get("article"), record.get("label"), record.get("license"), certainty)
        meta = element("p", " \u00b7 ".join(str(part) for part in about if part), class_="meta")
        shown = _picture(str(dataset / record["image"]), SIDE, limits=limits)
        yield element("div", shown, element("p", record["caption"]), meta, class_="pair")


def _figures(pairs: Path, most: int, rng: random.Random, *, limits: ImageLimits) -> Iterator[Html]:
    """Figures that were split, with the boxes of their panels and the text of each."""
    if not pairs.is_file():
        yield element("p", f"The file of pairs, {pairs}, does not exist any more.")
        return
    chosen = _sample(_split_figures(pairs), most, rng)
    if not chosen:
        yield element("p", "No figure was split.")
    for lines in chosen:
        boxes = [(line["box"], COLORS[at % len(COLORS)]) for at, line in enumerate(lines)]
        texts = [_panel(line, color) for line, (_, color) in zip(lines, boxes, strict=True)]
        about = element("p", f"{lines[0]['article']} {lines[0]['label']}", class_="meta")
        shown = _picture(lines[0]["whole_image"], WIDE, boxes, limits=limits)
        yield element("div", shown, element("div", *texts, about), class_="figure")


def _panel(line: Line, color: str) -> Html:
    name = element("b", " ".join(line["panel"]), style=f"color:{color}")
    return element("p", name, f" {line['caption']} ",
                   element("span", f"{line['how']} {line['confidence']:.2f}", class_="meta"))  # fmt: skip


def _split_figures(pairs: Path) -> Iterator[list[Line]]:
    """The lines of each figure that was split, read one figure at a time."""
    with open(pairs, encoding="utf-8") as file:
        lines = (line for line in map(json.loads, file) if line.get("box"))
        for _, figure in itertools.groupby(lines, key=lambda line: line.get("whole_image")):
            yield list(figure)


def _sample(items: Iterable[T], most: int, rng: random.Random) -> list[T]:
    """At most so many items, each equally likely to be among them, without holding all (reservoir sampling)."""
    chosen: list[T] = []
    for count, item in enumerate(items, start=1):
        if len(chosen) < most:
            chosen.append(item)
        elif (place := rng.randrange(count)) < most:
            chosen[place] = item
    return chosen


def _picture(
    path: str, side: int, boxes: Iterable[tuple[list[int], str]] = (), *, limits: ImageLimits = LIMITS
) -> Html:
    """An image in the page itself, upright, with boxes drawn on it, or why it cannot be read."""
    try:
        picture = open_plain(path, limits).convert("RGB")
    except UnreadableImage as error:
        return element("p", str(error), class_="meta")
    width = max(2, max(picture.size) // 150)
    for box, color in boxes:
        # Pillow draws what lies outside too, which takes as long as it is large
        left, top, right, bottom = (min(max(0, int(at)), max(picture.size)) for at in box)
        ImageDraw.Draw(picture).rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image(picture, "JPEG", 85)
