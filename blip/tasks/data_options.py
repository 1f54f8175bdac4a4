"""The data that a run names: how its files are read, and the commits of data sets of the Hugging Face hub."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from blip import distributed
from blip.config import ModelConfig, WeightedFile
from blip.data.hub import pinned
from blip.hub.names import is_hub_name

Config = TypeVar("Config", bound=ModelConfig)
OPTIONS = ("train_file", "val_file", "test_file")


def entries(files: Sequence[str | WeightedFile]) -> list[str | Mapping[str, Any]]:
    """Files of an option, each a path or a path and what is other than for the rest."""
    return [entry if isinstance(entry, str) else entry.model_dump() for entry in files]


def read_as(config: ModelConfig, part: str) -> dict[str, Any]:
    """How the files of a part, `train`, `val` or `test`, are read: the options of `read_pairs` and the like."""
    return {
        "image_root": config.image_root,
        "dataset": config.dataset,
        "split": getattr(config, f"{part}_split", ""),
        "columns": config.columns,
        "limit": getattr(config, f"max_{part}_records", None),
        "seed": config.shuffle_records_seed,
    }


def with_commits(config: Config) -> Config:
    """The configuration whose data sets of the hub are named with their commits, so that `config.yaml` repeats the same
    data; every process has to call this.

    Raises:
        RemoteError: there is no such data set, or it is out of reach.
    """
    given = {name: getattr(config, name) for name in OPTIONS if getattr(config, name, None)}
    if not any(is_hub_name(_path(entry)) for files in given.values() for entry in files):
        return config
    found = distributed.from_main(lambda: {name: [_pinned(entry) for entry in files] for name, files in given.items()})
    return config.model_copy(update=found)


def is_there(entry: str | WeightedFile) -> bool:
    """Whether a file or folder exists; what the hub has is taken to."""
    return is_hub_name(_path(entry)) or os.path.exists(_path(entry))


def _pinned(entry: str | WeightedFile) -> str | WeightedFile:
    if not is_hub_name(_path(entry)):
        return entry
    name = pinned(_path(entry))
    return name if isinstance(entry, str) else entry.model_copy(update={"path": name})


def _path(entry: str | WeightedFile) -> str:
    return entry if isinstance(entry, str) else entry.path
