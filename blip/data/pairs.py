"""Image-caption pairs, in the order in which a record travels: annotation files (`iter_records`, `parse_record`),
annotations in memory (`read_pairs`, `Pairs`), samples (`PairDataset`, `EvalPairs`).

`loader.py` goes on from there: which record when (`EpochOrder`), samples to batches (`collate`, `Batch`).
"""

import csv
import json
import math
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..tokenizer import Tokenizer, blip_cleaning
from .loader import Batch, EpochOrder, Sample, collate, stable_hash
from .transforms import SkipLog, Skipped, TooManySkipped, UnreadableImage, open_image, too_many

__all__ = [
    "AnnotationError", "Batch", "EpochOrder", "EvalPairs", "PairDataset", "Pairs", "Sample", "SkipLog",
    "TooManySkipped", "caption_id", "collate", "file_entry", "iter_records", "parse_record", "read_pairs",
]  # fmt: skip

BLANK = re.compile(r"\s*")


class AnnotationError(ValueError):
    """A broken annotation file: `path` names it, `place` the record ("" for the whole file), `problem` the fault."""

    def __init__(self, path: str | Path, place: str, problem: str):
        super().__init__(f"{path}{', ' if place else ''}{place}: {problem}")
        self.path, self.place, self.problem = str(path), place, problem


# ---- annotation files ------------------------------------------------------------------------------------------------


def iter_records(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of each record of an annotation file; the place is what messages call it, such as "line 3".

    Raises AnnotationError where the file itself is broken. The records are as found: `parse_record` checks them.
    """
    path = Path(path)
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _table, ".tsv": _table, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise AnnotationError(path, "", f"annotation files end in {', '.join(readers)}; rename or convert it")
    if not path.is_file():
        raise AnnotationError(path, "", "no such file")
    place = ""
    try:
        for place, record in readers[path.suffix.lower()](path):
            yield place, record
    except UnicodeDecodeError as error:
        raise AnnotationError(path, place and f"after {place}", f"not UTF-8 text ({error}); save it as UTF-8") from None
    if not place:
        raise AnnotationError(path, "", "holds no records")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    # decoded record by record: a million dicts at once would take over 600 MB
    text = path.read_text(encoding="utf-8-sig")
    decode = json.JSONDecoder().raw_decode

    def after_blanks(position: int) -> int:
        return BLANK.match(text, position).end()  # type: ignore[union-attr]

    position = after_blanks(0)
    if position == len(text):
        return
    if text[position] != "[":
        raise AnnotationError(path, "", f"is not a list of records: it starts with {text[position]!r} instead of '['")
    position, number = after_blanks(position + 1), 0
    mark = text[position : position + 1]
    while mark != "]":
        number += 1
        try:
            record, position = decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            raise AnnotationError(path, f"record {number}", f"not valid JSON ({error})") from None
        yield f"record {number}", record
        position = after_blanks(position)
        mark = text[position : position + 1]
        if mark not in (",", "]"):
            found = f"{mark!r}" if mark else "the file ends"
            raise AnnotationError(path, f"after record {number}", f"expected ',' or ']' but {found}; is it cut off?")
        position = after_blanks(position + 1) if mark == "," else position
    if after_blanks(position + 1) != len(text):
        raise AnnotationError(path, "", "has text after the closing ']'; one record a line is .jsonl")


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise AnnotationError(path, f"line {number}", f"not valid JSON ({error})") from None
                yield f"line {number}", record


def _table(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        # strict: a quotation mark that is never closed is an error instead of swallowing the records behind it
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            names = rows.fieldnames or []
            if names and not {"image", "caption"} <= set(names):
                raise AnnotationError(path, "line 1", f"needs the columns image and caption; found: {', '.join(names)}")
            for row in rows:
                if None in row or None in row.values():
                    given = sum(value is not None for key, value in row.items() if key) + len(row.get(None, ()))
                    problem = f"{given} fields under {len(names)} columns; put quotes round text with a separator"
                    raise AnnotationError(path, f"line {rows.line_num}", problem)
                yield f"line {rows.line_num}", row
        except csv.Error as error:
            raise AnnotationError(path, f"line {rows.line_num}", f"not a valid table ({error})") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise AnnotationError(path, "", "reading parquet needs pyarrow: pip install 'blip[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if name in ("image", "caption", "image_id")]
            if not {"image", "caption"} <= set(wanted):
                names = ", ".join(file.schema_arrow.names)
                raise AnnotationError(path, "", f"needs the columns image and caption; found: {names}")
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=wanted):
                for record in batch.to_pylist():
                    number += 1
                    yield f"record {number}", record
    except (ArrowException, OSError) as error:
        raise AnnotationError(path, "", f"not a readable parquet file ({error})") from None


def parse_record(record: Any) -> tuple[str, list[str], str | None]:
    """(image, captions, image id or None) of a record; ValueError says what is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError(f"a record is an object with image and caption, not {_kind(record)}")
    for key in ("image", "caption"):
        if key not in record:
            raise ValueError(f"has no {key!r}; its keys: {', '.join(map(str, record)) or 'none'}")
    image, caption = record["image"], record["caption"]
    if not isinstance(image, str):
        raise ValueError(f"its image is {_kind(image)}, not the path of a file")
    if not image.strip() or "\0" in image:
        raise ValueError("its image is empty" if not image.strip() else "its image holds a NUL character")
    captions = caption if isinstance(caption, list) else [caption]
    if not captions:
        raise ValueError("its list of captions is empty")
    for text in captions:
        if not isinstance(text, str):
            raise ValueError(f"its caption is {_kind(text)}, not text")
        if not text.strip():
            raise ValueError("its caption is empty")
    image_id = record.get("image_id")
    if image_id is not None and (not isinstance(image_id, (str, int)) or isinstance(image_id, bool)):
        raise ValueError(f"its image_id is {_kind(image_id)}, not a whole number or text")
    return image, captions, None if image_id is None or image_id == "" else str(image_id)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"a number ({value})" if isinstance(value, (int, float)) else type(value).__name__)


