"""What `blip.data(...)` returns: the records of any source as an ordinary data set of torch."""

import operator
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, overload

from PIL import Image
from torch.utils.data import Dataset

from blip.data.compact import Labels, TextLists, Texts
from blip.data.hub import pinned
from blip.data.image_bytes import LIMITS, ImageLimits
from blip.data.pictures import open_pictures
from blip.data.places import Found, find_records
from blip.data.sources import Source, source_of
from blip.errors import visible
from blip.hub.names import is_hub_name

SHOWN = 5  # records that a notebook shows of a data set
MOST_LETTERS = 80  # of a text that is shown with others


@dataclass
class Item:
    """A record: its image, opened when it is first asked for, and its texts.

    Texts that the source does not have are empty.
    """

    record: Found
    index: int
    limits: ImageLimits = field(default=LIMITS, repr=False)

    @cached_property
    def image(self) -> Image.Image:
        """The image, the first of several or the left one, as 8-bit RGB, upright. UnreadableImage says why it cannot be
        read."""
        return open_pictures([self.record.image], self.limits)[0]

    @property
    def images(self) -> list[Image.Image]:
        """All images: one, those of an item of several pictures, or left and right."""
        return open_pictures(self.record.images, self.limits)

    @property
    def path(self) -> str:
        """Where the image is: a path, or FILE#ROW."""
        return self.record.image

    @property
    def captions(self) -> list[str]:
        return self.record.captions

    @property
    def caption(self) -> str:
        """The first of the captions."""
        return next(iter(self.captions), "")

    @property
    def question(self) -> str:
        return self.record.question

    @property
    def answers(self) -> list[str]:
        """The different answers."""
        return self.record.answers

    @property
    def answer(self) -> str:
        """The first of the answers."""
        return next(iter(self.answers), "")

    @property
    def statement(self) -> str:
        return self.record.statement

    @property
    def label(self) -> bool | None:
        """Whether the statement is true; None where there is none."""
        return self.record.label

    def __str__(self) -> str:
        """The texts in one line, such as "which plane? - axial"."""
        truth = self.answer or ("" if self.label is None else str(self.label).lower())
        return " - ".join(part for part in (self.record.text, truth) if part)


