"""Dialogues about images, in the files in which they are published: DIALOGUE_SETS, name -> format."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.data.columns import Columns
from blip.data.formats import Records, iter_records, kind_of, several_paths
from blip.data.sets.captions import path_of, text_of
from blip.data.sets.layout import SetFormat
from blip.data.sets.visdial import VISDIAL_FILES, VISDIAL_IMAGES, visdial_file
from blip.errors import InputError

MAX_ROUNDS, MAX_OPTIONS = 1000, 10_000  # of a dialogue, of a question


@dataclass
class Exchange:
    """A question with its answer, and the candidates to choose the answer from, where there are any."""

    question: str
    answer: str | None = None  # None: not published
    options: list[str] = field(default_factory=list)
    right: int = -1  # the number of the right option, from 0; -1: not published
    relevance: list[float] = field(default_factory=list)  # of each option, 0 to 1, where people have judged them


@dataclass
class Dialogue:
    """An image, its caption, and questions about it, each of which knows what was said before."""

    image: str  # path relative to the set's images, or FILE#ROW
    caption: str
    exchanges: list[Exchange]
    image_id: str = ""  # as in files of results; "": the path
    further: list[str] = field(default_factory=list)  # paths of other pictures of the same item, in order

    @property
    def image_paths(self) -> list[str]:
        """All pictures that the dialogue is about."""
        return [self.image, *self.further]


def dialogue(record: Any) -> Dialogue:
    """`image`, or `images` of one item, `caption`, `dialog` (or `dialogue`), a list of exchanges, optionally
    `image_id`; ValueError otherwise.

    An exchange has `question`, `answer`, and where an answer is to be chosen `answer_options`, a list of texts, with
    `gt_index`, the number of the right one from 0. Without that number, the option that equals `answer` is right.
    `relevance`, a number for each option, is needed for NDCG alone.
    """
    image, *further = several_paths(record) or [path_of(record, "image")]
    caption = text_of(record, "caption")
    given = record.get("dialog", record.get("dialogue"))
    if not isinstance(given, list) or not given:
        raise InputError(f"its dialog is {'empty' if given == [] else kind_of(given)}, not a list of exchanges")
    if len(given) > MAX_ROUNDS:
        raise InputError(f"its dialog has {len(given):,} exchanges; at most {MAX_ROUNDS:,} are read")
    exchanges = [_exchange(number, one) for number, one in enumerate(given, start=1)]
    image_id = text_of(record, "image_id") if record.get("image_id") not in (None, "") else ""
    for number, one in enumerate(exchanges[:-1], start=1):
        if one.answer is None:
            raise InputError(f"exchange {number} has no answer: only that of the last question may be unknown")
    return Dialogue(image, caption, exchanges, image_id, further)


def _exchange(number: int, given: Any) -> Exchange:
    """InputError, which begins with the exchange, for one that cannot be used."""
    try:
        question = text_of(given, "question")
        options = _options(given)
        right = _right(given, options)
        answer = None if given.get("answer") is None else _said(given["answer"], "answer")
        if answer is None and right >= 0:
            answer = options[right]
        if answer is not None and right < 0 and answer in options:
            right = options.index(answer)
        return Exchange(question, answer, options, right, _relevance(given, options))
    except ValueError as error:
        raise InputError(f"exchange {number}: {error}") from None


def _options(given: Mapping[str, Any]) -> list[str]:
    options = given.get("answer_options") or []
    if not isinstance(options, list):
        raise InputError(f"its answer_options are {kind_of(options)}, not a list")
    if len(options) == 1 or len(options) > MAX_OPTIONS:
        raise InputError(f"it has {len(options):,} answer_options; to choose takes 2 to {MAX_OPTIONS:,}")
    return [_said(option, "answer option") for option in options]


def _said(text: Any, name: str) -> str:
    """The text of an answer, which may be blank; InputError for anything else."""
    if isinstance(text, str) and not text.strip():
        return ""
    return text_of({name: text}, name)


def _right(given: Mapping[str, Any], options: list[str]) -> int:
    right = given.get("gt_index")
    if right is None:
        return -1
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise InputError(f"its gt_index is {right!r}, and it has {len(options)} answer_options, counted from 0")
    return right


def _relevance(given: Mapping[str, Any], options: list[str]) -> list[float]:
    values = given.get("relevance") or []
    if not isinstance(values, list) or (values and len(values) != len(options)):
        count = len(values) if isinstance(values, list) else kind_of(values)
        raise InputError(f"its relevance is of {count} options, and it has {len(options)}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"its relevance holds {value!r}, not a number of 0 or more")
    return [float(value) for value in values]


def _plain(path: Path, root: str, columns: Columns) -> Records:
    return iter_records(path, needed=("image", "caption", "dialog"), also=("image_id", "split"), columns=columns)


DIALOGUE_SETS: dict[str, SetFormat[Dialogue]] = {
    "json": SetFormat(_plain, dialogue),
    "visdial": SetFormat(visdial_file, dialogue, files=VISDIAL_FILES, images=VISDIAL_IMAGES, joins=True),
}
