"""The files of a data set as published: which file holds which split, and which folder its images.

The sets themselves are three literal tables: CAPTION_SETS, QUESTION_SETS and STATEMENT_SETS, one `SetFormat` a name.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from blip.data.formats import AnnotationError, Records
from blip.errors import InputError, did_you_mean

Record = TypeVar("Record")

SPLITS = ("train", "validation", "test")
# other names that data sets use -> ours
SPLIT_NAMES = {name: name for name in SPLITS} | {
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "dev": "validation",
    "restval": "train",  # Karpathy's split of COCO: the rest of val2014, commonly added to the training set
}
# of any set from the Hugging Face hub: parquet, or saved by `datasets.save_to_disk`; {0} is a name of the split
HUB = ("data/{0}-*.parquet", "{0}-*.parquet", "{0}/data-*.arrow", "{0}/dataset.arrow")


def any_part(record: Mapping[str, Any]) -> str | None:
    """The part that the record's own `split` names, or "" where it names none."""
    given = record.get("split")
    return SPLIT_NAMES.get(given, given) if isinstance(given, str) else ""


@dataclass(frozen=True)
class SetFormat(Generic[Record]):
    """One way in which a set is distributed.

    Attributes:
        read: (annotation file, folder of its images) -> (place, raw record) of each; AnnotationError for a broken file.
        parse: raw record -> record; ValueError with what is wrong with it.
        files: split -> patterns of its files below the set's folder; the first that matches anything is taken. A file
            listed under several splits holds all of them, and `part` assigns its records.
        images: folders that may hold the images, relative to the annotation file's; the first that exists is taken, and
            the annotation file's own where none does. {first} and {last} are the parts of the file's name before the
            first and behind the last "_".
        part: raw record -> its split, "" where it names none, None for a record to leave out.
    """

    read: Callable[[Path, str], Records]
    parse: Callable[[Any], Record]
    _: KW_ONLY
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    part: Callable[[Mapping[str, Any]], str | None] = any_part


@dataclass(frozen=True)
class SetFile(Generic[Record]):
    """An annotation file of a set, and the folder that its image paths are relative to."""

    path: str
    root: str
    split: str  # "" for all its records
    form: SetFormat[Record]

    def raw(self) -> Records:
        """(place, raw record) of those that belong to the split. AnnotationError for a broken file, or if none does."""
        count = 0
        for place, record in self.form.read(Path(self.path), self.root):
            part = self.form.part(record) if isinstance(record, dict) else ""
            if part is not None and (not part or not self.split or part == self.split):
                count += 1
                yield place, record
        if not count:
            problem = f"holds no records of the split {self.split}" if self.split else "holds no records of this set"
            raise AnnotationError(self.path, "", problem)

    def parse(self, place: str, raw: Any) -> Record:
        """Raises AnnotationError, which names the file and the record."""
        try:
            return self.form.parse(raw)
        except ValueError as error:
            raise AnnotationError(self.path, place, str(error)) from None


def open_set(
    sets: Mapping[str, SetFormat[Record]], dataset: str, path: str, *, split: str = "", image_root: str = ""
) -> list[SetFile[Record]]:
    """The annotation files at a path: the file itself, or those of a folder.

    Args:
        sets: name -> format.
        dataset: a name in it.
        path: an annotation file, or the folder as distributed.
        split: train, validation or test; all or "" for everything. A folder of several parts needs it. In a file it
            selects the records that name their split; a file whose records name none is read whole.
        image_root: folder that image paths are relative to; empty: where the set has its images.

    Raises:
        ValueError: no such set, split or image_root.
        AnnotationError: the folder does not hold the split or any file of the set.
    """
    if dataset not in sets:
        raise InputError(f"dataset is {dataset!r}; {did_you_mean(dataset, sets)}")
    if split not in ("", "all", *SPLIT_NAMES):
        raise InputError(f"split is {split!r}; it can be {', '.join(SPLITS)} or all")
    if image_root and not os.path.isdir(image_root):
        raise InputError(f"image_root is {image_root!r}, which is no folder")
    form, part = sets[dataset], "" if split == "all" else SPLIT_NAMES.get(split, "")
    files = _files_of(form, Path(path), split, dataset=dataset) if os.path.isdir(path) else [Path(path)]
    return [SetFile(str(file), image_root or _image_folder(form, file), part, form) for file in files]


def _files_of(form: SetFormat, folder: Path, split: str, *, dataset: str) -> list[Path]:
    if (folder / "dataset_info.json").is_file() and (files := sorted(folder.glob("data-*.arrow"))):
        return files  # of one split, saved by itself
    parts = {name: files for name in SPLITS if (files := _part(form, folder, name))}
    if not parts:
        known = [pattern for patterns in form.files.values() for pattern in patterns]
        known += [pattern.format("train") for pattern in HUB[1:3]]
        raise AnnotationError(folder, "", f"is a folder without files of {dataset!r}, such as {', '.join(known)}")
    if not split and len(parts) > 1:
        raise AnnotationError(folder, "", f"is a folder: set split to {', '.join(parts)} or all")
    if split in ("", "all"):
        return list(dict.fromkeys(file for files in parts.values() for file in files))
    if SPLIT_NAMES[split] not in parts:
        raise AnnotationError(folder, "", f"holds no split {SPLIT_NAMES[split]}; it has {', '.join(parts)}")
    return parts[SPLIT_NAMES[split]]


def _part(form: SetFormat, folder: Path, split: str) -> list[Path]:
    names = [split] + [name for name, meant in SPLIT_NAMES.items() if meant == split and name != split]
    for pattern in (*form.files.get(split, ()), *(pattern.format(name) for name in names for pattern in HUB)):
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def _image_folder(form: SetFormat, file: Path) -> str:
    first, last = file.stem.split("_")[0], file.stem.split("_")[-1]
    folders = [os.path.normpath(file.parent / name.format(first=first, last=last)) for name in form.images]
    for folder in folders:
        if os.path.isdir(folder):
            return folder
    for folder in folders:
        if os.path.isfile(folder + ".zip"):
            raise AnnotationError(file, "", f"its images are still packed: unzip {folder}.zip, or give image_root")
    return str(file.parent)
