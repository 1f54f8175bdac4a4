"""Questions about images, as their data sets are distributed: QUESTION_SETS, name -> format.

Answers are "closed" (yes or no, or one of a few that the question offers), "open" or, in VQA v2, also "number". Where a
set does not say, yes and no are closed and all else is open.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.data.formats import AnnotationError, Records, checked, iter_lines, iter_records, kind_of
from blip.data.sets.captions import ARTICLE, text_of
from blip.data.sets.layout import SetFormat, any_part
from blip.data.sets.vqa_v2 import VQA_V2_FILES, vqa_v2_file
from blip.errors import InputError

ANSWER_TYPES = {"yes/no": "closed", "other": "open"}  # VQA v2's names
ALSO = ("question_id", "qid", "image_id", "answer_type", "question_type", "category", "choices", "group", "split")


@dataclass
class Question:
    """A question about an image, with its answers; without any where a test set keeps them to itself."""

    image: str  # path relative to the set's images, or FILE#ROW
    question: str
    answers: list[str]  # each once
    weights: list[float]  # of each answer: its share of `references`
    answer_type: str  # closed, open, number: lower case
    question_id: str = ""  # "": its place in its file
    image_id: str = ""  # equal for questions on one image
    category: str = ""  # plane, organ, modality, abnormality, presence ...: what the question is about, lower case
    choices: list[str] = field(default_factory=list)
    group: str = ""  # what splits must not cut: an article or a patient where the data say, else the image
    references: list[str] = field(default_factory=list)  # answers as given, those of several people with repetitions


def answers_of(record: Mapping[str, Any], key: str = "answer") -> list[str]:
    """The text or list of texts under `key`; numbers become text. ValueError where there is none."""
    value = record.get(key) if key in record else text_of(record, key)
    if isinstance(value, list):
        if not value:
            raise InputError(f"its list of {key}s is empty")
        return [_one_line(text_of({key: item}, key)) for item in value]
    return [_one_line(text_of(record, key))]


def make_question(
    record: Mapping[str, Any], image: str, references: Sequence[str], answer_type: str = "", **more: Any
) -> Question:
    """A `Question` whose answers are the different `references`, weighted by share; the text is that of `question`."""
    counts = Counter(references)
    kind = ANSWER_TYPES.get(answer_type.lower(), answer_type.lower())
    if not kind:
        kind = "closed" if counts and {answer.lower() for answer in counts} <= {"yes", "no"} else "open"
    weights = [count / len(references) for count in counts.values()]
    more = {"image_id": image, **{name: value for name, value in more.items() if value}}
    question = Question(
        image, _one_line(text_of(record, "question")), list(counts), weights, kind, references=list(references), **more
    )
    question.category = question.category.lower()
    question.group = question.group or question.image_id
    return question


def _one_line(text: str) -> str:
    """With single blanks: VQA-RAD has tabs within questions and answers."""
    return " ".join(text.split())


def _optional(record: Mapping[str, Any], *names: str) -> str:
    """The text under the first of `names` that holds any, "" where none does."""
    value = next((record[name] for name in names if record.get(name) not in (None, "")), "")
    if isinstance(value, (dict, list)):
        raise InputError(f"its {next(name for name in names if record.get(name))} is {kind_of(value)}, not text")
    return str(value).strip()


# ---- the generic form, and sets that are nearly so -------------------------------------------------------------------


def generic(record: Any) -> Question:
    """`image`, `question`, `answer` (text, a number or a list) and perhaps question_id, image_id, answer_type, category
    (or question_type), choices, group."""
    choices = record.get("choices") or [] if isinstance(record, dict) else []
    if not isinstance(choices, list):
        raise InputError(f"its choices are {kind_of(choices)}, not a list")
    return make_question(
        record,
        text_of(record, "image"),
        answers_of(record),
        _optional(record, "answer_type"),
        question_id=_optional(record, "question_id", "qid"),
        image_id=_optional(record, "image_id"),
        category=_optional(record, "category", "question_type"),
        choices=[text_of({"choice": choice}, "choice") for choice in choices],
        group=_optional(record, "group", "patient", "article"),
    )


def _plain(path: Path, root: str) -> Records:
    return iter_records(path, needed=("image", "question", "answer"), also=ALSO)


def _vqa_rad(record: Any) -> Question:
    """The official JSON, whose answer types may end in a blank and whose answers are numbers at times; or parquet."""
    if isinstance(record, dict) and "image_name" not in record and "image" in record:
        return generic(record)
    image = text_of(record, "image_name")
    return make_question(
        record,
        image,
        answers_of(record),
        _optional(record, "answer_type"),
        question_id=_optional(record, "qid"),
        category=_joined(_optional(record, "question_type")),
    )


def _joined(categories: str) -> str:
    """VQA-RAD's "PRES, ATTRIB", which also stands in another order, is "attrib+pres": see `metrics.score_answers`."""
    return "+".join(sorted({name for part in categories.lower().split(",") if (name := part.strip())}))


