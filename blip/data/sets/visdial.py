"""VisDial as published (Das et al. 2017): dialogues whose texts are numbers of two lists, images of COCO, and the file
of relevances beside it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip.data.columns import Columns, without_columns
from blip.data.formats import AnnotationError, Records, checked, is_object, iter_json_object, iter_records, kind_of
from blip.data.sets.photographs import identifier, numbered_images

VISDIAL_FILES = {
    "train": ("visdial_1.0_train.json", "visdial_0.9_train.json"),
    "validation": ("visdial_1.0_val.json", "visdial_0.9_val.json"),
    "test": ("visdial_1.0_test.json",),
}
VISDIAL_IMAGES = ("images", "../images")
PART = re.compile(r"(train|val|test)")
# part -> how its images are named, the usual first: version 0.9 has those of COCO alone
IMAGES = {
    "train": ("COCO_train2014", "COCO_val2014"),
    "val": ("VisualDialog_val2018", "COCO_val2014"),
    "test": ("VisualDialog_test2018",),
}
SUFFIX = "_dense_annotations.json"  # of the file of relevances
TEXTS = ("questions", "answers")


def visdial_file(path: Path, root: str, columns: Columns) -> Records:
    """Records of a file of dialogues, in the form that `sets.dialogues.dialogue` reads.

    Texts are looked up in the file's lists, images in `root` and its folders such as `VisualDialog_val2018` and
    `train2014`. Relevances come from `visdial_1.0_val_dense_annotations.json` beside `visdial_1.0_val.json`, where it
    exists.
    """
    without_columns(path, columns)
    if path.name.endswith(SUFFIX):
        raise AnnotationError(path, "", f"holds relevances alone: give {path.name.removesuffix(SUFFIX)}.json")
    if path.is_file() and not is_object(path):
        raise AnnotationError(path, "", "is not VisDial's form, an object with data: dataset: json reads other files")
    texts = _texts(path)
    part = match[1] if (match := PART.search(path.name)) else "val"
    images, relevances = _images(root, part), _relevances(path)
    number = 0
    for key, item in checked(path, _content):
        if key == "dialogs":
            number += 1
            place = f"dialog {number}"
            record = _record(item, texts, path, place=place)
            image_id = record["image_id"]
            record["image"] = images.get(image_id) or _usual_name(image_id, part)
            for place_in_dialog, exchange in enumerate(record["dialog"], start=1):
                if values := relevances.get((image_id, place_in_dialog)):
                    exchange["relevance"] = values
            yield place, record
    if not number:
        raise AnnotationError(path, "", "has no data.dialogs: not VisDial's form")


def _content(path: Path) -> Records:
    """(key, item) of the lists in `data`: texts and dialogues one by one."""
    return iter_json_object(path, inside="data")


def _texts(path: Path) -> Mapping[str, list[str]]:
    """The two lists of texts, as a rule before the dialogues; AnnotationError where one is missing or holds no text."""
    texts: dict[str, list[str]] = {name: [] for name in TEXTS}
    for key, item in checked(path, _content):
        if key in texts:
            if not isinstance(item, str):
                place = f"{key} {len(texts[key]) + 1}"
                raise AnnotationError(path, place, f"is {kind_of(item)}, not text")
            texts[key].append(item)
        elif key == "dialogs" and all(texts.values()):
            break
    if missing := [f"data.{name}" for name in TEXTS if not texts[name]]:
        raise AnnotationError(path, "", f"has no {' and no '.join(missing)}: not VisDial's form")
    return texts


def _record(item: Any, texts: Mapping[str, list[str]], path: Path, *, place: str) -> dict[str, Any]:
    """The dialogue with texts in place of numbers."""
    if not isinstance(item, dict) or not {"image_id", "caption", "dialog"} <= set(item):
        raise AnnotationError(path, place, "needs image_id, caption and dialog")
    if not isinstance(item["dialog"], list):
        raise AnnotationError(path, place, f"its dialog is {kind_of(item['dialog'])}, not a list")
    exchanges = []
    for number, one in enumerate(item["dialog"], start=1):
        here = f"{place}, exchange {number}"
        if not isinstance(one, dict):
            raise AnnotationError(path, here, f"is {kind_of(one)}, not an object")
        exchange = {name: value for name, value in one.items() if name == "gt_index"}
        for name, texts_of in (("question", "questions"), ("answer", "answers")):
            if name in one:
                exchange[name] = _text(texts[texts_of], one[name], name, path, place=here)
        if "answer_options" in one:
            options = one["answer_options"]
            if not isinstance(options, list):
                raise AnnotationError(path, here, f"its answer_options are {kind_of(options)}, not a list")
            answers = texts["answers"]
            exchange["answer_options"] = [_text(answers, x, "answer_options", path, place=here) for x in options]
        exchanges.append(exchange)
    image_id = identifier(item, "image_id", path, place=place)
    return {"image_id": image_id, "caption": item["caption"], "dialog": exchanges}


def _text(texts: list[str], number: Any, name: str, path: Path, *, place: str) -> str:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(texts):
        problem = f"its {name} is {number!r:.40}, and the file has {len(texts)} such texts, counted from 0"
        raise AnnotationError(path, place, problem)
    return texts[number]


# ---- what lies beside the file ---------------------------------------------------------------------------------------


def _relevances(path: Path) -> dict[tuple[int | str, int], list[float]]:
    """(image, round from 1) -> a number for each option, of the file beside; {} where there is none."""
    beside = path.with_name(f"{path.stem}{SUFFIX}")
    if not beside.is_file():
        return {}
    found = {}
    for place, item in iter_records(beside):
        values = item.get("gt_relevance", item.get("relevance")) if isinstance(item, dict) else None
        if not isinstance(values, list) or not {"image_id", "round_id"} <= set(item):
            raise AnnotationError(beside, place, "needs image_id, round_id and gt_relevance, a list")
        number = item["round_id"]
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise AnnotationError(beside, place, f"its round_id is {number!r:.40}; rounds are counted from 1")
        found[identifier(item, "image_id", beside, place=place), number] = values
    return found


def _usual_name(image_id: int | str, part: str) -> str:
    """For the message of an image that is not there."""
    return f"{IMAGES[part][0]}_{image_id:0>12}.jpg"


def _images(root: str, part: str) -> dict[int | str, str]:
    """Number of an image -> its path below `root`, of the images there that are named as those of the part."""
    return numbered_images(
        root,
        (
            (folder, re.compile(rf"{name}_(\d{{12}})\.jpg"))
            for name in reversed(IMAGES[part])  # the usual one wins
            for folder in ("", name, name.removeprefix("COCO_"))
        ),
    )
