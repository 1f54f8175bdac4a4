"""Drawings that other drawings stand in: solids in perspective, legends far away, insets, maps of points.

As in `plots.py`, paper surrounds what is drawn.
"""

import numpy as np
from PIL import Image, ImageDraw

from blip.pubmed.panels.plots import PALETTES, cloud, groups, plot
from blip.pubmed.panels.singles import Box, Color, Picture, font, noise, picture, words


def _shade(color: Color, share: float) -> Color:
    """A colour nearer to black (below 1) or white (above 1)."""
    red, green, blue = (int(min(255, c * share) if share < 1 else 255 - (255 - c) * (2 - share)) for c in color)
    return red, green, blue


def solid(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Bars as cylinders or blocks before a wall with lines, few and far apart; a legend at the right or none."""
    out = Image.new("RGB", (width, height), "white")
    draw, size = ImageDraw.Draw(out), int(np.clip(min(width, height) * rng.uniform(0.04, 0.09), 6, 30))
    letters = font(int(rng.integers(8)), size)
    bars, count = int(rng.integers(1, 4)), int(rng.integers(2, 6))
    left, bottom = int(size * rng.uniform(1.3, 2.5)), height - int(size * rng.uniform(1.3, 2))
    right = int(width * rng.uniform(0.65, 1))
    depth = int(min(width, height) * rng.uniform(0.03, 0.12))  # of the floor, to the upper right
    top, gray = depth + size // 2, (205, 205, 205)
    right, bottom = max(right, left + depth + 16), max(bottom, top + 8)
    for share in np.linspace(0, 1, int(rng.integers(3, 7))):
        y = bottom - share * (bottom - top)
        draw.line([(left, y), (left + depth, y - depth), (right, y - depth)], fill=gray)
        draw.text((left - 2, y), f"{share * 25:g}", fill="black", font=letters, anchor="rm")
    draw.polygon([(left, bottom), (left + depth, bottom - depth), (right, bottom - depth), (right - depth, bottom)],
                 outline=gray)  # fmt: skip
    colors, wide = PALETTES[rng.integers(len(PALETTES))], (right - left - depth) / count
    half, is_round = wide * rng.uniform(0.2, 0.42) / bars, rng.random() < 0.5
    for group in range(count):
        x0 = left + (group + 0.5) * wide
        draw.text((x0, bottom + 2), words(rng, 1), fill="black", font=letters, anchor="ma")
        for bar in range(bars):
            x, up = x0 + (bar - (bars - 1) / 2) * 2 * half, rng.uniform(0.05, 0.95) ** 1.5 * (bottom - top)
            _bar(draw, (x - half * 0.9, bottom - up, x + half * 0.9, bottom), colors[bar], is_round)
    if rng.random() < 0.65:
        x = min(right + size, width - 4 * size)
        for bar in range(bars):
            y = top + bar * size * rng.uniform(1.4, 3)
            draw.rectangle((x, y, x + size * 0.6, y + size * 0.6), fill=colors[bar])
            draw.text((x + size, y - size * 0.2), words(rng, 1), fill="black", font=letters)
    return out


def _bar(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], color: Color, is_round: bool) -> None:
    left, top, right, bottom = box
    tilt = (right - left) * 0.15
    if is_round:
        for share, light in ((0.0, 0.8), (0.3, 1.15), (0.65, 0.9)):
            draw.rectangle((left + share * (right - left), top, right, bottom), fill=_shade(color, light))
        draw.ellipse((left, bottom - tilt, right, bottom + tilt), fill=_shade(color, 0.85))
        draw.ellipse((left, top - tilt, right, top + tilt), fill=_shade(color, 0.7))
    else:
        draw.rectangle(box, fill=color)
        far = 2 * tilt
        draw.polygon([(left, top), (left + far, top - far), (right + far, top - far), (right, top)],
                     fill=_shade(color, 1.3))  # fmt: skip
        draw.polygon([(right, top), (right + far, top - far), (right + far, bottom - far), (right, bottom)],
                     fill=_shade(color, 0.7))  # fmt: skip


def space(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Three axes in perspective with points, a path or a surface of lines between them."""
    out = Image.new("RGB", (width, height), "white")
    draw, size = ImageDraw.Draw(out), int(np.clip(min(width, height) * rng.uniform(0.04, 0.09), 6, 24))
    letters, pad = font(int(rng.integers(8)), size), 1.6 * size
    turn, tilt = rng.uniform(0.25, 0.75), rng.uniform(0.15, 0.4)
    span = np.array([max(4.0, width - 2 * pad), max(4.0, height - 2 * pad)])

    def at(p: np.ndarray) -> list[tuple[float, float]]:
        """(points, 3) in [0, 1] -> places on the paper."""
        across = turn * p[:, 0] + (1 - turn) * p[:, 1]
        up = tilt * (p[:, 1] - p[:, 0] + 1) / 2 + (1 - tilt) * p[:, 2]
        return [(float(pad + a * span[0]), float(height - pad - b * span[1])) for a, b in zip(across, up, strict=True)]

    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1]], float)
    c = at(corners)
    line, colors = int(rng.integers(1, 3)), PALETTES[rng.integers(len(PALETTES))]
    for a, b in [(0, 1), (1, 2), (0, 4), *([(0, 3), (3, 2), (3, 6), (4, 6), (6, 5), (2, 5)] if rng.random() < 0.6
                 else [])]:  # fmt: skip
        draw.line([c[a], c[b]], fill="black" if (a, b) in ((0, 1), (1, 2), (0, 4)) else (170, 170, 170), width=line)
    for first, second in ((0, 1), (1, 2), (0, 4)):
        for share in np.linspace(0, 1, int(rng.integers(3, 6))):
            x, y = (c[first][0] * (1 - share) + c[second][0] * share, c[first][1] * (1 - share) + c[second][1] * share)
            draw.text((x, y + 2), f"{share * 20:g}", fill="black", font=letters, anchor="rm" if second == 4 else "ma")
    if rng.random() < 0.6:
        draw.text((width * 0.3, height - 1), words(rng, 2), fill="black", font=letters, anchor="md")
    kind, n = rng.integers(3), int(rng.integers(8, 90))
    if kind == 0:
        for x, y in at(rng.random((n, 3))):
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colors[rng.integers(5)])
    elif kind == 1:
        draw.line(at((0.5 + np.cumsum(rng.normal(0, 0.05, (n, 3)), axis=0)).clip(0, 1)), fill=colors[0], width=2)
    else:
        field = noise(rng, 14, 14, cells=4)
        for row in range(14):
            steps = np.arange(14) / 13
            ends = np.full(14, row / 13)
            draw.line(at(np.stack([steps, ends, field[row]], 1)), fill=colors[0])
            draw.line(at(np.stack([ends, steps, field[:, row]], 1)), fill=colors[1])
    return out


