"""The files of a data set as published: which file holds which split, and which folder its images.

The sets themselves are literal tables: CAPTION_SETS, QUESTION_SETS, STATEMENT_SETS and DIALOGUE_SETS, one `SetFormat`
a name.
"""

import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from blip.data import hub
from blip.data.formats import AnnotationError, Records
from blip.data.image_bytes import is_reference
from blip.data.sets.studies import StudyOptions
from blip.errors import BlipError, InputError, did_you_mean
from blip.hub.names import is_hub_name

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
SHARD_ANNOTATIONS = "annotations.jsonl"  # beside shards of `blip data shard`: records in the generic form
PROBED = 5  # records whose images tell which folder holds them
MOST_FOLDERS = 50  # that are looked into


def any_part(record: Mapping[str, Any]) -> str | None:
    """The part that the record's own `split` names, or "" where it names none."""
    given = record.get("split")
    return SPLIT_NAMES.get(given, given) if isinstance(given, str) else ""


@dataclass(frozen=True)
class SetFormat(Generic[Record]):
    """One way in which a set is distributed.

    Attributes:
        read: (annotation file, folder of its images, names of columns as in `iter_records`, and with `study`
            StudyOptions) -> (place, raw record) of each; AnnotationError for a broken file.
        parse: raw record -> record; ValueError with what is wrong with it.
        files: split -> patterns of its files below the set's folder; the first that matches anything is taken. A file
            listed under several splits holds all of them, and `part` assigns its records.
        images: folders that may hold the images, relative to the annotation file's; the first that exists is taken, and
            the annotation file's own where none does. {first} and {last} are the parts of the file's name before the
            first and behind the last "_".
        part: raw record -> its split, "" where it names none, None for a record to leave out.
        joins: whether `read` joins several files, and so reads much before its first record.
    """

    read: Callable[..., Records]
    parse: Callable[[Any], Record]
    _: KW_ONLY
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    part: Callable[[Mapping[str, Any]], str | None] = any_part
    joins: bool = False
    study: bool = False  # `read` takes a fourth argument, StudyOptions


@dataclass(frozen=True)
class SetFile(Generic[Record]):
    """An annotation file of a set, and the folder that its image paths are relative to."""

    path: str
    root: str
    split: str  # "" for all its records
    form: SetFormat[Record]
    columns: Mapping[str, str] = field(default_factory=dict)  # name of the package -> name in the file
    of_hub: bool = False  # its images lie in its own rows
    study: StudyOptions = field(default_factory=StudyOptions)  # of sets of studies

    def raw(self) -> Records:
        """(place, raw record) of those that belong to the split. AnnotationError for a broken file, or if none does."""
        count = 0
        more = (replace(self.study, part=self.split),) if self.form.study else ()
        for place, record in self.form.read(Path(self.path), self.root, self.columns, *more):
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
            record = self.form.parse(raw)
        except ValueError as error:
            raise AnnotationError(self.path, place, str(error)) from None
        for image in getattr(record, "image_paths", ()):
            self.check_image(place, image)
        return record

    def check_image(self, place: str, image: str) -> None:
        """AnnotationError where a data set of the hub, which anyone can publish, names a file of this machine."""
        if self.of_hub and not image.startswith(f"{os.path.abspath(self.path)}#"):
            raise AnnotationError(
                self.path, place, f"its image is the path {image:.80}, and data sets of the hub have images in their "
                "rows: give the column that holds them, such as columns={image: photo}"
            )  # fmt: skip


def open_set(
    sets: Mapping[str, SetFormat[Record]],
    dataset: str,
    path: str,
    *,
    split: str = "",
    image_root: str = "",
    columns: Mapping[str, str] | None = None,
    study: StudyOptions | None = None,
) -> list[SetFile[Record]]:
    """The annotation files at a path: the file itself, those of a folder, or those of a data set of the hub.

    Args:
        sets: name -> format.
        dataset: a name in it.
        path: an annotation file, the folder as distributed, or a name such as hub:OWNER/NAME.
        split: train, validation or test; all or "" for everything. A folder of several parts needs it. In a file it
            selects the records that name their split; a file whose records name none is read whole. Folders saved by
            `datasets` and data sets of the hub may have splits of other names.
        image_root: folder that image paths are relative to; empty: where the set has its images.
        columns: as in `iter_records`.
        study: of sets of studies.

    Raises:
        ValueError: no such set, split or image_root; `study` for another set.
        AnnotationError: the folder does not hold the split or any file of the set.
    """
    if dataset not in sets:
        raise InputError(f"dataset is {dataset!r}; {did_you_mean(dataset, sets)}")
    form, given, study = sets[dataset], dict(columns or {}), study or StudyOptions()
    if study != StudyOptions() and not form.study:
        known = ", ".join(name for name, one in sets.items() if one.study)
        raise InputError(f"sections, views and priors are for {known or 'sets of studies'}; dataset is {dataset}")
    if is_hub_name(path):
        parts = hub.files_of(path)
        files = _chosen(parts, path, split)
        part = SPLIT_NAMES.get(split, "")
        return [SetFile(str(file), str(file.parent), part, form, given, of_hub=True) for file in files]
    folder = Path(path) if os.path.isdir(path) else None
    if split not in ("", "all", *SPLIT_NAMES) and not (folder and _hub_files(folder, split)):
        raise InputError(f"split is {split!r}; it can be {', '.join(SPLITS)} or all")
    if image_root and not os.path.isdir(image_root):
        raise InputError(f"image_root is {image_root!r}, which is no folder")
    files = _files_of(form, folder, split, dataset=dataset) if folder else [Path(path)]
    part = SPLIT_NAMES.get(split, "")
    return [_placed(SetFile(str(file), image_root, part, form, given, study=study)) for file in files]