# ---- annotations in memory -------------------------------------------------------------------------------------------


class Texts:
    """A list of strings in two flat buffers. No object per string: forked workers share its pages and copy none."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.ends = array("q")

    def append(self, text: str) -> None:
        self.bytes += text.encode("utf-8", "replace")  # JSON may hold half a surrogate pair; it becomes "?"
        self.ends.append(len(self.bytes))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.bytes[start : self.ends[index]].decode("utf-8")

    @property
    def nbytes(self) -> int:
        return len(self.bytes) + len(self.ends) * self.ends.itemsize


class Pairs:
    """The records of one or more annotation files, N of them, in flat arrays; filled by `read_pairs`."""

    def __init__(self) -> None:
        self.sources: list[str] = []  # annotation files
        self.roots: list[str] = []  # of each file: the folder that its image paths are relative to
        self.weights: list[float] = []  # of each file: visits of a record in an epoch
        self._paths = Texts()
        self._captions = Texts()
        self._caption_ends = array("q")  # of each record: where its captions end in `_captions`
        self._image_ids = array("q")
        self._files = array("H")

    def append(self, file: int, image: str, captions: list[str], image_id: str | None) -> None:
        """Adds a record of the annotation file `sources[file]`."""
        self._paths.append(image)
        for caption in captions:
            self._captions.append(caption)
        self._caption_ends.append(len(self._captions))
        self._files.append(file)
        self._image_ids.append(stable_hash(image_id or self.image_path(len(self) - 1)))

    def __len__(self) -> int:
        return len(self._files)

    def image_path(self, index: int) -> str:
        return os.path.normpath(os.path.join(self.roots[self._files[index]], self._paths[index]))

    def captions(self, index: int) -> list[str]:
        start = self._caption_ends[index - 1] if index else 0
        return [self._captions[i] for i in range(start, self._caption_ends[index])]

    def image_id(self, index: int) -> int:
        """63-bit number, the same for records with the same `image_id` or, where none is given, the same path."""
        return self._image_ids[index]

    def source(self, index: int) -> str:
        """The annotation file that the record comes from."""
        return self.sources[self._files[index]]

    def record_weights(self) -> np.ndarray | None:
        """(N,) float64: the weight of each record's file; None where all are 1."""
        if all(weight == 1 for weight in self.weights):
            return None
        return np.asarray(self.weights)[np.frombuffer(self._files, np.uint16)]

    @property
    def nbytes(self) -> int:
        arrays = (self._caption_ends, self._image_ids, self._files)
        return self._paths.nbytes + self._captions.nbytes + sum(len(x) * x.itemsize for x in arrays)


def read_pairs(files: list[str | Mapping[str, Any]], image_root: str = "") -> Pairs:
    """Reads annotation files: .json (a list), .jsonl, .csv and .tsv (with a header), .parquet.

    A record has `image` (a path), `caption` (text or a list of texts) and perhaps `image_id`; other keys are ignored.

    Args:
        files: paths, or {"path": ..., "weight": ...}; the weight says how often an epoch visits the file's records.
        image_root: folder that image paths are relative to; empty: the folder of their annotation file.

    Raises:
        AnnotationError: names the file, the record and what is wrong with it.
    """
    if not files:
        raise ValueError("no annotation files are given")
    if image_root and not os.path.isdir(image_root):
        raise ValueError(f"image_root is {image_root!r}, which is no folder")
    pairs = Pairs()
    for number, entry in enumerate(files):
        path, weight = file_entry(entry)
        pairs.sources.append(path)
        pairs.roots.append(image_root or os.path.dirname(path))
        pairs.weights.append(weight)
        for place, record in iter_records(path):
            try:
                pairs.append(number, *parse_record(record))
            except ValueError as error:
                raise AnnotationError(path, place, str(error)) from None
    return pairs


