"""Visual questions: annotations in memory (`read_questions`, `Questions`), then samples (`VqaDataset`,
`EvalQuestions`), of which `question_batches.py` makes batches.

Files of annotations are read in `sets/questions.py`; `question_splits.py` divides whole sets by image.
S: side of an image in pixels.
"""

import os
from array import array
from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from blip.data.compact import Labels, TextLists, Texts
from blip.data.eval_records import EvalRecords
from blip.data.images import LIMITS, ImageLimits
from blip.data.order import EpochOrder, Walk, seeded
from blip.data.pictures import finish_item, read_item
from blip.data.question_batches import VqaSample
from blip.data.sets.questions import QUESTION_SETS, Question
from blip.data.sources import Entry, records_of
from blip.data.training_images import TrainingImages, Transform, images_of
from blip.errors import InputError
from blip.tokenizer import Tokenizer

# ---- annotations in memory -------------------------------------------------------------------------------------------


class Questions:
    """N questions in flat arrays, from `read_questions`. `questions[i]` is the record, with the image's full path."""

    def __init__(self) -> None:
        # of each image, of which there are fewer than questions
        self._paths, self._image_ids, self._groups = Texts(), Texts(), Texts()
        self._further = TextLists()  # its other pictures; empty where no item has several
        # of each question
        self._image = array("q")
        self._questions, self._ids = Texts(), Texts()
        self._answers, self._choices = TextLists(), TextLists()
        self._weights = array("d")  # of each answer
        self._references, self._reference_ends = array("H"), array("q")  # each reference: which of the answers it is
        self._types, self._categories = Labels(), Labels()
        self._file_weights = array("d")
        self._rows: np.ndarray | None = None  # of a view: where its questions lie in these arrays

    def append(self, question: Question, images: dict[str, int], weight: float = 1.0) -> None:
        """Adds a question. `images`, path -> number, is an empty dict at first and holds the images added so far; of
        several pictures, their paths with NUL between them.

        Of several questions about one path, the first one's id and group are kept.
        """
        path = "\0".join(question.image_paths)
        if path not in images:
            self._further.append_late(question.further, len(self._paths))
            images[path] = len(self._paths)
            self._paths.append(question.image)
            self._image_ids.append(question.image_id)
            self._groups.append(question.group)
        self._image.append(images[path])
        self._questions.append(question.question)
        self._ids.append(question.question_id)
        self._answers.append(question.answers)
        self._weights.extend(question.weights)
        self._references.extend(question.answers.index(text) for text in question.references)
        self._reference_ends.append(len(self._references))
        self._choices.append(question.choices)
        self._types.append(question.answer_type)
        self._categories.append(question.category)
        self._file_weights.append(weight)

    def __len__(self) -> int:
        return len(self._image) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> Question:
        row, image = self._row(index), self._image[self._row(index)]
        answers = self._answers[row]
        first = self._reference_ends[row - 1] if row else 0
        return Question(
            self._paths[image],
            self._questions[row],
            answers,
            weights=self._weights[slice(*self._answers.span(row))].tolist(),
            answer_type=self._types[row],
            question_id=self._ids[row],
            image_id=self._image_ids[image],
            category=self._categories[row],
            choices=self._choices[row],
            group=self._groups[image],
            references=[answers[i] for i in self._references[first : self._reference_ends[row]]],
            further=self._further[image] if len(self._further) else [],
        )

    def image_path(self, index: int) -> str:
        """The path of the question's image, of several pictures the first."""
        return self._paths[self._image[self._row(index)]]

    def image_paths(self, index: int) -> list[str]:
        """The paths of all pictures that the question is about."""
        image = self._image[self._row(index)]
        return [self._paths[image], *(self._further[image] if len(self._further) else [])]

    def above(self, most: int) -> int:
        """How many items, about which there may be several questions, have more than `most` pictures."""
        counts = np.diff(np.asarray(self._further.ends), prepend=0) + 1
        return int((counts > most).sum())

    def image_number(self, index: int) -> int:
        """Equal for questions about one image, by its path."""
        return self._image[self._row(index)]

    def group(self, index: int) -> str:
        """What splits keep together: a patient or an article where the set names one, else the image's id."""
        return self._groups[self._image[self._row(index)]]

    def answer_counts(self) -> np.ndarray:
        """(N,) int64: how many different answers each question has; 0 where a test set does not publish them."""
        counts = np.diff(np.array(self._answers.ends), prepend=0)
        return counts if self._rows is None else counts[self._rows]

    def record_weights(self) -> np.ndarray | None:
        """(N,) float64: how often an epoch visits each question; None where all are 1."""
        rows = slice(None) if self._rows is None else self._rows
        weights = np.array(self._file_weights)[rows]
        return None if (weights == 1).all() else weights

    def view(self, indices: Sequence[int] | np.ndarray) -> "Questions":
        """Only the questions of these numbers, in that order, without copying their texts."""
        part = copy(self)
        chosen = np.asarray(indices, np.int64)
        part._rows = chosen if self._rows is None else self._rows[chosen]
        return part

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"question {index} of {len(self)}")
        return index if self._rows is None else int(self._rows[index])

    @property
    def nbytes(self) -> int:
        lists = (
            self._paths,
            self._further,
            self._image_ids,
            self._groups,
            self._questions,
            self._ids,
            self._answers,
            self._choices,
        )
        arrays = (self._image, self._weights, self._references, self._reference_ends, self._file_weights)
        held = sum(x.nbytes for x in (*lists, self._types, self._categories))
        return held + sum(len(x) * x.itemsize for x in arrays) + (0 if self._rows is None else self._rows.nbytes)


