"""Annotated images into a folder of shards: each image once, resized, and annotations that refer to these images.

    shard-00000.tar ...   webdataset shards; a sample is an image and JSON with all captions that records give it
    sizes.json            samples, length and hash of each shard
    annotations.jsonl     the records, in their order; in place of a path each has SHARD.tar#OFFSET+LENGTH
    skipped.jsonl         images that could not be read, if there are any; their records are left out

Pre-training streams the samples; other tasks read `annotations.jsonl` as any annotation file, and images from the
shards. Images lie in random order, so that those near one another, among which a stream shuffles, are a random part.
"""

import itertools
import os
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from blip.data.compact import Texts
from blip.data.hub import pinned
from blip.data.places import KINDS, kind_of_source
from blip.data.sets.captions import Captioned
from blip.data.sets.layout import SHARD_ANNOTATIONS, SetFormat
from blip.data.sets.questions import Question
from blip.data.sets.statements import Statement
from blip.data.skipped import Skipped
from blip.data.sources import Opened, Source, records_of
from blip.data.tar_members import Member, members
from blip.data.webdataset import SIZES, shard_name, write_tar_shards
from blip.data.workers import worker_context
from blip.errors import BlipError
from blip.files import json_text, whole_file, write_whole
from blip.hashing import stable_hash
from blip.hub.names import is_hub_name
from blip.outputs import OutputError
from blip.shards.resize import ImageForm, Stored, stored

SKIPPED = "skipped.jsonl"
AHEAD = 8  # images that wait to be written, for each process that resizes
Record = Captioned | Question | Statement


class ShardingError(BlipError):
    """Sources of which no shards can be made; the message has the reason."""


@dataclass
class Written:
    """What a folder of shards holds, and what was left out."""

    images: int = 0
    records: int = 0
    left_out: int = 0  # records whose image cannot be read
    skipped: list[Skipped] = field(default_factory=list)  # images that cannot be read
    shards: list[str] = field(default_factory=list)  # names of the tar files
    bytes: int = 0  # of all images

    @property
    def files(self) -> list[str]:
        """The names of all files in the folder."""
        return [*self.shards, SIZES, SHARD_ANNOTATIONS, *([SKIPPED] if self.skipped else [])]


def write_shards(
    sources: Sequence[Source],
    out: Path,
    form: ImageForm,
    *,
    shard_size: int = 1000,
    seed: int = 0,
    num_workers: int = 2,
) -> Written:
    """Writes the folder `out`; its annotations last.

    Args:
        sources: all of one kind: captions, questions or statements.
        shard_size: images in a shard.
        seed: of the order of the images in the shards.
        num_workers: processes that resize; 0: this one.

    Raises:
        ShardingError: sources of several kinds, records without texts, or no image that can be read.
        AnnotationError: a record cannot be used.
        WriteError: such as on a full disk.
    """
    sources = [replace(one, path=pinned(one.path)) if is_hub_name(one.path) else one for one in sources]
    sets = _sets_of(sources)
    images = _Images(records_of(sets, sources))
    order = np.random.default_rng(stable_hash("shards", seed)).permutation(len(images))
    written = Written()
    results = _resized(images, order, form, num_workers=num_workers)
    samples = _samples(images, order, results, written)
    if (first := next(samples, None)) is None:
        _, path, reason = written.skipped[0]
        raise ShardingError(f"none of {len(images)} images could be read, the first being {path} ({reason})")
    (out / SHARD_ANNOTATIONS).unlink(missing_ok=True)  # of an earlier run: they would refer to other shards
    counts = write_tar_shards(out, itertools.chain([first], samples), shard_size)
    written.shards = [shard_name(number) for number in range(len(counts))]
    written.images = sum(counts)
    places = _Places(out, written, order, len(images))
    with whole_file(out / SHARD_ANNOTATIONS) as file:
        for record in records_of(sets, sources):
            entry = _entry(record, images, places)
            written.records += entry is not None
            written.left_out += entry is None
            if entry is not None:
                file.write(json_text(entry, indent=None).encode())
    if written.skipped:
        notes = ({"index": index, "path": path, "reason": reason} for index, path, reason in sorted(written.skipped))
        write_whole(out / SKIPPED, "".join(json_text(note, indent=None) for note in notes))
    else:
        (out / SKIPPED).unlink(missing_ok=True)
    return written


