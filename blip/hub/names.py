"""Names of weights and data on other machines: what the user may write, and what it stands for."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from blip.errors import BlipError, InputError, printable

HUB = "hub:"
REPOSITORY = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
PIN = "#sha256="


class RemoteError(BlipError):
    """Weights or data on another machine that could not be had; the message says why, and what to do."""


@dataclass(frozen=True)
class HubName:
    """A repository of the hub; `revision` is a branch, a tag or a commit, "" for the branch `main`."""

    repository: str
    revision: str = ""
    bare: bool = False  # written without `hub:`
    config: str = ""  # of a data set: its configuration, "" for the usual one

    def __str__(self) -> str:
        config, revision = self.config and f"/{self.config}", self.revision and f"@{self.revision}"
        return f"{HUB}{self.repository}{config}{revision}"

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
    if is_hub_name(text):
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
    return _without_main(HubName(repository, revision, bare=True)) if not revision or _is_revision(revision) else None


def is_hub_name(path: object) -> bool:
    """Whether a path begins as the name of a repository of the hub."""
    return str(path).startswith(HUB)


def parse_data(text: str) -> HubName:
    """The data set of a name, `hub:OWNER/NAME` or `hub:OWNER/NAME/CONFIGURATION`, with `@REVISION`.

    Raises:
        InputError: it has another form.

    Example:
        >>> parse_data("hub:flaviagiammarino/path-vqa@v1").repository
        'flaviagiammarino/path-vqa'
    """
    name, at, revision = text.removeprefix(HUB).partition("@")
    parts = name.split("/")
    repository, config = "/".join(parts[:2]), "/".join(parts[2:])
    right = len(parts) in (2, 3) and _is_repository(repository) and (len(parts) == 2 or config not in ("", ".", ".."))
    if not is_hub_name(text) or not right or (at and not _is_revision(revision)):
        form = f"{HUB}OWNER/NAME, {HUB}OWNER/NAME/CONFIGURATION or one of these with @REVISION"
        raise InputError(f"{text} is no name of a data set: it is {form}")
    return replace(_without_main(HubName(repository, revision)), config=config)


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
    return _without_main(HubName(repository, revision))


def _is_repository(name: str) -> bool:
    return bool(REPOSITORY.fullmatch(name)) and ".." not in name and "--" not in name and not name.endswith((".", "-"))


def _is_revision(name: str) -> bool:
    return bool(REVISION.fullmatch(name)) and ".." not in name and "//" not in name and not name.endswith("/")


def _without_main(name: HubName) -> HubName:
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
