"""What is wrong with a data set, before a run reads it: `check_data` reads all annotations and images once."""

import contextlib
import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from blip.data.check_report import FileReport, Report
from blip.data.formats import AnnotationError
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage, image_stream
from blip.data.images import open_image
from blip.data.pairs import caption_id, has_words
from blip.data.pictures import open_pictures, pictures_of
from blip.data.places import TABLES, kind_of_source
from blip.data.scans.facts import ScanFacts, facts_of, summary_of
from blip.data.scans.references import is_scan_reference
from blip.data.sets.captions import Captioned
from blip.data.sets.dialogues import Dialogue
from blip.data.sets.layout import SetFile, open_set
from blip.data.sets.questions import Question
from blip.data.sets.statements import Statement
from blip.data.sources import Entry, source_of, taken
from blip.data.workers import worker_context
from blip.hashing import stable_hash
from blip.outputs import refuse_inputs
from blip.tokenizer import Tokenizer

AT_ONCE = 16  # images that a process gets together
Inspected = tuple[str, bytes, str, ScanFacts | None]  # path, hash of the bytes, problem or "", of scans their facts
Inspect = Callable[[str], Inspected]  # as `_inspect`


@dataclass
class Content:
    """The content of a valid record of any set: paths of its images, its texts, and for a question its answers."""

    images: list[str]
    texts: list[str]
    answers: list[str] = field(default_factory=list)
    answer_type: str = ""


def check_data(
    files: Sequence[Entry],
    image_root: str = "",
    tokenizer: Tokenizer | None = None,
    *,
    max_text_tokens: int = 30,
    num_workers: int = 2,
    report_file: Path | None = None,
    limits: ImageLimits = LIMITS,
    **usual: Any,
) -> Report:
    """Reads all annotations and images of the files that a run would read; broken ones are part of the report.

    Args:
        files, image_root: as for `read_pairs`, `read_questions` and `read_statements`.
        tokenizer: counts the lengths of texts; without it they are counted in words.
        max_text_tokens: the length at which a run would cut, [CLS] and [SEP] included.
        num_workers: processes that read images; 0: this process.
        report_file: where the report will be written, which is none of the images.
        usual: `dataset`, a name of CAPTION_SETS, QUESTION_SETS or the like (json is any of the generic forms,
            depending on the keys of the first record); `split` of folders and of files with several parts (all or ""
            for everything); `columns`; and `limit`, the records of each file or folder that are read; see `Source`.

    Raises:
        ValueError: there is no such dataset or split. OutputError: the report would replace an image.
    """
    report = Report(max_tokens=max_text_tokens, length_unit="tokens" if tokenizer else "words")
    if image_root and not os.path.isdir(image_root):
        report.errors.append(f"image_root is {image_root!r}, which is no folder")
        image_root = ""
    images: dict[str, None] = {}  # an ordered set
    occurrences: Counter[int] = Counter()  # of each text
    types: Counter[str] = Counter()
    lengths, answer_lengths = list[int](), list[int]()

    def measure(texts: list[str]) -> list[int]:
        return tokenizer.count(texts) if tokenizer else [len(text.split()) for text in texts]

    usual = {**usual, "image_root": image_root, "split": usual.get("split") or "all"}
    for entry in files:
        for content in _contents(entry, report, usual):
            images.update(dict.fromkeys(content.images))
            report.of_several += report.kind != "sentences" and _are_several(content.images)
            about = "" if report.kind == "captions" else "|".join(content.images)
            occurrences.update(stable_hash(about, caption_id(text)) for text in content.texts)
            measured = measure(content.texts)
            empty = 2 if tokenizer else 0  # [CLS] and [SEP]
            report.wordless_texts += sum(
                length <= empty or not has_words(text) for text, length in zip(content.texts, measured, strict=True)
            )
            lengths += measured
            answer_lengths += measure(content.answers)
            types.update([content.answer_type] if content.answer_type else [])
            report.unanswered += report.kind == "questions" and not content.answers
    report.duplicate_texts = occurrences.total() - len(occurrences)
    report.answer_types = dict(sorted(types.items()))
    report.measure(lengths, answer_lengths)
    refuse_inputs([report_file] if report_file else [], images)
    _check_images(list(images), num_workers, report, limits=limits)
    return report


def _are_several(images: list[str]) -> bool:
    """Whether an item has several pictures, or a reference that means several."""
    return len(images) > 1 or any(map(pictures_of, images))


# ---- records ---------------------------------------------------------------------------------------------------------


def _contents(entry: Entry, report: Report, usual: Mapping[str, Any]) -> Iterator[Content]:
    """The contents of the valid records of a file or folder; its problems and those of its records go to the report."""
    try:
        source = source_of(entry, **usual)
    except ValueError as error:
        report.errors.append(str(error))
        return
    sets, kind = kind_of_source(source)
    report.kind = kind if kind in TABLES else "captions"
    options: dict[str, Any] = {name: getattr(source, name) for name in ("split", "image_root", "columns")}
    try:
        opened = open_set(sets, source.dataset, source.path, **options)
    except AnnotationError as error:
        report.files.append(FileReport(source.path, errors=1))
        report.errors.append(str(error))
        return
    yield from _valid_records(taken(lambda: _raw_records(opened), source.limit, source.seed), report)