def refuse_images_in(out: Path, sources: Sequence[Source]) -> None:
    """OutputError where the folder to write, or one in it, holds images of the sources."""
    if not out.is_dir():
        return
    target = os.path.join(os.path.realpath(out), "")
    opened = records_of(_sets_of(sources), sources)
    folders = {os.path.dirname(_full(one, given)) for one in opened for given in one.record().image_paths}
    if inside := next((one for one in folders if os.path.join(os.path.realpath(one), "").startswith(target)), ""):
        raise OutputError(f"{out} holds images of {inside}, an input of this command: choose another output folder")


def _sets_of(sources: Sequence[Source]) -> Mapping[str, SetFormat]:
    kinds = {kind: (sets, source.path) for source in sources for sets, kind in [kind_of_source(source)]}
    if len(kinds) > 1:
        named = ", ".join(f"{kind} ({path})" for kind, (_, path) in kinds.items())
        raise ShardingError(f"one kind of records at a time, not {named}: write each into a folder of its own")
    kind, (sets, path) = next(iter(kinds.items()))
    if kind == KINDS["dialog"]:
        raise ShardingError(f"{path}: dialogues are trained from their own files, not from shards")
    if kind == "images":
        raise ShardingError(f"{path}: its records have none of {', '.join(KINDS)}, so nothing is trained on them")
    return sets


# ---- images ----------------------------------------------------------------------------------------------------------


class _Images:
    """The different images of some records, in the order of the records, and what these give each of them."""

    def __init__(self, records: Iterator[Opened]) -> None:
        self.paths, self.given = Texts(), Texts()  # the full path, and as it stands in the annotations
        self.ids, self.sources = Texts(), Texts()  # of the first record; "": none
        self.whole = bytearray()  # 1 for drawings of three boxes, which are told by their size
        self._numbers: dict[int, int] = {}  # hash of a path -> number of the image
        self._captions, owners = Texts(), array("q")
        for opened in records:
            record = opened.record()
            if getattr(record, "further", []):
                raise ShardingError(f"{opened.file.path}, {opened.place}: has several images; shards hold single ones")
            for given in record.image_paths:
                number = self._add(opened, given, record)
            if isinstance(record, Captioned):
                for caption in record.captions:
                    self._captions.append(caption)
                    owners.append(number)
        self._of_image = np.argsort(np.asarray(owners, np.int64), kind="stable")
        self._ends = np.bincount(np.asarray(owners, np.int64), minlength=len(self)).cumsum()
        stems = {stable_hash(_stem(self.given[number])) for number in range(len(self))}
        self.stems_differ = len(stems) == len(self)

    def _add(self, opened: Opened, given: str, record: Record) -> int:
        path = _full(opened, given)
        number = self._numbers.setdefault(stable_hash(path), len(self.paths))
        if number == len(self.paths):
            self.paths.append(path)
            self.given.append(given)
            self.ids.append(str(getattr(record, "image_id", None) or ""))
            self.sources.append(getattr(record, "source", ""))
            self.whole.append(isinstance(record, Statement) and isinstance(record.images, str))
        return number

    def __len__(self) -> int:
        return len(self.paths)

    def number(self, path: str) -> int:
        return self._numbers[stable_hash(path)]

    def captions(self, number: int) -> list[str]:
        first = int(self._ends[number - 1]) if number else 0
        return [self._captions[int(place)] for place in self._of_image[first : int(self._ends[number])]]

    def name(self, number: int) -> str:
        """What identifies the image where its record has no `image_id`: its file's name, if no other has the same."""
        return _stem(self.given[number]) if self.stems_differ else self.given[number]


