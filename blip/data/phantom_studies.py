"""Synthetic studies of several pictures, whose captions need all of them: views of a body, slices, frames in time.

views    frontal and lateral view of one body; the lesion is seen in both or in one alone, which the caption says
volume   slices of one body, each wider than the one before; the caption says in which one to three of them, side by
         side, the lesion is visible
video    frames of one body; the lesion grows, shrinks or stays. Frames in which it shrinks are those in which it grows,
         in reverse order: the order alone tells the two apart

A seed determines everything, as for the phantoms of one picture. The pictures of a study lie in their order in `images`
of its record.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from blip.data.phantom_drawing import OVERSAMPLING, developed, draw_body, paint, write_picture, write_records
from blip.data.phantoms import BODIES, BRIGHTNESSES, GREY, POSITIONS, RADIUS, SIDES, SIZES
from blip.errors import InputError

VIEWS = ("frontal", "lateral")
SEEN = ("both", *VIEWS)
CHANGES = ("grows", "shrinks", "stays")
MOST_PICTURES = 64
GROWTH = 3  # of the radius of a lesion in a video
ANNOTATIONS = ("captions.json", "questions.json")
# of the centres of lesions, as shares of the side of a picture
HEIGHT = dict(zip(POSITIONS, (0.3, 0.5, 0.7), strict=True))
ACROSS = dict(zip(SIDES, (0.35, 0.65), strict=True))
ACROSS_VIEWS = {"frontal": (0.31, 0.69), "lateral": (0.42, 0.58)}  # one of two at random, which the caption leaves out
NARROWEST = 0.75  # the first slice of a volume, as a share of the whole body; lesions lie within its outline
SLICED_RADIUS = 0.12  # of a lesion in a volume, as a share of the side of a slice

Drawn = tuple[dict[str, Any], list[Image.Image]]  # what a record says, and the pictures


def draw_views(rng: np.random.Generator, image_size: int, count: int = 2) -> Drawn:
    """A frontal and a lateral view of one body with a lesion that both or one of them show."""
    body, size, brightness, position, seen = _chosen(rng, BODIES, SIZES, BRIGHTNESSES, POSITIONS, SEEN)
    height = HEIGHT[position] + rng.uniform(-0.025, 0.025)
    pictures = []
    for view, draw in zip(VIEWS, (draw_body, draw_lateral), strict=True):
        canvas = draw(rng, body, image_size * OVERSAMPLING)
        x = rng.choice(ACROSS_VIEWS[view]) + rng.uniform(-0.03, 0.03)
        if seen in ("both", view):
            _lesion(canvas, (x, height, RADIUS[size] * rng.uniform(0.92, 1.08)), _grey(rng, brightness))
        pictures.append(developed(rng, canvas, image_size))
    where = "both views" if seen == "both" else f"the {seen} view alone"
    facts = {
        "caption": f"{body} with a {size} {brightness} lesion in the {position} part seen in {where}",
        "body": body,
        "lesion": {"size": size, "brightness": brightness, "position": position, "seen": seen},
        "questions": _questions(
            ("what part of the body is shown?", body),
            ("in which views is the lesion seen?", seen),
            ("what size is the lesion?", size),
            ("is the lesion bright?", "yes" if brightness == "bright" else "no"),
        ),
    }
    return facts, pictures


def draw_volume(rng: np.random.Generator, image_size: int, count: int) -> Drawn:
    """`count` slices of one body, each wider than the one before, of which one to three neighbours show a lesion."""
    body, brightness, side = _chosen(rng, BODIES, BRIGHTNESSES, SIDES)
    thickness = int(rng.integers(1, min(3, count) + 1))
    first = int(rng.integers(count - thickness + 1))
    whole = draw_body(rng, body, image_size * OVERSAMPLING)
    x = ACROSS[side] + rng.uniform(-0.03, 0.03)
    circle = (x, 0.5 + rng.uniform(-0.1, 0.1), SLICED_RADIUS * rng.uniform(0.92, 1.08))
    grey = _grey(rng, brightness)
    pictures = []
    for i in range(count):
        canvas = _narrowed(whole, NARROWEST + (1 - NARROWEST) * (i + 0.5) / count)
        if first <= i < first + thickness:
            _lesion(canvas, circle, grey)
        pictures.append(developed(rng, canvas, image_size))
    slices = [first + 1 + i for i in range(thickness)]
    facts = {
        "caption": f"{body} with a {brightness} lesion on the {side} visible in {slice_words(slices)}",
        "body": body,
        "lesion": {"brightness": brightness, "side": side, "slices": slices},
        "questions": _questions(
            ("what part of the body is shown?", body),
            ("in how many slices is the lesion visible?", str(thickness)),
            ("in which slice does the lesion begin?", str(slices[0])),
            ("on which side is the lesion?", side),
        ),
    }
    return facts, pictures


def slice_words(slices: list[int]) -> str:
    """Neighbouring slices, counted from 1, in words: slice 3, slice 3 and 4, slice 3 to 5."""
    between = {1: "", 2: f" and {slices[-1]}"}.get(len(slices), f" to {slices[-1]}")
    return f"slice {slices[0]}{between}"


def draw_video(rng: np.random.Generator, image_size: int, count: int) -> Drawn:
    """`count` frames of one body with a lesion whose radius grows or shrinks by a factor of GROWTH, or stays."""
    body, brightness, position, side, change = _chosen(rng, BODIES, BRIGHTNESSES, POSITIONS, SIDES, CHANGES)
    still = draw_body(rng, body, image_size * OVERSAMPLING)
    x, y = ACROSS[side] + rng.uniform(-0.035, 0.035), HEIGHT[position] + rng.uniform(-0.025, 0.025)
    grey = _grey(rng, brightness)
    least = rng.uniform(0.045, 0.055)
    same = least * rng.uniform(1, GROWTH)
    pictures = []
    for i in range(count):
        canvas = still.copy()
        _lesion(canvas, (x, y, same if change == "stays" else least * GROWTH ** (i / (count - 1))), grey)
        pictures.append(developed(rng, canvas, image_size))
    if change == "shrinks":
        pictures.reverse()
    facts = {
        "caption": f"{body} with a {brightness} lesion in the {position} {side} that {change}",
        "body": body,
        "lesion": {"brightness": brightness, "position": position, "side": side, "change": change},
        "questions": _questions(
            ("what part of the body is shown?", body),
            ("how does the lesion change?", change),
            ("where is the lesion?", f"{position} {side}"),
        ),
    }
    return facts, pictures


DRAW: dict[str, Callable[[np.random.Generator, int, int], Drawn]] = {
    "views": draw_views,
    "volume": draw_volume,
    "video": draw_video,
}


def draw_lateral(rng: np.random.Generator, body: str, side: int) -> Image.Image:
    """A body seen from its side, its back on the right: narrower than from the front, with one organ and a spine."""
    canvas = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(canvas)

    def ellipse(x: float, y: float, w: float, h: float, grey: float) -> None:
        """As in `draw_body`."""
        x, y, w, h = (v + rng.uniform(-0.02, 0.02) for v in (x, y, w, h))
        pen.ellipse([(x - w) * side, (y - h) * side, (x + w) * side, (y + h) * side], fill=int(grey))

    if body == "head":
        ellipse(0.5, 0.48, 0.47, 0.43, 200)  # skull
        ellipse(0.5, 0.48, 0.43, 0.39, 120)  # brain
        ellipse(0.74, 0.78, 0.1, 0.07, 90)  # cerebellum
    elif body == "chest":
        ellipse(0.5, 0.5, 0.31, 0.45, 150)
        ellipse(0.48, 0.5, 0.21, 0.36, 95)  # both lungs, one behind the other
        ellipse(0.75, 0.5, 0.04, 0.4, 190)  # spine
    else:
        ellipse(0.5, 0.5, 0.33, 0.42, 125)
        ellipse(0.44, 0.4, 0.16, 0.15, 145)  # liver
        ellipse(0.76, 0.5, 0.04, 0.38, 190)  # spine
    return canvas


def _chosen(rng: np.random.Generator, *values: tuple[str, ...]) -> list[str]:
    return [str(rng.choice(of)) for of in values]


def _grey(rng: np.random.Generator, brightness: str) -> int:
    return int(GREY[brightness] + rng.uniform(-10, 10))


def _lesion(canvas: Image.Image, circle: tuple[float, float, float], grey: int) -> None:
    """A round lesion; x, y and radius as shares of the picture's side."""
    x, y, radius = (share * canvas.width for share in circle)
    paint(canvas, "round", (x, y, radius), grey)


