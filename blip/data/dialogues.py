"""Dialogues about images: annotations in memory (`read_dialogues`, `Dialogues`).

`dialogue_texts.py` makes ids of their texts, `dialogue_samples.py` samples and batches of them.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from blip.data.compact import TextLists, Texts
from blip.data.sets.dialogues import DIALOGUE_SETS, Dialogue, Exchange
from blip.data.sources import Entry, records_of
from blip.errors import InputError

# ---- annotations in memory -------------------------------------------------------------------------------------------


class Dialogues:
    """Dialogues in flat arrays, filled by `read_dialogues`. `dialogues[i]` has the full paths of its images.

    Questions and answers that occur several times are held once: VisDial has 123 million options of 340,000 texts.
    """

    def __init__(self) -> None:
        self._paths, self._image_ids, self._captions, self._texts = Texts(), Texts(), Texts(), Texts()
        self._further = TextLists()  # of each dialogue: its other pictures; empty where none has several
        self._ends = array("q")  # of each dialogue: where its exchanges end
        # of each exchange; texts are numbers in `_texts`, -1 without one
        self._questions, self._answers, self._right = array("i"), array("i"), array("i")
        self._options, self._option_ends = array("i"), array("q")
        self._relevances, self._relevance_ends = array("f"), array("q")

    def append(self, item: Dialogue, known: dict[str, int]) -> None:
        """Adds a dialogue. `known`, text -> number, is an empty dict at first and holds the texts added so far."""

        def number(text: str) -> int:
            if text not in known:
                known[text] = len(self._texts)
                self._texts.append(text)
            return known[text]

        self._further.append_late(item.further, len(self._paths))
        self._paths.append(item.image)
        self._image_ids.append(item.image_id)
        self._captions.append(item.caption)
        for one in item.exchanges:
            self._questions.append(number(one.question))
            self._answers.append(-1 if one.answer is None else number(one.answer))
            self._right.append(one.right)
            self._options.extend(map(number, one.options))
            self._option_ends.append(len(self._options))
            self._relevances.extend(one.relevance)
            self._relevance_ends.append(len(self._relevances))
        self._ends.append(len(self._questions))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Dialogue:
        exchanges = [self._exchange(row) for row in range(*_span(self._ends, index))]
        image, *further = self.image_paths(index)
        return Dialogue(image, self._captions[index], exchanges, self._image_ids[index], further)

    def _exchange(self, row: int) -> Exchange:
        return Exchange(
            self._texts[self._questions[row]],
            self._texts[self._answers[row]] if self._answers[row] >= 0 else None,
            [self._texts[i] for i in self._options[slice(*_span(self._option_ends, row))]],
            self._right[row],
            self._relevances[slice(*_span(self._relevance_ends, row))].tolist(),
        )

    def image_paths(self, index: int) -> list[str]:
        """The paths of all pictures of dialogue `index`."""
        return [self._paths[index], *(self._further[index] if len(self._further) else [])]

    def above(self, most: int) -> int:
        """How many dialogues name more than `most` pictures."""
        counts = np.diff(np.asarray(self._further.ends), prepend=0) + 1
        return int((counts > most).sum())

    def trainable(self) -> np.ndarray:
        """(R, 2) int64: dialogue and round, from 0, of each question with a right answer and at least one wrong one."""
        dialogues = np.repeat(np.arange(len(self)), np.diff(np.array(self._ends), prepend=0))
        rounds = np.arange(len(dialogues)) - np.array([0, *self._ends])[dialogues]
        options, ends = np.array(self._options), np.array(self._option_ends)
        right, counts = np.array(self._right), np.diff(ends, prepend=0)
        chosen = np.flatnonzero((right >= 0) & (counts > 1))
        starts = ends - counts
        wrong = [row for row in chosen if (options[starts[row] : ends[row]] != options[starts[row] + right[row]]).any()]
        return np.stack([dialogues[wrong], rounds[wrong]], axis=1)

    def count(self, kind: str) -> int:
        """The questions that have `options`, a `right` one among them, or `relevant` ones."""
        if kind == "relevant":
            return int((np.diff(np.array(self._relevance_ends), prepend=0) > 0).sum())
        counts = np.diff(np.array(self._option_ends), prepend=0)
        return int((counts > 0).sum() if kind == "options" else ((np.array(self._right) >= 0) & (counts > 0)).sum())

    def texts(self) -> Iterator[str]:
        """Every caption, and every question and answer once."""
        for texts in (self._captions, self._texts):
            yield from (texts[i] for i in range(len(texts)))

    @property
    def nbytes(self) -> int:
        arrays = (self._ends, self._questions, self._answers, self._right, self._options, self._option_ends,
                  self._relevances, self._relevance_ends)  # fmt: skip
        texts = (self._paths, self._further, self._image_ids, self._captions, self._texts)
        return sum(len(x) * x.itemsize for x in arrays) + sum(x.nbytes for x in texts)


def _span(ends: array, index: int) -> tuple[int, int]:
    return (ends[index - 1] if index else 0), ends[index]


def read_dialogues(files: Sequence[Entry], image_root: str = "", dataset: str = "json", **options: Any) -> Dialogues:
    """Reads sets of dialogues, each a file or the folder as published; `dataset` is a name of DIALOGUE_SETS.

    Arguments and errors are those of `read_questions`; in addition, a weight of a file raises ValueError.
    """
    if not files:
        raise InputError("no files of dialogues are given")
    dialogues, known = Dialogues(), dict[str, int]()
    for opened in records_of(DIALOGUE_SETS, files, image_root=image_root, dataset=dataset, **options):
        if opened.source.weight != 1:
            path, weight = opened.source.path, opened.source.weight
            raise InputError(f"{path}: weight is {weight}; files of dialogues take none")
        item = opened.record()
        item.image_id = item.image_id or "|".join(item.image_paths)
        item.image, *item.further = (os.path.normpath(os.path.join(opened.file.root, x)) for x in item.image_paths)
        dialogues.append(item, known)
    return dialogues


def history_of(item: Dialogue, number: int) -> list[tuple[str, str]]:
    """(question, answer) of the turns before round `number`, from 0."""
    return [(one.question, one.answer or "") for one in item.exchanges[:number]]
