"""Fingerprints of the files that a run reads, by which a run that is resumed finds that they have changed.

A fingerprint is the size and a hash of the content, not the time of the last change. Of a file above 64 MiB, 64 pieces
of 256 KiB at equal distances are read, the first and the last among them: a change between them that leaves the size as
it was is not found. A folder counts as one input: the annotation files in it are read so, and of webdataset shards the
first and the last 64 KiB each. Of a data set of the hub the name counts, which holds its commit. Images and addresses
on other machines are not read. Which records are taken is part of the fingerprints, and under which names of columns.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip.config import RunConfig
from blip.files import open_regular, read_json
from blip.train.record import RECORD

OPTIONS = ("train_file", "val_file", "test_file", "answer_file")  # options that name inputs
READ_WHOLE, PIECES, PIECE, END = 64 << 20, 64, 256 << 10, 64 << 10  # bytes, but PIECES
ANNOTATIONS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
SHARDS = (".tar", ".tar.gz")
RECORDS = "records"  # beside the options: which records are taken
HUB = "hub:"  # begins the name of a data set of the Hugging Face hub

# option -> its files, in the order of the configuration: path, size in bytes, hash
Fingerprints = dict[str, list[tuple[str, int, str]]]
_Stored = dict[str, list[tuple[str, int, str]] | dict[str, tuple[int, str]]]  # a dictionary in a former version


def fingerprints(config: RunConfig) -> Fingerprints:
    """The inputs that a configuration names; those that do not exist are left out.

    Raises:
        ReadError: a file cannot be read.
    """
    found: Fingerprints = {}
    seen: dict[str, tuple[int, str]] = {}
    for option in OPTIONS:
        given: Any = getattr(config, option, None) or []
        for entry in [given] if isinstance(given, str) else given:
            path = Path(entry if isinstance(entry, str) else entry.path)
            if str(path).startswith(HUB):
                found.setdefault(option, []).append((str(path), 0, hashlib.sha256(str(path).encode()).hexdigest()[:16]))
            elif path.exists():
                name = os.path.abspath(path)
                if name not in seen:  # a file may be given several times
                    seen[name] = _of_folder(path) if path.is_dir() else _of_file(path)
                found.setdefault(option, []).append((name, *seen[name]))
    if taken := _taken(config):
        found[RECORDS] = [(line, 0, "") for line in taken]
    return found


def _taken(config: RunConfig) -> list[str]:
    """Which of the training records are taken, and by which names, where these options are set."""
    options = {name: getattr(config, name, None) for name in ("max_train_records", "shuffle_records_seed", "columns")}
    if not options["max_train_records"]:
        options["shuffle_records_seed"] = None
    lines = [f"{name} {value}" for name, value in options.items() if value not in (None, {})]
    for entry in getattr(config, "train_file", []):
        if not isinstance(entry, str):
            more = {key: value for key, value in entry.model_dump().items() if key not in ("path", "weight")}
            lines += [f"{entry.path} with {key} {value}" for key, value in more.items()]
    return lines


def read_fingerprints(path: Path) -> Fingerprints:
    """The fingerprints that a file holds; ReadError where it is damaged."""
    stored = read_json(path, _Stored)
    return {
        option: [(name, *one) for name, one in files.items()] if isinstance(files, dict) else files
        for option, files in stored.items()
    }


def differences(before: Fingerprints, now: Fingerprints) -> list[str]:
    """What differs, an input a line. An input of equal content at another place does not; nor does other data for
    validation and test, which is an option of the run. Files to train on have an order, and may be given twice."""
    lines = []
    then, taken = ([name for name, *_ in one.get(RECORDS, [])] for one in (before, now))
    lines += [f"{name} was not set" for name in taken if name not in then]
    lines += [f"{name} is no longer set" for name in then if name not in taken]
    for option, files in now.items():
        if option == RECORDS:
            continue
        known = {path: content for path, *content in before.get(option, [])}
        for path, content in {path: content for path, *content in files}.items():
            if content in known.values():
                continue
            if path in known:
                size, had = f"{content[0]:,}", f"{known[path][0]:,}"
                lines.append(
                    f"{path} has another content" + (f" ({had} bytes then, {size} now)" if size != had else "")
                )
            elif option == "train_file":
                lines.append(f"{path} was not part of it")
    trained, train = before.get("train_file", []), now.get("train_file", [])
    there = {part for path, *content in train for part in (path, tuple(content))}
    for path in dict.fromkeys(path for path, *content in trained if not {path, tuple(content)} & there):
        lines.append(f"{path} is no longer part of it")
    if not lines and [content for _, *content in trained] != [content for _, *content in train]:
        lines.append("train_file names the same files in another order, or another number of times")
    return lines


def _of_file(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if path.name.endswith(SHARDS):
            _add_piece(digest, file, 0, END)
            _add_piece(digest, file, max(0, size - END), END)
        elif size <= READ_WHOLE:
            while block := file.read(1 << 20):
                digest.update(block)
        else:
            for number in range(PIECES):
                _add_piece(digest, file, number * (size - PIECE) // (PIECES - 1), PIECE)
    return size, digest.hexdigest()[:16]


def _add_piece(digest: Any, file: Any, start: int, length: int) -> None:
    file.seek(start)
    digest.update(file.read(length))


def _of_folder(folder: Path) -> tuple[int, str]:
    total, digest = 0, hashlib.sha256()
    for path in _files(folder):
        size, content = _of_file(path)
        total += size
        digest.update(f"{os.fsencode(path.relative_to(folder))!r} {size} {content}\n".encode())
    return total, digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    """Annotation files and shards at any depth, in the order of their names; not those of runs, which change."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not os.path.exists(os.path.join(place, name, RECORD)))
        for name in sorted(names):
            path = Path(place, name)
            if name.lower().endswith((*ANNOTATIONS, *SHARDS)) and path.is_file():
                yield path
