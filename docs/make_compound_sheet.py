"""Draws docs/assets/compound_*.png: generated compound figures before and after they are split, and failures by kind.

python docs/make_compound_sheet.py

All pictures are drawn by `blip/pubmed/panels/compose.py`, from seeds that no training uses and without photographs, so
they may be shown. The examples of each kind are the first ones in the order of the seeds. The table of kinds in
docs/pubmed.md is replaced; the same weights give the same pictures.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFont

from blip.pubmed.panels.captions import split_caption
from blip.pubmed.panels.compose import Compound, compose
from blip.pubmed.panels.match import Layout, Pair
from blip.pubmed.panels.order import Box
from blip.pubmed.panels.split import FigureSplitter, Options

DOCS = Path(__file__).resolve().parent
SEEDS = 950_000_000  # and the next ones: training uses small seeds, the benchmark those from 900,000,000
MOST = 12  # panels of a figure here
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
            "twelfth")  # fmt: skip
RIGHT = 0.5  # IoU from which a box is right
INSIDE = 0.6  # share of a box that counts as within another one
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
KINDS = {
    "right": "every panel has its words",
    "order": "boxes right, letters in another order",
    "joined": "two panels in one box",
    "cut": "a panel in several boxes",
    "missed": "a panel without a box",
    "inexact": "a box that is too small or too large",
}
WIDE, TALL, TITLE, EDGE = 290, 250, 34, 8  # pixels of an example, of the line above it, between examples
FONT, SMALL = ImageFont.load_default(14), ImageFont.load_default(12)


@dataclass
class Example:
    """A figure, what was made of it, and the kind of that: a key of `KINDS`."""

    figure: Compound
    found: Layout
    pairs: list[Pair]
    kind: str

    @property
    def whole(self) -> bool:
        return self.pairs[0].how == "whole"


def main(
    figures: Annotated[int, typer.Option(help="compound figures with letters that are counted")] = 200,
    weights: Annotated[str, typer.Option(help="of another detector")] = "",
    out: Annotated[Path, typer.Option(help="folder of the pictures")] = DOCS / "assets",
    page: Annotated[Path, typer.Option(help="page whose table is replaced")] = DOCS / "pubmed.md",
) -> None:
    """Splits generated figures, draws the pictures, and writes the table of kinds into the page."""
    splitter, seed = FigureSplitter(Options("", weights=weights or None)), SEEDS
    kinds: dict[str, list[Example]] = defaultdict(list)
    while sum(map(len, kinds.values())) < figures:
        figure = compose(np.random.default_rng(seed), [])
        seed += 1
        if len(figure.boxes) == len(figure.letters) and 1 < len(figure.boxes) <= MOST:
            one = example(splitter, figure)
            kinds[one.kind].append(one)
    write_page(page, table(kinds))
    typer.echo(table(kinds))
    few = [one for one in kinds["right"] if 3 <= len(one.pairs) <= 6]
    if few:
        save(beside([before_and_after(one) for one in few[:3]], columns=1), out / "compound_split.png")
    shown = [drawn(one, KINDS[kind]) for kind in KINDS for one in kinds[kind][: 4 if kind == "right" else 2]]
    save(beside(shown, columns=4), out / "compound_failures.png")


# ---- one figure ------------------------------------------------------------------------------------------------------


def example(splitter: FigureSplitter, figure: Compound) -> Example:
    """Splits a figure whose caption names all of its panels in the order of their letters."""
    parts = " ".join(f"({chr(65 + at)}) The {ORDINALS[at]} panel." for at in range(len(figure.boxes)))
    pairs, found = splitter(figure.image, split_caption(f"A generated figure. {parts}"))
    return Example(figure, found, pairs, kind_of(figure.boxes, found.boxes, pairs))


def kind_of(wanted: list[Box], found: list[Box], pairs: list[Pair]) -> str:
    """A key of `KINDS`; the first kind of error that is found."""
    if pairs[0].how != "whole" and all(iou(pair.box, wanted[ord(pair.labels[0]) - 65]) >= RIGHT for pair in pairs):
        return "right"
    hit = [max((iou(box, one) for one in found), default=0) >= RIGHT for box in wanted]
    if all(hit) and len(found) == len(wanted):
        return "order"
    if any(sum(within(box, one) >= INSIDE for box in wanted) > 1 for one in found):
        return "joined"
    if any(sum(within(one, box) >= INSIDE for one in found) > 1 for box in wanted):
        return "cut"
    return "missed" if any(sum(within(box, one) for one in found) < 1 - INSIDE for box in wanted) else "inexact"


def area(box: Box) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def common(a: Box, b: Box) -> int:
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box | None, b: Box) -> float:
    return common(a, b) / (area(a) + area(b) - common(a, b)) if a else 0.0


def within(a: Box, b: Box) -> float:
    """The share of `a` that lies in `b`."""
    return common(a, b) / max(1, area(a))


# ---- what is written -------------------------------------------------------------------------------------------------


def table(kinds: dict[str, list[Example]]) -> str:
    """Markdown: figures of each kind, how many stay whole, and pairs that `build` takes by its default."""
    rows = [
        "| | figures | of which stay whole | pairs at a confidence of 0.5 or more | right |",
        "| --- |" + " --- |" * 4,
    ]
    for kind, name in KINDS.items():
        some = kinds[kind]
        kept = [(one, pair) for one in some for pair in one.pairs if pair.box and pair.confidence >= 0.5]
        right = sum(iou(pair.box, one.figure.boxes[ord(pair.labels[0]) - 65]) >= RIGHT for one, pair in kept)
        rows.append(f"| {name} | {len(some)} | {sum(one.whole for one in some)} | {len(kept)} | {right} |")
    return "\n".join(rows)


def write_page(page: Path, rows: str) -> None:
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"\| \| figures \| of which stay whole .*?(?=\n\n)", rows, text, flags=re.DOTALL), "utf-8")


def drawn(one: Example, title: str) -> Image.Image:
    """A figure with the true boxes, dashed, and the found ones with the letters that they were given."""
    names = {pair.box: pair.labels[0] for pair in one.pairs if pair.box}
    shown, scale = fitted(one.figure.image, (WIDE, TALL))
    draw = ImageDraw.Draw(shown)
    for box in one.figure.boxes:
        dashed(draw, [round(x * scale) for x in box])
    for at, box in enumerate(one.found.boxes):
        left, top, right, bottom = (round(x * scale) for x in box)
        color = COLORS[at % len(COLORS)]
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=2)
        if box in names:
            middle = ((left + right) / 2, (top + bottom) / 2)
            draw.rectangle((middle[0] - 8, middle[1] - 9, middle[0] + 8, middle[1] + 9), fill=color)
            draw.text(middle, names[box], fill="white", anchor="mm", font=FONT)
    out = Image.new("RGB", (WIDE, TALL + TITLE), "white")
    out.paste(shown, ((WIDE - shown.width) // 2, TITLE + (TALL - shown.height) // 2))
    sure = [pair.confidence for pair in one.pairs]
    kept = "stays whole" if one.whole else f"split, confidence {min(sure):.2f} to {max(sure):.2f}"
    ImageDraw.Draw(out).text((WIDE / 2, 2), f"{title}\n{kept}", fill="black", anchor="ma", align="center", font=SMALL)
    return out


def dashed(draw: ImageDraw.ImageDraw, box: list[int], step: int = 5) -> None:
    """A dashed rectangle, black and yellow, seen on any ground."""
    left, top, right, bottom = box
    for along, color in ((0, "black"), (step, "#ffd500")):
        for x in range(left + along, right, 2 * step):
            for y in (top, bottom - 1):
                draw.line((x, y, min(x + step, right), y), fill=color, width=3)
        for y in range(top + along, bottom, 2 * step):
            for x in (left, right - 1):
                draw.line((x, y, x, min(y + step, bottom)), fill=color, width=3)


def before_and_after(one: Example) -> Image.Image:
    """The figure, and its sub-figures with their words beside it."""
    height, width = 300, 4 * (WIDE + EDGE) - EDGE
    out = Image.new("RGB", (width, height), "white")
    before, _ = fitted(one.figure.image, (380, height - 10))
    out.paste(before, ((380 - before.width) // 2, (height - before.height) // 2))
    draw = ImageDraw.Draw(out)
    draw.line((392, 10, 392, height - 10), fill="grey")
    columns = -(-len(one.pairs) // (1 if len(one.pairs) < 4 else 2))
    rows = -(-len(one.pairs) // columns)
    wide, tall = (width - 400) // columns, height // rows
    for at, pair in enumerate(one.pairs):
        left, top = 400 + at % columns * wide, at // columns * tall
        crop, _ = fitted(one.figure.image.crop(pair.box), (wide - 10, tall - 46))
        out.paste(crop, (left + (wide - crop.width) // 2, top + 4 + (tall - 46 - crop.height) // 2))
        words = f"{pair.labels[0]}, confidence {pair.confidence:.2f}:\n{pair.text}"
        draw.text((left + wide / 2, top + tall - 38), words, fill="black", anchor="ma", align="center", font=SMALL)
    return out


def fitted(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, float]:
    """(an image as large as fits, its scale)."""
    scale = min(size[0] / image.width, size[1] / image.height)
    wanted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(wanted, Image.Resampling.LANCZOS), scale


def beside(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows."""
    wide, tall = pictures[0].width + EDGE, pictures[0].height + EDGE
    sheet = Image.new("RGB", (columns * wide, -(-len(pictures) // columns) * tall), "white")
    for at, picture in enumerate(pictures):
        sheet.paste(picture, (at % columns * wide + EDGE // 2, at // columns * tall + EDGE // 2))
    return sheet


def save(sheet: Image.Image, path: Path) -> None:
    sheet.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)


if __name__ == "__main__":
    typer.run(main)
