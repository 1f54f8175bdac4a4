"""Data sets of the Hugging Face hub by name: `hub:OWNER/NAME`, `hub:OWNER/NAME/CONFIGURATION@REVISION`.

The `datasets` library (extra `hub`) downloads the files of a repository and keeps its records in arrow files in its
cache, images included; they are read there, row by row, as those of any other arrow file. The library runs no code of a
repository. Nothing is fetched that was not named: neither counters of downloads nor the hub's own exports.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from blip.errors import BlipError, InputError

PREFIX = "hub:"
FORM = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(/(?P<config>[^@/]+))?(@(?P<revision>[^@]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
NEEDS_DATASETS = "reading data sets of the Hugging Face hub needs its datasets library: pip install 'blip[hub]'"
README = "README.md"


class HubError(BlipError):
    """A data set of the hub that cannot be had: it does not exist, is not open to this user, or is out of reach."""


@dataclass(frozen=True)
class HubName:
    """The parts of a name; `config` and `revision` are "" where it does not give them."""

    repository: str
    config: str = ""
    revision: str = ""

    def __str__(self) -> str:
        config, revision = self.config and f"/{self.config}", self.revision and f"@{self.revision}"
        return f"{PREFIX}{self.repository}{config}{revision}"


def is_hub_name(path: object) -> bool:
    """Whether a path names a data set of the hub."""
    return str(path).startswith(PREFIX)


def parse_name(text: str) -> HubName:
    """The parts of a name; InputError where it has another form.

    Example:
        >>> parse_name("hub:flaviagiammarino/path-vqa@main").repository
        'flaviagiammarino/path-vqa'
    """
    match = FORM.fullmatch(text)
    if not match or ".." in match["repository"]:
        raise InputError(f"{text} is no name of a data set: it is {PREFIX}OWNER/NAME, {PREFIX}OWNER/NAME/CONFIGURATION "
                         "or one of these with @REVISION")  # fmt: skip
    return HubName(match["repository"], match["config"] or "", match["revision"] or "")


def pinned(text: str) -> str:
    """The same name with the commit that its revision, or the newest one, is at this moment.

    Offline it is the commit that was used last; a name that already has a commit stays as it is.

    Raises:
        HubError: there is no such repository or revision, or it is out of reach.
    """
    name = parse_name(text)
    if COMMIT.fullmatch(name.revision):
        return text
    return str(HubName(name.repository, name.config, _commit(name)))


def _commit(name: HubName) -> str:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    revision = name.revision or None
    with _hub_errors(name):
        try:  # its place in the cache holds the commit, offline too
            file = hf_hub_download(name.repository, README, repo_type="dataset", revision=revision)
            return Path(file).parent.name
        except LocalEntryNotFoundError:  # the hub is out of reach, and the repository has no such file
            if name.revision:
                raise
            return str(_builder(name).hash)
        except EntryNotFoundError:
            return str(HfApi().dataset_info(name.repository, revision=revision).sha)


def files_of(text: str) -> dict[str, list[Path]]:
    """Split -> its arrow files, downloaded unless they are in the cache. Every process may call this at once.

    Raises:
        InputError: the name has another form, the repository no such configuration, or no images in its records.
        HubError: it is out of reach.
    """
    return _files_of(parse_name(pinned(text)))


@lru_cache(maxsize=64)
def _files_of(name: HubName) -> dict[str, list[Path]]:
    with _hub_errors(name):
        builder = _builder(name)
        if builder.hash != name.revision:  # of the cache, where the hub is out of reach
            raise HubError(f"{name} is not in the cache, which has {builder.hash}, and the hub is out of reach")
        builder.download_and_prepare()
        files = {}
        for split in builder.info.splits or {}:
            table = builder.as_dataset(split=split, in_memory=False)
            _check_images(name, table.features)
            files[str(split)] = [Path(file["filename"]) for file in table.cache_files]
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


def _builder(name: HubName) -> Any:
    """What downloads a data set and prepares its records, of the `datasets` library."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name}: {NEEDS_DATASETS}") from None
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
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
def _hub_errors(name: HubName) -> Iterator[None]:
    """Errors of the hub's libraries as a HubError or an InputError, each with what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/datasets/{name.repository}"
    try:
        yield
    except BlipError:
        raise
    except GatedRepoError:
        raise HubError(f"{name} is open only to those who accepted its terms at {page}, and gave a token (hf auth "
                       "login, or HF_TOKEN)") from None  # fmt: skip
    except RepositoryNotFoundError:
        raise HubError(f"{name}: there is no data set {name.repository} at {page}, or it is private: a token gives "
                       "access (hf auth login, or HF_TOKEN)") from None  # fmt: skip
    except RevisionNotFoundError:
        raise HubError(f"{name}: the data set has no revision {name.revision!r}; see {page}/commits") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError) as error:
        raise HubError(f"{name} is not in the cache, and the hub is out of reach") from error
    except Exception as error:
        of = type(error).__module__.partition(".")[0]
        if of not in ("datasets", "huggingface_hub", "httpx", "pyarrow", "fsspec") and not isinstance(
            error, ValueError | OSError | RuntimeError
        ):
            raise
        raise HubError(f"{name} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
