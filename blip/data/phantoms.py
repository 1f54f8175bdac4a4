"""Synthetic data generator: scanner-like phantoms with lesions, captions, questions and boxes.

A seed determines everything. A lesion has a shape, a size, a brightness and one of six places (upper, middle, lower;
left or right, as seen in the image), so a mirrored image makes its caption wrong. A place has at most one lesion.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip.data.phantom_drawing import OVERSAMPLING, developed, draw_body, paint, write_picture, write_records
from blip.errors import InputError

BODIES = ("head", "chest", "abdomen")
SHAPES = ("round", "square", "ring", "cross")
SIZES = ("small", "large")
BRIGHTNESSES = ("bright", "dark")
POSITIONS = ("upper", "middle", "lower")
SIDES = ("left", "right")
ANNOTATIONS = ("captions.json", "questions.json", "statements.json")
NOISE_KINDS = ("other", "attribute")

RADIUS = {"small": 0.062, "large": 0.112}  # of a lesion, as a share of the image's side
GREY = {"bright": 240, "dark": 12}


@dataclass(frozen=True)
class Lesion:
    """One lesion; `box` is (left, top, right, bottom) in pixels."""

    shape: str
    size: str
    brightness: str
    position: str
    side: str
    box: tuple[int, int, int, int] = (0, 0, 0, 0)

    def words(self) -> str:
        return f"a {self.size} {self.brightness} {self.shape} lesion in the {self.position} {self.side}"


@dataclass(frozen=True)
class Phantom:
    """The content of one image; lesions from top to bottom, left before right."""

    body: str
    lesions: tuple[Lesion, ...]

    def caption(self, named: int | None = None) -> str:
        """A caption of all lesions, or of the one numbered `named`."""
        lesions = self.lesions if named is None else self.lesions[named : named + 1]
        return f"{self.body} with " + " and ".join(lesion.words() for lesion in lesions)


def draw_phantom(rng: np.random.Generator, image_size: int = 48, max_lesions: int = 3) -> tuple[Phantom, Image.Image]:
    """One random phantom and its picture, a grey image of `image_size` pixels a side."""
    body = str(rng.choice(BODIES))
    canvas = draw_body(rng, body, image_size * OVERSAMPLING)
    count = int(rng.integers(1, max_lesions + 1))
    places = sorted(rng.choice(len(POSITIONS) * len(SIDES), size=count, replace=False).tolist())
    lesions = tuple(_draw_lesion(rng, canvas, place, image_size) for place in places)
    return Phantom(body, lesions), developed(rng, canvas, image_size)


def draw_opposites(rng: np.random.Generator, image_size: int = 48) -> list[tuple[Phantom, Image.Image]]:
    """One body with the same lesion on the left and on the right, as two phantoms; they differ in nothing else."""
    body = str(rng.choice(BODIES))
    canvas = draw_body(rng, body, image_size * OVERSAMPLING)
    row, seed = int(rng.integers(len(POSITIONS))), int(rng.integers(2**32))
    drawn = []
    for column in range(len(SIDES)):
        same, own = np.random.default_rng(seed), canvas.copy()
        lesion = _draw_lesion(same, own, row * len(SIDES) + column, image_size)
        drawn.append((Phantom(body, (lesion,)), developed(same, own, image_size)))
    return drawn


def _draw_lesion(rng: np.random.Generator, canvas: Image.Image, place: int, image_size: int) -> Lesion:
    """Draws a random lesion near the centre of one of the six places."""
    row, column = divmod(place, len(SIDES))
    shape, size, brightness = (str(rng.choice(values)) for values in (SHAPES, SIZES, BRIGHTNESSES))
    scale = canvas.width
    radius = RADIUS[size] * rng.uniform(0.92, 1.08) * scale
    x = (0.31, 0.69)[column] * scale + rng.uniform(-0.035, 0.035) * scale
    y = (0.26, 0.5, 0.74)[row] * scale + rng.uniform(-0.025, 0.025) * scale
    box = (x - radius, y - radius, x + radius, y + radius)
    grey = int(GREY[brightness] + rng.uniform(-10, 10))
    paint(canvas, shape, (x, y, radius), grey)
    left, top, right, bottom = (round(v * image_size / scale) for v in box)
    return Lesion(shape, size, brightness, POSITIONS[row], SIDES[column], (left, top, right, bottom))


def questions(phantom: Phantom) -> list[dict[str, str]]:
    """Questions with one right answer each, and the kind of answer: `closed` is yes or no."""
    lesions = phantom.lesions
    rows = [("what part of the body is shown?", phantom.body, "open")]
    rows.append(("how many lesions are there?", str(len(lesions)), "open"))
    for side in SIDES:
        present = any(lesion.side == side for lesion in lesions)
        rows.append((f"is there a lesion on the {side}?", "yes" if present else "no", "closed"))
    for lesion in lesions:
        place = f"the {lesion.position} {lesion.side}"
        rows.append((f"what shape is the lesion in {place}?", lesion.shape, "open"))
        rows.append((f"what size is the lesion in {place}?", lesion.size, "open"))
        rows.append((f"is the lesion in {place} bright?", "yes" if lesion.brightness == "bright" else "no", "closed"))
    if len(lesions) == 1:
        rows.append(("where is the lesion?", f"{lesions[0].position} {lesions[0].side}", "open"))
    return [{"question": q, "answer": a, "answer_type": kind} for q, a, kind in rows]


def statements(annotations: list[dict], seed: int = 0) -> list[dict]:
    """For each image and the next one a statement about both, alternately true and false: records as those of NLVR2."""
    made = []
    for i, first in enumerate(annotations):
        second = annotations[(i + 1) % len(annotations)]
        rng = np.random.default_rng([seed, i, 1])
        true = [text for text in STATEMENTS if _holds(text, first, second)]
        false = [text for text in STATEMENTS if text not in true]
        label = i % 2 == 0
        text = str(rng.choice(true if label else false))
        made.append({"images": [first["image"], second["image"]], "sentence": text, "label": label})
    return made


STATEMENTS = [
    f"the {number} image shows a {value} lesion"
    for number in ("first", "second")
    for value in (*SHAPES, *SIZES, *BRIGHTNESSES)
] + [f"both images show a {value} lesion" for value in (*SIZES, *BRIGHTNESSES)]


def _holds(text: str, first: dict, second: dict) -> bool:
    value = text.split()[-2]
    shows = [any(value in lesion.values() for lesion in record["lesions"]) for record in (first, second)]
    return all(shows) if text.startswith("both") else shows["second" in text]


def wrong_caption(rng: np.random.Generator, phantom: Phantom, kind: str, *, max_lesions: int) -> str:
    """A wrong caption for `phantom`: of another random one (`other`), or with one word changed (`attribute`)."""
    true = phantom.caption()
    while kind == "other":
        caption = draw_phantom(rng, 8, max_lesions)[0].caption()
        if caption != true:
            return caption
    which = int(rng.integers(len(phantom.lesions)))
    lesion = phantom.lesions[which]
    taken = {(other.position, other.side) for other in phantom.lesions}
    choices: list[Lesion] = []
    choices.append(replace(lesion, shape=_another(rng, SHAPES, lesion.shape)))
    choices.append(replace(lesion, size=_another(rng, SIZES, lesion.size)))
    choices.append(replace(lesion, brightness=_another(rng, BRIGHTNESSES, lesion.brightness)))
    for moved in (
        replace(lesion, position=_another(rng, POSITIONS, lesion.position)),
        replace(lesion, side=_another(rng, SIDES, lesion.side)),
    ):
        if (moved.position, moved.side) not in taken:
            choices.append(moved)
    lesions = list(phantom.lesions)
    lesions[which] = choices[int(rng.integers(len(choices)))]
    return replace(phantom, lesions=tuple(lesions)).caption()


def _another(rng: np.random.Generator, values: tuple[str, ...], value: str) -> str:
    return str(rng.choice([v for v in values if v != value]))


def records(
    count: int,
    seed: int = 0,
    image_size: int = 48,
    *,
    max_lesions: int = 3,
    noise: float = 0.0,
    name_one: bool = False,
) -> Iterator[tuple[dict, Image.Image]]:
    """`count` annotated images; each depends on (seed, its number) alone, so a longer set begins with a shorter one.

    With `noise`, that share of captions is made wrong, half of either kind, and records have `noise` (the kind) and
    `true_caption`. With `name_one`, a caption names one random lesion, whose number is `named`.
    """
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        phantom, image = draw_phantom(rng, image_size, max_lesions)
        record: dict[str, Any] = {
            "image": image_name(i),
            "caption": phantom.caption(),
            "body": phantom.body,
            "lesions": [asdict(lesion) for lesion in phantom.lesions],
            "questions": questions(phantom),
        }
        if name_one:
            named = int(np.random.default_rng([seed, i, 2]).integers(len(phantom.lesions)))
            record |= {"named": named, "caption": phantom.caption(named)}
        if noise:
            kind = str(rng.choice(NOISE_KINDS)) if rng.random() < noise else "none"
            record |= {"noise": kind, "true_caption": record["caption"]}
            if kind != "none":
                record["caption"] = wrong_caption(rng, phantom, kind, max_lesions=max_lesions)
        yield record, image


def image_name(number: int) -> str:
    """The path of an image, relative to the data set."""
    return f"images/{number:06d}.png"


def write_phantoms(
    folder: str | Path,
    count: int,
    seed: int = 0,
    *,
    image_size: int = 48,
    max_lesions: int = 3,
    noise: float = 0.0,
    name_one: bool = False,
) -> Path:
    """Writes `images/*.png`, `captions.json`, `questions.json` and `statements.json` -> the path of the captions.

    Args:
        count, seed, image_size: how many images, of which seed, with how many pixels on each side.
        max_lesions, noise, name_one: see `records`.

    Raises:
        ValueError: a number or size that cannot be drawn, or noise together with `name_one`.
    """
    if count < 1:
        raise InputError(f"count is {count}; a data set needs at least one image")
    if image_size < 16:
        raise InputError(f"image size {image_size} is too small to draw lesions; 16 pixels is the least")
    if not 1 <= max_lesions <= len(POSITIONS) * len(SIDES):
        raise InputError(f"max_lesions is {max_lesions}; there are {len(POSITIONS) * len(SIDES)} places for one to six")
    if not 0 <= noise <= 1:
        raise InputError(f"noise is {noise}; it is a share, from 0 to 1")
    if noise and name_one:
        raise InputError("noise changes captions of all lesions: not together with name_one")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    annotations, question_records = [], []
    for record, image in records(count, seed, image_size, max_lesions=max_lesions, noise=noise, name_one=name_one):
        write_picture(folder / record["image"], image)
        annotations.append(record)
        question_records += [{"image": record["image"], **question} for question in record["questions"]]
    write_records(folder / "questions.json", question_records)
    write_records(folder / "statements.json", statements(annotations, seed))
    return write_records(folder / "captions.json", annotations)
