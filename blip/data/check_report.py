"""The report of `blip check-data`: what it counts, and how it is saved and shown."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blip.data.scans.facts import ScanSummary
from blip.errors import printable, visible
from blip.files import json_text, write_whole

PERCENTILES = (50, 90, 95, 99, 100)
SHOWN = 10  # problems that are named on the screen; the JSON has all of them


@dataclass
class FileReport:
    """Counts of one annotation file. Its texts are captions, questions or sentences."""

    path: str
    records: int = 0
    texts: int = 0
    errors: int = 0


@dataclass
class Report:
    """The result of `check_data`. Duplicates are counted beyond the first of each kind."""

    kind: str = "captions"  # or "questions", "sentences" or "turns": what the texts are
    files: list[FileReport] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # annotation file, record and problem
    broken_images: list[tuple[str, str]] = field(default_factory=list)  # path, reason
    images: int = 0  # different paths
    of_several: int = 0  # captions and questions that are about several pictures
    empty_texts: int = 0  # also among the errors
    wordless_texts: int = 0  # no letter and no digit or, with a tokenizer, no token: a model learns nothing from them
    duplicate_texts: int = 0  # equal but for white space and case; questions and sentences: about the same image
    duplicate_images: int = 0  # different paths with the same bytes
    scans: ScanSummary = field(default_factory=ScanSummary)  # DICOM and NIfTI files among the images
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

    def measure(self, lengths: list[int], answer_lengths: list[int]) -> None:
        """Percentiles of the lengths of texts and answers, and the share of texts that a run would cut."""
        self.length_percentiles = _percentiles(lengths)
        self.answer_percentiles = _percentiles(answer_lengths)
        if lengths:
            # a word is at least one token, and two tokens are [CLS] and [SEP]
            limit = self.max_tokens - (2 if self.length_unit == "words" else 0)
            self.cut_share = float(np.mean(np.asarray(lengths) > limit))

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON, with the name of each broken image and record."""
        content = {**self.__dict__, "ok": self.ok, "files": [file.__dict__ for file in self.files]}
        content["scans"] = self.scans.__dict__
        write_whole(path, json_text(content))


def _percentiles(lengths: list[int]) -> dict[int, int]:
    if not lengths:
        return {}
    values = np.percentile(lengths, PERCENTILES, method="higher")
    return {p: int(value) for p, value in zip(PERCENTILES, values, strict=True)}


def print_report(report: Report, console: Console | None = None) -> None:
    """Shows a report as tables, with the names of the first ten broken records and images."""
    console = console or Console()
    table = Table("file", "records", report.kind, "errors")
    for file in report.files:
        table.add_row(escape(visible(str(file.path))), f"{file.records:,}", f"{file.texts:,}", f"{file.errors:,}")
    console.print(table)
    console.print(f"images: {report.images:,}, unreadable {len(report.broken_images):,}", highlight=False)
    for line in report.scans.lines():
        console.print(line, markup=False, highlight=False)
    console.print(f"duplicates: {report.duplicate_texts:,} {report.kind}, {report.duplicate_images:,} images")
    if report.of_several:
        console.print(f"about several pictures: {report.of_several:,} records", highlight=False)
    if report.wordless_texts:
        console.print(f"without words: {report.wordless_texts:,} {report.kind}", style="yellow", highlight=False)
    if report.answer_types:
        kinds = ", ".join(f"{count:,} {name}" for name, count in report.answer_types.items())
        without = f"; {report.unanswered:,} questions without an answer" if report.unanswered else ""
        console.print(printable(f"answers: {kinds}{without}"), markup=False, highlight=False)
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
            console.print(f"  {visible(line)}", markup=False, highlight=False, soft_wrap=True)
        if len(lines) > SHOWN:
            console.print(f"  and {len(lines) - SHOWN:,} more")