def file_entry(entry: str | Path | Mapping[str, Any]) -> tuple[str, float]:
    """(path, weight) of an entry in a list of annotation files."""
    if not isinstance(entry, Mapping):
        return str(entry), 1.0
    if "path" not in entry or not set(entry) <= {"path", "weight"}:
        raise ValueError(f"an annotation file is a path or has the keys path and weight; found: {dict(entry)}")
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise ValueError(f"{entry['path']}: weight is {weight!r}; it needs to be a number above 0")
    return str(entry["path"]), float(weight)


def caption_id(text: str) -> int:
    """63-bit number, the same for captions that differ in white space and case alone."""
    return stable_hash(" ".join(text.lower().split()))


# ---- samples ---------------------------------------------------------------------------------------------------------


class CaptionEncoder:
    """Caption to ids: cleaned, behind the prompt, [CLS] ... [SEP]."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, prompt: str = "", text_cleaning: str = "none"):
        """`text_cleaning` is none or blip, the published preprocessing (`blip_cleaning`)."""
        if text_cleaning not in ("none", "blip"):
            raise ValueError(f"text_cleaning is {text_cleaning!r}; it can be none or blip")
        if max_tokens < 3:
            raise ValueError(f"max_tokens is {max_tokens}: [CLS] and [SEP] take 2, the caption needs some more")
        self.tokenizer, self.max_tokens, self.prompt = tokenizer, max_tokens, prompt
        self.clean = text_cleaning == "blip"

    def __call__(self, caption: str) -> list[int]:
        text = blip_cleaning(caption) if self.clean else caption
        return self.tokenizer.encode([self.prompt + text], self.max_tokens)[0]


class PairDataset(Dataset):
    """Training samples by (epoch, position). All chance in a sample depends on (seed, epoch, index) alone."""

    def __init__(
        self,
        pairs: Pairs,
        order: EpochOrder,
        tokenizer: Tokenizer,
        transform: Callable[[Image.Image], Tensor],
        max_tokens: int,
        seed: int,
        prompt: str = "",
        text_cleaning: str = "none",
        max_skipped_fraction: float = 0.01,
    ):
        """`prompt` and `text_cleaning`: see `CaptionEncoder`. More unreadable images in a row than 10 and than
        `max_skipped_fraction` of the records, or all of them, raise TooManySkipped."""
        self.pairs, self.order, self.transform, self.seed = pairs, order, transform, seed
        self.encode = CaptionEncoder(tokenizer, max_tokens, prompt, text_cleaning)
        self.patience = min(max(10, int(max_skipped_fraction * len(pairs))), order.per_rank - 1)

    def __len__(self) -> int:
        return self.order.per_rank

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample at (epoch, position), or the next readable one behind it, with a note of those skipped."""
        epoch, position = key
        skipped: list[Skipped] = []
        while True:
            index = self.order.index(epoch, (position + len(skipped)) % self.order.per_rank)
            try:
                image = open_image(self.pairs.image_path(index))
            except UnreadableImage as error:
                skipped.append((index, error.path, error.reason))
                if len(skipped) > self.patience:
                    raise TooManySkipped(too_many(skipped, f"{len(skipped)} images in a row")) from None
                continue
            return replace(self._sample(image, epoch, index), skipped=skipped)

    def _sample(self, image: Image.Image, epoch: int, index: int) -> Sample:
        captions = self.pairs.captions(index)
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would also reset the GPU's generator when there are no workers
            torch.default_generator.manual_seed(stable_hash("sample", self.seed, epoch, index))
            caption = captions[int(torch.randint(len(captions), ()))]
            pixels = self.transform(image)
        image_id = self.pairs.image_id(index)
        return Sample(pixels, self.encode(caption), caption_id(caption), image_id, index, skipped=[])


class EvalPairs(Dataset):
    """Evaluation samples by index: every image once, with the first of its captions (`Pairs.captions` has them all)."""

    def __init__(
        self,
        pairs: Pairs,
        tokenizer: Tokenizer,
        transform: Callable[[Image.Image], Tensor],
        max_tokens: int,
        prompt: str = "",
        text_cleaning: str = "none",
    ):
        self.pairs, self.transform = pairs, transform
        self.encode = CaptionEncoder(tokenizer, max_tokens, prompt, text_cleaning)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """The sample; where the image is unreadable, one whose `image` is None and whose `skipped` says so."""
        pixels, skipped = None, list[Skipped]()
        try:
            pixels = self.transform(open_image(self.pairs.image_path(index)))
        except UnreadableImage as error:
            skipped.append((index, error.path, error.reason))
        caption = self.pairs.captions(index)[0]
        return Sample(pixels, self.encode(caption), caption_id(caption), self.pairs.image_id(index), index, skipped)
