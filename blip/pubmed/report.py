"""`blip pubmed report`: one HTML page on a data set, to be read before training; it loads nothing from elsewhere."""

import itertools
import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageDraw

from blip.data.image_bytes import LIMITS, ImageLimits
from blip.data.images import open_or_problem
from blip.errors import BlipError
from blip.files import checked_as, read_json
from blip.html_page import Html, image, page, table_of_counts, write_page
from blip.pubmed.card import most_first
from blip.pubmed.lines import BuildFile, Example, ExtractFile, Line, Panel, SplitFile, read
from blip.pubmed.rules import NAMES

T = TypeVar("T")
SIDE, WIDE = 220, 420  # pixels of the longer side of pairs and of split figures on the page
FAILURES = 30  # problems that the page names
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")


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
        ReadError: a file of the data set, or of a step before it, is damaged.
        WriteError: the page cannot be written.
    """
    if not (dataset / "build.json").is_file():
        raise ReportError(f"{dataset} holds no build.json: make the data set with `blip pubmed build`")
    built: Any = read_json(dataset / "build.json", BuildFile)
    pairs_file = Path(built["pairs_file"])
    stages = _summaries(pairs_file)
    rng = random.Random(seed)
    content = page(
        "pubmed/report.html",
        title="Pairs of PubMed Central",
        heading=dataset.name,
        tables=_counts(stages, built),
        failures=_failures(stages, built),
        problems=[text for stage in (*stages.values(), built) for text in stage["problems"]][:FAILURES],
        pairs=list(_pairs(dataset, pairs, rng, limits=limits)),
        pairs_file=pairs_file,
        figures=list(_figures(pairs_file, figures, rng, limits=limits)) if os.path.isfile(pairs_file) else None,
    )
    write_page(out, content)


def _summaries(pairs: Path) -> dict[str, Any]:
    """Summaries of the stages before the build, as far as their files still exist."""
    found: dict[str, Any] = {}
    # `is_file` of a path raises an error where its name is too long
    while pairs.name and os.path.isfile(path := pairs.with_name(f"{pairs.name}.summary.json")):
        summary = read_json(path, dict[str, Any])
        step = "split" if "why_whole" in summary else "extract"
        if step in found:  # files that name one another
            break
        found[step] = checked_as(summary, SplitFile if step == "split" else ExtractFile, path)
        if not summary.get("made_from") or "extract" in found:
            break
        pairs = Path(summary["made_from"])
    return found


# ---- counts ----------------------------------------------------------------------------------------------------------


def _counts(stages: dict[str, Any], built: dict[str, Any]) -> dict[str, Html]:
    """A table for each kind of count."""
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
    return {title: table_of_counts(rows) for title, rows in tables.items()}


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


def _failures(stages: dict[str, Any], built: dict[str, Any]) -> Html:
    """Failures by kind."""
    rows: list[tuple[Any, ...]] = []
    if extract := stages.get("extract"):
        rows += [("article that is not readable", extract["unreadable"]), ("figure without a file", extract["no_file"]),
                 ("figure without a caption", extract["no_caption"])]  # fmt: skip
        rows += [(f"image of {tag}, no figure", count) for tag, count in most_first(extract["other_graphics"])]
    if split := stages.get("split"):
        if "extract" not in stages:
            rows += [("figure without a file", split.get("no_file", 0))]
        rows += [("figure whose image is not readable", split["unreadable"]),
                 ("panel that is too small, or too large", split.get("left_out", 0))]  # fmt: skip
        rows += [(f"stayed whole: {why}", count) for why, count in most_first(split["why_whole"])]
    return table_of_counts(rows)


# ---- examples --------------------------------------------------------------------------------------------------------


def _pairs(dataset: Path, most: int, rng: random.Random, *, limits: ImageLimits) -> Iterator[dict[str, Any]]:
    """Pairs drawn from all parts, each with its image and its source."""
    records: Iterator[Any] = (record for name in NAMES for record in read_json(dataset / f"{name}.json", list[Example]))
    for record in _sample(records, most, rng):
        certainty = record.get("how", "")
        if "confidence" in record:
            certainty += f" {record['confidence']:.2f}"
        about = (record.get("article"), record.get("label"), record.get("license"), certainty)
        texts = {"caption": record["caption"], "about": " \u00b7 ".join(str(part) for part in about if part)}
        yield texts | _picture(str(dataset / record["image"]), SIDE, limits=limits)


def _figures(pairs: Path, most: int, rng: random.Random, *, limits: ImageLimits) -> Iterator[dict[str, Any]]:
    """Figures that were split, with the boxes of their panels and the text of each."""
    for lines in _sample(_split_figures(pairs), most, rng):
        boxes = [(line["box"], COLORS[at % len(COLORS)]) for at, line in enumerate(lines)]
        panels = [_panel(line, color) for line, (_, color) in zip(lines, boxes, strict=True)]
        about = f"{lines[0]['article']} {lines[0].get('label') or ''}"
        yield {"panels": panels, "about": about} | _picture(lines[0]["whole_image"], WIDE, boxes, limits=limits)


def _panel(line: Line, color: str) -> dict[str, str]:
    certainty = f"{line['how']} {line['confidence']:.2f}"
    return {"name": " ".join(line["panel"]), "color": color, "caption": line["caption"], "certainty": certainty}


def _split_figures(pairs: Path) -> Iterator[list[Line]]:
    """The lines of each figure that was split, read one figure at a time."""
    lines = (
        checked_as(line, Panel, pairs, place=f"line {at + 1}") for at, line in read(pairs, Line) if line.get("box")
    )
    for _, figure in itertools.groupby(lines, key=lambda line: line["whole_image"]):
        yield [dict(line) for line in figure]


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
    path: str, side: int, boxes: Iterable[tuple[Any, str]] = (), *, limits: ImageLimits = LIMITS
) -> dict[str, Any]:
    """`picture`, with boxes drawn on it, is part of the page itself; `problem` is why an image cannot be read."""
    picture, problem = open_or_problem(path, limits)
    if picture is None:
        return {"picture": None, "problem": problem}
    width = max(2, max(picture.size) // 150)
    for box, color in boxes:
        if (inside := _bounded(box, picture.size, width)) is not None:
            ImageDraw.Draw(picture).rectangle(inside, outline=color, width=width)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return {"picture": image(picture, "JPEG", 85), "problem": ""}


def _bounded(box: Any, size: tuple[int, int], margin: int) -> tuple[float, float, float, float] | None:
    """(left, top, right, bottom) with what lies farther outside the picture moved to `margin` pixels outside of it.

    Drawing takes as long as the box is large, seen or not. None where these are not four finite numbers in order.
    """
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_finite, box)):
        return None
    left, right = (min(max(x, -margin), size[0] + margin) for x in (box[0], box[2]))
    top, bottom = (min(max(y, -margin), size[1] + margin) for y in (box[1], box[3]))
    return (left, top, right, bottom) if left <= right and top <= bottom else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
