"""Where records come from and which of them are taken: an entry of `train_file`, and the records of several."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from blip.data.columns import Columns
from blip.data.sets.layout import Record, SetFile, SetFormat, open_set
from blip.data.sets.studies import StudyOptions
from blip.errors import InputError
from blip.hashing import stable_hash

Item = TypeVar("Item")


@dataclass(frozen=True)
class Source:
    """A place of records and how they are read: the values of an entry of `train_file`, as a configuration has them."""

    path: str  # an annotation file, the folder of a set, hub:OWNER/NAME; for commands also an image or a folder of them
    weight: float = 1.0  # visits of a record in an epoch
    dataset: str = "json"  # the form of the files
    split: str = ""  # of a place with several
    image_root: str = ""  # folder that image paths are relative to; empty: that of the file, or of the set's images
    columns: Columns = field(default_factory=dict)  # name of the package -> name in the file
    limit: int | None = None  # records that are taken; None: all
    seed: int | None = None  # of the records that are taken; None: the first ones

    def entry(self) -> dict[str, Any]:
        """The values that differ from the defaults: what a configuration holds, and `source_of` reads back."""
        plain = {"path": self.path}
        return plain | {name: _plain(value) for name, value in vars(self).items()
                        if name != "path" and value != getattr(DEFAULTS, name)}  # fmt: skip


DEFAULTS = Source("")
Entry = str | Path | Mapping[str, Any] | Source  # of `train_file`


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def source_of(entry: Entry, **usual: Any) -> Source:
    """The source that an entry of `train_file` means; what the entry leaves open is as in `usual`.

    Raises:
        InputError: another key, a weight or a limit that is no number above 0.
    """
    if isinstance(entry, Source):
        return entry
    if not isinstance(entry, Mapping):
        return _checked(replace(DEFAULTS, path=str(entry), **usual))
    if "path" not in entry or not set(entry) <= set(vars(DEFAULTS)):
        keys = ", ".join(vars(DEFAULTS))
        raise InputError(f"an annotation file is a path or has the keys {keys}; found: {dict(entry)}")
    given = {name: value for name, value in entry.items() if value not in (None, "", {})}
    return _checked(replace(DEFAULTS, **{**usual, **given, "path": str(entry["path"])}))


def _checked(source: Source) -> Source:
    weight, limit, seed = source.weight, source.limit, source.seed
    if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise InputError(f"{source.path}: weight is {weight!r}; it needs to be a number above 0")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InputError(f"{source.path}: limit is {limit!r}; it needs to be a whole number above 0")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise InputError(f"{source.path}: seed is {seed!r}; it needs to be a whole number")
    if not isinstance(source.columns, Mapping) or not all(isinstance(x, str) for x in source.columns.values()):
        raise InputError(f"{source.path}: columns are {source.columns!r}; they are such as {{image: img}}")
    return source


@dataclass(frozen=True)
class Opened(Generic[Record]):
    """A record as its file has it, where it stands, and the source that it comes from."""

    source: Source
    file: SetFile[Record]
    place: str
    raw: Any

    def record(self) -> Record:
        """AnnotationError, which names the file and the record, for one that cannot be used."""
        return self.file.parse(self.place, self.raw)


def records_of(
    sets: Mapping[str, SetFormat[Record]],
    entries: Sequence[Entry],
    *,
    image_root: str = "",
    dataset: str = "json",
    split: str = "",
    columns: Columns | None = None,
    limit: int | None = None,
    seed: int | None = None,
    study: StudyOptions | None = None,
) -> Iterator[Opened[Record]]:
    """The records of several sources, in their order, at most `limit` of all: the first, or with `seed` random ones.

    The choice depends on the seed and the number of records alone, and is the same in every process. All other options
    are those of the entries that leave them open; `study` is of sets of studies.

    Raises:
        AnnotationError, InputError: a source cannot be read; see `open_set`.
    """
    usual = {"dataset": dataset, "split": split, "image_root": image_root, "columns": columns or {}}
    sources = [source_of(entry, **usual) for entry in entries]
    files = {id(source): open_set(
        sets, source.dataset, source.path, split=source.split, image_root=source.image_root, columns=source.columns,
        study=study,
    ) for source in sources}  # fmt: skip

    def of(source: Source) -> Iterator[Opened[Record]]:
        for file in files[id(source)]:
            for place, raw in file.raw():
                yield Opened(source, file, place, raw)

    def of_all() -> Iterator[Opened[Record]]:
        for source in sources:
            yield from taken(lambda source=source: of(source), source.limit, source.seed)  # type: ignore[misc]

    yield from taken(of_all, limit, seed)


def taken(make: Callable[[], Iterator[Item]], limit: int | None, seed: int | None = None) -> Iterator[Item]:
    """At most `limit` of the items, in their order: the first, or with `seed` random ones, for which they are made
    twice; None: all."""
    if limit is None:
        yield from make()
    elif seed is None:
        yield from itertools.islice(make(), limit)
    else:
        count = sum(1 for _ in make())
        chosen = np.zeros(count, bool)
        generator = np.random.default_rng(stable_hash("records", seed, count))
        chosen[generator.choice(count, size=min(limit, count), replace=False)] = True
        yield from itertools.compress(make(), chosen.tolist())
