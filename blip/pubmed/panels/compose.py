"""Compound figures composed of single pictures, with the box of every panel and the position of every letter.

The layouts are those of articles: rows and columns of equal or different sizes; white, black, textured or no gutters;
letters outside or inside the panels; panels that contain several pictures; headings above columns.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from blip.data.images import open_plain
from blip.pubmed.panels.drawings import DRAWINGS
from blip.pubmed.panels.singles import IMAGES, Box, Drawer, Picture, font, noise, picture, words


@dataclass
class Compound:
    """A figure, its panels as (left, top, right, bottom) in pixels, and the centre of each panel letter, if any."""

    image: Picture
    boxes: list[Box] = field(default_factory=list)
    letters: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Style:
    """What all panels of one figure share."""

    ground: tuple[int, int, int]
    gap: int  # pixels between panels
    images: float  # share of panels that are images, not drawings
    lettered: bool
    names: str  # "A", "a" or "(a)"
    inside: bool  # letters are drawn on the images
    letter_size: int
    letter_font: int
    nested: float  # share of panels that contain several pictures
    border: bool


def compose(rng: np.random.Generator, images: list[Path]) -> Compound:
    """One figure; one in seven has a single panel.

    Args:
        rng: decides everything about the figure.
        images: photographs and scans that are used as panels beside drawings.
    """
    longer = int(rng.integers(420, 1000))
    aspect = float(np.exp(rng.uniform(np.log(0.45), np.log(2.4))))
    width, height = (longer, int(longer / aspect)) if aspect > 1 else (int(longer * aspect), longer)
    style = _style(rng, longer)
    out = Compound(_ground(rng, width, height, style.ground))
    margin = int(rng.integers(0, 12))
    area = (margin, margin, width - margin, height - margin)
    if rng.random() < 0.1:  # a heading that belongs to no panel
        ImageDraw.Draw(out.image).text((width // 2, 2), words(rng), fill=_ink(style), anchor="ma",
                                       font=font(style.letter_font, style.letter_size))  # fmt: skip
        area = (margin, margin + int(1.6 * style.letter_size), width - margin, height - margin)
    panels = _cells(rng, area, style.gap)
    style.lettered = style.lettered and len(panels) > 1
    for at, cell in enumerate(panels):
        if len(panels) > 3 and rng.random() < 0.02:
            continue  # an empty cell
        _panel(rng, out, cell, style=style, at=at, images=images)
    return out


def _style(rng: np.random.Generator, longer: int) -> Style:
    red, green, blue = (int(c) for c in rng.integers(60, 256, 3))
    grounds = [(255, 255, 255), (0, 0, 0), (red, green, blue)]
    images = float(rng.choice([0.0, 0.15, 0.5, 1.0], p=[0.35, 0.2, 0.15, 0.3]))
    ground = grounds[rng.choice(3, p=[0.8, 0.13, 0.07]) if images == 1 else 0]
    lettered = rng.random() < 0.75
    return Style(
        ground=ground,
        gap=int(
            rng.choice(np.array([0, rng.integers(1, 6), rng.integers(6, 40)]), p=[0.08, 0.42, 0.5]) * longer / 800 + 0.5
        ),
        images=images,
        lettered=lettered,
        names=str(rng.choice(["A", "a", "(a)"], p=[0.55, 0.35, 0.1])),
        inside=images > 0.4 and rng.random() < 0.6,
        letter_size=int(longer * rng.uniform(0.014, 0.04)) + 3,
        letter_font=int(rng.integers(8)),
        nested=float(rng.choice([0, 0.2, 0.5])) if lettered else 0.0,
        border=rng.random() < 0.06,
    )


def _ink(style: Style) -> str:
    return "black" if sum(style.ground) > 380 else "white"


def _ground(rng: np.random.Generator, width: int, height: int, color: tuple[int, int, int]) -> Picture:
    if color in ((255, 255, 255), (0, 0, 0)) or rng.random() < 0.5:
        return Image.new("RGB", (width, height), color)
    red, green, blue = (int(c * 0.85) for c in color)
    return picture(noise(rng, width, height, cells=60), (red, green, blue), color)


def _cells(rng: np.random.Generator, area: Box, gap: int) -> list[Box]:
    """The cells of the panels: a grid, rows with different numbers of cells, or a rectangle that is cut repeatedly."""
    kind = rng.random()
    if kind < 0.14:
        return [area]
    if kind < 0.45:
        rows, columns = int(rng.choice([1, 1, 2, 2, 3, 4])), int(rng.choice([1, 1, 2, 2, 3, 3, 4, 5]))
        shares = [rng.uniform(0.6, 1.4, columns) if rng.random() < 0.3 else np.ones(columns)] * rows
        return _rows(area, rng.uniform(0.7, 1.3, rows) if rng.random() < 0.4 else np.ones(rows), shares, gap)
    if kind < 0.68:
        rows = int(rng.integers(2, 5))
        shares = [rng.uniform(0.6, 1.4, rng.integers(1, 6)) for _ in range(rows)]
        return _rows(area, rng.uniform(0.6, 1.4, rows), shares, gap)
    most = int(rng.integers(2, 14))
    cells, smallest = [area], 0.11 * max(area[2] - area[0], area[3] - area[1])
    for _ in range(30):
        if len(cells) >= most:
            break
        sizes = [(c[2] - c[0]) * (c[3] - c[1]) for c in cells]
        at = int(rng.choice(len(cells), p=np.array(sizes) / sum(sizes)))
        left, top, right, bottom = cells[at]
        share = rng.choice([1 / 2, 1 / 3, 2 / 3, rng.uniform(0.3, 0.7)])
        upright = (right - left) * rng.uniform(0.6, 1.6) > bottom - top
        cut = int((left + share * (right - left)) if upright else (top + share * (bottom - top)))
        end, begin = cut - gap // 2, cut + (gap + 1) // 2
        if upright:
            halves = [(left, top, end, bottom), (begin, top, right, bottom)]
        else:
            halves = [(left, top, right, end), (left, begin, right, bottom)]
        if min(min(c[2] - c[0], c[3] - c[1]) for c in halves) > smallest:
            cells[at : at + 1] = halves
    return sorted(cells, key=lambda c: (c[1], c[0]))


def _rows(area: Box, heights: np.ndarray, shares: list[np.ndarray], gap: int) -> list[Box]:
    left, top, right, bottom = area
    cells = []
    ends = top + np.cumsum([0, *heights / heights.sum()]) * (bottom - top + gap)
    for (low, high), row in zip(pairwise(ends), shares, strict=True):
        across = left + np.cumsum([0, *row / row.sum()]) * (right - left + gap)
        cells += [(int(a), int(low), int(b) - gap, int(high) - gap) for a, b in pairwise(across)]
    return [c for c in cells if c[2] - c[0] > 24 and c[3] - c[1] > 24] or [area]


def _panel(rng: np.random.Generator, out: Compound, cell: Box, *, style: Style, at: int, images: list[Path]) -> None:
    """Draws one panel into its cell; its box encloses what is drawn there, including the letter."""
    left, top, right, bottom = cell
    size, name = style.letter_size, style.names.replace("a", chr(ord("a") + at % 26)).replace("A", chr(65 + at % 26))
    is_image = rng.random() < style.images
    inside = style.inside and is_image
    letters = font(style.letter_font, size)
    strip = style.lettered and not inside
    beside = strip and rng.random() < 0.35 and right - left > 6 * size
    body = cell
    if strip:  # space for the letter above the panel or on its left, or (in drawings) in a free corner
        body = (left + size + 2, top, right, bottom) if beside else (left, top + int(size * 1.25), right, bottom)
        if not is_image and rng.random() < 0.4:
            body = (left + size // 2, top + size // 2, right, bottom)
    if body[2] - body[0] < 16 or body[3] - body[1] < 16:
        body, strip = cell, False
    box = _content(rng, out.image, body, style=style, is_image=is_image, images=images)
    if not style.lettered:
        out.boxes.append(box)
        return
    draw, pad = ImageDraw.Draw(out.image), max(2, size // 4)
    place, anchor, ink = (left, top), "la", _ink(style)
    if not strip:
        corner = int(rng.choice([0, 0, 0, 1, 2, 3]))
        anchor = ("la", "ra", "ld", "rd")[corner]
        place = (box[2] - pad if corner % 2 else box[0] + pad, box[3] - pad if corner > 1 else box[1] + pad)
        ink = str(rng.choice(["white", "black", "yellow"], p=[0.6, 0.3, 0.1]))
    drawn = tuple(int(v) for v in draw.textbbox(place, name, font=letters, anchor=anchor))
    if not strip and (ink == "black" or rng.random() < 0.3):
        draw.rectangle((drawn[0] - 2, drawn[1] - 2, drawn[2] + 2, drawn[3] + 2), fill="white")
        ink = "black"
    draw.text(place, name, fill=ink, font=letters, anchor=anchor)
    out.letters.append(((drawn[0] + drawn[2]) / 2, (drawn[1] + drawn[3]) / 2))
    out.boxes.append((min(box[0], drawn[0]), min(box[1], drawn[1]), max(box[2], drawn[2]), max(box[3], drawn[3])))


def _content(rng: np.random.Generator, canvas: Picture, body: Box, *, style: Style, is_image: bool,
             images: list[Path]) -> Box:  # fmt: skip
    """Draws one picture, or several that belong together; returns the box around them."""
    if rng.random() >= style.nested or min(body[2] - body[0], body[3] - body[1]) < 60:
        return _single(rng, canvas, body, style=style, is_image=is_image, images=images)
    drawer: Drawer | None = None
    wide, tall = body[2] - body[0], body[3] - body[1]
    rows, columns = (int(n) for n in rng.choice([1, 1, 2, 2, 3, 4, 6], 2))
    rows, columns = max(1, min(rows, tall // 24)), max(1, min(columns, wide // 24))
    if rng.random() < 0.12:  # a shaded ground
        shade = tuple(int(c) for c in rng.integers(215, 250, 3))
        ImageDraw.Draw(canvas).rectangle((body[0], body[1], body[2] - 1, body[3] - 1), fill=shade)
    if rng.random() < 0.7:  # several of one kind
        kinds = IMAGES if is_image else DRAWINGS
        drawer = kinds[rng.integers(len(kinds))]
    if rng.random() < 0.3:  # headings over the columns
        size = max(6, style.letter_size // 2)
        for column in range(columns):
            x = body[0] + (column + 0.5) * (body[2] - body[0]) / columns
            ImageDraw.Draw(canvas).text((x, body[1]), words(rng, 1), fill=_ink(style), anchor="ma",
                                        font=font(style.letter_font, size))  # fmt: skip
        body = (body[0], body[1] + int(size * 1.4), body[2], body[3])
    gap = int(style.gap * rng.uniform(0, 0.6)) + 1
    boxes = [_single(rng, canvas, cell, style=style, is_image=is_image, images=images, drawer=drawer)
             for cell in _rows(body, np.ones(rows), [np.ones(columns)] * rows, gap)]  # fmt: skip
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    return int(low[0]), int(low[1]), int(high[2]), int(high[3])


def _single(rng: np.random.Generator, canvas: Picture, body: Box, *, style: Style, is_image: bool,
            images: list[Path], drawer: Drawer | None = None) -> Box:  # fmt: skip
    left, top, right, bottom = body
    width, height = max(8, right - left), max(8, bottom - top)
    if drawer is not None:
        drawn = drawer(rng, width, height)
    elif is_image and images and rng.random() < 0.6:
        drawn = _photo(rng, images[rng.integers(len(images))], width, height)
    else:
        drawers = IMAGES if is_image else DRAWINGS
        drawn = drawers[rng.integers(len(drawers))](rng, width, height)
    if is_image and rng.random() < 0.15:  # a scale bar
        y = int(height * 0.92)
        ImageDraw.Draw(drawn).line((width * 0.7, y, width * 0.92, y), fill="white", width=max(2, height // 60))
    if style.border:
        ImageDraw.Draw(drawn).rectangle((0, 0, width - 1, height - 1), outline="black")
    canvas.paste(drawn, (left, top))
    # the panel is the whole picture if it is an image or its paper contrasts with the ground, else what is not paper
    whole = is_image or style.ground != (255, 255, 255)
    ink = None if whole else ImageChops.difference(drawn, Image.new("RGB", drawn.size, "white")).getbbox()
    if ink is None:
        return left, top, left + width, top + height
    return left + ink[0], top + ink[1], left + ink[2], top + ink[3]


def _photo(rng: np.random.Generator, path: Path, width: int, height: int) -> Picture:
    """A random piece of an image, in the aspect ratio of its cell."""
    image = open_plain(path).convert("RGB")
    share = rng.uniform(0.7, 1)
    scale = min(image.width / width, image.height / height) * share
    w, h = max(2, int(width * scale)), max(2, int(height * scale))
    x, y = int(rng.integers(0, image.width - w + 1)), int(rng.integers(0, image.height - h + 1))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
