"""Plots with axes like those of articles, drawn at random: curves, bars, points, and clouds of points or paths.

As in `singles.py`, except that paper surrounds what is drawn: the panel is everything that is not paper.
"""

import numpy as np
from PIL import Image, ImageDraw

from blip.pubmed.panels.singles import Box, Color, Picture, font, words

PALETTES: tuple[tuple[Color, ...], ...] = (
    ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
    ((0, 0, 0), (120, 120, 120), (190, 190, 190), (60, 60, 60), (230, 230, 230)),
    ((200, 30, 30), (30, 60, 200), (20, 140, 60), (240, 170, 20), (90, 20, 120)),
    ((91, 155, 213), (237, 125, 49), (165, 165, 165), (255, 192, 0), (112, 173, 71)),
)


def _axes(rng: np.random.Generator, out: Picture) -> Box:
    """Draws axes with ticks, numbers and names; returns the rectangle between them."""
    draw, (width, height) = ImageDraw.Draw(out), out.size
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
    if rng.random() < 0.15:  # grid lines
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
        out.paste(name.rotate(90, expand=True), (0, top))
    if rng.random() < 0.3:
        draw.text(((left + right) // 2, 0), words(rng), fill="black", font=letters, anchor="ma")
    return left, top, right, bottom


def plot(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Lines, bars, points or boxes between axes, sometimes with a legend."""
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out)
    left, top, right, bottom = _axes(rng, out)
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
    left, top, right, bottom = _axes(rng, out)
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
        _legend(rng, draw, (left, top, right, bottom), colors=colors, lines=bars)
    return out


def cloud(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Points or paths on a wide empty plane with axes through its middle, a frame, or lines at some values."""
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
        _legend(rng, draw, (left, top, right, bottom), colors=colors, lines=int(rng.integers(1, 5)))
    letters = font(int(rng.integers(8)), max(6, pad * 2 // 3))
    for share in (0.1, 0.35, 0.6, 0.85):
        draw.text(
            (left + share * (right - left), bottom + 1), f"{share * 40:g}", fill="black", font=letters, anchor="ma"
        )
    return out


def _legend(rng: np.random.Generator, draw: ImageDraw.ImageDraw, box: Box, *, colors: tuple[Color, ...],
            lines: int) -> None:  # fmt: skip
    """A legend of the colours, somewhere in a plot, sometimes in a frame."""
    left, top, right, bottom = box
    step = max(9, int((bottom - top) * rng.uniform(0.05, 0.1)))
    letters, x, y = font(int(rng.integers(8)), step - 3), left + rng.uniform(0.02, 0.7) * (right - left), top + 4
    for line in range(lines):
        draw.rectangle((x, y + line * step, x + 1.5 * step, y + line * step + step / 2), fill=colors[line % 5])
        draw.text((x + 2 * step, y + line * step), words(rng, 2), fill="black", font=letters)
    if rng.random() < 0.4:
        draw.rectangle((x - 3, y - 3, min(right, x + 7 * step), y + lines * step + 2), outline="black")
