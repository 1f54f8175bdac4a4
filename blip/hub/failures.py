"""Errors of the hub's libraries as messages: what is wrong, with which name, and what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from blip.errors import BlipError
from blip.hub.names import HubName, RemoteError

AGAIN = "what has arrived is kept, start the command again"
SECONDS = 10.0  # within which the hub begins to answer
DATA = "data set "  # before the name of one, in messages
_CLIENTS = ("httpx", "httpx2", "requests")
_UNREACHED = {"TransportError", "ConnectionError", "Timeout", "ChunkedEncodingError"}


@contextmanager
def hub_errors(name: HubName, similar: str = "") -> Iterator[None]:
    """Within this block errors of `huggingface_hub`, and of files, become a RemoteError.

    Args:
        similar: the end of a message about a repository that does not exist.
    """
    try:
        yield
    except BlipError:
        raise
    except Exception as error:
        if (known := failure(name, error, similar=similar)) is None:
            if not isinstance(error, OSError):
                raise
            known = _unfetched(name, error)
        raise known from error


def failure(name: HubName, error: Exception, *, similar: str = "", data: bool = False) -> RemoteError | None:
    """The message about an error of `huggingface_hub` or of the network, None of any other.

    Args:
        data: the repository is a data set.
    """
    from huggingface_hub import errors

    where, what = name.repository, DATA if data else ""
    page = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{'datasets/' if data else ''}{where}"
    if isinstance(error, errors.GatedRepoError):
        return RemoteError(
            f"{name} is open only to those who accepted its terms: accept them at {page}, then give a token, by "
            "`hf auth login` or HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return RemoteError(f"{where} has no revision {name.revision!r} on the hub: give a branch, tag or commit")
    if isinstance(error, errors.LocalEntryNotFoundError):  # the library's word for a file that could not be fetched
        return not_in_cache(name, "HF_HUB_OFFLINE is set", data) if is_offline() else _unfetched(name, error)
    if isinstance(error, errors.RepositoryNotFoundError):
        path = f"there is no path {where}, and " if name.bare else ""
        token = "with this HF_TOKEN" if _has_token() else "without a token (HF_TOKEN, `hf auth login`)"
        return RemoteError(f"{path}the hub shows no {what}{where} {token}{similar}")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(name, error)
    if not no_network(error):
        return None
    return not_in_cache(name, "HF_HUB_OFFLINE is set", data) if is_offline() else _unfetched(name, error)


def not_in_cache(name: HubName, why: str, data: bool = False) -> RemoteError:
    """The message about a repository that is not in the cache, where the hub cannot be asked."""
    known = f"there is no path {name.repository}, and " if name.bare else ""
    how = (
        "read it once on a machine with a connection, and copy its cache (HF_HOME)"
        if data
        else f"fetch it on a machine with a connection, with `hf download {name.repository}`, and copy its cache or "
        "give the folder's path"
    )
    return RemoteError(f"{known}{name} is not in the cache of the hub, and {why}: {how}")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def no_network(error: BaseException) -> bool:
    """Whether the server was not reached, or did not finish its answer; the library below changes with versions."""
    kinds = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.split(".")[0] in _CLIENTS}
    return bool(kinds & _UNREACHED) or isinstance(error, ConnectionError | TimeoutError)


def reason(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _unfetched(name: HubName, error: Exception) -> RemoteError:
    return RemoteError(f"{name} could not be fetched ({reason(error.__cause__ or error)}): {AGAIN}")


def _refused(name: HubName, error: Exception) -> RemoteError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    advice = {
        401: "its token (HF_TOKEN) is not accepted",
        403: "the token (HF_TOKEN) has no right to read it",
        416: "a part of it in the cache is longer than the file: delete the .incomplete file there",
        429: "too many requests: wait, or set HF_TOKEN",
    }.get(status or 0, "start the command again later")
    return RemoteError(f"{name}: the hub answers {status}: {advice}")


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())
