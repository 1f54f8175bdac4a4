"""Annotated images into a folder of shards: each image once, resized, and annotations that refer to these images.

    shard-00000.tar ...   webdataset shards; a sample is an image and JSON with all captions that records give it
    sizes.json            samples, length and hash of each shard
    annotations.jsonl     the records, in their order; in place of a path each has SHARD.tar#OFFSET+LENGTH
    skipped.jsonl         images that could not be read, if there are any; their records are left out

Pre-training streams the samples; other tasks read `annotations.jsonl` as any annotation file, and images from the
shards. Images lie in random order, so that those near one another, among which a stream shuffles, are a random part.
The pictures of an item of several are one sample, NAME.0.png and so on; videos and volumes become such items.
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

from blip.data.hub import pinned
from blip.data.places import KINDS, kind_of_source
from blip.data.sets.captions import Captioned
from blip.data.sets.layout import SHARD_ANNOTATIONS, SetFormat
from blip.data.sets.questions import Question
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
from blip.shards.items import Items, Record, full_paths, given_items
from blip.shards.resize import ImageForm, Stored, stored_item

SKIPPED = "skipped.jsonl"
AHEAD = 8  # images that wait to be written, for each process that resizes


class ShardingError(BlipError):
    """Sources of which no shards can be made; the message has the reason."""


@dataclass
class Written:
    """What a folder of shards holds, and what was left out."""

    images: int = 0
    items: int = 0  # samples: as many as images where no item has several
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
        shard_size: samples in a shard: images, or items of several.
        seed: of the order of the images in the shards.
        num_workers: processes that resize; 0: this one.

    Raises:
        ShardingError: sources of several kinds, records without texts, or no image that can be read.
        AnnotationError: a record cannot be used.
        WriteError: such as on a full disk.
    """
    sources = [replace(one, path=pinned(one.path)) if is_hub_name(one.path) else one for one in sources]
    sets = _sets_of(sources)
    items = Items(records_of(sets, sources))
    order = np.random.default_rng(stable_hash("shards", seed)).permutation(len(items))
    written = Written()
    results = _resized(items, order, form, num_workers=num_workers)
    samples = _samples(items, order, results, written)
    if (first := next(samples, None)) is None:
        _, path, reason = written.skipped[0]
        raise ShardingError(f"none of {len(items)} images could be read, the first being {path} ({reason})")
    (out / SHARD_ANNOTATIONS).unlink(missing_ok=True)  # of an earlier run: they would refer to other shards
    counts = write_tar_shards(out, itertools.chain([first], samples), shard_size)
    written.shards = [shard_name(number) for number in range(len(counts))]
    written.items = sum(counts)
    places = _Places(out, written, order, len(items))
    with whole_file(out / SHARD_ANNOTATIONS) as file:
        for record in records_of(sets, sources):
            entry = _entry(record, items, places)
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
    folders = {os.path.dirname(path) for one in opened for path in full_paths(one, one.record().image_paths)}
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


def _resized(items: Items, order: np.ndarray, form: ImageForm, *, num_workers: int) -> Iterator[list[Stored]]:
    """The items in this order as they are stored; a few wait for their turn, whatever the number of items."""
    jobs = ((items.paths[number], not items.whole[number]) for number in map(int, order))
    if num_workers < 1:
        yield from (stored_item(paths, form, resized=resized) for paths, resized in jobs)
        return
    pool = ProcessPoolExecutor(num_workers, get_context(worker_context()))
    try:
        waiting: deque[Future[list[Stored]]] = deque()
        for paths, resized in jobs:
            waiting.append(pool.submit(partial(stored_item, paths, form, resized=resized)))
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
    items: Items, order: np.ndarray, results: Iterator[list[Stored]], written: Written
) -> Iterator[dict[str, Any]]:
    """Samples of the shards; items of which an image cannot be read are left out and noted."""
    for number, result in zip(map(int, order), results, strict=True):
        if problem := result[0].problem:
            written.skipped.append((number, result[0].path, problem))
            continue
        written.images += len(result)
        written.bytes += sum(len(one.content) for one in result)
        given = items.given[number]
        about: dict[str, Any] = {"image": given[0]} if len(given) == 1 else {"images": given}
        about["image_id"] = items.ids[number] or items.name(number)
        if captions := items.captions(number):
            about = {"caption": captions, **about}
        if items.sources[number]:
            about["source"] = items.sources[number]
        names = [one.ending if len(result) == 1 else f"{i}.{one.ending}" for i, one in enumerate(result)]
        yield {**{name: one.content for name, one in zip(names, result, strict=True)}, "json": about}


# ---- annotations -----------------------------------------------------------------------------------------------------


class _Places:
    """Where the pictures of each item lie in the shards."""

    def __init__(self, out: Path, written: Written, order: np.ndarray, count: int) -> None:
        self.shards, self._shard = written.shards, np.full(count, -1, np.int32)
        self._first = np.zeros(count, np.int64)  # of each item: the first of its pictures in the two lists
        self._offsets, self._lengths, self._ends = array("q"), array("q"), array("q")
        unreadable = {number for number, _, _ in written.skipped}
        kept = (number for number in map(int, order) if number not in unreadable)
        for shard, name in enumerate(written.shards):
            inside = members(out / name)
            for _, names in itertools.groupby(inside, lambda one: one.partition(".")[0]):
                number = next(kept)
                self._shard[number], self._first[number] = shard, len(self._ends)
                for place in (inside[one] for one in sorted(names, key=_place) if not one.endswith(".json")):
                    self._offsets.append(place.offset)
                    self._lengths.append(place.length)
                self._ends.append(len(self._offsets))

    def references(self, number: int) -> list[str]:
        """What stands in place of the paths of an item; [] where it could not be read."""
        if self._shard[number] < 0:
            return []
        row, shard = int(self._first[number]), self.shards[self._shard[number]]
        places = range(self._ends[row - 1] if row else 0, self._ends[row])
        return [Member(self._offsets[i], self._lengths[i]).reference(shard) for i in places]


def _place(name: str) -> int:
    """The place of a picture among those of its item, from the name of its file in a shard."""
    place = name.split(".")[1]
    return int(place) if place.isdigit() else 0


def _entry(opened: Opened, items: Items, places: _Places) -> dict[str, Any] | None:
    """A record in the generic form of its kind, with references for its images; None where one cannot be read."""
    record: Record = opened.record()
    numbers = [items.number(full_paths(opened, given)) for given in given_items(record)]
    several = [places.references(number) for number in numbers]
    if not all(several):
        return None
    references = [one for item in several for one in item]
    named = {"image": references[0]} if len(references) == 1 else {"images": references}
    own = f"{os.path.basename(opened.file.path)}:{opened.place.split()[-1]}"
    entry: dict[str, Any]
    if isinstance(record, Captioned):
        entry = {**named, "caption": record.captions, "image_id": record.image_id or items.name(numbers[0]),
                 "group": record.group, "source": record.source}  # fmt: skip
    elif isinstance(record, Question):
        entry = {**named, "question": record.question, "answer": record.references or record.answers,
                 "question_id": record.question_id or own, "image_id": record.image_id,
                 "answer_type": record.answer_type, "category": record.category, "choices": record.choices,
                 "group": record.group}  # fmt: skip
    else:
        entry = {**named, "sentence": record.sentence, "label": record.label, "identifier": record.id or own}
    return {key: value for key, value in entry.items() if value not in ("", [], None)}
