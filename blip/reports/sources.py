"""Where the items of `blip show` come from: the folder of a run, a file of results, or any data that training reads."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blip.data.check import sets_of
from blip.data.formats import AnnotationError
from blip.data.images import ENDINGS, find_images
from blip.data.sets.captions import Captioned
from blip.data.sets.layout import open_set
from blip.data.sets.questions import Question
from blip.data.sets.statements import Statement
from blip.errors import InputError
from blip.reports.items import Item
from blip.reports.results import files_of_run, results_in

CONFIG = "config.yaml"  # of a run


@dataclass
class Source:
    """What is shown."""

    place: str  # the file or folder, as messages and pages name it
    what: str  # data, or results
    items: Iterator[Item]
    run: Path | None = None  # the run that the results are of, whose model can draw maps


def open_source(place: str, *, dataset: str = "json", split: str = "", image_root: str = "") -> Source:
    """The items of a run's folder, of a file of results or of data, in their order.

    Args:
        place: the folder of a run or of an evaluation; what `blip caption`, `answer` and `match` write with `--out`; or
            images, a folder of images, an annotation file, a data set as distributed.
        dataset: how a set is distributed, see `blip check-data --help`.
        split: validation or test of a run; train, validation or test of a data set.
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
            return Source(place, "results", iter(_found(results, path.parent)), run)
    return Source(place, "data", _data(place, dataset=dataset, split=split, image_root=image_root))


def _of_run(run: Path, split: str) -> Source:
    files = files_of_run(run, split)
    for file in files:
        results = results_in(file)
        if results:
            return Source(str(file), "results", iter(_found(results, run)), run)
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


def _data(place: str, *, dataset: str, split: str, image_root: str) -> Iterator[Item]:
    """Every record of a data set; one that is broken is an item with its problem."""
    path = Path(place)
    if not path.exists():
        raise InputError(f"{place}: no such file or folder")
    if path.suffix.lower() in ENDINGS or (path.is_dir() and dataset == "json" and _is_folder_of_images(path)):
        for image in find_images([path]):
            yield Item([str(image)], str(image.relative_to(path)) if path.is_dir() else image.name)
        return
    sets, _ = sets_of(dataset, place, split or "all")
    for file in open_set(sets, dataset, place, split=split or "all", image_root=image_root):
        for where, raw in file.raw():
            try:
                item = _of_record(file.parse(where, raw), file.root)
            except AnnotationError as error:
                item = Item([], problem=error.problem)
            item.name = item.name or where
            yield item


def _is_folder_of_images(folder: Path) -> bool:
    """Whether a folder holds images and no data set of parquet or arrow files."""
    inside = (path.suffix.lower() for path in folder.rglob("*"))
    return not any(folder.rglob("*.parquet")) and not any(folder.rglob("*.arrow")) and any(s in ENDINGS for s in inside)


def _of_record(record: Captioned | Question | Statement, root: str) -> Item:
    def full(image: str) -> str:
        return os.path.normpath(os.path.join(root, image))

    if isinstance(record, Captioned):
        return Item([full(record.image)], record.image_id or "", truth=record.captions)
    if isinstance(record, Question):
        truth = list(dict.fromkeys(record.references or record.answers))
        more = [("choices", "; ".join(record.choices))] if record.choices else []
        return Item(
            [full(record.image)], record.question_id, record.question, truth, answer_type=record.answer_type,
            category=record.category, more=more,
        )  # fmt: skip
    images = [record.images] if isinstance(record.images, str) else list(record.images)
    return Item([full(image) for image in images], record.id, record.sentence, [str(record.label).lower()])
