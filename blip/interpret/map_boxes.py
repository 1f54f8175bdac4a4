"""Records with boxes, and how well a map agrees with them.

Shapes: h*w patches, S the side of an image in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from blip.data.formats import AnnotationError, iter_records
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import open_image
from blip.data.records import path_problem
from blip.errors import InputError
from blip.interpret.objectives import Objective
from blip.interpret.pointing_game import Box, box_of, inside, peak


@dataclass
class Boxed:
    """An image with what is explained, and the boxes where the map should be; none where only curves are drawn."""

    name: str  # of the image, by which records of one image are grouped
    image: Image.Image
    text: str
    answer: str
    boxes: list[Box]


# ---- records ---------------------------------------------------------------------------------------------------------


def read_boxed(
    path: str | Path, objective: Objective, limit: int = 0, *, needs_boxes: bool = True, limits: ImageLimits = LIMITS
) -> tuple[list[Boxed], list[str]]:
    """Records with `image`, `caption` (of answers `question` and `answer`) and boxes; messages about unreadable images.

    Boxes are `boxes`, a list of (left, top, right, bottom) in pixels, or `lesions`, each with a `box`; with `named`,
    the number of the lesion in the caption, its box alone.

    Raises:
        AnnotationError: a record lacks an entry, or no image can be read.
    """
    words = ("question", "answer") if objective.has_answers else ("caption",)
    path, found, problems = Path(path), list[Boxed](), list[str]()
    for place, record in iter_records(path, needed=("image", *words), also=("boxes", "lesions", "named")):
        try:
            texts = [_text(record, word) for word in words]
            boxes = _boxes(record)
            if needs_boxes and not boxes:
                raise InputError("it has no boxes; --score curves and --score sanity need none")
            name = record["image"]
            if problem := path_problem(name) if isinstance(name, str) else "is no path of a file":
                raise InputError(f"image {problem}")
            image = open_image(path.parent / name, limits)
        except UnreadableImage as error:
            problems.append(str(error))
            continue
        except (KeyError, TypeError, ValueError, OverflowError, InputError) as error:
            about = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise AnnotationError(
                path, place, f"{about}; a record needs image, {' and '.join(words)}, and boxes: "
                "[[left, top, right, bottom], ...] or lesions with a box each"
            ) from None  # fmt: skip
        found.append(Boxed(name, image, texts[0], texts[1] if objective.has_answers else "", boxes))
        if limit and len(found) == limit:
            break
    if not found:
        raise AnnotationError(path, "", f"holds no image that can be read: {problems[0]}")
    return found, problems


def _text(record: dict[str, Any], key: str) -> str:
    value = record[key]
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key} is no text")
    return value


def _boxes(record: dict[str, Any]) -> list[Box]:
    if record.get("boxes") is not None:
        if not isinstance(record["boxes"], list):
            raise InputError("boxes is no list")
        return [box_of(values) for values in record["boxes"]]
    lesions = record.get("lesions") or []
    if not isinstance(lesions, list) or not all(isinstance(lesion, dict) for lesion in lesions):
        raise InputError("lesions is no list of objects")
    named = record.get("named")
    if named is not None:
        if type(named) is not int or not 0 <= named < len(lesions):
            raise InputError(f"named is {named!r}, there are {len(lesions)} lesions, from 0")
        lesions = [lesions[named]]
    return [box_of(lesion.get("box")) for lesion in lesions]


# ---- agreement with boxes --------------------------------------------------------------------------------------------


def mask_of(boxes: Sequence[Box], image: Image.Image, side: int) -> Tensor:
    """(S, S) boolean: the pixels whose centre lies in a box, of an image resized to a square; at least one a box."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        x, y = side / image.width, side / image.height
        columns, rows = slice(*_pixels(left * x, right * x, side)), slice(*_pixels(top * y, bottom * y, side))
        mask[rows, columns] = True
    return mask


def _pixels(start: float, end: float, side: int) -> tuple[int, int]:
    first = min(max(0, round(start)), side - 1)
    return first, max(first + 1, min(side, round(end)))


def energy_inside(values: Tensor, mask: Tensor) -> float:
    """The share of a map's positive values (S, S) inside a mask; 0 for a map without any."""
    positive = values.clamp(min=0)
    total = float(positive.sum())
    return float(positive[mask].sum()) / total if total > 0 else 0.0


def iou_of_largest(values: Tensor, mask: Tensor) -> float:
    """Intersection over union of a mask and as many pixels of a map (S, S): those with its largest values."""
    area = int(mask.sum())
    marked = torch.zeros(mask.numel(), dtype=torch.bool)
    marked[values.flatten().argsort(descending=True, stable=True)[:area]] = True
    both = int((marked & mask.flatten()).sum())
    return both / (2 * area - both)


def box_scores(record: Boxed, values: Tensor, side: int) -> dict[str, float]:
    """Hit, energy and IoU of one map (h, w)."""
    mask = mask_of(record.boxes, record.image, side)
    fine = F.interpolate(values[None, None].float(), size=(side, side), mode="bilinear")[0, 0]
    width, height = record.image.size
    margin = width / values.shape[1] / 2, height / values.shape[0] / 2
    point = peak(values, width, height)
    hit = any(inside(point, box, margin) for box in record.boxes)
    return {"hit": float(hit), "energy": energy_inside(fine, mask), "iou": iou_of_largest(fine, mask)}
