"""Names of files on other machines: what the user may write, and how it is written with what it stood for."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from blip.errors import BlipError, InputError, printable

HUB = "hub:"
REPOSITORY = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
PIN = "#sha256="


class RemoteError(BlipError):
    """A file on another machine that could not be had; the message says why, and what to do."""


@dataclass(frozen=True)
class HubName:
    """A repository of the hub; `revision` is a branch, a tag or a commit, "" for the branch `main`."""

    repository: str
    revision: str = ""
    bare: bool = False  # written without `hub:`

    def __str__(self) -> str:
        return HUB + self.repository + (f"@{self.revision}" if self.revision else "")

    @property
    def pinned(self) -> bool:
        """Whether the name stands for the same bytes for ever."""
        return COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True)
class Address:
    """A file on a server, and the SHA-256 of its content where it is known."""

    url: str
    sha256: str = ""

    def __str__(self) -> str:
        return self.url + (PIN + self.sha256 if self.sha256 else "")

    @property
    def pinned(self) -> bool:
        return bool(self.sha256)

    @property
    def file(self) -> str:
        """The name of the file."""
        return urlsplit(self.url).path.rpartition("/")[2]


def parse(name: str | Path) -> HubName | Address | None:
    """What a name stands for; None for a path of this machine.

    A bare `owner/name` is a repository where no such path exists, nor a folder `owner`, in which it is a mistyped path.

    Raises:
        InputError: it begins as the name of a repository or an address and is none, or is an address that may not be
            used.
    """
    text = str(name)
    if text.startswith(HUB):
        return _hub(text)
    if re.match(r"https?:", text, re.IGNORECASE):
        return _address(text)
    if "://" in text and re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise InputError(f"{text}: weights are read from https:// addresses, hub:OWNER/NAME and paths")
    repository, _, revision = text.partition("@")
    owner, slash, last = repository.partition("/")
    is_file = Path(last).suffix in (".pth", ".pt", ".bin", ".safetensors", ".json", ".txt", ".yaml")
    if not slash or is_file or os.path.lexists(text) or os.path.lexists(owner) or not _is_repository(repository):
        return None
    return _checked(HubName(repository, revision, bare=True), text) if not revision or _is_revision(revision) else None


def unpinned(name: str) -> str:
    """A name without the commit or hash that it is pinned to, to compare it with what the user wrote."""
    remote = parse(name)
    if isinstance(remote, HubName):
        return str(HubName(remote.repository, "" if remote.pinned else remote.revision))
    return str(replace(remote, sha256="")) if remote else name


def _hub(text: str) -> HubName:
    repository, at, revision = text.removeprefix(HUB).partition("@")
    if not _is_repository(repository):
        raise InputError(f"{text} is no name of a repository of the hub; they are written hub:OWNER/NAME")
    if at and not _is_revision(revision):
        raise InputError(f"{text}: what follows the @ is no revision: give a branch, a tag or a commit")
    return _checked(HubName(repository, revision), text)


def _is_repository(name: str) -> bool:
    return bool(REPOSITORY.fullmatch(name)) and ".." not in name and "--" not in name and not name.endswith((".", "-"))


def _is_revision(name: str) -> bool:
    return bool(REVISION.fullmatch(name)) and ".." not in name and "//" not in name and not name.endswith("/")


def _checked(name: HubName, text: str) -> HubName:
    return replace(name, revision="") if name.revision == "main" else name


def _address(text: str) -> Address:
    url, mark, given = text.partition("#")
    sha256 = given.removeprefix("sha256=").lower()
    if mark and not (given.startswith("sha256=") and SHA256.fullmatch(sha256)):
        raise InputError(f"{text}: behind # stands sha256= and 64 hexadecimal digits, or nothing")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise InputError(f"{text} is no address: {error}") from error
    if not host or parts.username is not None:
        raise InputError(f"{printable(url)} is no address without a host, or with a password in it")
    check_scheme(url, sha256)
    return Address(url, sha256)


def check_scheme(url: str, sha256: str) -> None:
    """InputError for an address without encryption, unless a hash shows what was sent or it is this machine's."""
    parts = urlsplit(url)
    if parts.scheme.lower() != "https" and parts.hostname not in LOOPBACK and not sha256:
        raise InputError(
            f"{url} is sent without encryption, and anyone between could change it: use https://, or add "
            f"{PIN} and the hash of the file"
        )
