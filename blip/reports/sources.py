"""Where the items of `blip show` come from: the folder of a run, a file of results, or any data that training reads."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.data.formats import AnnotationError
from blip.data.places import Found, find_records
from blip.errors import InputError
from blip.reports.items import Item
from blip.reports.results import files_of_run, results_in

CONFIG = "config.yaml"  # of a run


@dataclass
class Source:
    """What is shown."""

    place: str  # the file or folder, as messages and pages name it
    what: str  # data, or results
    items: Iterable[Item]  # results are a list; data are read as far as they are shown
    run: Path | None = None  # the run that the results are of, whose model can draw maps


def open_source(
    place: str,
    *,
    dataset: str = "json",
    split: str = "",
    columns: Mapping[str, str] | None = None,
    image_root: str = "",
) -> Source:
    """The items of a run's folder, of a file of results or of data, in their order.

    Args:
        place: the folder of a run or of an evaluation; what `blip caption`, `answer` and `match` write with `--out`; or
            images, a folder of images, an annotation file, a data set as distributed, hub:OWNER/NAME.
        dataset: how a set is distributed, see `blip check-data --help`.
        split: validation or test of a run; train, validation or test of a data set.
        columns: own names of columns of data, such as {"question": "Frage"}.
        image_root: folder that image paths are relative to.

    Raises:
        InputError: there is no such file or folder, or a run without results.
        AnnotationError: an annotation file cannot be read.
    """
    path = Path(place)
    if path.is_dir() and ((path / CONFIG).is_file() or files_of_run(path)):
        return _of_run(path, split)
    if path.is_file() and path.suffix.lower() in (".json", ".jsonl"):
        results = results_in(path)
        if results is not None:
            run = path.parent if (path.parent / CONFIG).is_file() else None
            return Source(place, "results", _found(results, path.parent), run)
    options = {"dataset": dataset, "split": split or "all", "columns": columns or {}, "image_root": image_root}
    return Source(place, "data", _data(place, options))


def _of_run(run: Path, split: str) -> Source:
    files = files_of_run(run, split)
    for file in files:
        results = results_in(file)
        if results:
            return Source(str(file), "results", _found(results, run), run)
    wanted = f" of {split}" if split else ""
    raise InputError(
        f"{run} is a run without results{wanted}: they are written by its first evaluation, which needs val_file"
    )


def _found(items: list[Item], folder: Path) -> list[Item]:
    """The items, with paths of images that are relative to the folder where they do not exist from here."""
    for item in items:
        item.images = [
            image if os.path.exists(image) or not os.path.exists(folder / image) else str(folder / image)
            for image in item.images
        ]
    return items


# ---- data ------------------------------------------------------------------------------------------------------------


def _data(place: str, options: dict[str, Any]) -> Iterator[Item]:
    """Every record of a data set; one that is broken is an item with its problem."""
    broken: list[AnnotationError] = []
    for record in find_records(place, on_problem=broken.append, **options):
        yield from map(_of_problem, broken)
        broken.clear()
        yield _of_record(record, place)
    yield from map(_of_problem, broken)


def _of_problem(error: AnnotationError) -> Item:
    return Item([], error.place, problem=error.problem)


def _of_record(record: Found, place: str) -> Item:
    where = record.place.rpartition(", ")[2]
    if not where:  # an image that was given by itself, or in a folder
        where = os.path.relpath(record.image, place) if os.path.isdir(place) else os.path.basename(record.image)
    truth = record.captions or record.answers
    if record.label is not None:
        truth = [str(record.label).lower()]
    return Item(
        record.images,
        where,
        record.question or record.statement,
        list(dict.fromkeys(truth)),
        answer_type=record.answer_type,
        category=record.category,
        more=[("choices", "; ".join(record.choices))] if record.choices else [],
        text_name="question" if record.question else "statement",
    )
