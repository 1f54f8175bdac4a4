"""Single images like those of articles, drawn at random: scans, micrographs, photographs, gels.

`plots.py` and `drawings.py` draw what has paper around it; `compose.py` composes compound figures of both, with known
boxes, on which the detector is trained. A drawer takes a random generator, a width and a height in pixels, and returns
a picture of that size.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Picture = Image.Image
Drawer = Callable[[np.random.Generator, int, int], Picture]
Color = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom

WORDS = (
    "control", "treated", "mean", "time", "dose", "cells", "signal", "volume", "age", "group", "ratio", "score",
    "rate", "level", "patients", "baseline", "response", "intensity", "frequency", "length", "protein",
    "expression", "days", "weeks", "stimulus", "recovery", "amplitude", "density", "fold", "change", "accuracy",
    "loss", "survival", "pressure", "temperature", "distance", "concentration", "count", "index", "value", "expt",
    "wild-type", "mutant",
)  # fmt: skip


@lru_cache
def font_files() -> tuple[str, ...]:
    """Paths of fonts of matplotlib; empty without matplotlib, when the font of Pillow is used."""
    try:
        import matplotlib
    except ImportError:
        return ()
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "STIXGeneral",
             "STIXGeneralBol", "DejaVuSans-Oblique")  # fmt: skip
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return tuple(str(folder / f"{name}.ttf") for name in names if (folder / f"{name}.ttf").exists())


@lru_cache(maxsize=512)
def font(which: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """One of the available fonts; `which` may be any number, `size` is in pixels."""
    files = font_files()
    choice = which % (len(files) + 2)
    return ImageFont.truetype(files[choice], size) if choice < len(files) else ImageFont.load_default(size)


def words(rng: np.random.Generator, most: int = 3) -> str:
    """One to `most` random words."""
    text = " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))
    return text.capitalize() if rng.random() < 0.5 else text


def noise(rng: np.random.Generator, width: int, height: int, *, cells: float) -> np.ndarray:
    """Smooth noise in [0, 1], (height, width), with about `cells` maxima along the longer side."""
    scale = cells / max(width, height)
    small = rng.random((max(2, int(height * scale)), max(2, int(width * scale))), dtype=np.float32)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)


def picture(values: np.ndarray, low: Color = (0, 0, 0), high: Color = (255, 255, 255)) -> Picture:
    """(height, width) in [0, 1] -> RGB between two colours."""
    ends = np.array([low, high], dtype=np.float32)
    return Image.fromarray((ends[0] + values[..., None] * (ends[1] - ends[0])).clip(0, 255).astype(np.uint8))


# ---- images ----------------------------------------------------------------------------------------------------------


def scan(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A section through a body: a bright rim, tissue inside, black outside."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    wide, tall = rng.uniform(0.6, 1.05, 2)
    x, y = x - rng.normal(0, 0.06), y - rng.normal(0, 0.06)
    radius = np.hypot(x / wide, y / tall) + 0.12 * (noise(rng, width, height, cells=4) - 0.5)
    values = np.where(radius < 1, 0.25 + 0.5 * noise(rng, width, height, cells=rng.uniform(4, 25)), 0.02)
    values = np.where((radius > 0.9) & (radius < 1), rng.uniform(0.6, 1), values)
    for _ in range(rng.integers(0, 4)):
        cx, cy, r = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.05, 0.3)
        values = np.where(np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.5)) < r, rng.random(), values)
    values = values + rng.normal(0, 0.03, values.shape).astype(np.float32)
    return picture(1 - values.clip(0, 1) if rng.random() < 0.1 else values.clip(0, 1))


def fluorescence(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Coloured spots on black."""
    out = np.zeros((height, width, 3), dtype=np.float32)
    for _ in range(rng.integers(1, 4)):
        field = noise(rng, width, height, cells=rng.uniform(5, 40))
        field = ((field - rng.uniform(0.4, 0.75)) * 4).clip(0, 1)
        out += field[..., None] * rng.choice(np.array([[0, 1, 0], [1, 0, 0], [0, 0.3, 1], [1, 0, 1], [1, 1, 1]]))
    return Image.fromarray((out.clip(0, 1) * 255).astype(np.uint8))


def tissue(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Stained tissue, or an electron micrograph: textures without a background."""
    coarse = noise(rng, width, height, cells=rng.uniform(6, 20))
    values = 0.6 * coarse + 0.4 * noise(rng, width, height, cells=rng.uniform(20, 60))
    if rng.random() < 0.4:
        return picture(values)
    low = [(120, 40, 110), (90, 40, 20), (60, 60, 110)][rng.integers(3)]
    return picture(values, low, [(250, 215, 230), (245, 235, 215), (235, 240, 250)][rng.integers(3)])


def photograph(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Shapes on a coloured ground."""
    values = noise(rng, width, height, cells=rng.uniform(2, 8))
    ground = picture(values, *(tuple(rng.integers(0, 256, 3)) for _ in range(2)))
    draw = ImageDraw.Draw(ground)
    for _ in range(rng.integers(1, 7)):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        w, h = int(rng.integers(4, max(6, width // 2))), int(rng.integers(4, max(6, height // 2)))
        shape = draw.ellipse if rng.random() < 0.6 else draw.rectangle
        shape((x - w // 2, y - h // 2, x + w // 2, y + h // 2), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return ground


def gel(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Bands in lanes, dark on light or light on dark."""
    values = rng.uniform(0.75, 0.95) + 0.1 * (noise(rng, width, height, cells=5) - 0.5)
    lanes, rows = rng.integers(2, 10), rng.integers(1, 6)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for lane in range(lanes):
        for row in rng.random(rows):
            wide, tall = width / lanes * 0.38, max(1.5, height * rng.uniform(0.01, 0.05))
            far = ((x - (lane + 0.5) * width / lanes) / wide) ** 4 + ((y - row * height) / tall) ** 2
            values = values - rng.uniform(0, 0.8) * np.exp(-far)
    return picture(1 - values if rng.random() < 0.3 else values)


IMAGES: tuple[Drawer, ...] = (scan, scan, fluorescence, tissue, photograph, gel)  # without a ground of their own