def _raw_records(opened: Sequence[SetFile]) -> Iterator[tuple[SetFile, str, Any]]:
    """(file, place, raw record) of each record; the error of a file whose remaining records cannot be read, as one."""
    for file in opened:
        try:
            for place, raw in file.raw():
                yield file, place, raw
        except AnnotationError as error:
            yield file, "", error


def _valid_records(records: Iterator[tuple[SetFile, str, Any]], report: Report) -> Iterator[Content]:
    """The contents of valid records; the others become errors of the report."""
    path, file = "", FileReport("")
    for source, place, raw in records:
        if source.path != path:
            path, file = source.path, FileReport(source.path)
            report.files.append(file)
        file.records += not isinstance(raw, AnnotationError)
        try:
            if isinstance(raw, AnnotationError):
                raise raw
            content = _content(source.parse(place, raw), source.root)
        except AnnotationError as error:
            file.errors += 1
            report.empty_texts += any(f"{x} is empty" in error.problem for x in ("caption", "question", "sentence"))
            report.errors.append(str(error))
            continue
        file.texts += len(content.texts)
        yield content


def _content(record: Captioned | Question | Statement | Dialogue, root: str) -> Content:
    def full(image: str) -> str:
        return os.path.normpath(os.path.join(root, image))

    images = [full(image) for image in record.image_paths]
    if isinstance(record, Captioned):
        return Content(images, record.captions)
    if isinstance(record, Question):
        return Content(images, [record.question], record.answers, record.answer_type)
    if isinstance(record, Dialogue):
        return Content(images, [f"{one.question} {one.answer or ''}".strip() for one in record.exchanges])
    return Content(images, [record.sentence], answer_type=str(record.label).lower())


# ---- images ----------------------------------------------------------------------------------------------------------


def _check_images(paths: list[str], num_workers: int, report: Report, *, limits: ImageLimits) -> None:
    report.images = len(paths)
    digests, scans = set(), []
    for path, digest, reason, facts in _inspected(paths, num_workers, limits):
        if reason:
            report.broken_images.append((path, reason))
        elif digest in digests:
            report.duplicate_images += 1
        digests.add(digest)
        scans += [(path, facts)] if facts else []
    report.scans = summary_of(scans)


def _inspected(paths: list[str], num_workers: int, limits: ImageLimits) -> Iterator[Inspected]:
    """What `_inspect` returns for each path, in their order, from `num_workers` processes.

    If one of them ends, killed or by an image that breaks a decoder, the images that it may have read are read again,
    each in a process of its own, and the others follow in new processes.
    """
    inspect = partial(_inspect, limits=limits)
    if num_workers < 1 or len(paths) < 2:
        yield from map(inspect, paths)
        return
    done = 0
    while done < len(paths):
        try:
            for found in _in_processes(inspect, paths[done:], num_workers, at_once=AT_ONCE):
                yield found
                done += 1
        except BrokenProcessPool:
            for path in paths[done : done + AT_ONCE]:
                yield _inspect_apart(inspect, path)
                done += 1


def _inspect_apart(inspect: Inspect, path: str) -> Inspected:
    for _ in range(2):  # the system may have ended the first for other reasons
        with contextlib.suppress(BrokenProcessPool):
            return next(_in_processes(inspect, [path], 1, at_once=1))
    return path, b"", "the process that read it was ended, by the system or by this image", None


def _in_processes(inspect: Inspect, paths: list[str], count: int, *, at_once: int) -> Iterator[Inspected]:
    needed = min(count, -(-len(paths) // at_once))  # the pool may start as many as it is given, needed or not
    pool = ProcessPoolExecutor(needed, multiprocessing.get_context(worker_context()))
    try:
        yield from pool.map(inspect, paths, chunksize=at_once)
    finally:
        pool.shutdown(cancel_futures=True)


def _inspect(path: str, limits: ImageLimits) -> Inspected:
    """What is found in an image: its hash is that of the file's bytes, of parts of a scan that of their reference."""
    facts = facts_of(path, limits)
    try:
        if pictures_of(path) or is_scan_reference(path):  # two references to one file are different pictures
            open_pictures([path], limits)
            return path, path.encode("utf-8", "surrogatepass"), "", facts
        open_image(path, limits)
        with image_stream(path, limits) as file:
            digest = hashlib.blake2b(digest_size=16)
            while block := file.read(1 << 20):
                digest.update(block)
            return path, digest.digest(), "", facts
    except UnreadableImage as error:
        return path, b"", error.reason, facts
    except OSError as error:  # of the disk or the network, while the hash is taken
        return path, b"", error.strerror or str(error), facts