def _vqa_rad_part(record: Mapping[str, Any]) -> str | None:
    """The official split is written into the kind of phrase: test_freeform, test_para, and all others."""
    phrase = record.get("phrase_type")
    return ("test" if phrase.startswith("test") else "train") if isinstance(phrase, str) else any_part(record)


def _slake(record: Any) -> Question:
    image = text_of(record, "img_name")
    return make_question(
        record,
        image,
        answers_of(record),
        _optional(record, "answer_type"),
        question_id=_optional(record, "qid"),
        category=_optional(record, "content_type"),
    )


def _slake_part(record: Mapping[str, Any]) -> str | None:
    """Half of SLAKE is in Chinese, which a BERT vocabulary of English cannot read."""
    return any_part(record) if record.get("q_lang", "en") == "en" else None


# ---- VQA-Med 2019 ----------------------------------------------------------------------------------------------------


def _vqa_med_file(path: Path, root: str) -> Records:
    """`image|question|answer`, or the reference of the test, `image|category|question|answer`. The category
    comes else from the files of `QAPairsByCategory/` beside, where that folder exists, or from the file's own name."""
    categories = {}
    for file in sorted((path.parent / "QAPairsByCategory").glob("C*_*_*.txt")):
        for _, line in iter_lines(file):
            categories[tuple(line.split("|")[:2])] = file.stem.split("_")[1]
    own = re.match(r"C\d_([A-Za-z]+)_", path.stem)
    for place, line in checked(path, iter_lines):
        fields = [text.strip() for text in line.split("|")]
        if len(fields) not in (3, 4):
            problem = f"{len(fields)} fields; a line is image|question|answer or image|category|question|answer"
            raise AnnotationError(path, place, problem)
        category = own[1] if own else categories.get(tuple(line.split("|")[:2]), "")
        test = len(fields) == 4
        yield (
            place,
            {
                "image": fields[0] and f"{fields[0]}.jpg",
                "category": fields[1] if test else category,
                "question": fields[-2],
                "answer": alternatives(fields[-1]) if test else fields[-1],
            },
        )


OPTIONAL = re.compile(r"\(([^()]*)\)")
MAX_OPTIONAL = 6  # each doubles the variants of an alternative


def alternatives(answer: str) -> list[str]:
    """Answers that a reference of VQA-Med's test allows: `#` between them, each with and without any part in ( ).

    "ct (with contrast)#cta" gives "ct with contrast", "ct" and "cta". Beyond six optional parts the rest is taken as
    said. Only for files that use these marks: elsewhere they are part of the answer.
    """
    found: list[str] = []
    for part in answer.split("#"):
        choices = [part]
        for _ in range(MAX_OPTIONAL):  # innermost parts first, so that nested ones work
            if not OPTIONAL.search(choices[-1]):
                break
            choices = [OPTIONAL.sub(kept, choice, count=1) for choice in choices for kept in (r" \1 ", " ")]
        found += [" ".join(OPTIONAL.sub(r" \1 ", choice).split()) for choice in choices]
    return [text for text in dict.fromkeys(found) if text]


