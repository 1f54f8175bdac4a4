"""Where commands take records and images from: image files, folders of images, annotation files in every form that is
trained on, folders of sets, data sets of the hub, and single rows of parquet and arrow files.

`find_records` is the one function with which commands, `blip.data` and reports read them.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blip.data.formats import AnnotationError, iter_records, several_paths
from blip.data.frame_choice import is_video
from blip.data.hub import pinned
from blip.data.image_bytes import is_reference
from blip.data.images import ENDINGS, find_images
from blip.data.records import path_problem
from blip.data.sets.captions import CAPTION_SETS, Captioned
from blip.data.sets.dialogues import DIALOGUE_SETS, Dialogue
from blip.data.sets.layout import SetFormat, any_part, open_set
from blip.data.sets.questions import ASKED, QUESTION_SETS, Question
from blip.data.sets.statements import STATEMENT_SETS, Statement
from blip.data.sets.studies import StudyOptions
from blip.data.sources import Entry, Opened, Source, records_of, source_of, taken
from blip.errors import InputError, did_you_mean
from blip.hub.names import is_hub_name
from blip.outputs import OutputError

ANNOTATIONS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
# key of a record -> kind; the captions of dialogues are no captions to learn from
KINDS = {"dialog": "turns", "caption": "captions", "question": "questions", "sentence": "sentences"}
TABLES: dict[str, Mapping[str, SetFormat]] = {
    "captions": CAPTION_SETS,
    "questions": QUESTION_SETS,
    "sentences": STATEMENT_SETS,
    "turns": DIALOGUE_SETS,
}
OnProblem = Callable[[AnnotationError], None]


@dataclass
class Found:
    """A record of any source, with the texts that its source has."""

    images: list[str]  # paths, or references FILE#ROW: one, all pictures of one item, or left and right of a statement
    place: str = ""  # file and record, for messages; "" for an image that was given by itself
    captions: list[str] = field(default_factory=list)
    question: str = ""
    answers: list[str] = field(default_factory=list)  # each once
    statement: str = ""
    label: bool | None = None  # whether the statement is true
    image_id: str = ""
    answer_type: str = ""  # of a question: closed, open ...
    category: str = ""  # of a question
    choices: list[str] = field(default_factory=list)  # of a question

    @property
    def image(self) -> str:
        """The path of the image, of several the first."""
        return self.images[0]

    @property
    def items(self) -> list[tuple[str, ...]]:
        """The images that a text is about together: all of them, but of a statement each by itself."""
        return [tuple(self.images)] if self.label is None else [(image,) for image in self.images]

    @property
    def text(self) -> str:
        """The question, the first caption or the statement; "" for an image alone."""
        return self.question or next(iter(self.captions), "") or self.statement


def find_records(
    place: Entry,
    *,
    images_alone: bool = False,
    on_problem: OnProblem | None = None,
    study: StudyOptions | None = None,
    **usual: Any,
) -> Iterator[Found]:
    """The records of any place that the package reads, in their order.

    Args:
        place: an image, a folder of images, an annotation file, the folder of a set, hub:OWNER/NAME, FILE#ROW; or an
            entry of `train_file`.
        images_alone: texts are not needed: records of generic files without them, or with broken ones, are taken too.
        on_problem: called for each record that cannot be used, which is left out; None: it ends the reading.
        study: of sets of studies.
        usual: what the entry leaves open: `dataset`, `split`, `image_root`, `columns`, `limit`, `seed` of a `Source`.

    Example:
        >>> for record in find_records("hub:flaviagiammarino/vqa-rad", split="test", limit=10):
        ...     print(record.question, record.answers)

    Raises:
        NoImages: a place does not exist, or is a folder without images and annotations.
        AnnotationError: an annotation file cannot be read; or a record, without `on_problem`.
        InputError: an option cannot be used.
    """
    source = source_of(place, **usual)
    if is_hub_name(source.path):
        source = replace(source, path=pinned(source.path))  # what is asked several times stays the same
    if not is_source(source):
        images = [source.path] if _is_part(source.path) else find_images([source.path])
        yield from taken(lambda: (Found([str(image)]) for image in images), source.limit, source.seed)
        return
    sets, kind = (CAPTION_SETS, "images") if images_alone and source.dataset == "json" else kind_of_source(source)
    if kind == "images":
        yield from taken(lambda: _images_of_records(source, on_problem), source.limit, source.seed)
        return
    if kind == "questions" and source.dataset == "json":
        sets = ASKED  # answers are what commands give
    for opened in records_of(sets, [source], study=study):
        try:
            yield found(opened)
        except AnnotationError as error:
            if on_problem is None:
                raise
            on_problem(error)


def _is_part(path: str) -> bool:
    """Whether a place is a reference to a part of a file, such as FILE#ROW, SERIES/#slices=16 or clip.mp4#frames=8."""
    return is_reference(path) or ("#" in path and not os.path.lexists(path) and is_video(path))


def is_source(place: str | Path | Source) -> bool:
    """Whether a place has annotations, by its name and, of a folder, its files; otherwise it is an image or a folder of
    them."""
    source = place if isinstance(place, Source) else Source(str(place))
    if is_hub_name(source.path) or source.dataset != "json":
        return True
    if os.path.isdir(source.path):
        try:
            return bool(open_set(CAPTION_SETS, "json", source.path, split="all"))
        except AnnotationError:
            return False
    return is_annotation_file(source.path)