def _narrowed(canvas: Image.Image, share: float) -> Image.Image:
    """A canvas reduced to a share of its sides, in the middle of a black one of the old size."""
    side = max(1, round(canvas.width * share))
    narrow = Image.new("L", canvas.size, 0)
    narrow.paste(canvas.resize((side, side), Image.Resampling.BOX), ((canvas.width - side) // 2,) * 2)
    return narrow


def _questions(*rows: tuple[str, str]) -> list[dict[str, str]]:
    return [
        {"question": question, "answer": answer, "answer_type": "closed" if answer in ("yes", "no") else "open"}
        for question, answer in rows
    ]


def picture_names(kind: str, number: int, pictures: int) -> list[str]:
    """The paths of the pictures of a study, relative to the data set."""
    marks = VIEWS if kind == "views" else [f"{i + 1:02d}" for i in range(pictures)]
    return [f"images/{number:06d}_{mark}.png" for mark in marks]


def study_records(
    kind: str, count: int, seed: int = 0, *, pictures: int = 2, image_size: int = 48
) -> Iterator[tuple[dict, list[Image.Image]]]:
    """`count` annotated studies of one kind of DRAW; each depends on (seed, its number) alone."""
    for i in range(count):
        rng = np.random.default_rng([seed, i, 3 + list(DRAW).index(kind)])
        facts, images = DRAW[kind](rng, image_size, pictures)
        yield {"images": picture_names(kind, i, pictures), **facts}, images


def check_study(kind: str, pictures: int) -> None:
    """InputError where a study of a kind cannot have so many pictures."""
    if kind == "views" and pictures != len(VIEWS):
        raise InputError(f"{pictures} views cannot be drawn: a study has 2, frontal and lateral")
    if not 2 <= pictures <= MOST_PICTURES:
        raise InputError(f"a {kind} of {pictures} pictures cannot be drawn; it has 2 to {MOST_PICTURES}")


def write_studies(
    folder: str | Path, kind: str, count: int, *, seed: int = 0, pictures: int = 2, image_size: int = 48
) -> Path:
    """Writes `images/*.png`, `captions.json` and `questions.json` -> the path of the captions.

    Args:
        folder, kind: where to; views, volume or video.
        count, seed, image_size: how many studies, of which seed, with how many pixels on each side of a picture.
        pictures: of a study: 2 views, or slices or frames.

    Raises:
        InputError: a number or size that cannot be drawn.
    """
    check_study(kind, pictures)
    if count < 1:
        raise InputError(f"count is {count}; a data set needs at least one study")
    if image_size < 16:
        raise InputError(f"image size {image_size} is too small to draw lesions; 16 pixels is the least")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    annotations, questions = [], []
    for record, images in study_records(kind, count, seed, pictures=pictures, image_size=image_size):
        for name, image in zip(record["images"], images, strict=True):
            write_picture(folder / name, image)
        annotations.append(record)
        questions += [{"images": record["images"], **question} for question in record["questions"]]
    write_records(folder / "questions.json", questions)
    return write_records(folder / "captions.json", annotations)
