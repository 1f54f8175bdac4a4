"""Image-caption pairs: annotations in memory (`read_pairs`, `Pairs`), then samples (`PairDataset`, `EvalPairs`).

Files of annotations are read in `formats.py` and `sets/captions.py`; `order.py` has the order of the records,
`batches.py` and `loader.py` make batches of the samples.
"""

import os
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from blip.data.batches import Sample
from blip.data.columns import Columns
from blip.data.compact import Labels, TextLists, Texts
from blip.data.eval_records import EvalRecords
from blip.data.image_bytes import LIMITS, ImageLimits
from blip.data.order import EpochOrder, Walk, seeded
from blip.data.pictures import finish_item, read_item
from blip.data.sets.captions import CAPTION_SETS
from blip.data.sets.studies import StudyOptions
from blip.data.sources import Entry, records_of
from blip.data.training_images import TrainingImages, Transform, images_of
from blip.errors import InputError
from blip.hashing import stable_hash
from blip.tokenizer import Tokenizer, blip_cleaning

MAX_SOURCES = 20  # different sources that are kept; records of further ones get `other`

# ---- annotations in memory -------------------------------------------------------------------------------------------


class Pairs:
    """The records of one or more annotation files, N of them, in flat arrays; filled by `read_pairs`."""

    def __init__(self) -> None:
        self.annotation_files: list[str] = []
        self.roots: list[str] = []  # of each file: the folder that its image paths are relative to
        self.weights: list[float] = []  # of each file: visits of a record in an epoch
        self._paths = Texts()  # of the first picture of each record
        self._further = TextLists()  # of its other pictures; as `_groups`, empty where no record has any
        self._captions = Texts()
        self._caption_ends = array("q")  # of each record: where its captions end in `_captions`
        self._image_ids = array("q")
        self._groups = array("q")  # 0: not given; empty where no record names one, as in most sets
        self._names = Texts()  # `image_id` of each record, "" where it has none
        self._files = array("H")
        self._sources = Labels()  # as `_groups`: empty where no record names one

    def append(
        self,
        file: int,
        image: str,
        captions: list[str],
        *,
        image_id: str | None,
        group: str = "",
        source: str = "",
        further: Sequence[str] = (),
    ) -> None:
        """Adds a record of the annotation file `annotation_files[file]`; what follows `image_id` as in `Captioned`."""
        self._paths.append(image)
        self._further.append_late(further, len(self))
        for caption in captions:
            self._captions.append(caption)
        self._caption_ends.append(len(self._captions))
        self._files.append(file)
        self._image_ids.append(stable_hash(image_id or "|".join(self.image_paths(len(self) - 1))))
        self._names.append(image_id or "")
        if group and not self._groups:
            self._groups.extend([0] * (len(self) - 1))  # of the records before
        if group or self._groups:
            self._groups.append(stable_hash("group", group) if group else 0)
        if source and not self._sources:
            self._sources.extend([""] * (len(self) - 1))
        if len(self._sources.names) >= MAX_SOURCES and source not in self._sources.names:
            source = "other"  # such as addresses, of which each record has another
        if source or self._sources:
            self._sources.append(source)

    def __len__(self) -> int:
        return len(self._files)

    def image_path(self, index: int) -> str:
        """The path of the record's image, of several the first, joined to the folder that it is relative to."""
        return self._full(index, self._paths[index])

    def image_paths(self, index: int) -> list[str]:
        """The paths of all pictures of the record, joined to the folder that they are relative to."""
        further = self._further[index] if len(self._further) else []
        return [self.image_path(index), *(self._full(index, path) for path in further)]

    def _full(self, index: int, path: str) -> str:
        return os.path.normpath(os.path.join(self.roots[self._files[index]], path))

    def above(self, most: int) -> int:
        """How many records name more than `most` pictures."""
        counts = np.diff(np.asarray(self._further.ends), prepend=0) + 1
        return int((counts > most).sum())

    def captions(self, index: int) -> list[str]:
        start = self._caption_ends[index - 1] if index else 0
        return [self._captions[i] for i in range(start, self._caption_ends[index])]

    def image_id(self, index: int) -> int:
        """63-bit number, equal for records with equal `image_id` or, where none is given, equal path."""
        return self._image_ids[index]

    def group(self, index: int) -> int:
        """63-bit number, equal for records of one article or patient or, where the data name none, of one image."""
        return (self._groups[index] if self._groups else 0) or self._image_ids[index]

    def given_path(self, index: int) -> str:
        """The path of the image as written in its annotation file."""
        return self._paths[index]

    def image_name(self, index: int) -> str:
        """The record's `image_id` as written in its annotation file, else the image file's name without ending."""
        return self._names[index] or os.path.splitext(os.path.basename(self._paths[index]))[0]

    def annotation_file(self, index: int) -> str:
        """The annotation file that the record comes from."""
        return self.annotation_files[self._files[index]]

    def pair_source(self, index: int) -> str:
        """The source of the pair that the record names, such as web or synthetic, or ""."""
        return self._sources[index] if self._sources else ""

    def record_weights(self) -> np.ndarray | None:
        """(N,) float64: the weight of each record's file; None where all are 1."""
        if all(weight == 1 for weight in self.weights):
            return None
        return np.asarray(self.weights)[np.frombuffer(self._files, np.uint16)]

    @property
    def nbytes(self) -> int:
        arrays = (self._caption_ends, self._image_ids, self._groups, self._files)
        texts = (self._paths, self._further, self._captions, self._names, self._sources)
        return sum(one.nbytes for one in texts) + sum(len(x) * x.itemsize for x in arrays)


