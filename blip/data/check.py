"""What is wrong with a data set before a run meets it: `check_data` reads everything once, `print_report` shows it."""

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blip.data.formats import AnnotationError, file_entry, iter_records
from blip.data.images import UnreadableImage, open_image, read_image
from blip.data.loader import worker_context
from blip.data.pairs import caption_id, has_words
from blip.data.sets.captions import CAPTION_SETS, Captioned
from blip.data.sets.layout import SetFile, SetFormat, open_set
from blip.data.sets.questions import QUESTION_SETS, Question
from blip.data.sets.statements import STATEMENT_SETS, Statement
from blip.errors import InputError
from blip.hashing import stable_hash
from blip.tokenizer import Tokenizer

PERCENTILES = (50, 90, 95, 99, 100)
SHOWN = 10  # problems that are named on the screen; the JSON has all


@dataclass
class FileReport:
    """Counts of one annotation file. Its texts are captions, questions or sentences."""

    path: str
    records: int = 0
    texts: int = 0
    errors: int = 0


@dataclass
class Report:
    """What `check_data` found. Duplicates are counted beyond the first of each kind."""

    kind: str = "captions"  # or "questions" or "sentences": what the texts are
    files: list[FileReport] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # annotation file, record and problem
    broken_images: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    images: int = 0  # different paths
    empty_texts: int = 0  # also among the errors
    wordless_texts: int = 0  # no letter and no digit or, with a tokenizer, no token: a model learns nothing from them
    duplicate_texts: int = 0  # equal but for white space and case; questions and sentences: about the same image
    duplicate_images: int = 0  # different paths with the same bytes
    answer_types: dict[str, int] = field(default_factory=dict)  # of questions; of sentences: true and false
    unanswered: int = 0  # questions without an answer, as in test sets
    length_unit: str = "words"  # or "tokens", [CLS] and [SEP] included
    length_percentiles: dict[int, int] = field(default_factory=dict)  # of texts
    answer_percentiles: dict[int, int] = field(default_factory=dict)  # of answers
    max_tokens: int = 30
    cut_share: float = 0.0  # of the texts; with words a lower bound

    @property
    def ok(self) -> bool:
        """No broken record, no broken image, and at least one record."""
        return not self.errors and not self.broken_images and any(file.records for file in self.files)

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON, every broken image and record by name."""
        content = {**self.__dict__, "ok": self.ok, "files": [file.__dict__ for file in self.files]}
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass
class Content:
    """What a sound record of any set holds: paths of its images, its texts, and for a question its answers."""

    images: list[str]
    texts: list[str]
    answers: list[str] = field(default_factory=list)
    answer_type: str = ""


def check_data(
    files: list[str | Mapping[str, Any]],
    image_root: str = "",
    tokenizer: Tokenizer | None = None,
    *,
    max_text_tokens: int = 30,
    num_workers: int = 2,
    dataset: str = "json",
    split: str = "",
) -> Report:
    """Reads all annotations and images of the files that a run would read; never raises for what they hold.

    Args:
        files, image_root: as for `read_pairs`, `read_questions` and `read_statements`.
        tokenizer: counts the lengths of texts; without it they are counted in words.
        max_text_tokens: the length at which a run would cut, [CLS] and [SEP] included.
        num_workers: processes that read images; 0 reads them in this one.
        dataset: a name of CAPTION_SETS, QUESTION_SETS or STATEMENT_SETS; json is any of the generic forms, by what the
            first record holds.
        split: of folders and of files with several parts, train, validation or test; all or "" for everything.

    Raises ValueError where there is no such dataset or split.
    """
    report = Report(max_tokens=max_text_tokens, length_unit="tokens" if tokenizer else "words")
    if image_root and not os.path.isdir(image_root):
        report.errors.append(f"image_root is {image_root!r}, which is no folder")
        image_root = ""
    images: dict[str, None] = {}  # an ordered set
    seen: Counter[int] = Counter()
    types: Counter[str] = Counter()
    lengths, answer_lengths = list[int](), list[int]()

    def measure(texts: list[str]) -> list[int]:
        return tokenizer.count(texts) if tokenizer else [len(text.split()) for text in texts]

    for entry in files:
        for content in _contents(entry, image_root, dataset, split or "all", report):
            images.update(dict.fromkeys(content.images))
            about = "" if report.kind == "captions" else content.images[0]
            seen.update(stable_hash(about, caption_id(text)) for text in content.texts)
            measured = measure(content.texts)
            nothing = 2 if tokenizer else 0  # [CLS] and [SEP]
            report.wordless_texts += sum(
                length <= nothing or not has_words(text) for text, length in zip(content.texts, measured, strict=True)
            )
            lengths += measured
            answer_lengths += measure(content.answers)
            types.update([content.answer_type] if content.answer_type else [])
            report.unanswered += report.kind == "questions" and not content.answers
    report.duplicate_texts = seen.total() - len(seen)
    report.answer_types = dict(sorted(types.items()))
    _measure(lengths, report)
    report.answer_percentiles = _percentiles(answer_lengths)
    _check_images(list(images), num_workers, report)
    return report


def _contents(
    entry: str | Mapping[str, Any], image_root: str, dataset: str, split: str, report: Report
) -> Iterator[Content]:
    """The sound records of a file or folder; what is wrong with it or with others becomes an error of the report."""
    try:
        path, _ = file_entry(entry)
    except ValueError as error:
        report.errors.append(str(error))
        return
    sets, report.kind = _sets_of(dataset, path, split)
    try:
        opened = open_set(sets, dataset, path, split, image_root)
    except AnnotationError as error:
        report.files.append(FileReport(path, errors=1))
        report.errors.append(str(error))
        return
    for file in opened:
        yield from _sound_records(file, report)


def _sets_of(dataset: str, path: str, split: str) -> tuple[Mapping[str, SetFormat], str]:
    """The table that the name belongs to, and what its texts are."""
    if dataset == "json":
        first: Any = None
        with contextlib.suppress(AnnotationError):  # it is reported when the file is read in earnest
            file = open_set(CAPTION_SETS, dataset, path, split)[0].path
            _, first = next(iter_records(file, needed=(), also=("caption", "question", "sentence")))
        keys = first if isinstance(first, dict) else {}
        for name, sets, kind in (("question", QUESTION_SETS, "questions"), ("sentence", STATEMENT_SETS, "sentences")):
            if name in keys and "caption" not in keys:
                return sets, kind
        return CAPTION_SETS, "captions"
    if dataset in QUESTION_SETS:
        return QUESTION_SETS, "questions"
    if dataset in STATEMENT_SETS:
        return STATEMENT_SETS, "sentences"
    if dataset not in CAPTION_SETS:
        names = dict.fromkeys([*CAPTION_SETS, *QUESTION_SETS, *STATEMENT_SETS])
        raise InputError(f"dataset is {dataset!r}; it can be {', '.join(names)}")
    return CAPTION_SETS, "captions"


def _sound_records(source: SetFile, report: Report) -> Iterator[Content]:
    """The contents of the records without fault; the others become errors of the report."""
    file = FileReport(source.path)
    report.files.append(file)
    try:
        for place, raw in source.raw():
            file.records += 1
            try:
                content = _content(source.parse(place, raw), source.root)
            except AnnotationError as error:
                file.errors += 1
                report.empty_texts += any(f"{x} is empty" in error.problem for x in ("caption", "question", "sentence"))
                report.errors.append(str(error))
                continue
            file.texts += len(content.texts)
            yield content
    except AnnotationError as error:  # of the file itself: what follows in it cannot be read
        file.errors += 1
        report.errors.append(str(error))


def _content(record: Captioned | Question | Statement, root: str) -> Content:
    def full(image: str) -> str:
        return os.path.normpath(os.path.join(root, image))

    if isinstance(record, Captioned):
        return Content([full(record.image)], record.captions)
    if isinstance(record, Question):
        return Content([full(record.image)], [record.question], record.answers, record.answer_type)
    images = [record.images] if isinstance(record.images, str) else list(record.images)
    return Content([full(image) for image in images], [record.sentence], answer_type=str(record.label).lower())


def _percentiles(lengths: list[int]) -> dict[int, int]:
    if not lengths:
        return {}
    values = np.percentile(lengths, PERCENTILES, method="higher")
    return {p: int(value) for p, value in zip(PERCENTILES, values, strict=True)}


def _measure(lengths: list[int], report: Report) -> None:
    if lengths:
        report.length_percentiles = _percentiles(lengths)
        # a word is at least one token, and two tokens are [CLS] and [SEP]
        limit = report.max_tokens - (2 if report.length_unit == "words" else 0)
        report.cut_share = float(np.mean(np.asarray(lengths) > limit))


def _check_images(paths: list[str], workers: int, report: Report) -> None:
    report.images = len(paths)
    digests = set()
    for path, digest, reason in _inspected(paths, workers):
        if reason:
            report.broken_images.append((path, reason))
        elif digest in digests:
            report.duplicate_images += 1
        digests.add(digest)


def _inspected(paths: list[str], workers: int) -> Iterable[tuple[str, bytes, str]]:
    if workers < 1 or len(paths) < 2:
        yield from map(_inspect, paths)
        return
    with multiprocessing.get_context(worker_context()).Pool(workers) as pool:
        yield from pool.imap(_inspect, paths, chunksize=16)


def _inspect(path: str) -> tuple[str, bytes, str]:
    """(path, hash of the file's bytes, what is wrong with the image or "")."""
    try:
        data = read_image(path)
        open_image(data)
    except FileNotFoundError:
        return path, b"", "no such file"
    except OSError as error:
        return path, b"", error.strerror or str(error)
    except ValueError as error:  # of a row of a parquet or arrow file
        return path, b"", str(error)
    except UnreadableImage as error:
        return path, b"", error.reason
    return path, hashlib.blake2b(data, digest_size=16).digest(), ""


def print_report(report: Report, console: Console | None = None) -> None:
    """Shows a report as tables, with the first ten broken records and images by name."""
    console = console or Console()
    table = Table("file", "records", report.kind, "errors")
    for file in report.files:
        table.add_row(escape(file.path), f"{file.records:,}", f"{file.texts:,}", f"{file.errors:,}")
    console.print(table)
    console.print(f"images: {report.images:,}, unreadable {len(report.broken_images):,}", highlight=False)
    console.print(f"duplicates: {report.duplicate_texts:,} {report.kind}, {report.duplicate_images:,} images")
    if report.wordless_texts:
        console.print(f"without words: {report.wordless_texts:,} {report.kind}", style="yellow", highlight=False)
    if report.answer_types:
        kinds = ", ".join(f"{count:,} {name}" for name, count in report.answer_types.items())
        without = f"; {report.unanswered:,} questions without an answer" if report.unanswered else ""
        console.print(f"answers: {kinds}{without}", highlight=False)
    for what, percentiles in ((report.kind[:-1], report.length_percentiles), ("answer", report.answer_percentiles)):
        if percentiles:
            shares = ", ".join(f"{p} % up to {length}" for p, length in percentiles.items())
            console.print(f"{what} length in {report.length_unit}: {shares}", highlight=False)
    if report.length_percentiles:
        least = "at least " if report.length_unit == "words" else ""
        console.print(f"cut at {report.max_tokens} tokens: {least}{report.cut_share:.1%} of the {report.kind}")
    _print_some(console, "broken records", report.errors)
    _print_some(console, "unreadable images", [f"{path}: {reason}" for path, reason in report.broken_images])
    console.print("[green]no errors[/green]" if report.ok else "[red]errors found[/red]")


def _print_some(console: Console, title: str, lines: list[str]) -> None:
    if lines:
        console.print(f"[bold]{title} ({len(lines):,})[/bold]")
        for line in lines[:SHOWN]:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        if len(lines) > SHOWN:
            console.print(f"  and {len(lines) - SHOWN:,} more")
