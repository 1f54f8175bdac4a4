"""What is wrong with a data set before a run meets it: `check_data` reads everything once, `print_report` shows it."""

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
from rich.table import Table

from blip.data.formats import AnnotationError, file_entry, iter_records, parse_record
from blip.data.loader import worker_context
from blip.data.pairs import caption_id
from blip.data.transforms import UnreadableImage, open_image
from blip.tokenizer import Tokenizer

PERCENTILES = (50, 90, 95, 99, 100)
SHOWN = 10  # problems that are named on the screen; the JSON has all


@dataclass
class FileReport:
    """Counts of one annotation file."""

    path: str
    records: int = 0
    captions: int = 0
    errors: int = 0


@dataclass
class Report:
    """What `check_data` found. Duplicates are counted beyond the first of each kind."""

    files: list[FileReport] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # annotation file, record and problem
    broken_images: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    images: int = 0  # different paths
    empty_captions: int = 0  # also among the errors
    duplicate_captions: int = 0  # equal but for white space and case
    duplicate_images: int = 0  # different paths with the same bytes
    length_unit: str = "words"  # or "tokens", [CLS] and [SEP] included
    length_percentiles: dict[int, int] = field(default_factory=dict)
    max_tokens: int = 30
    cut_share: float = 0.0  # of the captions; with words a lower bound

    @property
    def ok(self) -> bool:
        """No broken record, no broken image, and at least one record."""
        return not self.errors and not self.broken_images and any(file.records for file in self.files)

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON, every broken image and record by name."""
        content = {**self.__dict__, "ok": self.ok, "files": [file.__dict__ for file in self.files]}
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_data(
    files: list[str | Mapping[str, Any]],
    image_root: str = "",
    tokenizer: Tokenizer | None = None,
    max_tokens: int = 30,
    workers: int = 2,
) -> Report:
    """Reads all annotations and images of the files that `read_pairs` would read; never raises for what they hold.

    Args:
        files, image_root: as for `read_pairs`.
        tokenizer: counts the lengths of captions; without it they are counted in words.
        max_tokens: the length at which a run would cut, [CLS] and [SEP] included.
        workers: processes that read images; 0 reads them in this one.
    """
    report = Report(max_tokens=max_tokens, length_unit="tokens" if tokenizer else "words")
    if image_root and not os.path.isdir(image_root):
        report.errors.append(f"image_root is {image_root!r}, which is no folder")
    images: dict[str, None] = {}  # an ordered set
    seen: Counter[int] = Counter()
    lengths: list[int] = []
    for entry in files:
        try:
            path, _ = file_entry(entry)
        except ValueError as error:
            report.errors.append(str(error))
            continue
        for image, captions in _sound_records(path, report):
            images[os.path.normpath(os.path.join(image_root or os.path.dirname(path), image))] = None
            seen.update(caption_id(text) for text in captions)
            lengths += tokenizer.count(captions) if tokenizer else [len(text.split()) for text in captions]
    report.duplicate_captions = seen.total() - len(seen)
    _measure(lengths, report)
    _check_images(list(images), workers, report)
    return report


def _sound_records(path: str, report: Report) -> Iterator[tuple[str, list[str]]]:
    """(image, captions) of the records without fault; the others become errors of the report."""
    file = FileReport(path)
    report.files.append(file)
    try:
        for place, record in iter_records(path):
            file.records += 1
            try:
                image, captions, _ = parse_record(record)
            except ValueError as error:
                file.errors += 1
                report.empty_captions += "caption is empty" in str(error)
                report.errors.append(str(AnnotationError(path, place, str(error))))
                continue
            file.captions += len(captions)
            yield image, captions
    except AnnotationError as error:  # of the file itself: what follows in it cannot be read
        file.errors += 1
        report.errors.append(str(error))


def _measure(lengths: list[int], report: Report) -> None:
    if lengths:
        values = np.percentile(lengths, PERCENTILES, method="higher")
        report.length_percentiles = {p: int(value) for p, value in zip(PERCENTILES, values, strict=True)}
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
        data = Path(path).read_bytes()
        open_image(data)
    except FileNotFoundError:
        return path, b"", "no such file"
    except OSError as error:
        return path, b"", error.strerror or str(error)
    except UnreadableImage as error:
        return path, b"", error.reason
    return path, hashlib.blake2b(data, digest_size=16).digest(), ""


def print_report(report: Report, console: Console | None = None) -> None:
    """Shows a report as tables, with the first ten broken records and images by name."""
    console = console or Console()
    table = Table("file", "records", "captions", "errors")
    for file in report.files:
        table.add_row(file.path, f"{file.records:,}", f"{file.captions:,}", f"{file.errors:,}")
    console.print(table)
    console.print(f"images: {report.images:,}, unreadable {len(report.broken_images):,}", highlight=False)
    console.print(f"duplicates: {report.duplicate_captions:,} captions, {report.duplicate_images:,} images")
    if report.length_percentiles:
        shares = ", ".join(f"{p} % up to {length}" for p, length in report.length_percentiles.items())
        least = "at least " if report.length_unit == "words" else ""
        console.print(f"caption length in {report.length_unit}: {shares}", highlight=False)
        console.print(f"cut at {report.max_tokens} tokens: {least}{report.cut_share:.1%} of the captions")
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