def is_annotation_file(place: str | Path) -> bool:
    """Whether a place is an annotation file, by the ending of its name."""
    return Path(place).suffix.lower() in ANNOTATIONS and Path(place).is_file()


def kind_of_source(source: Source) -> tuple[Mapping[str, SetFormat], str]:
    """The table that a source is read with, and what its texts are: captions, questions, sentences, or turns of
    a dialogue.

    With `dataset` json the first record decides: "images" where it has an image and none of these texts.

    Raises:
        InputError: there is no such data set.
    """
    if source.dataset != "json":
        for kind, sets in TABLES.items():
            if source.dataset in sets:
                return sets, kind
        names = set(itertools.chain(*TABLES.values()))
        raise InputError(f"dataset is {source.dataset!r}; {did_you_mean(source.dataset, names)}")
    keys = _first_keys(source)
    kind = next(
        (kind for key, kind in KINDS.items() if key in keys), "images" if {"image", "images"} & keys else "captions"
    )
    return TABLES.get(kind, CAPTION_SETS), kind


def _first_keys(source: Source) -> set[str]:
    """The keys of the first record, by the names of the package; if it cannot be read, which is an error later, those
    of `columns` alone."""
    wanted = ("image", "images", *KINDS)
    try:
        file = open_set(CAPTION_SETS, "json", source.path, split=source.split)[0].path
        _, first = next(iter_records(file, needed=(), also=wanted))
    except AnnotationError:
        return set(source.columns)
    keys = {str(key) for key in first} if isinstance(first, dict) else set()
    lower = {key.casefold() for key in keys}
    return keys | {key for key in wanted if key in lower} | set(source.columns)


def found(opened: Opened) -> Found:
    """A record of a set with the full paths of its images. AnnotationError for one that cannot be used."""
    record: Captioned | Question | Statement | Dialogue = opened.record()
    images = [os.path.normpath(os.path.join(opened.file.root, image)) for image in record.image_paths]
    one = Found(images, f"{opened.file.path}, {opened.place}")
    if isinstance(record, Captioned):
        return replace(one, captions=record.captions, image_id=record.image_id or "")
    if isinstance(record, Dialogue):
        return replace(one, captions=[record.caption], image_id=record.image_id)
    if isinstance(record, Statement):
        return replace(one, statement=record.sentence, label=record.label)
    return replace(
        one,
        question=record.question,
        answers=record.answers,
        image_id=record.image_id,
        answer_type=record.answer_type,
        category=record.category,
        choices=record.choices,
    )


def _images_of_records(source: Source, on_problem: OnProblem | None) -> Iterator[Found]:
    """The records of generic files with their images alone."""
    for file in open_set(CAPTION_SETS, "json", source.path, split=source.split, image_root=source.image_root):
        for where, raw in iter_records(file.path, needed=("image",), also=("split",), columns=source.columns):
            record = raw if isinstance(raw, dict) else {}
            if (part := any_part(record)) and file.split and part != file.split:
                continue
            try:
                images = _paths_of(record)
                for image in images:
                    file.check_image(where, image)
            except (InputError, AnnotationError) as found_error:
                error = AnnotationError(file.path, where, getattr(found_error, "problem", str(found_error)))
                if on_problem is None:
                    raise error from None
                on_problem(error)
                continue
            yield Found([os.path.normpath(os.path.join(file.root, x)) for x in images], f"{file.path}, {where}")


def _paths_of(record: Mapping[str, Any]) -> list[str]:
    """The paths of a record's image or images; InputError where it has none."""
    if several := several_paths(record):
        return several
    image = record.get("image")
    if not isinstance(image, str) or not image.strip():
        raise InputError("has no image, the path of a file")
    if problem := path_problem(image):
        raise InputError(f"its image {problem}")
    return [image]


def items_of(places: Sequence[str | Path], **usual: Any) -> list[list[str]]:
    """The different items of several places, in their order: the path of an image, or of all pictures of an item.

    Of statements about two images each image is an item. Arguments and errors as in `find_records`.
    """
    items: list[list[str]] = []
    for place in places:
        if is_source(source_of(place, **usual)):
            records = find_records(place, images_alone=True, **usual)
            items += map(list, dict.fromkeys(item for record in records for item in record.items))
        else:
            items += (record.images for record in find_records(place, **usual))
    return items


def images_of(places: Sequence[str | Path], **usual: Any) -> list[Path]:
    """The different images of several places, in their order; arguments and errors as in `find_records`."""
    images: list[Path] = []
    for place in places:
        if is_source(source_of(place, **usual)):  # several records may have one image; a dictionary keeps the order
            records = find_records(place, images_alone=True, **usual)
            images += map(Path, dict.fromkeys(image for record in records for image in record.images))
        else:
            images += (Path(record.image) for record in find_records(place, **usual))
    return images


def refuse_image_name(out: Path, ending: str) -> None:
    """OutputError where a file to write has the name of an image: it could be one that the inputs name."""
    if out.suffix.lower() in ENDINGS:
        raise OutputError(f"{out} is the name of an image: give one that ends in {ending}")
