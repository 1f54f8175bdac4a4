"""Reading and writing files.

Read are regular files alone, up to a size; what they hold is checked before it is used. Everything that the package
writes under a final name is written beside it, flushed to disk and renamed: a kill at any instant leaves the old file
or the new one, never a part. `outputs.py` decides which paths may be written.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from blip.errors import BlipError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a used up quota, a file that may not grow
LONGEST_NAME = 255  # bytes of a file's name, on nearly every file system
MAX_JSON = 4 << 30  # bytes of a JSON file, unless a caller gives less
MAX_LINE = 1 << 28  # bytes of a line of JSON
MAX_PROBLEM = 1000  # characters of a message about a file
T = TypeVar("T")


class WriteError(BlipError):
    """A file that could not be written, such as on a full disk; files written before it are whole."""


class ReadError(BlipError):
    """A file that cannot be used: `path` names it, `place` the record ("" for the whole file), `problem` the fault."""

    def __init__(self, path: str | Path, place: str, problem: str):
        if len(problem) > MAX_PROBLEM:  # it may quote a value of the file
            problem = f"{problem[:MAX_PROBLEM]} ..."
        super().__init__(path, place, problem)
        self.path, self.place, self.problem = str(path), place, problem

    def __str__(self) -> str:
        return f"{self.path}{', ' if self.place else ''}{self.place}: {self.problem}"


# ---- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_regular(path: str | Path, limit: int | None = None) -> Iterator[BinaryIO]:
    """A regular file to read, in bytes; never a pipe or a device, which may have no end.

    Args:
        limit: largest size in bytes.

    Raises:
        ReadError: there is no such file, it is not regular, or larger than `limit`.
    """
    try:
        # without O_NONBLOCK, opening a pipe waits for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ReadError(path, "", getattr(error, "strerror", None) or str(error)) from error
    about = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(about.st_mode):
        problem = "is a folder" if stat.S_ISDIR(about.st_mode) else "is not a regular file"
    elif limit is not None and about.st_size > limit:
        problem = f"has {about.st_size:,} bytes; at most {limit:,} are read"
    if problem:
        os.close(descriptor)
        raise ReadError(path, "", problem)
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_text(path: str | Path, limit: int = MAX_JSON) -> str:
    """The text of a UTF-8 file, without a byte order mark. ReadError as in `open_regular`, and for other encodings."""
    with open_regular(path, limit) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(path, "", f"not UTF-8 text ({error}); save it as UTF-8") from error


def read_json(path: str | Path, kind: type[T], limit: int = MAX_JSON) -> T:
    """The content of a JSON file as a `kind`: a pydantic model, or a type such as `dict[str, int]`.

    Raises:
        ReadError: as in `read_text`; or it is not JSON, or not of that kind. The message names the entry.
    """
    return parse_json(read_text(path, limit), kind, path)


def read_json_lines(path: str | Path, kind: type[T]) -> Iterator[tuple[str, T]]:
    """("line 3", its record) of each line that is not blank; ReadError as in `read_json`, with the line."""
    for number, line, _ in raw_lines(path):
        if line.strip():
            yield f"line {number}", parse_json(line, kind, path, place=f"line {number}")


def raw_lines(path: str | Path) -> Iterator[tuple[int, bytes, int]]:
    """(its number from 1, its bytes with the line end, the position behind it) of each line of a file.

    Raises:
        ReadError: as in `open_regular`; or a line has more than `MAX_LINE` bytes.
    """
    with open_regular(path) as file:
        number = position = 0
        while line := file.readline(MAX_LINE + 1):
            number, position = number + 1, position + len(line)
            if len(line) > MAX_LINE:
                raise ReadError(path, f"line {number}", f"has more than {MAX_LINE:,} bytes")
            yield number, line, position


def parse_json(text: str | bytes, kind: type[T], path: str | Path, *, place: str = "") -> T:
    """A JSON text as a `kind`; `path` and `place` name it in a ReadError."""
    try:
        value = JSON_DECODER.decode(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except JSON_ERRORS as error:
        raise ReadError(path, place, json_problem(error)) from error
    return checked_as(value, kind, path, place=place)


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} occurs twice in one object")
    return value


JSON_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeated_keys)
JSON_ERRORS = (ValueError, RecursionError)  # of the decoder, those of UTF-8 included


def json_problem(error: Exception) -> str:
    """The message for one of `JSON_ERRORS`: not UTF-8, not JSON, a number of thousands of digits, endless nesting."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text ({error}); save it as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error})"
    return f"JSON that cannot be used ({error})"


