"""Questions about images, in the files in which they are published: QUESTION_SETS, name -> format.

Answers are "closed" (yes or no, or one of a few that the question offers), "open" or, in VQA v2, also "number". In a
set that does not name the type, yes and no are closed and all others are open.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.data.columns import Columns
from blip.data.formats import Records, iter_records, kind_of, several_paths
from blip.data.sets.captions import ARTICLE, path_of, text_of
from blip.data.sets.layout import SetFormat, any_part
from blip.data.sets.videos import MSRVTT_QA, MSVD_QA, VIDEO_FOLDERS, rows, with_video
from blip.data.sets.vqa_med import vqa_med_file
from blip.data.sets.vqa_v2 import VQA_V2_FILES, vqa_v2_file
from blip.errors import InputError

ANSWER_TYPES = {"yes/no": "closed", "other": "open"}  # VQA v2's names
MAX_ANSWERS = 10_000  # of a question
ALSO = ("question_id", "qid", "image_id", "answer_type", "question_type", "category", "choices", "group", "split")


@dataclass
class Question:
    """A question about an image, with its answers; without any where a test set does not publish them."""

    image: str  # path relative to the set's images, or FILE#ROW
    question: str
    answers: list[str]  # each once
    weights: list[float]  # of each answer: its share of `references`
    answer_type: str  # closed, open, number: lower case
    question_id: str = ""  # "": its place in its file
    image_id: str = ""  # equal for questions on one image
    category: str = ""  # what the question is about, lower case: plane, organ, modality, abnormality, presence ...
    choices: list[str] = field(default_factory=list)
    group: str = ""  # what splits keep together: an article or a patient where the data name one, else the image
    references: list[str] = field(
        default_factory=list
    )  # answers as given, those of several annotators with repetitions
    further: list[str] = field(default_factory=list)  # paths of other pictures of the same item, in order

    @property
    def image_paths(self) -> list[str]:
        """All pictures that the question is about."""
        return [self.image, *self.further]


def answers_of(record: Mapping[str, Any], key: str = "answer") -> list[str]:
    """The text or list of texts under `key`; numbers become text. ValueError where there is none."""
    value = record.get(key) if key in record else text_of(record, key)
    if isinstance(value, list):
        if problem := "is empty" if not value else f"has {len(value):,} entries" if len(value) > MAX_ANSWERS else "":
            raise InputError(f"its list of {key}s {problem}; it may have 1 to {MAX_ANSWERS:,}")
        return [_one_line(text_of({key: item}, key)) for item in value]
    return [_one_line(text_of(record, key))]


def make_question(
    record: Mapping[str, Any], image: str, references: Sequence[str], *, answer_type: str = "", **more: Any
) -> Question:
    """A `Question` with the text under `question`, whose answers are the different `references`, weighted by share.

    `more`: further fields of `Question`; empty ones are ignored.
    """
    counts = Counter(references)
    kind = ANSWER_TYPES.get(answer_type.lower(), answer_type.lower())
    if not kind:
        kind = "closed" if counts and {answer.lower() for answer in counts} <= {"yes", "no"} else "open"
    weights = [count / len(references) for count in counts.values()]
    more = {
        "image_id": "|".join([image, *more.get("further", ())]),
        **{name: value for name, value in more.items() if value},
    }
    question = Question(
        image, _one_line(text_of(record, "question")), list(counts), weights, kind, references=list(references), **more
    )
    question.category = question.category.lower()
    question.group = question.group or question.image_id
    return question


def _one_line(text: str) -> str:
    """The text with single blanks: VQA-RAD has tabs within questions and answers."""
    return " ".join(text.split())


def _optional(record: Mapping[str, Any], *names: str) -> str:
    """The text under the first of `names` that is not empty, or ""."""
    value = next((record[name] for name in names if record.get(name) not in (None, "")), "")
    if isinstance(value, (dict, list)):
        raise InputError(
            f"its {next(name for name in names if record.get(name) is value)} is {kind_of(value)}, not text"
        )
    return str(value).strip()


# ---- the generic form, and sets close to it -------------------------------------------------------------------


def generic(record: Any) -> Question:
    """`image` or `images`, `question`, `answer` (text, a number or a list), and optionally question_id, image_id,
    answer_type, category (or question_type), choices, group."""
    choices = record.get("choices") or [] if isinstance(record, dict) else []
    if not isinstance(choices, list):
        raise InputError(f"its choices are {kind_of(choices)}, not a list")
    images = several_paths(record)
    return make_question(
        record,
        images[0] if images else path_of(record, "image"),
        answers_of(record),
        further=images[1:],
        answer_type=_optional(record, "answer_type"),
        question_id=_optional(record, "question_id", "qid"),
        image_id=_optional(record, "image_id"),
        category=_optional(record, "category", "question_type"),
        choices=[text_of({"choice": choice}, "choice") for choice in choices],
        group=_optional(record, "group", "patient", "article"),
    )


def _plain(path: Path, root: str, columns: Columns) -> Records:
    return iter_records(path, needed=("image", "question", "answer"), also=ALSO, columns=columns)


def _asked(record: Any) -> Question:
    """As `generic`, but the answer may be absent."""
    if isinstance(record, dict) and record.get("answer") in (None, "", []):
        question = generic({**record, "answer": "yes", "answer_type": record.get("answer_type") or "open"})
        question.answers, question.weights, question.references = [], [], []
        return question
    return generic(record)


def _asked_file(path: Path, root: str, columns: Columns) -> Records:
    return iter_records(path, needed=("image", "question"), also=("answer", *ALSO), columns=columns)


def _vqa_rad(record: Any) -> Question:
    """The official JSON, in which answer types may end in a blank and answers may be numbers; or parquet."""
    if isinstance(record, dict) and "image_name" not in record and "image" in record:
        return generic(record)
    image = path_of(record, "image_name").strip()
    return make_question(
        record,
        image,
        answers_of(record),
        answer_type=_optional(record, "answer_type"),
        question_id=_optional(record, "qid"),
        category=_joined(_optional(record, "question_type")),
    )


def _joined(categories: str) -> str:
    """VQA-RAD's "PRES, ATTRIB", in any order, becomes "attrib+pres"; `score_answers` counts it in both categories."""
    return "+".join(sorted({name for part in categories.lower().split(",") if (name := part.strip())}))


