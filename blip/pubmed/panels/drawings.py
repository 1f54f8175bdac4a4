"""Drawings like those of articles, made at random: flow charts, heat maps, trees, recordings, schemes, tables.

As in `plots.py`, paper surrounds what is drawn. `DRAWINGS` has all drawers of `plots.py`, `solids.py` and this file.
"""

import math
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from blip.pubmed.panels.plots import PALETTES, cloud, groups, plot
from blip.pubmed.panels.singles import Box, Drawer, Picture, font, picture, words
from blip.pubmed.panels.solids import inset, legended, solid, space, spots


def steps(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A flow chart: boxes of text one below the other, joined by arrows, sometimes numbered."""
    out = Image.new("RGB", (width, height), "white")
    draw, rows = ImageDraw.Draw(out), int(rng.integers(3, 9))
    tall, letters = height / rows, font(int(rng.integers(8)), int(np.clip(height / rows * 0.2, 6, 20)))
    wide = width * rng.uniform(0.45, 0.9)
    number = rng.random() < 0.3
    left = max((width - wide) * rng.random(), 0.4 * tall if number else 0)
    wide = min(wide, width - 2 - left)
    if wide < 1:  # the numbers leave no space
        left, wide = 0.0, width - 2
    arrow, edge = 0.12 if rng.random() < 0.5 else 0.3, int(rng.integers(1, 3))  # of the space between boxes
    for row in range(rows):
        top, bottom = row * tall + arrow * tall, row * tall + 0.72 * tall
        text = words(rng, 5) if rng.random() < 0.6 else f"{words(rng, 5)}\n{words(rng, 3)}"
        draw.rectangle((left, top, left + wide, bottom), outline="black", width=edge)
        draw.text((left + wide / 2, (top + bottom) / 2), text, fill="black", font=letters, anchor="mm", align="center")
        if number:
            size = max(6, 0.13 * tall)
            draw.ellipse((left - 2 * size, top - size, left, top + size), fill="white", outline="black")
            draw.text((left - size, top), str(row + 1), fill="black", font=letters, anchor="mm")
        if row < rows - 1:
            x, end = left + wide / 2, (row + 1 + arrow) * tall
            draw.line((x, bottom, x, end), fill="black", width=2)
            draw.polygon([(x, end), (x - 4, end - 0.1 * tall), (x + 4, end - 0.1 * tall)], fill="black")
        if rng.random() < 0.2 and left + wide < 0.8 * width - 12:  # one beside
            draw.rectangle((left + wide + 8, top, width - 2, bottom), outline="black")
            draw.line((left + wide / 2, bottom + 0.1 * tall, left + wide + 8, bottom + 0.1 * tall), fill="black")
    return out


def heatmap(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Cells in rows and columns, sometimes with a tree above and names beside."""
    rows, columns = rng.integers(2, 30, 2)
    values = rng.random((rows, columns)) ** rng.uniform(0.5, 3)
    if rng.random() < 0.3:
        values = (values > 0.5).astype(float)
    low, high = [((20, 30, 140), (250, 230, 60)), ((255, 255, 255), (180, 20, 20)), ((0, 0, 0), (255, 255, 255))][
        rng.integers(3)
    ]
    side, above = int(width * rng.uniform(0.05, 0.3)), int(height * rng.uniform(0.02, 0.25))
    inner = picture(values, low, high).resize((max(4, width - side), max(4, height - above)), Image.Resampling.NEAREST)
    out = Image.new("RGB", (width, height), "white")
    out.paste(inner, (0, above))
    draw = ImageDraw.Draw(out)
    for row in range(rows):
        y = above + (row + 0.5) * inner.height / rows
        draw.text((inner.width + 3, y), words(rng, 1), fill="black", font=font(0, max(6, inner.height // rows - 2) if
                  inner.height // rows < 20 else 14), anchor="lm")  # fmt: skip
    if above > 12:
        _tree(rng, draw, (0, 0, inner.width, above - 2))
    if rng.random() < 0.3 and width > 60:  # another tree on the left
        beside = Image.new("RGB", (height, width // 6), "white")
        _tree(rng, ImageDraw.Draw(beside), (0, 0, height, width // 6))
        out.paste(out.resize((width - width // 6, height)), (width // 6, 0))
        out.paste(beside.rotate(90, expand=True), (0, 0))
    return out


def _tree(rng: np.random.Generator, draw: ImageDraw.ImageDraw, box: Box) -> None:
    """Pairs of neighbours joined, from the bottom up."""
    left, top, right, bottom = box
    ends = [(x, float(bottom)) for x in np.linspace(left + 2, right - 2, int(rng.integers(4, 40)))]
    step = (bottom - top) / len(ends)
    level = float(bottom)
    while len(ends) > 1:
        at, level = int(rng.integers(len(ends) - 1)), level - step
        (x1, y1), (x2, y2) = ends[at], ends[at + 1]
        draw.line([(x1, y1), (x1, level), (x2, level), (x2, y2)], fill="black")
        ends[at : at + 2] = [((x1 + x2) / 2, level)]


def tree(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A tree that grows to the right, with a name at each line of its leaves."""
    out = Image.new("RGB", (height, width), "white")
    _tree(rng, ImageDraw.Draw(out), (0, 0, height, int(width * 0.7)))
    out = out.rotate(90, expand=True)
    draw, lines = ImageDraw.Draw(out), int(rng.integers(5, 25))
    for line in range(lines):
        draw.text((width * 0.71, (line + 0.5) * height / lines), words(rng, 2), fill="black",
                  font=font(0, int(np.clip(height / lines * 0.7, 6, 16))), anchor="lm")  # fmt: skip
    return out


def traces(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Recordings one below the other, without axes, or sequences with peaks."""
    out = Image.new("RGB", (width, height), "white")
    draw, rows = ImageDraw.Draw(out), int(rng.integers(1, 10))
    columns = int(rng.integers(1, 5))
    colors = PALETTES[rng.integers(len(PALETTES))]
    if rng.random() < 0.25:  # times at which something happened
        for x in rng.uniform(0, 0.97, rng.integers(1, 8)) * width:
            draw.rectangle((x, 0, x + rng.uniform(0.003, 0.05) * width, height), fill=(205, 225, 240))
    for row in range(rows):
        for column in range(columns):
            wide = width / columns
            x = np.linspace(column * wide + 3, (column + 1) * wide - 3, 60)
            wave = rng.normal(0, 0.15, 60) + np.sin(np.arange(60) * rng.uniform(0.02, 0.8)) * rng.random()
            y = (row + 0.5 + 0.3 * wave) * height / rows
            draw.line([*zip(x, y, strict=True)], fill=colors[row % 5 if rng.random() < 0.5 else 0], width=1)
    if rng.random() < 0.6:
        draw.line((width - 24, height - 3, width - 4, height - 3), fill="black", width=2)
    return out


def scheme(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Boxes and ellipses with words, arrows between them, on a loose grid."""
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out)
    columns, rows = rng.integers(1, 4), rng.integers(1, 5)
    letters = font(int(rng.integers(8)), int(np.clip(min(width / columns, height / rows) * 0.14, 6, 22)))
    centers = []
    for row in range(rows):
        for column in range(columns):
            x, y = (column + rng.uniform(0.35, 0.65)) * width / columns, (row + rng.uniform(0.35, 0.65)) * height / rows
            centers.append((x, y))
    for first, second in pairwise(centers):
        if rng.random() < 0.7:
            draw.line((*first, *second), fill="black", width=int(rng.integers(1, 4)))
            angle = math.atan2(second[1] - first[1], second[0] - first[0])
            x, y = (first[0] + second[0]) / 2, (first[1] + second[1]) / 2
            tips = [(x - 7 * math.cos(angle + turn), y - 7 * math.sin(angle + turn)) for turn in (-0.5, 0.5)]
            draw.polygon([(x, y), *tips], fill="black")
    for x, y in centers:
        w, h = width / columns * rng.uniform(0.2, 0.42), height / rows * rng.uniform(0.1, 0.35)
        fill = tuple(int(c) for c in rng.integers(120, 256, 3)) if rng.random() < 0.7 else "white"
        shape = [draw.ellipse, draw.rectangle][rng.integers(2)]
        shape((x - w, y - h, x + w, y + h), fill=fill, outline="black")
        draw.text((x, y), words(rng, 2), fill="black", font=letters, anchor="mm")
    return out


def circles(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Polar plots, pies and sets that overlap."""
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out, "RGBA")
    radius, (x, y) = min(width, height) * rng.uniform(0.3, 0.48), (width / 2, height / 2)
    around = (x - radius, y - radius, x + radius, y + radius)
    kind, colors = rng.integers(3), PALETTES[rng.integers(len(PALETTES))]
    if kind == 0:
        draw.ellipse(around, outline="black")
        draw.line((x - radius, y, x + radius, y), fill="gray")
        draw.line((x, y - radius, x, y + radius), fill="gray")
        angles = np.linspace(0, 2 * np.pi, 60)
        far = radius * (0.5 + 0.4 * np.interp(np.arange(60), np.arange(0, 66, 6), rng.random(11) - 0.5))
        draw.line([*zip(x + far * np.cos(angles), y + far * np.sin(angles), strict=True)], fill=colors[0], width=2)
    elif kind == 1:
        ends = np.sort(rng.integers(0, 360, rng.integers(2, 7)))
        for at, (first, last) in enumerate(zip(ends, [*ends[1:], ends[0] + 360], strict=True)):
            draw.pieslice(around, float(first), float(last), fill=colors[at % 5], outline="white")
    else:
        for at in range(rng.integers(2, 4)):
            dx, dy = rng.uniform(-0.5, 0.5, 2) * radius
            r = radius * rng.uniform(0.4, 0.6)
            draw.ellipse((x + dx - r, y + dy - r, x + dx + r, y + dy + r), fill=(*colors[at], 110))
    if rng.random() < 0.5:
        draw.text((x, 0), words(rng), fill="black", font=font(int(rng.integers(8)), max(7, height // 14)), anchor="ma")
    if rng.random() < 0.3 and width > 1.5 * height:  # names far to the right
        for line in range(rng.integers(1, 4)):
            right, low = x + radius + 8, y + line * 14
            draw.rectangle((right, low, right + 10, low + 6), fill=colors[line])
            draw.text((right + 14, low - 3), words(rng, 2), fill="black", font=font(0, 10))
    return out


def table(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Rows of words and numbers under a line, without a frame."""
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out)
    rows, columns = int(rng.integers(2, 10)), int(rng.integers(1, 5))
    letters = font(int(rng.integers(8)), int(np.clip(height / rows * 0.5, 6, 18)))
    for row in range(rows):
        for column in range(columns):
            text = words(rng, 1) if row == 0 or column == 0 else f"{rng.random() * 100:.2f}"
            draw.text((column * width / columns + 2, row * height / rows + 1), text, fill="black", font=letters)
        if row < 1 or rng.random() < 0.2:
            draw.line((0, (row + 1) * height / rows - 1, width, (row + 1) * height / rows - 1), fill="black")
    return out


DRAWINGS: tuple[Drawer, ...] = (  # a drawer that is named several times is drawn more often
    *(plot,) * 6, *(groups,) * 4, *(cloud,) * 4, *(steps,) * 2, *(heatmap,) * 2, *(tree,) * 2, *(traces,) * 3,
    *(scheme,) * 4, *(circles,) * 2, *(table,) * 2, *(legended,) * 3, *(solid,) * 2, *(inset,) * 2, space, spots,
)  # fmt: skip
