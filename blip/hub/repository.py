"""Some files of a repository of the Hugging Face hub, through `huggingface_hub` and its cache.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE work as everywhere.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from blip.errors import InputError, note
from blip.hub.failures import SECONDS, hub_errors, is_offline, no_network, not_in_cache, reason
from blip.hub.names import HubName, RemoteError, parse

MAX_SMALL, MAX_LARGE = 64 << 20, 64 << 30  # bytes of a text file and of a file of weights
TOKENIZERS: tuple[str, ...] = ("tokenizer.json", "vocab.txt")  # the first that a repository has
TRIES = 3
LARGE = (".safetensors", ".bin", ".pth")

# of the names of a repository, those that are needed; the last of them is fetched last
Choose = Callable[[Iterable[str]], list[str]]


def fetch(name: HubName, choose: Choose, similar: Callable[[str], str] = lambda _: "") -> Path:
    """The folder that holds the chosen files of a repository; what is in the cache is not fetched again.

    Args:
        choose: gets all names at the top of the repository; InputError where they are not what is needed.
        similar: the end of a message about a repository that does not exist.

    Raises:
        RemoteError: it cannot be had.
        InputError: `choose` refuses it.
    """
    if name.pinned and (there := _cached(name, choose)):
        return there
    from huggingface_hub import HfApi

    if is_offline():
        return _offline(name, choose, "HF_HUB_OFFLINE is set")
    if name.bare:
        note(f"{name.repository} is no path here: taken from the hub, as {name}")
    with hub_errors(name, similar(name.repository)):
        try:
            revision = name.revision or "main"
            about = HfApi().model_info(name.repository, revision=revision, files_metadata=True, timeout=SECONDS)
        except Exception as error:
            if not no_network(error):
                raise
            return _offline(name, choose, f"the hub cannot be reached ({reason(error)})")
        files = {one.rfilename: one for one in about.siblings or [] if "/" not in one.rfilename}
        folders = {_one(name, files[file], str(about.sha)) for file in _chosen(name, choose, files)}
    if len(folders) != 1:
        raise RemoteError(f"{name} was changed while it was fetched: start the command again")
    return folders.pop()


def _chosen(name: HubName, choose: Choose, there: Iterable[str]) -> list[str]:
    """What `choose` chooses; its InputError names the repository."""
    try:
        return choose(there)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def fetch_tokenizer(name: str) -> Path:
    """The tokenizer's file of a repository, `hub:OWNER/NAME`. Errors as of `fetch`."""
    remote = parse(name)
    if not isinstance(remote, HubName):
        raise InputError(f"{name} is no name of a repository of the hub; they are written hub:OWNER/NAME")
    folder = fetch(remote, tokenizer_files)
    return folder / tokenizer_files(os.listdir(folder))[0]


def tokenizer_files(there: Iterable[str]) -> list[str]:
    """Of the names of a repository's files, that of its tokenizer; InputError where there is none."""
    there = set(there)
    if found := [name for name in TOKENIZERS if name in there]:
        return found[:1]
    raise InputError("the repository holds no tokenizer of BERT's kind: neither tokenizer.json nor vocab.txt")


def commit_of(folder: Path) -> str:
    """The commit of a folder that `fetch` returned: its name in the cache."""
    return folder.name


def _one(name: HubName, about: Any, commit: str) -> Path:
    """Fetches one file, checks it and returns the folder it is in."""
    from huggingface_hub import try_to_load_from_cache

    file, most = about.rfilename, MAX_LARGE if Path(about.rfilename).suffix in LARGE else MAX_SMALL
    if (about.size or 0) > most:
        raise RemoteError(f"{name}: {file} has {about.size:,} bytes; at most {most:,} are fetched")
    known = isinstance(try_to_load_from_cache(name.repository, file, revision=commit), str)
    if not known and Path(file).suffix in LARGE:
        note(f"fetching {file} of {name}" + (f", {about.size / 1e6:,.0f} MB" if (about.size or 0) > 1e6 else ""))
    path = _downloaded(name, file)
    expected = about.lfs["sha256"] if about.lfs else ""
    if not known and expected and (found := sha256_of(path)) != expected:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise RemoteError(
            f"{name}: {file} arrived damaged: its sha256 is {found}, the hub states {expected}; start the command again"
        )
    return path.parent


def _downloaded(name: HubName, file: str) -> Path:
    """The file in the cache of the library, which continues what was interrupted but in older versions does not try
    again."""
    from huggingface_hub import hf_hub_download

    for _ in range(TRIES - 1):
        try:
            return Path(hf_hub_download(name.repository, file, revision=name.revision or "main"))
        except Exception as error:
            if not no_network(error):
                raise
    return Path(hf_hub_download(name.repository, file, revision=name.revision or "main"))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached(name: HubName, choose: Choose) -> Path | None:
    """The folder of a repository in the cache, where it is complete: the file that is fetched last is there."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"models--{name.repository.replace('/', '--')}"
    commit = name.revision
    if not name.pinned:
        try:
            commit = (place / "refs" / (name.revision or "main")).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
    folder = place / "snapshots" / commit
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
        return folder if choose(names) else None
    except (OSError, InputError):
        return None


def _offline(name: HubName, choose: Choose, why: str) -> Path:
    if there := _cached(name, choose):
        return there
    raise not_in_cache(name, why)
