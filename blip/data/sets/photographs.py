"""Captions of photographs, the files of COCO and of Karpathy's splits; and images that are named by their number."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blip.data.columns import Columns, without_columns
from blip.data.formats import AnnotationError, Records, checked, is_object, iter_json_object, iter_records, kind_of


def identifier(record: Mapping[str, Any], name: str, path: Path, *, place: str) -> int | str:
    """The number or text by which records of a file refer to one another; AnnotationError for anything else."""
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise AnnotationError(path, place, f"its {name} is {kind_of(value)}, not a whole number or text")
    return value


def numbered_images(root: str, places: Iterable[tuple[str, re.Pattern[str]]]) -> dict[int | str, str]:
    """Number of an image -> its path below `root`, of the files in some folders that have a name of the pattern beside
    the folder; its first group is the number. Of several files with one number the last counts."""
    paths: dict[int | str, str] = {}
    for folder, pattern in places:
        for name in names_in(os.path.join(root, folder)):
            if match := pattern.fullmatch(name):
                paths[int(match[1])] = os.path.join(folder, name)
    return paths


def names_in(folder: str) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder."""
    try:
        return sorted(os.listdir(folder or "."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def karpathy_file(path: Path, root: str, columns: Columns) -> Records:
    """BLIP's form, a list of records, or Karpathy's `dataset_coco.json`, whose sentences become captions."""
    if not is_object(path):
        yield from iter_records(path, columns=columns)
        return
    without_columns(path, columns)
    number = 0
    for key, item in checked(path, iter_json_object):
        if key == "images":
            number += 1
            sentences = item.get("sentences") if isinstance(item, dict) else None
            if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
                raise AnnotationError(path, f"image {number}", "has no list of sentences: not Karpathy's form")
            parts = [item.get("filepath", ""), item.get("filename", "")]
            if not all(isinstance(part, str) for part in parts):
                raise AnnotationError(
                    path, f"image {number}", f"its filepath and filename are {parts!r:.100}, not text"
                )
            yield (
                f"image {number}",
                {
                    "image": str(Path(*parts)),
                    "caption": [sentence.get("raw") for sentence in sentences],
                    "image_id": item.get("cocoid", item.get("imgid")),
                    "split": item.get("split"),
                },
            )
    if not number:
        raise AnnotationError(path, "", "has no images: not Karpathy's form")


def coco_captions_file(path: Path, root: str, columns: Columns) -> Records:
    """COCO's `captions_train2017.json`: separate lists `images` and `annotations`, joined by the image's id."""
    without_columns(path, columns)
    names: dict[Any, str] = {}
    captions: dict[Any, list[str]] = {}
    for key, item in checked(path, iter_json_object):
        if key == "images":
            if not isinstance(item, dict) or not {"id", "file_name"} <= set(item):
                raise AnnotationError(path, f"image {len(names) + 1}", "needs id and file_name")
            number = identifier(item, "id", path, place=f"image {len(names) + 1}")
            if number in names:
                raise AnnotationError(path, f"image {len(names) + 1}", f"has the id {number!r:.60} of an earlier one")
            names[number] = item["file_name"]
        elif key == "annotations":
            if not isinstance(item, dict) or not {"image_id", "caption"} <= set(item):
                raise AnnotationError(path, f"an annotation of {item!r:.60}", "needs image_id and caption")
            number = identifier(item, "image_id", path, place=f"an annotation of {item!r:.60}")
            captions.setdefault(number, []).append(item["caption"])
    if not names or not captions:
        raise AnnotationError(path, "", "needs lists images and annotations: not COCO's form")
    if unknown := [image for image in captions if image not in names]:
        raise AnnotationError(
            path, "", f"has captions of {len(unknown)} images that it does not list, such as {unknown[0]}"
        )
    for image, name in names.items():
        yield f"image {image}", {"image": name, "caption": captions.get(image, []), "image_id": image}
