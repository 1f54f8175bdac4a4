"""The shards that an address stands for: a folder, a .tar file, or a pattern (`*`, `{00..12}`), local or remote."""

import re
from typing import Any

from blip.data.tar_sizes import SIZES, TarError, recorded

TARS = (".tar", ".tar.gz")  # endings of shards
MOST_SHARDS = 1_000_000  # of one address
NEEDS_WEBDATASET = "reading and writing webdataset shards needs webdataset: pip install -e '.[webdataset]'"


def webdataset_package() -> Any:
    """The package `webdataset`; TarError where it is not installed."""
    try:
        import webdataset
    except ImportError:
        raise TarError(NEEDS_WEBDATASET) from None
    return webdataset


def expanded(address: str) -> list[str]:
    """The addresses of the shards, in the order of their names.

    Raises:
        TarError: there are none, or one is missing that this package wrote and recorded.
    """
    import fsspec
    from fsspec.core import url_to_fs

    found: list[str] = []
    for one in _braces_expanded(address):
        try:
            system, path = url_to_fs(one)
            local = isinstance(system, fsspec.implementations.local.LocalFileSystem)
            if system.isdir(path):
                paths = sorted(p for p in system.glob(f"{path.rstrip('/')}/*") if p.endswith(TARS))
                if local:
                    _check_all_there(path.rstrip("/"), paths)
            else:
                paths = sorted(system.glob(path)) if "*" in path else [path] if system.exists(path) else []
        except (OSError, ValueError, ImportError) as error:
            raise TarError(f"{one}: {error}") from None
        if not paths:
            raise TarError(f"{one}: there are no .tar files")
        found += [path if local else system.unstrip_protocol(path) for path in paths]
    return found


def _check_all_there(folder: str, paths: list[str]) -> None:
    """TarError where a shard is missing. Other tools' `sizes.json` may list more than somebody downloaded: only that of
    this package has lengths."""
    for address, shard in recorded(folder).items():
        if shard.bytes is not None and address not in paths:
            raise TarError(
                f"{address} is missing, which {SIZES} beside it records: put it back, or write the shards anew; to "
                f"read the others alone, name them, as in '{folder}/*.tar'"
            )


def _braces_expanded(address: str) -> list[str]:
    """What `{000..099}` and `{a,b}` in an address stand for; TarError for braces that do not close, or too many."""
    if "{" not in address:
        return [address]
    count = 1
    for first, last in re.findall(r"\{(\d+)\.\.(\d+)(?:\.\.\d+)?\}", address):
        count *= abs(int(last[:20]) - int(first[:20])) + 1
    if count > MOST_SHARDS:
        raise TarError(f"{address:.200}: stands for {count:,} shards; at most {MOST_SHARDS:,} are read")
    try:
        return webdataset_package().shardlists.expand_urls(address)
    except ValueError as error:
        raise TarError(f"{address:.200}: {error!s:.100}") from None
