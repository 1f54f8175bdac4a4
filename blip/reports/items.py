"""What `blip show` shows: images with their texts, true answers, outputs and scores; which of them, in which order."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from blip.errors import InputError

SORTS = ("file", "worst", "best")


@dataclass
class Item:
    """One record, or one result of a model."""

    images: list[str]  # paths, or FILE#ROW; two of a statement
    name: str = ""  # of the record: its place or its id
    text: str = ""  # that the model got: a question, a statement, a text to match
    truth: list[str] = field(default_factory=list)  # captions or answers of the data; empty where there are none
    output: str | None = None  # what the model wrote or chose; None in data
    score: float | None = None  # of the output
    score_name: str = ""  # what the score is
    right: bool | None = None  # whether the output is right, where that can be said
    answer_type: str = ""  # closed or open, of a question
    category: str = ""  # of a question, such as modality
    more: list[tuple[str, str]] = field(default_factory=list)  # further (name, value), such as other candidates
    problem: str = ""  # why the record cannot be shown
    text_name: str = "text"  # what the text is: a question, a statement

    @property
    def goodness(self) -> float | None:
        """High for good results: a confident right answer is the best one, a confident wrong one the worst."""
        if self.score is None:
            return None if self.right is None else float(self.right)
        return self.score if self.right is not False else -self.score


@dataclass
class Choice:
    """Which items are shown, and in which order."""

    limit: int = 20  # 0: all
    sort: str = "file"  # file, worst or best
    type: str = ""  # of a question: closed or open, or its category
    correct: bool | None = None  # only right ones, or only wrong ones

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise InputError(f"--sort is {self.sort!r}; it can be {', '.join(SORTS)}")
        if self.limit < 0:
            raise InputError(f"--limit is {self.limit}; it is the number of records to show, or 0 for all")

    def of(self, items: Iterable[Item], where: str) -> list[Item]:
        """The chosen items; `where` names their source in messages.

        Of a source that is read in order no more is read than is shown.

        Raises:
            InputError: none is left, or the items have nothing to choose by.
        """
        found = self._ordered(items, where) if self.sort != "file" else self._kept(items, where)
        chosen = list(itertools.islice(found, self.limit or None))
        if not chosen:
            raise InputError(f"{where} holds no records to show")
        return chosen

    def count(self, items: Sequence[Item]) -> int:
        """How many items are of the chosen kind, shown or not."""
        return sum(1 for _ in self._kept(items, ""))

    def _ordered(self, items: Iterable[Item], where: str) -> Iterator[Item]:
        everything = list(self._kept(items, where))
        scored = [item for item in everything if item.goodness is not None]
        if not scored:
            raise InputError(f"{where} holds no scores to sort by: leave out --sort {self.sort}")
        sign = -1 if self.sort == "best" else 1
        return iter(sorted(scored, key=lambda item: sign * (item.goodness or 0.0)))

    def _kept(self, items: Iterable[Item], where: str) -> Iterator[Item]:
        types: set[str] = set()
        kept = judged = count = 0
        for item in items:
            count += 1
            own = {item.answer_type.strip().lower(), *item.category.lower().split("+")} - {""}
            types |= own
            judged += item.right is not None
            if (not self.type or self.type.lower() in own) and self.correct in (None, item.right):
                kept += 1
                yield item
        if kept or not count:
            return
        if self.type and self.type.lower() not in types:
            there = f"there are {', '.join(sorted(types))}" if types else "its records name no types"
            raise InputError(f"{where} holds nothing of --type {self.type}: {there}")
        if self.correct is not None and not judged:
            raise InputError(f"{where} does not tell which outputs are right: leave out --correct")
        raise InputError(f"{where} holds no records of this kind: leave out --type or --correct")


def count_right(items: Sequence[Item]) -> tuple[int, int]:
    """(items that are right, items that are right or wrong)."""
    judged = [item for item in items if item.right is not None]
    return sum(bool(item.right) for item in judged), len(judged)
