"""Data sets of the Hugging Face hub by name: `hub:OWNER/NAME`, `hub:OWNER/NAME/CONFIGURATION@REVISION`.

The `datasets` library (extra `hub`) downloads the files of a repository and keeps its records in arrow files in its
cache, images included; they are read there, row by row, as those of any other arrow file. The library runs no code of a
repository. Nothing is fetched that was not named: neither counters of downloads nor the hub's own exports.
"""

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from blip.errors import BlipError, InputError
from blip.hub.failures import SECONDS, failure, is_offline, no_network, not_in_cache, reason
from blip.hub.names import HubName, RemoteError, parse_data

NEEDS_DATASETS = "reading data sets of the Hugging Face hub needs its datasets library: pip install 'blip[hub]'"
README, INFO = "README.md", "dataset_info.json"
USUAL = "default"  # the configuration of a data set that names none


def pinned(text: str) -> str:
    """The same name with the commit that its revision, or the newest one, is at this moment.

    Offline it is the commit that was used last; a name that already has a commit stays as it is.

    Raises:
        RemoteError: there is no such repository or revision, or it is out of reach.
    """
    name = parse_data(text)
    return text if name.pinned else str(replace(name, revision=_commit(name)))


def _commit(name: HubName) -> str:
    """The commit of a branch or tag today; where the hub is out of reach, the one that was used last."""
    why = "HF_HUB_OFFLINE is set"
    with _messages(name):
        if not is_offline():
            try:  # once, since the library below tries each file many times
                return _commit_of_hub(name)
            except Exception as error:
                if not no_network(error):
                    raise
                why = f"the hub cannot be reached ({reason(error)})"
        if there := _last_commit(name):
            return there
        raise not_in_cache(name, why, data=True)


def _commit_of_hub(name: HubName) -> str:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    revision = name.revision or "main"
    commit = HfApi().dataset_info(name.repository, revision=revision, timeout=SECONDS).sha
    with suppress(EntryNotFoundError):  # the cache then knows what the revision stands for, without a connection
        hf_hub_download(name.repository, README, repo_type="dataset", revision=revision)
    return str(commit)


def _last_commit(name: HubName) -> str:
    """What a revision stood for when it was last asked for; "" where the cache does not tell."""
    ref = _caches()[1] / f"datasets--{name.repository.replace('/', '--')}" / "refs" / (name.revision or "main")
    try:
        return ref.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        there = [] if name.revision else _prepared_folders(name, "*")  # of a repository without a README
        return max(there, key=lambda folder: folder.stat().st_mtime).name if there else ""


def files_of(text: str) -> dict[str, list[Path]]:
    """Split -> its arrow files, downloaded unless they are in the cache. Every process may call this at once.

    What a commit names and the cache has is not asked of the hub, which may be out of reach or have removed it.

    Raises:
        InputError: the name has another form, the repository no such configuration, or no images in its records.
        RemoteError: it is out of reach.
    """
    return _files_of(parse_data(pinned(text)))


@lru_cache(maxsize=64)
def _files_of(name: HubName) -> dict[str, list[Path]]:
    with _messages(name):
        _library(name)
        there = _prepared(name)
        if there is not None and (name.config or there.parent.parent.name == USUAL):
            return _files_in(name, there)
        try:
            builder = _builder(name)
            if builder.hash != name.revision:  # of the cache, where the hub is out of reach
                raise not_in_cache(name, f"which has {builder.hash}, and the hub is out of reach", data=True)
            builder.download_and_prepare()
        except Exception:
            if there is None:
                raise
            return _files_in(name, there)
        files = {}
        for split in builder.info.splits or {}:
            table = builder.as_dataset(split=split, in_memory=False)
            _check_images(name, table.features)
            files[str(split)] = [Path(file["filename"]) for file in table.cache_files]
        return files


def _prepared(name: HubName) -> Path | None:
    """The folder of the cache with the records of a commit; None where it has none, or several configurations of which
    the name chooses none."""
    there = _prepared_folders(name, name.revision)
    return there[0] if len(there) == 1 else None


