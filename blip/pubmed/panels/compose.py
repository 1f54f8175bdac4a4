"""Compound figures composed of single pictures, with the box of every panel and the position of every letter.

Cells come from `layouts.py`. Gutters are white, black, textured or absent, letters outside or inside the panels; panels
contain one picture or several, with headings above columns, names of rows and separating lines.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from blip.data.images import open_plain
from blip.pubmed.panels.drawings import DRAWINGS
from blip.pubmed.panels.layouts import Cell, cells, rows_of
from blip.pubmed.panels.plots import cloud, plot
from blip.pubmed.panels.singles import IMAGES, Box, Drawer, Picture, font, noise, picture, words
from blip.pubmed.panels.solids import spots


@dataclass
class Compound:
    """A figure, its panels as (left, top, right, bottom) in pixels, and the centre of each panel letter, if any.

    Panels are in the order of their letters; the first one is A, and so on.
    """

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
    names: str  # of the first panel: "A", "(a)" and others
    inside: bool  # letters are drawn on the images
    letter_size: int
    letter_font: int
    nested: float  # share of panels that contain several pictures
    border: bool
    strip: Drawer  # of the small pictures of strips


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
    panels = cells(rng, area, style.gap, lettered=style.lettered)
    if len(panels) == 1:  # without a letter, nothing tells several pictures of one panel from several panels
        panels, style.lettered, style.nested = [Cell(panels[0].box)], False, 0.0
    panels = [cell for cell in panels if len(panels) < 4 or rng.random() >= 0.02]  # few are empty
    for at, cell in enumerate(panels):
        _panel(rng, out, cell, style=style, at=at, images=images)
    return out


def _style(rng: np.random.Generator, longer: int) -> Style:
    red, green, blue = (int(c) for c in rng.integers(60, 256, 3))
    grounds = [(255, 255, 255), (0, 0, 0), (red, green, blue)]
    images = float(rng.choice([0.0, 0.15, 0.5, 1.0], p=[0.35, 0.2, 0.15, 0.3]))
    ground = grounds[rng.choice(3, p=[0.8, 0.13, 0.07]) if images == 1 else 0]
    lettered = rng.random() < 0.75
    gaps = np.array([0, rng.integers(1, 6), rng.integers(6, 40)])
    shares = [0.08, 0.42, 0.5]  # of these gaps
    if images <= 0.4:  # without letters, nothing tells where drawings that touch end
        shares = [0.15, 0.4, 0.45] if lettered else [0.0, 0.0, 1.0]
    small = (spots, spots, cloud, plot, *IMAGES, *DRAWINGS)
    return Style(
        ground=ground,
        gap=int(rng.choice(gaps, p=shares) * longer / 800 + 0.5),
        images=images,
        lettered=lettered,
        names=str(rng.choice(["A", "a", "(a)", "(A)", "A)", "a."], p=[0.5, 0.3, 0.08, 0.04, 0.04, 0.04])),
        inside=images > 0.4 and rng.random() < 0.6,
        letter_size=int(longer * rng.uniform(0.014, 0.04)) + 3,
        letter_font=int(rng.integers(8)),
        nested=float(rng.choice([0, 0.2, 0.5])) if lettered else 0.0,
        border=rng.random() < 0.06,
        strip=IMAGES[rng.integers(len(IMAGES))] if ground != (255, 255, 255) else small[rng.integers(len(small))],
    )


def _ink(style: Style) -> str:
    return "black" if sum(style.ground) > 380 else "white"


def _ground(rng: np.random.Generator, width: int, height: int, color: tuple[int, int, int]) -> Picture:
    if color in ((255, 255, 255), (0, 0, 0)) or rng.random() < 0.5:
        return Image.new("RGB", (width, height), color)
    red, green, blue = (int(c * 0.85) for c in color)
    return picture(noise(rng, width, height, cells=60), (red, green, blue), color)


def _panel(rng: np.random.Generator, out: Compound, cell: Cell, *, style: Style, at: int, images: list[Path]) -> None:
    """Draws one panel into its cell; its box encloses what is drawn there, including the letter."""
    left, top, right, bottom = cell.box
    size, name = style.letter_size, style.names.replace("a", chr(ord("a") + at % 26)).replace("A", chr(65 + at % 26))
    is_image = rng.random() < style.images
    inside = style.inside and is_image
    letters = font(style.letter_font, size)
    strip = style.lettered and not inside
    beside = strip and rng.random() < 0.35 and right - left > 6 * size
    body = cell.box
    if strip:  # space for the letter above the panel or on its left, or (in drawings) in a free corner
        body = (left + size + 2, top, right, bottom) if beside else (left, top + int(size * 1.25), right, bottom)
        if not is_image and rng.random() < 0.4:
            body = (left + size // 2, top + size // 2, right, bottom)
    if body[2] - body[0] < 16 or body[3] - body[1] < 16:
        body, strip = cell.box, False
    box = _content(rng, out.image, body, style=style, is_image=is_image, images=images, size=(cell.rows, cell.columns))
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
             images: list[Path], size: tuple[int, int]) -> Box:  # fmt: skip
    """Draws one picture, or several that belong together; returns the box around them.

    Args:
        size: rows and columns of the small pictures of a strip, (0, 0) where it is none.
    """
    drawer: Drawer | None = None
    if size != (0, 0):
        drawer, is_image = style.strip, style.strip in IMAGES
    elif rng.random() >= style.nested or min(body[2] - body[0], body[3] - body[1]) < 60:
        return _single(rng, canvas, body, style=style, is_image=is_image, images=images)
    elif rng.random() < 0.7:  # several of one kind
        kinds = IMAGES if is_image else DRAWINGS
        drawer = kinds[rng.integers(len(kinds))]
    wide, tall = body[2] - body[0], body[3] - body[1]
    least = 16 if size != (0, 0) else 24
    rows, columns = size if size != (0, 0) else (int(n) for n in rng.choice([1, 1, 2, 2, 3, 4, 6], 2))
    if size == (0, 0) and rng.random() < 0.3:  # two or three side by side, or one above the other
        rows, columns = (1, int(rng.integers(2, 4))) if wide > tall else (int(rng.integers(2, 4)), 1)
    rows, columns = max(1, min(rows, tall // least)), max(1, min(columns, wide // least))
    if rng.random() < 0.12:  # a shaded ground
        shade = tuple(int(c) for c in rng.integers(215, 250, 3))
        ImageDraw.Draw(canvas).rectangle((body[0], body[1], body[2] - 1, body[3] - 1), fill=shade)
    around, body = body, _named(rng, canvas, body, style=style, size=(rows, columns))
    gap = int(style.gap * rng.uniform(0, 0.6)) + 1
    if size != (0, 0) or (style.lettered and rng.random() < 0.35):  # as wide as between panels
        gap = int(rng.uniform(0, 1.3) * style.gap) + 1
    heights = rng.uniform(0.4, 1.6, rows) if size == (0, 0) and rng.random() < 0.2 else np.ones(rows)
    small = rows_of(body, heights, [np.ones(columns)] * rows, gap)
    boxes = []
    for cell in small:
        kind = is_image if drawer or rng.random() < 0.8 else not is_image
        boxes.append(_single(rng, canvas, cell, style=style, is_image=kind, images=images, drawer=drawer))
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    left, top = (around[axis] if around[axis] < body[axis] else int(low[axis]) for axis in (0, 1))
    return left, top, int(high[2]), int(high[3])


def _named(rng: np.random.Generator, canvas: Picture, body: Box, *, style: Style, size: tuple[int, int]) -> Box:
    """Draws headings over columns, names of rows and separating lines; returns what is left of the place."""
    (left, top, right, bottom), (rows, columns) = body, size
    letter, which, draw = max(6, style.letter_size // 2), style.letter_font, ImageDraw.Draw(canvas)
    if rng.random() < 0.3:
        for column in range(columns):
            x = left + (column + 0.5) * (right - left) / columns
            draw.text((x, top), words(rng, 1), fill=_ink(style), anchor="ma", font=font(which, letter))
        top += int(letter * 1.4)
    if rng.random() < 0.15 and right - left > 80 and bottom - top > 40:
        ground = style.ground
        for row in range(rows):  # upright
            tall = max(8, (bottom - top) // rows)
            name = Image.new("RGB", (tall, letter + 4), ground)
            ImageDraw.Draw(name).text((tall // 2, letter // 2 + 2), words(rng, 1), fill=_ink(style), anchor="mm",
                                      font=font(which, letter))  # fmt: skip
            canvas.paste(name.rotate(90, expand=True), (left, top + row * tall))
        left += letter + 5
    if rows > 1 and rng.random() < 0.15:
        color = tuple(int(c) for c in rng.integers(0, 200, 3))
        for row in range(1, rows):
            y = top + row * (bottom - top) // rows
            draw.line((left, y, right, y), fill=color)
    return left, top, right, bottom


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