def _full(opened: Opened, given: str) -> str:
    return os.path.normpath(os.path.join(opened.file.root, given))


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _resized(images: _Images, order: np.ndarray, form: ImageForm, *, num_workers: int) -> Iterator[Stored]:
    """The images in this order as they are stored; a few wait for their turn, whatever the number of images."""
    jobs = ((images.paths[number], not images.whole[number]) for number in map(int, order))
    if num_workers < 1:
        yield from (stored(path, form, resized=resized) for path, resized in jobs)
        return
    pool = ProcessPoolExecutor(num_workers, get_context(worker_context()))
    try:
        waiting: deque[Future[Stored]] = deque()
        for path, resized in jobs:
            waiting.append(pool.submit(partial(stored, path, form, resized=resized)))
            if len(waiting) >= AHEAD * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ShardingError(
            "a process that resizes was ended from outside, often because memory ran out: lower num_workers; `blip "
            "check-data` finds an image that breaks its decoder"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _samples(
    images: _Images, order: np.ndarray, results: Iterator[Stored], written: Written
) -> Iterator[dict[str, Any]]:
    """Samples of the shards; images that cannot be read are left out and noted."""
    for number, result in zip(map(int, order), results, strict=True):
        if result.problem:
            written.skipped.append((number, images.paths[number], result.problem))
            continue
        written.bytes += len(result.content)
        about: dict[str, Any] = {"image": images.given[number], "image_id": images.ids[number] or images.name(number)}
        if captions := images.captions(number):
            about = {"caption": captions, **about}
        if images.sources[number]:
            about["source"] = images.sources[number]
        yield {result.ending: result.content, "json": about}


# ---- annotations -----------------------------------------------------------------------------------------------------


class _Places:
    """Where each image lies in the shards."""

    def __init__(self, out: Path, written: Written, order: np.ndarray, count: int) -> None:
        self.shards, self._shard = written.shards, np.full(count, -1, np.int32)
        self._offsets, self._lengths = np.zeros(count, np.int64), np.zeros(count, np.int64)
        unreadable = {number for number, _, _ in written.skipped}
        kept = (number for number in map(int, order) if number not in unreadable)
        for shard, name in enumerate(written.shards):
            for member, place in members(out / name).items():
                if not member.endswith(".json"):
                    number = next(kept)
                    self._shard[number], self._offsets[number], self._lengths[number] = (
                        shard,
                        place.offset,
                        place.length,
                    )

    def reference(self, number: int) -> str:
        """What stands in place of the image's path; "" where it could not be read."""
        if self._shard[number] < 0:
            return ""
        place = Member(int(self._offsets[number]), int(self._lengths[number]))
        return place.reference(self.shards[self._shard[number]])


def _entry(opened: Opened, images: _Images, places: _Places) -> dict[str, Any] | None:
    """A record in the generic form of its kind, with references for its images; None where one cannot be read."""
    record: Record = opened.record()
    numbers = [images.number(_full(opened, given)) for given in record.image_paths]
    references = [places.reference(number) for number in numbers]
    if not all(references):
        return None
    own = f"{os.path.basename(opened.file.path)}:{opened.place.split()[-1]}"
    entry: dict[str, Any]
    if isinstance(record, Captioned):
        entry = {"image": references[0], "caption": record.captions, "image_id": record.image_id
                 or images.name(numbers[0]), "group": record.group, "source": record.source}  # fmt: skip
    elif isinstance(record, Question):
        entry = {"image": references[0], "question": record.question, "answer": record.references or record.answers,
                 "question_id": record.question_id or own, "image_id": record.image_id,
                 "answer_type": record.answer_type, "category": record.category, "choices": record.choices,
                 "group": record.group}  # fmt: skip
    else:
        pair = {"image": references[0]} if isinstance(record.images, str) else {"images": references}
        entry = {**pair, "sentence": record.sentence, "label": record.label, "identifier": record.id or own}
    return {key: value for key, value in entry.items() if value not in ("", [], None)}