def _vqa_rad_part(record: Mapping[str, Any]) -> str | None:
    """The official split follows from `phrase_type`: test_freeform and test_para are the test set."""
    phrase = record.get("phrase_type")
    return ("test" if phrase.startswith("test") else "train") if isinstance(phrase, str) else any_part(record)


def _slake(record: Any) -> Question:
    image = path_of(record, "img_name").strip()
    return make_question(
        record,
        image,
        answers_of(record),
        answer_type=_optional(record, "answer_type"),
        question_id=_optional(record, "qid"),
        category=_optional(record, "content_type"),
    )


def _slake_part(record: Mapping[str, Any]) -> str | None:
    """Leaves out the Chinese half of SLAKE, which an English BERT vocabulary cannot encode."""
    return any_part(record) if record.get("q_lang", "en") == "en" else None


# ---- PMC-VQA ---------------------------------------------------------------------------------------------------------


def _pmc_vqa(record: Any) -> Question:
    """Four choices, of which one is the answer: given as text or as its letter, in the column `Answer` or, misspelt in
    the published file, `Anwser`."""
    image = path_of(record, "Figure_path").strip()
    choices = {letter: _choice(text_of(record, f"Choice {letter}")) for letter in "ABCD"}
    answer = _choice(text_of(record, "Answer", "Anwser"))
    label = _optional(record, "Answer_label", "Anwser_label")
    letter = label if label in choices else answer
    article = ARTICLE.match(os.path.basename(image))
    return make_question(
        {"question": text_of(record, "Question")},
        image,
        [choices.get(letter, answer)],
        answer_type="closed",
        choices=list(choices.values()),
        group=article[0] if article else "",
    )


