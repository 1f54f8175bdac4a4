"""`blip explain`: maps of images, folders and annotation files, in batches, written as pictures.

A record that cannot be explained is reported and left out; it never ends the rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from blip.console.bars import Bars
from blip.data.places import find_records, is_source
from blip.data.sources import source_of
from blip.errors import InputError
from blip.inference.files import readable_items
from blip.inference.inputs import CAPTIONS, Study
from blip.inference.predictor import Predictor
from blip.inference.query_scoring import token_counts
from blip.interpret.explain import PAIRS_AT_ONCE, Explanation, Origin, explain_pairs, objective_of
from blip.interpret.objectives import Objective, completed_answers, completed_captions
from blip.interpret.pictures import PictureError, check_ending, files_of, needs_matplotlib, save, sized
from blip.models.decoding import Decoding

Opened = Image.Image | Study


@dataclass
class Wanted:
    """An image to explain with its text, and its answer where the text is a question."""

    image: Path  # of an item of several pictures the first
    text: str
    answer: str = ""
    of_record: bool = False  # text and answer stand in a data set; else they are the caller's
    truth: str = ""  # the record's caption or all of its answers
    further: list[Path] = field(default_factory=list)  # other pictures of the item

    @property
    def paths(self) -> list[Path]:
        """Of all pictures."""
        return [self.image, *self.further]

    @property
    def name(self) -> str:
        """The paths, as a page shows them."""
        return ", ".join(map(str, self.paths))


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


def find_pairs(
    place: str | Path, texts: Sequence[str], problems: list[str] | None = None, **how: Any
) -> Iterator[Wanted]:
    """Every text about an image, or about every image of a folder; or the records of any source.

    Of several captions the first is taken. A record without a text gets an empty one, which is enough where none is
    needed.

    Args:
        place: as in `find_records`, whose options `how` holds.
        problems: gets a message for each record that cannot be used, which is left out.

    Raises:
        PictureError: the source has texts of its own, or two images a record.
        AnnotationError: a record cannot be used, without `problems`; or the source cannot be read.
    """
    if texts and is_source(source_of(place, **how)):
        raise PictureError(f"{place} has its own texts: leave out {texts[0]!r}")
    on_problem = None if problems is None else lambda error: problems.append(str(error))
    for record in find_records(place, on_problem=on_problem, **how):
        if len(record.items) > 1:
            raise PictureError(f"{record.place}: a map has one image, and the record has {len(record.images)}")
        image, *further = map(Path, record.images)
        answers = record.answers
        if texts:
            yield from (Wanted(image, text, further=further) for text in texts)
        else:
            truth = " / ".join(answers) if record.question else record.text
            yield Wanted(
                image, record.text, next(iter(answers), ""), of_record=bool(record.place), truth=truth, further=further
            )


def check_wanted(m: Predictor, wanted: Sequence[Wanted], needed: bool) -> None:
    """PictureError, before any work, for a text that is too long for the model, or empty where texts are `needed`."""
    texts = [one.text for one in wanted]
    for one, problem in zip(wanted, _problems(m, texts, m.max_text_tokens, needed=needed), strict=True):
        if problem:
            raise PictureError(f"{one.image}: its text {problem}")


def _problems(m: Predictor, texts: Sequence[str], longest: int, *, needed: bool) -> list[str]:
    """What makes a text unusable for the model, as the end of a sentence about it, or ""."""
    problems = []
    for tokens in token_counts(m, texts):
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
    batches = readable_items(usable, how.batch_size, lambda one: one.paths, limits=m.limits)
    for asked, opened, unread in Bars().over(batches, "explaining", -(-len(usable) // how.batch_size)):
        problems += unread
        for one, image, explanation in _explained(m, asked, opened, objective=objective, how=how, problems=problems):
            pictures = image.pictures if isinstance(image, Study) else [image]
            made = [sized(picture) for picture in pictures]
            images.append(made if isinstance(image, Study) else made[0])
            explanations.append(explanation)
            names.append(one.name)
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
    m: Predictor, asked: list[Wanted], images: list[Opened], *, objective: Objective, how: How, problems: list[str]
) -> list[tuple[Wanted, Opened, Explanation]]:
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
        return replace(explanation, answer_is=_origin(one.answer, one.of_record, own), truth=one.truth if own else "")
    if objective.writes_texts:
        return replace(explanation, text_is=_origin(one.text, one.of_record, own), truth=one.truth if own else "")
    return replace(explanation, text_is="true" if one.of_record else "given")


def _origin(known: str, of_record: bool, own: bool) -> Origin:
    """Where the explained text comes from; `own`: of records, the model's is explained."""
    if not known or (own and of_record):
        return "predicted"
    return "true" if of_record else "given"