def spots(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A map: points on an empty plane without axes, some of them coloured, or lines of some thickness."""
    out = Image.new("RGB", (width, height), "white")
    draw, size = ImageDraw.Draw(out), np.array([width, height])
    colors, dot = PALETTES[rng.integers(len(PALETTES))], max(1, min(width, height) // int(rng.integers(25, 60)))
    count = int(rng.integers(15, 120))
    places = rng.random((count, 2)) if rng.random() < 0.5 else 0.5 + rng.normal(0, 0.17, (count, 2)).clip(-0.5, 0.5)
    few = rng.uniform(0, 0.4)
    for x, y in places * (size - 2 * dot) + dot:
        color = colors[int(rng.integers(5))] if rng.random() < few else (200, 200, 200)
        draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=color)
    if rng.random() < 0.2:
        draw.rectangle((0, 0, width - 1, height - 1), outline=(150, 150, 150))
    return out


def legended(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A plot, or something round, with its legend or its bar of colours far to the right, or below."""
    kinds = (plot, groups, cloud, discs, discs, solid, space)
    drawer = kinds[rng.integers(len(kinds))]
    below, share = rng.random() < 0.2, rng.uniform(0.5, 0.85)
    out = Image.new("RGB", (width, height), "white")
    wide, tall = (width, int(height * share)) if below else (int(width * share), height)
    out.paste(drawer(rng, max(8, wide), max(8, tall)), (0, 0))
    draw, colors = ImageDraw.Draw(out), PALETTES[rng.integers(len(PALETTES))]
    size = int(np.clip(min(width, height) * rng.uniform(0.035, 0.08), 6, 22))
    letters, lines = font(int(rng.integers(8)), size), int(rng.integers(1, 6))
    if below:
        for line in range(lines):
            begin = width * (line + 0.1) / lines
            draw.rectangle((begin, height - size * 1.2, begin + size, height - size * 0.4), fill=colors[line])
            draw.text((begin + 1.5 * size, height - 1.3 * size), words(rng, 1), fill="black", font=letters)
    elif rng.random() < 0.35:
        bar = picture(np.linspace(1, 0, 64)[:, None].repeat(2, 1), colors[0], _shade(colors[2], 1.6))
        top, tall = int(height * rng.uniform(0.05, 0.3)), int(height * rng.uniform(0.3, 0.6))
        x = wide + int(rng.uniform(0, 0.3) * (width - wide))
        out.paste(bar.resize((max(4, size), max(8, tall))), (x, top))
        for at in np.linspace(0, 1, int(rng.integers(2, 5))):
            draw.text((x + 1.3 * size, top + at * tall), f"{1 - at:.1f}", fill="black", font=letters, anchor="lm")
    else:
        left = wide - rng.uniform(0, 0.15) * wide
        first = rng.uniform(0, 0.95) * max(0.0, height - lines * 1.6 * size)
        for line in range(lines):
            y = first + line * 1.6 * size
            draw.rectangle((left, y, left + rng.uniform(0.8, 2) * size, y + 0.8 * size), fill=colors[line])
            draw.text((left + 2.4 * size, y - 0.2 * size), words(rng, 4), fill="black", font=letters)
    return out


def discs(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Sets that overlap, with numbers in them, at the left or in the middle."""
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out, "RGBA")
    letters = font(int(rng.integers(8)), int(np.clip(min(width, height) * 0.06, 6, 20)))
    tall, x = height * rng.uniform(0.3, 0.48), width * rng.uniform(0.25, 0.4)
    colors = PALETTES[rng.integers(len(PALETTES))]
    for at in range(int(rng.integers(2, 4))):
        across, y = min(tall, width * 0.3) * rng.uniform(0.6, 1.3), height / 2 + rng.uniform(-0.2, 0.2) * tall
        middle = x + at * across * rng.uniform(0.2, 0.9)
        box = (middle - across, y - tall * 0.8, middle + across, y + tall * 0.8)
        draw.ellipse(box, fill=(*_shade(colors[at], 1.4), 150), outline=(120, 120, 120))
        draw.text((middle + (at - 0.5) * across * 0.8, y), f"{rng.integers(2, 999)}", fill="black", font=letters,
                  anchor="mm")  # fmt: skip
    return out


def inset(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A plot that has small ones, or a picture, within."""
    out = (plot, groups, cloud)[rng.integers(3)](rng, width, height)
    for _ in range(int(rng.integers(1, 3))):
        wide, tall = int(width * rng.uniform(0.2, 0.4)), int(height * rng.uniform(0.2, 0.4))
        if min(wide, tall) < 24:
            break
        small = (plot, cloud, spots, discs)[rng.integers(4)](rng, wide, tall)
        place: Box = (int(rng.uniform(0.2, 0.95) * (width - wide)), int(rng.uniform(0.05, 0.5) * (height - tall)), 0, 0)
        out.paste(small, place[:2])
        if rng.random() < 0.5:
            ImageDraw.Draw(out).rectangle((*place[:2], place[0] + wide, place[1] + tall), outline=(120, 120, 120))
    return out