def read_questions(files: Sequence[Entry], image_root: str = "", dataset: str = "json", **options: Any) -> Questions:
    """Reads sets of questions, each a file or the folder as published.

    In a configuration: `dataset: slake`, `train_file: [/data/Slake1.0]`, read with split train; or
    `train_file: [/data/Slake1.0/train.json]`. The generic form, `json`, is a file whose records have `image`,
    `question` and `answer`; see `sets.questions.generic`.

    Args:
        files, options: as for `read_pairs`.
        image_root: folder that image paths are relative to; empty: where the set has its images, or the folder of the
            annotation file.
        dataset: a name of QUESTION_SETS.

    Raises:
        ValueError: no files, no such dataset, split or image_root.
        AnnotationError: the file, the record and what is wrong with it.
    """
    if not files:
        raise InputError("no files of questions are given")
    questions, images = Questions(), dict[str, int]()
    for opened in records_of(QUESTION_SETS, files, image_root=image_root, dataset=dataset, **options):
        file, record = opened.file, opened.record()
        record.image, *record.further = (os.path.normpath(os.path.join(file.root, x)) for x in record.image_paths)
        record.question_id = record.question_id or f"{os.path.basename(file.path)}:{opened.place.split()[-1]}"
        questions.append(record, images, opened.source.weight)
    return questions


# ---- samples ---------------------------------------------------------------------------------------------------------


class QuestionEncoder:
    """A question and its answers to ids, [CLS] ... [SEP]."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int = 35, max_answer_tokens: int = 30):
        """Longest question and answer, [CLS] and [SEP] included."""
        for name, value in (("max_tokens", max_tokens), ("max_answer_tokens", max_answer_tokens)):
            if value < 3:
                raise InputError(f"{name} is {value}: [CLS] and [SEP] take 2, the text needs some more")
        self.tokenizer, self.max_tokens, self.max_answer_tokens = tokenizer, max_tokens, max_answer_tokens

    def __call__(self, question: Question) -> tuple[list[int], list[list[int]]]:
        ids = self.tokenizer.encode([question.question], self.max_tokens)[0]
        return ids, self.tokenizer.encode(question.answers, self.max_answer_tokens)


class VqaDataset(Dataset):
    """Training samples by (epoch, position). What is random in a sample depends on (seed, epoch, index) alone."""

    def __init__(
        self,
        questions: Questions,
        order: EpochOrder,
        encode: QuestionEncoder,
        *,
        transform: Transform | TrainingImages,
        seed: int,
        max_skipped_fraction: float = 0.01,
        limits: ImageLimits = LIMITS,
    ):
        """`order`: made with `len(questions)` and `record_weights`; `transform`: PIL RGB to (3, S, S), or what reads
        images by itself; `max_skipped_fraction`: see `Walk`.

        Raises ValueError where a question has no answer, as in test sets whose answers are not published.
        """
        unanswered = np.flatnonzero(questions.answer_counts() == 0)
        if len(unanswered):
            name = questions[int(unanswered[0])].question_id
            raise InputError(f"{len(unanswered)} questions have no answer to learn from, the first being {name}")
        self.questions, self.encode, self.images, self.seed = questions, encode, images_of(transform, limits), seed
        self.order, self.walk = order, Walk(order, len(questions), max_skipped_fraction)
        self.limits = limits

    def __len__(self) -> int:
        return self.order.per_rank

    def __getitem__(self, key: tuple[int, int]) -> VqaSample:
        """The sample at (epoch, position), or the next readable one, with notes about those skipped."""
        epoch, position = key
        index, read, skipped = self.walk.open(epoch, position, partial(self._read, epoch))
        with seeded(self.seed, epoch, index):
            pixels = finish_item(self.images, read)
        question = self.questions[index]
        return VqaSample(
            pixels.image, *self.encode(question), question.weights, index, skipped, operations=pixels.operations
        )

    def _read(self, epoch: int, index: int) -> list[Any]:
        return read_item(self.images, self.questions.image_paths(index), self.limits, self.seed, epoch, index)


class EvalQuestions(EvalRecords):
    """Evaluation samples by index, each question once."""

    records: Questions
    encode: QuestionEncoder

    def __getitem__(self, index: int) -> VqaSample:
        """The sample; for an unreadable image its `image` is None and `skipped` has a note."""
        question = self.records[index]
        pixels, skipped = self.pixels(index, question.image_paths)
        return VqaSample(pixels, *self.encode(question), question.weights, index, skipped)
