"""`blip pubmed report`: one HTML page on a data set, to look at before training; it loads nothing from elsewhere."""

import base64
import html
import io
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from blip.errors import BlipError
from blip.pubmed.build import NAMES
from blip.pubmed.card import most_first

SIDE, WIDE = 220, 420  # pixels of pairs and of split figures on the page
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .5em 0 1.5em } td, th { padding: .2em .9em .2em 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #4a7ebb; height: .8em; display: block }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1em }
.pair, .figure { border: 1px solid #ddd; padding: .6em; font-size: 13px } .pair img { max-width: 100% }
.figure { display: flex; gap: 1em; margin-bottom: 1em } .figure img { align-self: flex-start; max-width: 45% }
.meta { color: #777; font-size: 12px; overflow-wrap: anywhere }
"""


class ReportError(BlipError):
    """No data set to report on; the message says why."""


def write_report(dataset: Path, out: Path, pairs: int = 24, figures: int = 10, seed: int = 0) -> None:
    """Writes the page: counts per stage, licences, years, lengths, random pairs, split figures, failures.

    Args:
        dataset: of `blip pubmed build`.
        pairs, figures: examples that are shown.

    Raises:
        ReportError: no data set there.
    """
    if not (dataset / "build.json").is_file():
        raise ReportError(f"{dataset} holds no build.json: make the data set with `blip pubmed build`")
    built = json.loads((dataset / "build.json").read_text())
    stages = _summaries(Path(built["pairs_file"]))
    rng = random.Random(seed)
    page = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Pairs of PubMed Central</title>",
        f"<style>{STYLE}</style></head><body><h1>{html.escape(dataset.name)}</h1>",
        "<h2>From articles to pairs</h2>", _table(_stages(stages, built)),
        "<h2>Parts</h2>", _table((name, built["pairs"].get(name, 0), f"{built['articles'].get(name, 0)} articles")
                                 for name in NAMES),
        "<h2>Left out</h2>", _table(most_first(built["out"])),
        "<h2>Licences</h2>", _table(most_first(built["licenses"])),
        "<h2>Years</h2>", _table((year, n) for year, n in sorted(built["years"].items())),
        "<h2>Words of captions</h2>", _table((f"{low} to {int(low) + 9}" if low != "30" else "30 and more", n)
                                             for low, n in sorted(built["words"].items(), key=lambda one: int(one[0]))),
        "<h2>How pairs were made</h2>", _table(most_first(built["how"])),
        *_failures(stages, built),
        "<h2>Pairs</h2>", _pairs(dataset, pairs, rng),
        "<h2>Split figures</h2>", _figures(Path(built["pairs_file"]), figures, rng), "</body></html>",
    ]  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    partial.write_text("\n".join(page), encoding="utf-8")
    partial.replace(out)


def _summaries(pairs: Path) -> dict[str, Any]:
    """What the stages before the build said, as far as their files are still there."""
    found: dict[str, Any] = {}
    while (path := pairs.with_name(f"{pairs.name}.summary.json")).is_file():
        summary = json.loads(path.read_text())
        found["split" if "why_whole" in summary else "extract"] = summary
        if not summary.get("made_from") or "extract" in found:
            break
        pairs = Path(summary["made_from"])
    return found


def _stages(stages: dict[str, Any], built: dict[str, Any]) -> Iterable[tuple[Any, ...]]:
    if extract := stages.get("extract"):
        yield "articles read", extract["articles"]
        yield "figures", extract["figures"]
        yield "figures with a file", extract["files"]
    if split := stages.get("split"):
        yield "figures that stayed whole", split["how"].get("whole", 0)
        yield "figures that were split", sum(split["how"].values()) - split["how"].get("whole", 0)
    yield "pairs before filters", built["read"]
    yield "pairs in the data set", sum(built["pairs"].values())


def _failures(stages: dict[str, Any], built: dict[str, Any]) -> Iterable[str]:
    """Failures by kind, and the first of them by name."""
    rows: list[tuple[Any, ...]] = []
    if extract := stages.get("extract"):
        rows += [("article that is not readable", extract["unreadable"]), ("figure without a file", extract["no_file"]),
                 ("figure without a caption", extract["no_caption"])]  # fmt: skip
        rows += [(f"image of {tag}, no figure", count) for tag, count in most_first(extract["other_graphics"])]
    if split := stages.get("split"):
        rows += [("figure whose image is not readable", split["unreadable"])]
        rows += [(f"stayed whole: {why}", count) for why, count in most_first(split["why_whole"])]
    yield "<h2>Failures by kind</h2>"
    yield _table(rows)
    problems = [text for stage in (*stages.values(), built) for text in stage["problems"]][:30]
    if problems:
        yield "<h3>The first of them</h3><ul class='meta'>"
        yield from (f"<li>{html.escape(text)}</li>" for text in problems)
        yield "</ul>"


def _table(rows: Iterable[tuple[Any, ...]]) -> str:
    """Names, numbers with a bar, and what else there is to say."""
    rows = list(rows)
    most = max((row[1] for row in rows), default=0) or 1
    lines = [
        f"<tr><td>{html.escape(str(name))}</td><td class='n'>{number:,}</td>"
        f"<td><span class='bar' style='width:{240 * number / most:.0f}px'></span></td>"
        f"<td>{html.escape(' '.join(map(str, rest)))}</td></tr>"
        for name, number, *rest in rows
    ]
    return f"<table>{''.join(lines)}</table>" if lines else "<p>none</p>"


def _pairs(dataset: Path, most: int, rng: random.Random) -> str:
    records: list[dict[str, Any]] = []
    seen = 0
    for path in (dataset / f"{name}.json" for name in NAMES):
        for raw in open(path, encoding="utf-8"):  # noqa: SIM115 (a record a line, as the build writes them)
            if raw.startswith("{"):
                seen += 1
                place = len(records) if len(records) < most else rng.randrange(seen)
                records[place : place + 1] = [json.loads(raw.rstrip(",\n"))] if place < most else []
    cards = []
    for record in records:
        sure = f"{record['how']} {record['confidence']:.2f}" if "how" in record else ""
        about = (record.get("article"), record.get("label"), record.get("license"), sure)
        meta = " \u00b7 ".join(str(part) for part in about if part)
        shown = _picture(str(dataset / record["image"]), SIDE)
        cards.append(f"<div class='pair'>{shown}<p>{html.escape(record['caption'])}</p>"
                     f"<p class='meta'>{html.escape(meta)}</p></div>")  # fmt: skip
    return f"<div class='pairs'>{''.join(cards)}</div>"


def _figures(pairs: Path, most: int, rng: random.Random) -> str:
    """Figures that were split, with boxes and texts; chosen while reading, so that any number of lines will do."""
    chosen: list[list[dict[str, Any]]] = []
    seen, current = 0, list[dict[str, Any]]()

    def finish() -> None:
        nonlocal seen
        if current and current[0].get("box"):
            seen += 1
            if len(chosen) < most:
                chosen.append(list(current))
            elif (place := rng.randrange(seen)) < most:
                chosen[place] = list(current)

    if not pairs.is_file():
        return "<p>The file of pairs is not there any more.</p>"
    with open(pairs, encoding="utf-8") as file:
        for raw in file:
            line = json.loads(raw)
            if not line.get("box"):
                continue
            if current and line.get("whole_image") != current[0].get("whole_image"):
                finish()
                current.clear()
            current.append(line)
    finish()
    cards = []
    for lines in chosen:
        boxes = [(line["box"], COLORS[at % len(COLORS)]) for at, line in enumerate(lines)]
        texts = "".join(
            f"<p><b style='color:{color}'>{html.escape(' '.join(line['panel']))}</b> {html.escape(line['caption'])} "
            f"<span class='meta'>{line['how']} {line['confidence']:.2f}</span></p>"
            for line, (_, color) in zip(lines, boxes, strict=True)
        )
        about = f"{lines[0]['article']} {lines[0]['label']}"
        cards.append(f"<div class='figure'>{_picture(lines[0]['whole_image'], WIDE, boxes)}<div>{texts}"
                     f"<p class='meta'>{html.escape(about)}</p></div></div>")  # fmt: skip
    return "".join(cards) or "<p>No figure was split.</p>"


def _picture(path: str, side: int, boxes: list[tuple[list[int], str]] | None = None) -> str:
    """An image in the page itself, with boxes drawn on it."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"<p class='meta'>{html.escape(f'{path}: {error}')}</p>"
    width = max(2, max(image.size) // 150)
    for box, color in boxes or []:
        ImageDraw.Draw(image).rectangle(tuple(box), outline=color, width=width)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'>"