def read_pairs(
    files: Sequence[Entry],
    image_root: str = "",
    dataset: str = "json",
    *,
    split: str = "",
    columns: Columns | None = None,
    limit: int | None = None,
    seed: int | None = None,
    study: StudyOptions | None = None,
) -> Pairs:
    """Reads annotation files: .json (a list), .jsonl, .csv and .tsv (with a header), .parquet, .arrow; folders of sets;
    and data sets of the hub.

    A record has `image` (a path) or `images` (of one item), `caption` (text or a list) and optionally `image_id`.

    Args:
        files: paths, or {"path": ..., "weight": ...}; an epoch visits the file's records `weight` times. A path may be
            the folder of a set as published, or hub:OWNER/NAME. Other keys are those of `Source`, for this path alone.
        image_root: folder that image paths are relative to; empty: the folder of their annotation file, or where the
            set has its images.
        dataset: a name of CAPTION_SETS.
        split: train, validation, test or all; see `open_set`, also for `study`.
        columns: the names of the files' columns, see `columns_of`.
        limit, seed: how many records of all files, and which; see `records_of`.

    Raises:
        ValueError: no files, no such dataset, split or image_root.
        AnnotationError: the file, the record and what is wrong with it.
    """
    if not files:
        raise InputError("no annotation files are given")
    if image_root and not os.path.isdir(image_root):
        raise InputError(f"image_root is {image_root!r}, which is no folder")
    pairs = Pairs()
    options: dict[str, Any] = {"split": split, "columns": columns, "limit": limit, "seed": seed, "study": study}
    file = None
    for opened in records_of(CAPTION_SETS, files, image_root=image_root, dataset=dataset, **options):
        if opened.file is not file:
            file = opened.file
            pairs.annotation_files.append(file.path)
            pairs.roots.append(file.root)
            pairs.weights.append(opened.source.weight)
        record = opened.record()
        pairs.append(
            len(pairs.annotation_files) - 1, record.image, record.captions, image_id=record.image_id,
            group=record.group, source=record.source, further=record.further,
        )  # fmt: skip
    return pairs


def has_words(text: str) -> bool:
    """Whether a text has a letter or a digit, unlike "." and zero-width characters."""
    return any(map(str.isalnum, text))


def caption_id(text: str) -> int:
    """63-bit number, equal for captions that differ only in white space and case."""
    return stable_hash(" ".join(text.lower().split()))


# ---- samples ---------------------------------------------------------------------------------------------------------


class CaptionEncoder:
    """A caption to ids: cleaned, with the prompt in front, [CLS] ... [SEP]."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, prompt: str = "", *, text_cleaning: str = "none"):
        """`max_tokens` with [CLS] and [SEP]; `text_cleaning` is none or blip, the published one (`blip_cleaning`)."""
        if text_cleaning not in ("none", "blip"):
            raise InputError(f"text_cleaning is {text_cleaning!r}; it can be none or blip")
        if max_tokens < 3:
            raise InputError(f"max_tokens is {max_tokens}: [CLS] and [SEP] take 2, the caption needs some more")
        self.tokenizer, self.max_tokens, self.prompt = tokenizer, max_tokens, prompt
        self.clean = text_cleaning == "blip"

    def __call__(self, caption: str) -> list[int]:
        text = blip_cleaning(caption) if self.clean else caption
        return self.tokenizer.encode([self.prompt + text], self.max_tokens)[0]


class PairDataset(Dataset):
    """Training samples by (epoch, position). What is random in a sample depends on (seed, epoch, index) alone."""

    def __init__(
        self,
        pairs: Pairs,
        order: EpochOrder,
        encode: Callable[[str], list[int]],
        *,
        transform: Transform | TrainingImages,
        seed: int,
        max_skipped_fraction: float = 0.01,
        limits: ImageLimits = LIMITS,
    ):
        """`encode`: a caption to ids, see `CaptionEncoder`; `transform`: PIL RGB to (3, S, S), or what reads images by
        itself; `max_skipped_fraction`: see `Walk`."""
        self.pairs, self.encode, self.images, self.seed = pairs, encode, images_of(transform, limits), seed
        self.order, self.walk = order, Walk(order, len(pairs), max_skipped_fraction)
        self.limits = limits

    def __len__(self) -> int:
        return self.order.per_rank

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample at (epoch, position), or the next readable one, with notes about those skipped."""
        epoch, position = key
        index, read, skipped = self.walk.open(epoch, position, partial(self._read, epoch))
        captions = self.pairs.captions(index)
        with seeded(self.seed, epoch, index):
            caption = captions[int(torch.randint(len(captions), ()))]
            pixels = finish_item(self.images, read)
        return Sample(
            pixels.image,
            self.encode(caption),
            caption_id(caption),
            self.pairs.image_id(index),
            index,
            skipped,
            self.pairs.pair_source(index),
            pixels.operations,
        )

    def _read(self, epoch: int, index: int) -> list[Any]:
        return read_item(self.images, self.pairs.image_paths(index), self.limits, self.seed, epoch, index)


class EvalPairs(EvalRecords):
    """Evaluation samples by index: every image once, with the first of its captions (`Pairs.captions` has them all)."""

    records: Pairs

    def __getitem__(self, index: int) -> Sample:
        """The sample; for an unreadable image its `image` is None and `skipped` has a note."""
        pairs = self.records
        pixels, skipped = self.pixels(index, pairs.image_paths(index))
        caption = next(iter(pairs.captions(index)), "")  # of some test sets they are not published
        return Sample(pixels, self.encode(caption), caption_id(caption), pairs.image_id(index), index, skipped)
