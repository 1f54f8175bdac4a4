"""Statements about two images, true or false, as their data sets are distributed: STATEMENT_SETS, name -> format."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.data.columns import Columns, without_columns
from blip.data.formats import AnnotationError, Records, checked, is_object, iter_json_lines, iter_records
from blip.data.sets.captions import path_of, text_of
from blip.data.sets.layout import SetFormat
from blip.errors import InputError


@dataclass
class Statement:
    """A sentence about two images, or about one drawing of three boxes, and whether it is true of them."""

    images: tuple[str, str] | str  # left and right; or the drawing
    sentence: str
    label: bool
    id: str = ""

    @property
    def image_paths(self) -> list[str]:
        return [self.images] if isinstance(self.images, str) else list(self.images)


def statement(record: Any) -> Statement:
    """`sentence`, `label`, and `images` (two paths) or `image` (a drawing of three boxes); ValueError otherwise."""
    sentence = text_of(record, "sentence")
    label = record.get("label")
    truth = {"true": True, "false": False}.get(label.strip().lower()) if isinstance(label, str) else label
    if not isinstance(truth, bool):
        raise InputError(f"its label is {label!r}; it is true or false")
    name = str(record.get("identifier") or record.get("id") or "")
    if "images" not in record:
        return Statement(path_of(record, "image"), sentence, truth, name)
    images = record["images"]
    if not isinstance(images, list) or len(images) != 2 or any(isinstance(side, list) for side in images):
        found = "images of another form"
        if isinstance(images, list) and len(images) != 2:
            found = f"{len(images)} image{'s' * (len(images) != 1)}"
        raise InputError(f'has {found}; a statement is about two, left and right, one picture each: ["a.png", "b.png"]')
    left, right = (path_of({"image": image}, "image") for image in images)
    return Statement((left, right), sentence, truth, name)


def _plain(path: Path, root: str, columns: Columns) -> Records:
    also = ("id", "identifier", "split")
    return iter_records(path, needed=("image", "sentence", "label"), also=also, columns=columns)


def _lines(path: Path, columns: Columns) -> Records:
    """NLVR and NLVR2 name their JSON lines .json; BLIP's files are lists."""
    if not is_object(path):
        return iter_records(path, columns=columns)
    without_columns(path, columns)
    return checked(path, iter_json_lines)


def _nlvr2_file(path: Path, root: str, columns: Columns) -> Records:
    """`dev-850-0-1` is the second sentence about `dev-850-0-img0.png`, left, and `dev-850-0-img1.png`, right; images of
    the training set are in the folder of the record's `directory`."""
    for place, record in _lines(path, columns):
        if isinstance(record, dict) and "images" not in record:
            parts = _text_at(path, place, record, "identifier").split("-")
            if len(parts) != 4:
                problem = f"its identifier is {record['identifier']!r}, not of four parts such as dev-850-0-1"
                raise AnnotationError(path, place, problem)
            pair = os.path.join(str(record.get("directory", "")), "-".join(parts[:3]))
            record = {**record, "images": [f"{pair}-img0.png", f"{pair}-img1.png"]}
        yield place, record


def _nlvr_file(path: Path, root: str, columns: Columns) -> Records:
    """Sentence `3597-0` of `dev.json` is about `images/5/dev-3597-0-0.png`, where 5 is its `directory`. The last number
    counts copies of the drawing with its boxes in another order; the first is read."""
    for place, record in _lines(path, columns):
        if isinstance(record, dict) and "image" not in record:
            name = _text_at(path, place, record, "identifier")
            folder = _text_at(path, place, record, "directory")
            record = {**record, "image": os.path.join(folder, f"{path.stem}-{name}-0.png")}
        yield place, record


def _text_at(path: Path, place: str, record: Mapping[str, Any], name: str) -> str:
    """`text_of`, whose error becomes an AnnotationError."""
    try:
        return text_of(record, name)
    except ValueError as error:
        raise AnnotationError(path, place, str(error)) from None


STATEMENT_SETS: dict[str, SetFormat[Statement]] = {
    "json": SetFormat(_plain, statement),
    "nlvr2": SetFormat(
        _nlvr2_file,
        statement,
        files={
            "train": ("train.json", "data/train.json", "nlvr2/data/train.json"),
            "validation": ("dev.json", "data/dev.json", "nlvr2/data/dev.json"),
            "test": ("test1.json", "data/test1.json", "nlvr2/data/test1.json"),
        },
        images=(
            "../images/{first}",
            "images/{first}",
            "../{first}",
            "{first}",
            "../../{first}",
            "../images/nlvr2",
            "images",
        ),
    ),
    "nlvr": SetFormat(
        _nlvr_file,
        statement,
        files={
            "train": ("train.json", "train/train.json", "nlvr/train/train.json"),
            "validation": ("dev.json", "dev/dev.json", "nlvr/dev/dev.json"),
            "test": ("test.json", "test/test.json", "nlvr/test/test.json"),
        },
        images=("images", "{first}/images"),
    ),
}
