"""Drawings as one finds them in articles, at random: plots, heat maps, trees, recordings, schemes, tables.

As `singles.py`, but with paper around what is drawn: a panel is what is not paper.
"""

import math
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from blip.pubmed.panels.singles import Box, Color, Drawer, Picture, font, picture, words

PALETTES: tuple[tuple[Color, ...], ...] = (
    ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
    ((0, 0, 0), (120, 120, 120), (190, 190, 190), (60, 60, 60), (230, 230, 230)),
    ((200, 30, 30), (30, 60, 200), (20, 140, 60), (240, 170, 20), (90, 20, 120)),
    ((91, 155, 213), (237, 125, 49), (165, 165, 165), (255, 192, 0), (112, 173, 71)),
)


def _axes(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int) -> Box:
    """Axes with ticks, numbers and names; returns the rectangle between them."""
    size = int(np.clip(min(width, height) * rng.uniform(0.04, 0.12), 6, 40))
    letters = font(int(rng.integers(8)), size)
    left = int(size * rng.uniform(1.2, 3.8))
    bottom = int(height - size * rng.uniform(1.2, 3.2))
    top, right = int(size * rng.uniform(0.3, 2.2)), width - int(size * rng.uniform(0.3, 1.5))
    right, bottom = max(right, left + 8), max(bottom, top + 8)
    line = int(rng.integers(1, 3))
    if rng.random() < 0.5:
        draw.rectangle((left, top, right, bottom), outline="black", width=line)
    else:
        draw.line([(left, top), (left, bottom), (right, bottom)], fill="black", width=line)
    step = rng.choice([1, 2, 5, 10, 20, 50, 0.1, 0.2, 0.5])
    if rng.random() < 0.15:  # lines to read values by
        for share in np.linspace(0, 1, int(rng.integers(3, 8))):
            y = bottom - share * (bottom - top)
            draw.line((left, y, right, y), fill=(215, 215, 215))
    for axis in (0, 1):
        for at in range(n := int(rng.integers(2, 7))):
            x = left + (right - left) * at // max(1, n - 1) if axis == 0 else left
            y = bottom if axis == 0 else bottom - (bottom - top) * at // max(1, n - 1)
            draw.line((x, y, *((x, y + size // 3) if axis == 0 else (x - size // 3, y))), fill="black", width=line)
            place = (x, y + size // 2) if axis == 0 else (x - size // 2, y)
            draw.text(place, f"{step * at:g}", fill="black", font=letters, anchor="ma" if axis == 0 else "rm")
    if rng.random() < 0.7:
        draw.text(((left + right) // 2, height - 1), words(rng), fill="black", font=letters, anchor="md")
    if rng.random() < 0.7:
        name = Image.new("RGB", (max(8, bottom - top), size + 4), "white")
        ImageDraw.Draw(name).text((name.width // 2, size // 2 + 2), words(rng), fill="black", font=letters, anchor="mm")
        draw._image.paste(name.rotate(90, expand=True), (0, top))
    if rng.random() < 0.3:
        draw.text(((left + right) // 2, 0), words(rng), fill="black", font=letters, anchor="ma")
    return left, top, right, bottom


def plot(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Lines, bars, points, boxes or a histogram between axes, now and then with a legend."""
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out)
    left, top, right, bottom = _axes(rng, draw, width, height)
    colors = [tuple(c) for c in rng.permutation(PALETTES[rng.integers(len(PALETTES))])]
    series, n = int(rng.integers(1, 5)), int(rng.integers(3, 40))
    wide, tall = right - left, bottom - top
    kind = rng.choice(["line", "bar", "points", "box"])
    for s in range(series):
        color = tuple(int(c) for c in colors[s % len(colors)])
        heights = np.cumsum(rng.normal(0, 1, n)) if kind == "line" else rng.random(n)
        heights = (heights - heights.min()) / (np.ptp(heights) + 1e-6) * rng.uniform(0.3, 1)
        across = left + (np.arange(n) + (s + 1) / (series + 1)) * wide / n
        up = bottom - heights * tall
        if kind == "line":
            draw.line([*zip(across, up, strict=True)], fill=color, width=int(rng.integers(1, 4)))
        for x, y in zip(across, up, strict=True):
            half = max(1.0, wide / n / (series + 1) / 2)
            if kind == "bar":
                draw.rectangle((x - half, min(y, bottom), x + half, bottom), fill=color, outline="black")
            elif kind == "box":
                draw.rectangle((x - half, y, x + half, min(bottom, y + tall * 0.15)), outline=color, width=2)
                draw.line((x, y - tall * 0.05, x, min(bottom, y + tall * 0.2)), fill=color)
            elif kind == "points" or n < 12:
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color if s % 2 else None, outline=color)
                if n < 12:
                    draw.line((x, y - tall * 0.05, x, y + tall * 0.05), fill=color)
    if rng.random() < 0.4:
        letters, x, y = font(0, max(6, height // 18)), left + rng.uniform(0.05, 0.6) * wide, top + 2
        for s in range(series):
            step = max(8, height // 15)
            draw.rectangle((x, y + s * step, x + step, y + s * step + step // 2), fill=colors[s % len(colors)])
            draw.text((x + step + 3, y + s * step), words(rng, 1), fill="black", font=letters)
    return out


def groups(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A few groups of bars far apart, with single values, errors and stars above them."""
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out)
    left, top, right, bottom = _axes(rng, draw, width, height)
    count, bars = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    colors = PALETTES[rng.integers(len(PALETTES))]
    wide, tall, dot = (right - left) / count, bottom - top, max(2, min(width, height) // 60)
    fill = rng.uniform(0.3, 0.8)  # of a group's width
    letters = font(0, max(6, height // 16))
    for group in range(count):
        for bar in range(bars):
            half = wide * fill / bars / 2
            x = left + (group + 0.5) * wide + (bar - (bars - 1) / 2) * 2 * half
            y = bottom - rng.uniform(0.05, 0.8) * tall
            color = colors[bar % 5]
            draw.rectangle((x - half * 0.9, y, x + half * 0.9, bottom), fill=color, outline="black")
            if rng.random() < 0.5:
                for value in rng.normal(y, tall * 0.1, rng.integers(3, 15)):
                    draw.ellipse((x - dot, value - dot, x + dot, value + dot), fill="white", outline="black")
            draw.line((x, y - tall * 0.06, x, y + tall * 0.06), fill="black", width=max(1, dot // 2))
            if rng.random() < 0.2:
                draw.text((x, y - tall * 0.08), "***", fill="black", font=letters, anchor="md")
    if rng.random() < 0.4:  # a bracket over two groups
        y, (a, b) = top + 0.08 * tall, left + wide * np.sort(rng.uniform(0.2, count - 0.2, 2))
        draw.line([(a, y + 6), (a, y), (b, y), (b, y + 6)], fill="black", width=2)
    if rng.random() < 0.5:
        _legend(rng, draw, (left, top, right, bottom), colors, bars)
    return out


def cloud(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Points or paths over a wide empty plane: with its axes through the middle, a frame, or lines at some values."""
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out)
    colors = PALETTES[rng.integers(len(PALETTES))]
    pad = max(3, min(width, height) // 12)
    left, top, right, bottom = pad, pad // 2, width - pad // 2, height - pad
    x, y = left + rng.uniform(0.2, 0.8) * (right - left), top + rng.uniform(0.2, 0.8) * (bottom - top)
    kind = rng.integers(3)
    if kind == 0:
        draw.line((x, top, x, bottom), fill="black", width=int(rng.integers(1, 3)))
        draw.line((left, y, right, y), fill="black", width=int(rng.integers(1, 3)))
    if kind > 0 or rng.random() < 0.5:
        draw.rectangle((left, top, right, bottom), outline="black", width=int(rng.integers(1, 3)))
    if kind == 2:
        for place in rng.uniform(left, right, rng.integers(1, 4)):
            draw.line((place, (top + bottom) / 2, place, bottom), fill=colors[int(rng.integers(5))], width=1)
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    size = np.array([right - left, bottom - top])
    for series in range(int(rng.integers(1, 6))):
        color, count = colors[series % 5], int(rng.integers(5, 60))
        if rng.random() < 0.5:
            dots = (
                middle + rng.uniform(-0.35, 0.35, 2) * size + rng.normal(0, rng.uniform(0.03, 0.2), (count, 2)) * size
            )
            for a, b in dots:
                draw.ellipse((a - 2, b - 2, a + 2, b + 2), fill=color)
        else:
            path = middle + np.cumsum(rng.normal(0, 0.035, (count, 2)), axis=0) * size
            draw.line([(float(a), float(b)) for a, b in path], fill=color, width=int(rng.integers(1, 4)))
    if rng.random() < 0.4:
        _legend(rng, draw, (left, top, right, bottom), colors, int(rng.integers(1, 5)))
    letters = font(int(rng.integers(8)), max(6, pad * 2 // 3))
    for share in (0.1, 0.35, 0.6, 0.85):
        draw.text(
            (left + share * (right - left), bottom + 1), f"{share * 40:g}", fill="black", font=letters, anchor="ma"
        )
    return out


def _legend(rng: np.random.Generator, draw: ImageDraw.ImageDraw, box: Box, colors: tuple[Color, ...],
            lines: int) -> None:  # fmt: skip
    """What colours mean, somewhere in a plot, now and then in a frame."""
    left, top, right, bottom = box
    step = max(9, int((bottom - top) * rng.uniform(0.05, 0.1)))
    letters, x, y = font(int(rng.integers(8)), step - 3), left + rng.uniform(0.02, 0.7) * (right - left), top + 4
    for line in range(lines):
        draw.rectangle((x, y + line * step, x + 1.5 * step, y + line * step + step / 2), fill=colors[line % 5])
        draw.text((x + 2 * step, y + line * step), words(rng, 2), fill="black", font=letters)
    if rng.random() < 0.4:
        draw.rectangle((x - 3, y - 3, min(right, x + 7 * step), y + lines * step + 2), outline="black")


def steps(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A flow chart: boxes of text one below the other, joined by arrows."""
    out = Image.new("RGB", (width, height), "white")
    draw, rows = ImageDraw.Draw(out), int(rng.integers(3, 9))
    tall, letters = height / rows, font(int(rng.integers(8)), int(np.clip(height / rows * 0.2, 6, 20)))
    wide = width * rng.uniform(0.45, 0.9)
    left = (width - wide) * rng.random()
    for row in range(rows):
        top, bottom = row * tall + 0.12 * tall, row * tall + 0.72 * tall
        draw.rectangle((left, top, left + wide, bottom), outline="black", width=int(rng.integers(1, 3)))
        draw.text((left + wide / 2, (top + bottom) / 2), words(rng, 5), fill="black", font=letters, anchor="mm")
        if row < rows - 1:
            x = left + wide / 2
            draw.line((x, bottom, x, bottom + 0.4 * tall), fill="black", width=2)
            draw.polygon([(x, bottom + 0.4 * tall), (x - 4, bottom + 0.28 * tall), (x + 4, bottom + 0.28 * tall)],
                         fill="black")  # fmt: skip
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
    if rng.random() < 0.3 and width > 60:  # and one on its left
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


# ---- drawings --------------------------------------------------------------------------------------------------------


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


DRAWINGS: tuple[Drawer, ...] = (
    plot,
    plot,
    plot,
    groups,
    groups,
    cloud,
    cloud,
    steps,
    heatmap,
    tree,
    traces,
    scheme,
    scheme,
    circles,
    table,
)