def _choice(text: str) -> str:
    """The choice without its letter: "A: left lung" becomes "left lung"."""
    return re.sub(r"^\s*[A-D]\s*:\s*(?=\S)", "", text).strip()


def _pmc_vqa_file(path: Path, root: str, columns: Columns) -> Records:
    choices = ("Choice A", "Choice B", "Choice C", "Choice D")
    return iter_records(path, needed=("Figure_path", "Question", *choices), columns=columns)


# ---- VQA v2 ----------------------------------------------------------------------------------------------------------


def _vqa_v2(record: Any) -> Question:
    """The joined official record, or BLIP's: each of ten answers weighs 0.1, an answer of Visual Genome 0.2."""
    text_of(record, "question")
    references = answers_of(record) if record.get("answer") is not None else []
    question = make_question(
        record,
        path_of(record, "image"),
        references,
        answer_type=_optional(record, "answer_type"),
        question_id=_optional(record, "question_id"),
        image_id=_optional(record, "image_id"),
        category=_optional(record, "question_type"),
    )
    if record.get("dataset") == "vg":
        question.weights = [0.2 * weight for weight in question.weights]
    return question


def _about_video(ending: str) -> Callable[[Any], Question]:
    return lambda record: generic(with_video(record, "video", ending))


_ABOUT_VIDEOS = rows("question", "answer")
_VQA_RAD = "VQA_RAD Dataset Public.json"

QUESTION_SETS: dict[str, SetFormat[Question]] = {
    "json": SetFormat(_plain, generic),
    "vqa_rad": SetFormat(
        _plain,
        _vqa_rad,
        files={"train": ("trainset.json", _VQA_RAD), "test": ("testset.json", _VQA_RAD)},
        images=("VQA_RAD Image Folder", "images"),
        part=_vqa_rad_part,
    ),
    "slake": SetFormat(
        _plain,
        _slake,
        files={"train": ("train.json",), "validation": ("validate.json", "validation.json"), "test": ("test.json",)},
        images=("imgs", "images"),
        part=_slake_part,
    ),
    "path_vqa": SetFormat(_plain, generic),
    "retina_vqa": SetFormat(_plain, generic),
    "vqa_med_2019": SetFormat(
        vqa_med_file,
        generic,
        files={
            "train": ("All_QA_Pairs_train.txt", "*/All_QA_Pairs_train.txt"),
            "validation": ("All_QA_Pairs_val.txt", "*/All_QA_Pairs_val.txt"),
            "test": tuple(f"{below}VQAMed2019_Test_Questions_w_Ref_Answers.txt" for below in ("", "*/", "*/*/")),
        },
        images=tuple(
            f"{up}{name}"
            for up in ("", "../")
            for name in ("{last}_images", "Train_images", "Val_images", "VQAMed2019_Test_Images")
        ),
    ),
    "pmc_vqa": SetFormat(
        _pmc_vqa_file,
        _pmc_vqa,
        files={"train": ("train.csv", "train_2.csv", "train2.csv"), "test": ("test.csv", "test_2.csv", "test2.csv")},
        images=("images", "figures", "images_2", "images2"),
    ),
    "msvd_qa": SetFormat(_ABOUT_VIDEOS, _about_video(".avi"), files=MSVD_QA, images=VIDEO_FOLDERS),
    "msrvtt_qa": SetFormat(_ABOUT_VIDEOS, _about_video(".mp4"), files=MSRVTT_QA, images=VIDEO_FOLDERS),
    "vqa_v2": SetFormat(
        vqa_v2_file,
        _vqa_v2,
        files=VQA_V2_FILES,
        joins=True,
        images=("images", "../images/vqav2", "../images"),
    ),
}
# the generic form where the questions alone are needed: answers may be absent
ASKED: dict[str, SetFormat[Question]] = {"json": SetFormat(_asked_file, _asked)}