# ---- PMC-VQA ---------------------------------------------------------------------------------------------------------


def _pmc_vqa(record: Any) -> Question:
    """Four choices, of which one is the answer: given as text or as its letter, under the heading `Answer` or, as
    published by mistake, `Anwser`."""
    image = text_of(record, "Figure_path")
    choices = {letter: _choice(text_of(record, f"Choice {letter}")) for letter in "ABCD"}
    answer = _choice(text_of(record, "Answer", "Anwser"))
    label = _optional(record, "Answer_label", "Anwser_label")
    letter = label if label in choices else answer
    article = ARTICLE.match(os.path.basename(image))
    return make_question(
        {"question": text_of(record, "Question")},
        image,
        [choices.get(letter, answer)],
        "closed",
        choices=list(choices.values()),
        group=article[0] if article else "",
    )


def _choice(text: str) -> str:
    """Without the letter in front: "A: left lung" is "left lung"."""
    return re.sub(r"^\s*[A-D]\s*:\s*(?=\S)", "", text).strip()


def _pmc_vqa_file(path: Path, root: str) -> Records:
    return iter_records(path, needed=("Figure_path", "Question", "Choice A", "Choice B", "Choice C", "Choice D"))


# ---- VQA v2 ----------------------------------------------------------------------------------------------------------


def _vqa_v2(record: Any) -> Question:
    """The joined official record, or BLIP's: there ten answers weigh a tenth each, and those of Visual Genome 0.2."""
    text_of(record, "question")
    references = answers_of(record) if record.get("answer") is not None else []
    question = make_question(
        record,
        text_of(record, "image"),
        references,
        _optional(record, "answer_type"),
        question_id=_optional(record, "question_id"),
        image_id=_optional(record, "image_id"),
        category=_optional(record, "question_type"),
    )
    if record.get("dataset") == "vg":
        question.weights = [0.2 * weight for weight in question.weights]
    return question


_VQA_RAD = "VQA_RAD Dataset Public.json"
_ROOT_OF_SLAKE = ("imgs", "images")

QUESTION_SETS: dict[str, SetFormat[Question]] = {
    "json": SetFormat(_plain, generic),
    "vqa_rad": SetFormat(
        _plain,
        _vqa_rad,
        {"train": ("trainset.json", _VQA_RAD), "test": ("testset.json", _VQA_RAD)},
        ("VQA_RAD Image Folder", "images"),
        _vqa_rad_part,
    ),
    "slake": SetFormat(
        _plain,
        _slake,
        {"train": ("train.json",), "validation": ("validate.json", "validation.json"), "test": ("test.json",)},
        _ROOT_OF_SLAKE,
        _slake_part,
    ),
    "path_vqa": SetFormat(_plain, generic),
    "retina_vqa": SetFormat(_plain, generic),
    "vqa_med_2019": SetFormat(
        _vqa_med_file,
        generic,
        {
            "train": ("All_QA_Pairs_train.txt", "*/All_QA_Pairs_train.txt"),
            "validation": ("All_QA_Pairs_val.txt", "*/All_QA_Pairs_val.txt"),
            "test": tuple(f"{below}VQAMed2019_Test_Questions_w_Ref_Answers.txt" for below in ("", "*/", "*/*/")),
        },
        tuple(
            f"{up}{name}"
            for up in ("", "../")
            for name in ("{last}_images", "Train_images", "Val_images", "VQAMed2019_Test_Images")
        ),
    ),
    "pmc_vqa": SetFormat(
        _pmc_vqa_file,
        _pmc_vqa,
        {"train": ("train.csv", "train_2.csv", "train2.csv"), "test": ("test.csv", "test_2.csv", "test2.csv")},
        ("images", "figures", "images_2", "images2"),
    ),
    "vqa_v2": SetFormat(
        vqa_v2_file,
        _vqa_v2,
        VQA_V2_FILES,
        ("images", "../images/vqav2", "../images"),
    ),
}