def _prepared_folders(name: HubName, commit: str) -> list[Path]:
    """Those of the cache, at any commit for "*". The library gives a folder its name when it is complete."""
    cache, own = _caches()[0], _letters(name.repository.replace("/", "___"))
    return [
        folder
        for folder in cache.glob(f"*/{glob.escape(name.config) or '*'}/*/{commit}")
        if _letters(folder.relative_to(cache).parts[0]) == own and (folder / INFO).is_file()
    ]


def _files_in(name: HubName, folder: Path) -> dict[str, list[Path]]:
    """The arrow files of each split in a folder of the cache."""
    info = _library(name).DatasetInfo.from_directory(str(folder))
    _check_images(name, info.features or {})
    files: dict[str, list[Path]] = {}
    for split in map(str, info.splits or {}):
        form = re.compile(rf".+-{re.escape(split)}(-\d{{5}}-of-\d{{5}})?\.arrow")
        files[split] = sorted(path for path in folder.iterdir() if form.fullmatch(path.name))
    return files


def in_cache(file: str | Path) -> bool:
    """Whether a file is one that the `datasets` library prepared in its cache, of a data set of the hub."""
    return _lies_in(file, _caches()[0])


def may_name(file: str | Path, named: str | Path) -> bool:
    """Whether a row of an arrow or parquet file may name another file as its image.

    Anyone can publish a data set: the rows of one in the cache name files that were downloaded with it, and none of
    those that this machine has besides. Files elsewhere are the user's own.
    """
    prepared, repositories = _caches()
    if not in_cache(file):
        return True
    own = _letters(Path(os.path.realpath(file)).relative_to(prepared).parts[0])
    real = Path(os.path.realpath(named))
    if _lies_in(real, repositories):  # datasets--OWNER--NAME, where the other cache has OWNER___NAME in small letters
        return _letters(real.relative_to(repositories).parts[0]) == f"datasets{own}"
    return any(_lies_in(real, place) for place in (os.path.realpath(Path(file).parent), prepared / "downloads"))


def _caches() -> tuple[Path, Path]:
    """The folders of prepared data sets, and of repositories as they were downloaded."""
    from huggingface_hub import constants

    prepared = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    places = (os.path.realpath(os.path.expanduser(place)) for place in (prepared, constants.HF_HUB_CACHE))
    first, second = map(Path, places)
    return first, second


def _lies_in(path: str | Path, folder: str | Path) -> bool:
    return Path(folder) in Path(os.path.realpath(path)).parents


def _letters(name: str) -> str:
    return re.sub("[_-]", "", name).casefold()


def _library(name: HubName) -> Any:
    """The `datasets` library."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name}: {NEEDS_DATASETS}") from None
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


def _builder(name: HubName) -> Any:
    """What downloads a data set and prepares its records, of the `datasets` library."""
    datasets = _library(name)
    from blip import distributed  # with torch, which reading an image does not need

    if not distributed.is_main():
        datasets.disable_progress_bars()
    return datasets.load_dataset_builder(name.repository, name.config or None, revision=name.revision or None)


def _check_images(name: HubName, features: Any) -> None:
    """InputError where no column of a repository holds images."""
    if not any(type(feature).__name__ == "Image" or _is_bytes(feature) for feature in features.values()):
        raise InputError(
            f"{name} has no column of images; its columns are {', '.join(features)}. Where they name files of the "
            f"repository, download it (`hf download {name.repository} --repo-type dataset --local-dir FOLDER`) and "
            "give its annotation file"
        )


def _is_bytes(feature: Any) -> bool:
    """Whether a column holds bytes, or a structure or list that may hold them."""
    return getattr(feature, "dtype", "binary") in ("binary", "large_binary") or isinstance(feature, dict | list)


@contextmanager
def _messages(name: HubName) -> Iterator[None]:
    """Errors of the hub's libraries as a RemoteError or an InputError, each with what to do."""
    try:
        yield
    except BlipError:
        raise
    except Exception as error:
        known = failure(name, error, data=True)
        of = type(error).__module__.partition(".")[0]
        ours = of in ("datasets", "huggingface_hub", "httpx", "pyarrow", "fsspec")
        if known is None and not ours and not isinstance(error, ValueError | OSError | RuntimeError):
            raise
        raise known or RemoteError(f"{name} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