def checked_as(value: Any, kind: type[T], path: str | Path, *, place: str = "") -> T:
    """A value of a file as a `kind`; `path` and `place` name it in a ReadError that lists what is wrong."""
    try:
        return cast(T, _adapter(cast(Any, kind)).validate_python(value))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))[:200] or 'it'}: {one['msg'][:200]}" for one in error.errors()[:5]]
        raise ReadError(path, place, f"not of the expected form: {'; '.join(wrong)}") from error


@lru_cache(maxsize=256)
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


# ---- writing whole files ---------------------------------------------------------------------------------------------


def json_text(value: Any, indent: int | None = 1, *, allow_nan: bool = True) -> str:
    """A value as JSON, with a line end. Letters stay readable; names of files that are not UTF-8 become escapes, which
    reading turns back (`os.fsencode` gives the bytes of such a name).

    Without `allow_nan`, infinite numbers and those that are not a number, which JSON lacks, are a ValueError.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate stands for a byte that is not UTF-8
        text = json.dumps(value, indent=indent)
    return text + "\n"


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write, in bytes, that gets its name when the block has ended and all of it is on disk.

    Raises:
        WriteError: the file cannot be written. Errors of files that the block reads pass through.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(partial) and not partial.is_dir():
            partial.unlink()  # never through a link to a file elsewhere, nor into a pipe
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.filename not in (None, str(partial)):  # of a file that is read meanwhile
            raise
        raise write_error(path, error) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a small file at once: text in UTF-8, or bytes. WriteError as in `whole_file`."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_one_of_many(path: Path, content: bytes) -> None:
    """Writes one of many small files, such as the pieces of pictures, under its final name, whole or not at all.

    Unlike `write_whole` it does not wait for the disk, which would take longer than the writing: a kill leaves no part
    of a file, a power failure may. Several processes may write the same file at once. WriteError as in `whole_file`.
    """
    partial = hidden_beside(path, f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise write_error(path, error) from error


def rename_whole(partial: Path, path: Path) -> None:
    """Gives a file that was written under another name, perhaps by several runs, its final one, once it is on disk."""
    flush(partial)
    os.replace(partial, path)


@contextmanager
def whole_folder(final: str | Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `final` when the block ends, whole or not at all."""
    final = Path(final)
    temporary = partial_path(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:  # on a full disk, what was written is in the way
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in temporary.iterdir():
        flush(path)
    flush(temporary)
    before = set_aside(final) if final.exists() else None
    temporary.rename(final)
    if before is not None:
        shutil.rmtree(before)


def remove_folder(folder: Path) -> None:
    """Deletes a folder under another name, so that a kill leaves no incomplete folder under its name."""
    shutil.rmtree(set_aside(folder))


def set_aside(folder: Path) -> Path:
    """Renames a folder that is to be deleted -> its new name."""
    doomed = hidden_beside(folder, ".old.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    return doomed


def partial_path(path: Path) -> Path:
    """Where a file or folder is written before it gets its name: `.NAME.partial`, which a kill may leave behind."""
    return hidden_beside(path, ".partial")


def hidden_beside(path: Path, ending: str) -> Path:
    """`.NAME` with an ending; the hash of a name that would become longer than file systems allow stands for it."""
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{ending}"
    return path.parent / name


def write_error(path: Path, error: OSError) -> WriteError:
    """The message for a file that could not be written."""
    advice = ": finished files are whole; make room and start the same command again" if error.errno in NO_ROOM else ""
    return WriteError(f"{path} could not be written ({error.strerror or error}){advice}")


def flush(path: Path) -> None:
    """Waits until a file's, or a folder's, contents are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
