"""The labels of records, from an annotation file or a table, for probes.

A label is a place in a record: `body`, or `lesions.0.side`, the side of the first lesion. Row n of the file is record n
of the activations, or its column `record` says which it is.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip.errors import InputError
from blip.files import read_json, read_json_lines, read_text

RECORD = "record"


@dataclass
class Labels:
    """A label of each record that has one, and the image that the record is about.

    Args:
        name: of the label.
        values: strings, numbers or booleans, one a row.
        groups: the image of each row.
        rows: the row of the activations that each belongs to.
    """

    name: str
    values: list[Any]
    groups: list[str]
    rows: list[int]

    @property
    def numeric(self) -> bool:
        """Whether all labels are numbers: such are predicted by a line, others are told apart."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON list, of JSON lines, or of a CSV table with a header, whose cells become numbers if all of
    a column are.

    Raises:
        ReadError, InputError: the file cannot be read, or holds no records.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(read_text(path)), restval=""))
        if longer := [number for number, row in enumerate(rows, start=1) if None in row]:
            raise InputError(f"{path}: row {longer[0]} has more cells than the header")
        for column in rows[0] if rows else ():
            numbers = [_number(row[column]) for row in rows if row[column]]
            if None not in numbers:
                for row in rows:
                    row[column] = _number(row[column])
    elif path.suffix.lower() == ".jsonl":
        rows = [row for _, row in read_json_lines(path, dict[str, Any])]
    else:
        rows = read_json(path, list[dict[str, Any]])
    if not rows:
        raise InputError(f"{path} holds no records")
    return rows


def labels_of(
    rows: Sequence[dict[str, Any]], label: str, *, records: Sequence[int], count: int, group: str = "image"
) -> Labels:
    """The labels of records.

    Args:
        rows: of `read_rows`.
        label: NAME=PLACE, or PLACE alone; numbers in a place count in a list, from 0.
        records: numbers of the records in the activations, in their order.
        count: of records in the data that the activations are of.
        group: the place of what several records share; a record without it is its own group.

    Raises:
        InputError: the rows are not those of the records, no record has the label, or none the place of a group that
            was chosen.
    """
    name, _, place = label.rpartition("=")
    numbered = RECORD in rows[0]
    if not numbered and len(rows) != count:
        raise InputError(
            f"the labels have {len(rows)} rows and the activations are of {count} records: give a row for each, in the "
            f"order of the data, or a column {RECORD} with numbers from 0"
        )
    if group != "image" and all(value_at(row, group) is None for row in rows):
        raise InputError(f"no record has {group!r}, by which they are grouped")
    of_record = dict(zip(_numbers(rows) if numbered else range(len(rows)), rows, strict=True))
    found = Labels(name or place, [], [], [])
    for row, number in enumerate(records):
        value = value_at(of_record.get(number, {}), place)
        if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
            continue
        if isinstance(value, list | dict):
            raise InputError(f"{place!r} is a {type(value).__name__}: name a place inside it, such as {place}.0")
        found.values.append(value)
        found.groups.append(str(value_at(of_record[number], group) or f"record {number}"))
        found.rows.append(row)
    if not found.values:
        known = ", ".join(str(key) for key in list(rows[0])[:8])
        raise InputError(f"no record of the activations has a label at {place!r}; records have {known}")
    return found


def value_at(record: Any, place: str) -> Any:
    """The value at a place such as `lesions.0.side`, None where there is none."""
    for key in place.split("."):
        if isinstance(record, list) and key.isdigit() and int(key) < len(record):
            record = record[int(key)]
        elif isinstance(record, dict):
            record = record.get(key)
        else:
            return None
    return record


def _numbers(rows: Sequence[dict[str, Any]]) -> list[int]:
    """The numbers of the records in the data that rows are of."""
    numbers: list[Any] = [row.get(RECORD) for row in rows]
    if wrong := [number for number in numbers if type(number) is not int]:
        raise InputError(f"the column {RECORD} has {wrong[0]!r}: it holds numbers of records, from 0")
    if twice := [number for number, count in Counter(numbers).items() if count > 1]:
        raise InputError(f"the column {RECORD} has {twice[0]} twice: give a record one row")
    return numbers


def _number(text: str) -> float | int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if not np.isfinite(value):
        return None
    return int(value) if value.is_integer() else value
