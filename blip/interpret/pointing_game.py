"""`blip localise`: the pointing game (Zhang et al. 2018). Does the peak of a map lie on the lesion that a text names?

A record is an image, a caption that names one lesion of several, their boxes, and which one is named. The peak of the
sentence's map is the centre of its largest patch; it hits where it lies in the named lesion's box, or within half a
patch of it, the resolution of a map. Controls beside the hit rate show whether the method explains it:

    distractor   the same peaks against the box of another lesion of the image, which the caption does not name
    centre       the middle of the image instead of every peak
    untrained    the same method on the same network with random weights
    shuffled     the caption's words in random order

Intervals are Wilson's, 95 %.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from blip.data.formats import AnnotationError, iter_records
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import open_image
from blip.data.records import path_problem
from blip.errors import InputError
from blip.files import write_whole
from blip.inference.predictor import Predictor
from blip.interpret.explain import explain_pairs
from blip.interpret.maps import METHODS
from blip.interpret.objectives import OBJECTIVES
from blip.models.factory import model_of

SINGLE = "of a single lesion"  # why `read_named` leaves an image out
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass
class Named:
    """An image, a caption that names one of its lesions, and the boxes of that lesion and of the others."""

    image: Any
    caption: str
    target: Box
    others: list[Box]


@dataclass
class Share:
    """Hits in a number of trials, with a 95 % interval."""

    hits: int
    trials: int

    @property
    def rate(self) -> float:
        return self.hits / self.trials if self.trials else float("nan")

    def interval(self) -> tuple[float, float]:
        """Wilson's score interval."""
        n, z = self.trials, 1.96
        if n == 0:
            return float("nan"), float("nan")
        middle, half = self.rate + z * z / (2 * n), z * math.sqrt(self.rate * (1 - self.rate) / n + (z / (2 * n)) ** 2)
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{100 * self.rate:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


@dataclass
class Line:
    """One method at one layer, and its controls."""

    method: str
    layer: int | None
    rows: str
    target: Share
    distractor: Share
    untrained: Share
    shuffled: Share


def read_named(path: str | Path, limit: int = 0, *, limits: ImageLimits = LIMITS) -> tuple[list[Named], Counter[str]]:
    """Records with `image`, `caption`, `lesions` (each with a `box`) and `named`, the number of the one in the caption.

    Images that cannot be read are left out, and those of a single lesion, which a map of any salient spot would hit.
    The second value counts them by reason, which for the former is a message of its own.
    """
    records, left_out = [], Counter[str]()
    path = Path(path)
    for place, record in iter_records(path, needed=("image", "caption", "lesions", "named")):
        try:
            boxes = [box_of(lesion["box"]) for lesion in record["lesions"]]
            named, caption = record["named"], record["caption"]
            if type(named) is not int or not 0 <= named < len(boxes):
                raise InputError(f"named is {named!r}, there are {len(boxes)} lesions, from 0")
            if not isinstance(caption, str) or not caption.strip():
                raise InputError("caption is no text")
            image = record["image"]
            if problem := path_problem(image) if isinstance(image, str) else "is no path of a file":
                raise InputError(f"image {problem}")
            others = boxes[:named] + boxes[named + 1 :]
            if not others:
                left_out[SINGLE] += 1
                continue
            records.append(Named(open_image(path.parent / image, limits), caption, boxes[named], others))
        except UnreadableImage as error:
            left_out[str(error)] += 1
        except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise AnnotationError(
                path, place, f"needs image, caption, lesions with a box each, and named, the number of one ({error}); "
                "`blip phantoms OUT --name_one` writes such"
            ) from None  # fmt: skip
        if limit and len(records) == limit:
            break
    if not records:
        raise AnnotationError(path, "", "holds no readable image of two lesions or more")
    return records, left_out


def box_of(values: Any) -> Box:
    """Left, top, right and bottom in pixels; InputError for anything else."""
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise InputError("a box has four numbers")
    if not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise InputError(f"box {values} holds something other than numbers")
    left, top, right, bottom = values
    if not (0 <= left < right and 0 <= top < bottom):
        raise InputError(f"box {values} is not left, top, right, bottom in pixels")
    return left, top, right, bottom


def peak(values: Tensor, width: int, height: int) -> tuple[float, float] | None:
    """The centre (x, y) in pixels of the patch where a map (h, w) of a width x height image is largest.

    None for a map that points nowhere: all of it equal, or not a number.
    """
    if not values.isfinite().all() or values.max() == values.min():
        return None
    y, x = divmod(int(values.argmax()), values.shape[1])
    return (x + 0.5) * width / values.shape[1], (y + 0.5) * height / values.shape[0]


def inside(point: tuple[float, float] | None, box: Box, margin: tuple[float, float]) -> bool:
    """Whether a point lies in a box, or within `margin` (x, y) of it."""
    if point is None:
        return False
    left, top, right, bottom = box
    return left - margin[0] <= point[0] < right + margin[0] and top - margin[1] <= point[1] < bottom + margin[1]


def untrained(m: Predictor, seed: int = 0) -> Predictor:
    """The same network with random weights."""
    torch.manual_seed(seed)
    model, tokens = m.needs("match"), m.tokenizer
    specials = tokens.specials
    sizes = model.image_encoder.config, model.text_encoder.config
    fresh = model_of(m.info["task"], *sizes, specials=specials, embed_dim=m.info["embed_dim"])
    return Predictor(fresh, tokens, m.info, device=m.device, precision=m.precision)


def localise(
    m: Predictor, records: Sequence[Named], methods: Sequence[str] = METHODS, *, batch_size: int = 16
) -> list[Line]:
    """Every method at every layer that has maps, for a model that matches images and texts."""
    shuffled = [_shuffled(record, seed) for seed, record in enumerate(records)]
    random_weights = untrained(m)
    last = OBJECTIVES["match"].layers(m) - 1
    variants: list[tuple[str, int | None, str]] = []  # method, layer, rows
    for method in methods:
        if method == "relevance":
            variants.append((method, None, "words"))
        else:
            variants += [(method, layer, rows) for layer in range(last + 1) for rows in ("words", "enc")
                       if rows == "enc" or layer < last]  # fmt: skip
    lines = []
    for method, layer, rows in variants:
        options: dict[str, Any] = {"method": method, "layer": layer, "rows": rows, "batch_size": batch_size}
        target, distractor = _hits(m, records, **options)
        of_untrained, _ = _hits(random_weights, records, **options)
        of_shuffled, _ = _hits(m, shuffled, **options)
        lines.append(Line(method, layer, rows, target, distractor, of_untrained, of_shuffled))
    return lines


def centre(m: Predictor, records: Sequence[Named]) -> Share:
    """Hits of the middle of each image."""
    points = [(r.image.width / 2, r.image.height / 2) for r in records]
    return _count(m, records, points)[0]


def _hits(m: Predictor, records: Sequence[Named], **options: Any) -> tuple[Share, Share]:
    """Peaks on the named lesion and on another one; options as in `explain_pairs`."""
    images, texts = [r.image for r in records], [r.caption for r in records]
    explanations = explain_pairs(m, images, texts, task="match", **options)
    points = [peak(one.sentence, r.image.width, r.image.height) for one, r in zip(explanations, records, strict=True)]
    return _count(m, records, points)


def _count(m: Predictor, records: Sequence[Named], points: Sequence[tuple[float, float] | None]) -> tuple[Share, Share]:
    config = m.model.image_encoder.config
    half = config.patch / config.image_size / 2  # of a patch, as a share of the image
    on_target, on_other = 0, 0
    for record, point in zip(records, points, strict=True):
        margin = (half * record.image.width, half * record.image.height)
        on_target += inside(point, record.target, margin)
        on_other += inside(point, record.others[0], margin)
    return Share(on_target, len(records)), Share(on_other, len(records))


def _shuffled(record: Named, seed: int) -> Named:
    words = record.caption.split()
    random.Random(seed).shuffle(words)
    shuffled = deepcopy(record)
    shuffled.caption = " ".join(words)
    return shuffled


def show(lines: Sequence[Line], middle: Share, out: Path | None) -> None:
    """Prints the table, per cent with 95 % intervals, best first, and writes it to `out` as JSON."""
    ordered = sorted(lines, key=lambda line: -line.target.rate)
    table = Table("method", "layer", "rows", "named", "distractor", "untrained", "shuffled", "centre")
    table.title = f"peaks on the box, % with 95 % interval, of {middle.trials} images"
    for line in ordered:
        layer = "all" if line.layer is None else str(line.layer)
        shares = (line.target, line.distractor, line.untrained, line.shuffled, middle)
        table.add_row(line.method, layer, line.rows, *(str(share) for share in shares))
    Console(width=max(110, Console().width)).print(table, markup=False)
    if out is not None:
        content = {"centre": asdict(middle), "lines": [asdict(line) for line in ordered]}
        write_whole(out, json.dumps(content, indent=1) + "\n")