def _placed(file: SetFile[Record]) -> SetFile[Record]:
    return file if file.root else replace(file, root=_image_folder(file))


def _files_of(form: SetFormat, folder: Path, split: str, *, dataset: str) -> list[Path]:
    if (folder / "dataset_info.json").is_file() and (files := sorted(folder.glob("data-*.arrow"))):
        return files  # of one split, saved by itself
    if not form.files and (folder / SHARD_ANNOTATIONS).is_file():
        return [folder / SHARD_ANNOTATIONS]
    parts = {name: files for name in SPLITS if (files := _part(form, folder, name))}
    if split not in ("", "all", *SPLIT_NAMES):
        parts[split] = _hub_files(folder, split)
    if not parts:
        known = [pattern for patterns in form.files.values() for pattern in patterns]
        known += [pattern.format("train") for pattern in HUB[1:3]]
        if next(folder.glob("*.tar"), None) is not None:
            raise AnnotationError(folder, "", f"holds shards without {SHARD_ANNOTATIONS}, which only pre-training "
                                  "streams: `blip data shard` writes shards for every task")  # fmt: skip
        raise AnnotationError(folder, "", f"is a folder without files of {dataset!r}, such as {', '.join(known)}")
    return _chosen(parts, folder, split)


def _chosen(parts: Mapping[str, list[Path]], place: str | Path, split: str) -> list[Path]:
    """The files of a split, by its own name or by one of the same meaning; of all for "all", or where there is one."""
    if not split and len(parts) > 1:
        what = "is a data set of several parts" if is_hub_name(place) else "is a folder"
        raise AnnotationError(place, "", f"{what}: set split to {', '.join(parts)} or all")
    if split in ("", "all"):
        return list(dict.fromkeys(file for files in parts.values() for file in files))
    if split in parts:
        return parts[split]
    meant = [name for name in parts if SPLIT_NAMES.get(name, name) == SPLIT_NAMES.get(split, split)]
    if len(meant) != 1:
        raise AnnotationError(place, "", f"holds no split {SPLIT_NAMES.get(split, split)}; it has {', '.join(parts)}")
    return parts[meant[0]]


def _part(form: SetFormat, folder: Path, split: str) -> list[Path]:
    names = [split] + [name for name, meant in SPLIT_NAMES.items() if meant == split and name != split]
    for pattern in form.files.get(split, ()):
        if files := sorted(folder.glob(pattern)):
            return files
    return next((files for name in names if (files := _hub_files(folder, name))), [])


def _hub_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, of this very name, in a folder from the hub or saved by `datasets`."""
    if re.search(r"[^\w.-]", split):
        return []
    return next((files for pattern in HUB if (files := sorted(folder.glob(pattern.format(split))))), [])


# ---- images ----------------------------------------------------------------------------------------------------------


def _image_folder(file: SetFile) -> str:
    """The folder that a file's image paths are relative to: one of its set's that exists, else the file's own.

    Copies of a set often have another layout. Where the first images are not there, the folders of the set and `images`
    are looked for beside the file, and in the folders beside it.
    """
    path = Path(file.path)
    first, last = path.stem.split("_")[0], path.stem.split("_")[-1]
    usual = [name.format(first=first, last=last) for name in file.form.images]
    folders = [os.path.normpath(path.parent / name) for name in usual]
    chosen = next((folder for folder in folders if os.path.isdir(folder)), "")
    if file.form.images and not file.form.joins and (found := _holding(file, chosen or str(path.parent), usual)):
        return found
    packed = "" if chosen else next((folder for folder in folders if os.path.isfile(folder + ".zip")), "")
    if packed:
        raise AnnotationError(path, "", f"its images are still packed: unzip {packed}.zip, or give image_root")
    return chosen or str(path.parent)


def _holding(file: SetFile, chosen: str, usual: list[str]) -> str:
    """`chosen`, or the first other folder, that holds one of the file's first images; "" where none does."""
    here = Path(file.path).parent
    try:
        records = itertools.islice(replace(file, root=chosen).raw(), PROBED)
        images = [image for place, raw in records for image in file.parse(place, raw).image_paths]
        beside = sorted(entry.path for entry in os.scandir(here) if entry.is_dir())[:MOST_FOLDERS]
    except (BlipError, OSError):  # reported when the file is read
        return ""
    if not images or any(is_reference(image) for image in images):
        return ""

    def holds(folder: str) -> bool:
        return any(os.path.isfile(os.path.join(folder, image)) for image in images)

    if holds(chosen):
        return chosen
    names = [*usual, "images", ""]
    places = [os.path.join(folder, name) for folder in (str(here), *beside) for name in names]
    return next((os.path.normpath(place) for place in places if holds(place)), "")
