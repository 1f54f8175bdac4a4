"""VQA v2 as published: questions in one file, ten answers each in another, images by the number in their name."""

import re
from pathlib import Path
from typing import Any

from blip.data.columns import Columns, without_columns
from blip.data.formats import AnnotationError, Records, checked, is_object, iter_json_object, iter_records
from blip.data.sets.photographs import identifier, names_in, numbered_images

SUBSET = re.compile(r"(train|val|test)20\d\d")
IMAGE = re.compile(r"(?:COCO_\w+_)?(\d{12})\.jpg")
VQA_V2_FILES = {
    "train": ("v2_OpenEnded_mscoco_train2014_questions.json", "vqa_train.json"),
    "validation": ("v2_OpenEnded_mscoco_val2014_questions.json", "vqa_val.json"),
    "test": ("v2_OpenEnded_mscoco_test2015_questions.json", "vqa_test.json"),
}


def vqa_v2_file(path: Path, root: str, columns: Columns) -> Records:
    """Records of a file of questions, joined with the annotations beside it; or of BLIP's JSON, a list with both.

    `v2_OpenEnded_mscoco_train2014_questions.json` is joined with `v2_mscoco_train2014_annotations.json`, and
    `questions.json` with `annotations.json`; the test set has no answers and no such file. Images are looked for in
    `root` and in its folders such as `train2014`. A record has question, question_id, image, image_id, answer (a list,
    absent in the test set), answer_type and question_type.
    """
    if not is_object(path):
        also = ("question_id", "answer", "dataset")
        yield from iter_records(path, needed=("image", "question"), also=also, columns=columns)
        return
    without_columns(path, columns)
    annotations = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
    answers = None
    subset = SUBSET.search(path.name)
    if annotations.is_file() and annotations != path:
        answers = _annotations(annotations)
    elif not (subset and subset[1] == "test"):
        raise AnnotationError(path, "", f"its answers are looked for in {annotations.name} beside it: no such file")
    images = _images(root, subset[0] if subset else "")
    number = 0
    for key, item in checked(path, iter_json_object):
        if key != "questions":
            continue
        number += 1
        if not isinstance(item, dict) or not {"question_id", "image_id", "question"} <= set(item):
            raise AnnotationError(path, f"question {number}", "needs question_id, image_id and question")
        for name in ("question_id", "image_id"):
            identifier(item, name, path, place=f"question {number}")
        if answers is not None and item["question_id"] not in answers:
            problem = f"question_id {item['question_id']} is not in {annotations.name}"
            raise AnnotationError(path, f"question {number}", problem)
        yield f"question {number}", _record(item, answers, images, subset[0] if subset else "")
    if not number:
        raise AnnotationError(path, "", "has no list of questions: give the file of questions, not of annotations")


def _record(
    item: dict, answers: dict[int | str, tuple[str, str, str]] | None, images: dict[int | str, str], subset: str
) -> dict[str, Any]:
    number = item["image_id"]
    name = images.get(number)
    if name is None:  # for the message of the missing image
        name = f"COCO_{subset}_{number:012d}.jpg" if isinstance(number, int) and subset else f"{number:0>12}.jpg"
    record = {**item, "image": name}
    if answers is not None:
        given, record["answer_type"], record["question_type"] = answers[item["question_id"]]
        record["answer"] = given.split("\x1f")
    return record


def _annotations(path: Path) -> dict[int | str, tuple[str, str, str]]:
    """question_id -> answers, joined to one string (a tenth of a list's memory); their type; the question's type."""
    answers: dict[int | str, tuple[str, str, str]] = {}
    for key, item in checked(path, iter_json_object):
        if key != "annotations":
            continue
        place = f"annotation {len(answers) + 1}"
        if not isinstance(item, dict) or not {"question_id", "answers"} <= set(item):
            raise AnnotationError(path, place, "needs question_id and answers")
        try:
            texts = [answer["answer"] for answer in item["answers"] if answer["answer"].strip()]
            joined = "\x1f".join(texts)
        except (TypeError, KeyError, AttributeError):
            problem = 'its answers are to be a list such as [{"answer": "net"}, ...]'
            raise AnnotationError(path, place, problem) from None
        if not texts:
            raise AnnotationError(path, place, "its list of answers is empty")
        answers[identifier(item, "question_id", path, place=place)] = (
            joined,
            item.get("answer_type") or "",
            item.get("question_type") or "",
        )
    return answers


def _images(root: str, subset: str) -> dict[int | str, str]:
    """Number of an image -> its path below `root`, of all images there that are named as in COCO.

    The images of 2014 are also looked for in the folders of 2017, which divide them differently; `subset`'s own folder
    takes precedence.
    """
    subsets = sorted((name for name in names_in(root) if SUBSET.fullmatch(name)), key=lambda name: name == subset)
    return numbered_images(root, ((folder, IMAGE) for folder in ("", *subsets)))  # the last one wins
