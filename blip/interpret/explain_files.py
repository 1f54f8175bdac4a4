"""`blip explain`: maps of images, folders and annotation files, in batches, written as pictures.

A record that cannot be explained is reported and left out; it never ends the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from blip.data.formats import iter_records
from blip.data.images import find_images, readable_batches
from blip.data.places import is_annotation_file
from blip.data.records import path_problem, text_problem
from blip.errors import InputError
from blip.inference.inputs import CAPTIONS
from blip.inference.predictor import Predictor
from blip.interpret.explain import PAIRS_AT_ONCE, Explanation, explain_pairs, objective_of
from blip.interpret.objectives import Objective, completed_answers, completed_captions
from blip.interpret.pictures import PictureError, check_ending, files_of, needs_matplotlib, save, sized
from blip.models.decoding import Decoding


@dataclass
class Wanted:
    """An image to explain with its text, and its answer where the text is a question."""

    image: Path
    text: str
    answer: str = ""
    of_record: bool = False  # text and answer stand in a data set; else they are the caller's


@dataclass(frozen=True)
class How:
    """How `explain_files` explains: arguments of `explain_pairs`.

    Args:
        target: of the captions and answers of records, explain the model's own (`predicted`) or the record's (`true`).
        decoding: of the model's own captions.
    """

    task: str = ""
    method: str = ""
    layer: int | None = None
    rows: str = "words"
    target: str = "predicted"  # or true
    decoding: Decoding = field(default_factory=lambda: CAPTIONS)
    batch_size: int = PAIRS_AT_ONCE

    def __post_init__(self) -> None:
        if self.target not in ("predicted", "true"):
            raise InputError(f"target is {self.target!r}; it can be predicted or true")


def find_pairs(place: str | Path, texts: Sequence[str], problems: list[str] | None = None) -> list[Wanted]:
    """Every text about an image, or about every image of a folder; or the records of an annotation file.

    Records have `image`, and `caption`, or `question` and perhaps `answer`; of several captions the first is taken.
    A record with neither gets an empty text, which is enough where none is needed.

    Raises:
        PictureError: a record cannot be used. With `problems` its message goes there, and the record is left out.
    """
    place = Path(place)
    if not is_annotation_file(place):
        return [Wanted(image, text) for image in find_images([place]) for text in texts or [""]]
    if texts:
        raise PictureError(f"{place} has its own texts: leave out {texts[0]!r}")
    wanted = []
    for where, record in iter_records(place, needed=("image",), also=("caption", "question", "answer")):
        try:
            wanted.append(_wanted(place, where, record if isinstance(record, dict) else {}))
        except PictureError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return wanted


def _wanted(place: Path, where: str, record: dict[str, Any]) -> Wanted:
    image, text = record.get("image"), _first(record.get("question") or record.get("caption"))
    answer = _first(record.get("answer")) if record.get("question") else ""
    if not isinstance(image, str) or text is None or answer is None:
        raise PictureError(f"{place}, {where}: needs image, and caption, or question and answer, as texts")
    if problem := path_problem(image) or text_problem(text) or text_problem(answer):
        raise PictureError(f"{place}, {where}: its image or text {problem}")
    return Wanted(place.parent / image, text, answer, of_record=True)


def _first(value: Any) -> str | None:
    """A text, or the first one of a list; "" for nothing, None for anything else."""
    value = value[0] if isinstance(value, list) and value else value
    value = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    return "" if value is None or value == [] else value if isinstance(value, str) else None


def check_wanted(m: Predictor, wanted: Sequence[Wanted], needed: bool) -> None:
    """PictureError, before any work, for a text that is too long for the model, or empty where texts are `needed`."""
    texts = [one.text for one in wanted]
    for one, problem in zip(wanted, _problems(m, texts, m.max_text_tokens, needed=needed), strict=True):
        if problem:
            raise PictureError(f"{one.image}: its text {problem}")


def _problems(m: Predictor, texts: Sequence[str], longest: int, *, needed: bool) -> list[str]:
    """What makes a text unusable for the model, as the end of a sentence about it, or ""."""
    problems = []
    for tokens in m.tokenizer.count([m.cleaned(text) for text in texts]):
        if tokens > longest:
            problems.append(f"has {tokens} tokens, the model reads {longest}")
        else:
            problems.append("is empty; give an annotation file, or a text" if needed and tokens < 3 else "")
    return problems


def explain_files(
    m: Predictor, wanted: Sequence[Wanted], out: Path, how: How | None = None
) -> tuple[list[Path], list[str]]:
    """Writes maps as pictures, one page or several files, see `pictures.save`.

    Returns:
        The files, and a message for each image or text that could not be explained.

    Raises:
        PictureError: none of the texts can be explained, or pictures cannot be written.
    """
    how = how or How()
    check_ending(out)
    needs_matplotlib()
    objective = objective_of(m, how.task, how.method, has_texts=any(one.text for one in wanted))
    usable, problems = _usable(m, wanted, objective, how)
    images: list[Any] = []
    explanations: list[Explanation] = []
    names: list[str] = []
    for asked, opened, unread in readable_batches(usable, how.batch_size, lambda one: one.image, limits=m.limits):
        problems += unread
        for one, image, explanation in _explained(m, asked, opened, objective=objective, how=how, problems=problems):
            images.append(sized(image))
            explanations.append(explanation)
            names.append(str(one.image))
    files = files_of(out, len(wanted))
    return (save(images, explanations, names, files) if explanations else []), problems


def _usable(m: Predictor, wanted: Sequence[Wanted], objective: Objective, how: How) -> tuple[list[Wanted], list[str]]:
    """The texts that the model can read, and messages about the others; PictureError if all are others."""
    predicts = objective.writes_texts and how.target == "predicted"
    usable, messages = [], []
    if objective.of_image:
        return list(wanted), []
    texts = [one.text for one in wanted]
    found = _problems(m, texts, objective.longest(m), needed=not objective.writes_texts)
    for one, problem in zip(wanted, found, strict=True):
        if how.target == "true" and one.of_record:
            missing = not one.answer if objective.has_answers else not one.text
            problem = problem or ("is missing: target true explains what records say" if missing else "")
        if problem and not (predicts and one.of_record):  # the record's caption is only shown
            messages.append(f"{one.image}: its text {problem}")
        else:
            usable.append(one)
    if messages and not usable:
        raise PictureError(messages[0])
    return usable, messages


def _explained(
    m: Predictor, asked: list[Wanted], images: list[Image.Image], *, objective: Objective, how: How, problems: list[str]
) -> list[tuple[Wanted, Image.Image, Explanation]]:
    """The explanations of a batch. What the model itself wrote may be empty: that is a message in `problems`."""
    own = [how.target == "predicted" and one.of_record for one in asked]
    texts = ["" if own[i] and objective.writes_texts else one.text for i, one in enumerate(asked)]
    answers = ["" if own[i] else one.answer for i, one in enumerate(asked)]
    if objective.writes_texts:
        texts = completed_captions(m, images, texts, how.decoding)
    if objective.has_answers:
        answers = completed_answers(m, images, texts, answers=answers)
    scored = answers if objective.has_answers else texts
    kept = []
    longest = m.max_text_tokens if objective.has_answers else objective.longest(m)
    for i, problem in enumerate(_problems(m, scored, longest, needed=not objective.of_image)):
        if problem:
            problems.append(f"{asked[i].image}: the model's text {scored[i][:60]!r} {problem}")
        else:
            kept.append(i)
    if not kept:
        return []
    found = explain_pairs(
        m,
        [images[i] for i in kept],
        [texts[i] for i in kept],
        answers=[answers[i] for i in kept] if objective.has_answers else "",
        task=objective.name,
        method=how.method,
        layer=how.layer,
        rows=how.rows,
        batch_size=how.batch_size,
    )
    return [(asked[i], images[i], _with_origin(x, asked[i], objective, how)) for i, x in zip(kept, found, strict=True)]


def _with_origin(explanation: Explanation, one: Wanted, objective: Objective, how: How) -> Explanation:
    """The explanation with where its text and its answer come from, and what the record says."""
    own = how.target == "predicted"
    if objective.has_answers:
        answer_is = "predicted" if not one.answer or (own and one.of_record) else "true" if one.of_record else "given"
        return replace(explanation, answer_is=answer_is, truth=one.answer if one.of_record and own else "")
    if objective.writes_texts:
        text_is = "predicted" if not one.text or (own and one.of_record) else "true" if one.of_record else "given"
        return replace(explanation, text_is=text_is, truth=one.text if one.of_record and own else "")
    return replace(explanation, text_is="true" if one.of_record else "given")