class DataSet(Dataset):
    """The records of a source, by integer index, in their order; made by `blip.data`.

    Texts and paths are held in flat arrays; an image is opened when it is asked for. In a `DataLoader` give a
    `collate_fn`, such as `list` for batches that are lists of items.
    """

    def __init__(self, source: Source, *, limits: ImageLimits = LIMITS):
        """Reads the annotations of the source; errors as in `find_records`."""
        if is_hub_name(source.path):
            source = replace(source, path=pinned(source.path))
        self.source, self.limits = source, limits
        self._folders, self._files = Labels(), Texts()  # of the images; folders and arrow files are few
        self._image_ends = array("q")  # of each record: where its images end in `_files`
        self._sources, self._places = Labels(), Texts()
        self._captions, self._answers, self._choices = TextLists(), TextLists(), TextLists()
        self._questions, self._statements, self._ids = Texts(), Texts(), Texts()
        self._labels = array("b")  # -1: none
        self._types, self._categories = Labels(), Labels()
        for record in find_records(source):
            self._append(record)

    def _append(self, record: Found) -> None:
        for image in record.images:
            folder, mark, name = image.rpartition("#" if "#" in os.path.basename(image) else os.sep)
            self._folders.append(folder + mark)
            self._files.append(name)
        self._image_ends.append(len(self._files))
        file, _, place = record.place.rpartition(", ")
        self._sources.append(file)
        self._places.append(place)
        self._captions.append(record.captions)
        self._questions.append(record.question)
        self._answers.append(record.answers)
        self._statements.append(record.statement)
        self._labels.append(-1 if record.label is None else int(record.label))
        self._ids.append("" if record.image_id == record.image else record.image_id)
        self._types.append(record.answer_type)
        self._categories.append(record.category)
        self._choices.append(record.choices)

    def __len__(self) -> int:
        return len(self._image_ends)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """The record of a number, of which -1 is the last one; of a slice, a list of records."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        number = operator.index(index)
        row = number + len(self) if number < 0 else number
        if not 0 <= row < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        return Item(self._record(row), row, self.limits)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    def _record(self, row: int) -> Found:
        first = self._image_ends[row - 1] if row else 0
        images = [self._folders[i] + self._files[i] for i in range(first, self._image_ends[row])]
        file, place, label = self._sources[row], self._places[row], self._labels[row]
        return Found(
            images,
            f"{file}, {place}" if file else place,
            captions=self._captions[row],
            question=self._questions[row],
            answers=self._answers[row],
            statement=self._statements[row],
            label=None if label < 0 else bool(label),
            image_id=self._ids[row] or images[0],
            answer_type=self._types[row],
            category=self._categories[row],
            choices=self._choices[row],
        )

    def entry(self) -> dict[str, Any]:
        """The source and how it is read as plain values: an entry of `train_file` that reads the same records."""
        path = self.source.path if is_hub_name(self.source.path) else os.path.abspath(self.source.path)
        return replace(self.source, path=path, split=self.source.split or "all").entry()

    @property
    def kind(self) -> str:
        """What the records have beside images: questions, captions, statements, or images alone."""
        kinds = (("questions", self._questions), ("statements", self._statements))
        named = next((kind for kind, texts in kinds if len(texts.bytes)), "")
        return named or ("captions" if len(self._captions.texts) else "images")

    def show(self, count: int = 9, *, first: int = 0) -> Any:
        """A figure of matplotlib with the images and texts of `count` records from number `first` on.

        Notebooks display it; elsewhere its `savefig("data.png")` writes it.

        Raises:
            InputError: there is no such record, or too many for a figure; or matplotlib is not there.
        """
        from blip.data.figure import figure_of

        return figure_of([self[i] for i in range(first, min(first + count, len(self)))])

    def __repr__(self) -> str:
        return f"<{len(self):,} {self.kind} of {self.source.path}>"

    def _repr_html_(self) -> str:
        """The first records in a short table; every text is escaped."""
        items = [self[i] for i in range(min(SHOWN, len(self)))]
        rows = "".join(f"<tr><td>{item.index}</td><td>{_cell(item.path)}</td><td>{_cell(str(item))}</td></tr>"
                       for item in items)  # fmt: skip
        head = f"<p>{escape(visible(repr(self)))}</p>"
        return f"{head}<table><tr><th></th><th>image</th><th>text</th></tr>{rows}</table>"


def _cell(text: str) -> str:
    short = text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS // 2]}…{text[-MOST_LETTERS // 2 :]}"
    return escape(visible(short))


def open_data(
    source: str | Path | Mapping[str, Any],
    *,
    split: str = "",
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    image_root: str = "",
    dataset: str = "json",
    seed: int | None = None,
) -> DataSet:
    """The records of any source as a data set of torch: images with captions, questions or statements.

    Args:
        source: an annotation file (JSON, JSONL, CSV, TSV, parquet, arrow), the folder of a set, a folder that
            `datasets.save_to_disk` wrote, a folder of images, one image, or a data set of the Hugging Face hub,
            `hub:OWNER/NAME`, `hub:OWNER/NAME/CONFIGURATION`, with `@REVISION` if wanted. It is downloaded once, whole,
            into the cache of the hub's library.
        split: train, validation or test, of sources with several.
        limit: records that are taken; all unless given.
        columns: the source's names of columns, such as `{"question": "Frage", "image": "img"}`; case does not matter.
        image_root: folder that image paths are relative to; unless given, that of the annotation file.
        dataset: the form of a published set, such as roco, slake or vqa_rad; see `blip check-data --help`.
        seed: with `limit`, takes records at random, always the same for a seed; the first ones unless given.

    Returns:
        A data set: `len(data)`, `data[3].image` (PIL, RGB), `.caption`, `.question`, `.answer`, `.statement`;
        its `show(9)` draws nine records.

    Raises:
        AnnotationError: a file, or a record of it, cannot be used; the message names them.
        InputError: an option cannot be used.
        RemoteError: a data set of the hub cannot be had.

    Example:
        >>> data = blip.data("questions.json", limit=10_000)
        >>> data[0].image.size, data[0].question, data[0].answer
        ((48, 48), 'how many lesions are there?', '2')
    """
    root = os.path.expanduser(image_root)
    options = {"split": split, "limit": limit, "columns": dict(columns or {}), "image_root": root}
    if isinstance(source, str | Path):
        source = os.path.expanduser(source)
    return DataSet(source_of(source, **options, dataset=dataset, seed=seed))
