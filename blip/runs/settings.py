"""Arguments of Python as a configuration: data, the keys of the task's options, the name of a configuration."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from blip.config import ModelConfig, dump_config, find_config, load_config, with_options
from blip.data.dataset import DataSet
from blip.errors import InputError
from blip.tasks.entries import Entry

__all__ = ["Data", "dump_config", "entries_of", "settings"]

# a path, hub:OWNER/NAME, an entry of `train_file`, or what `blip.data` returns
OneSource = str | os.PathLike[str] | Mapping[str, Any] | DataSet
Data = OneSource | Sequence[OneSource]
NOT_GIVEN = {"init_from": "", "device": "auto"}  # arguments that are not given


def settings(
    entry: Entry,
    call: str,
    *,
    config: str | Path | None,
    data: Mapping[str, Data | None],
    options: Mapping[str, Any],
) -> ModelConfig:
    """The configuration of a run.

    Args:
        entry: the task.
        call: the function that was called, for messages.
        config: a YAML file, or the name of one of the package's configurations.
        data: by key, such as `train_file`; None leaves what the configuration has.
        options: values by key; NOT_GIVEN leaves what the configuration has.

    Raises:
        ConfigError: an option is unknown, or a value cannot be used; the message names the nearest options.
        InputError: data of a kind that cannot be trained on.
    """
    base = entry.config.model_validate({}) if config is None else load_config(config, entry.config)
    values = {key: os.fspath(value) if isinstance(value, os.PathLike) else value
              for key, value in options.items() if key not in NOT_GIVEN or value != NOT_GIVEN[key]}  # fmt: skip
    values |= {key: entries_of(value) for key, value in data.items() if value is not None}
    if config is None:
        if values.get("init_from"):
            values = {**entry.published, **values}
        values.setdefault("num_workers", min(base.num_workers, _cpus()))
    else:
        values.setdefault("config_file", str(find_config(config)))
    return cast(ModelConfig, with_options(base, values, call))


def entries_of(data: Data) -> list[Any]:
    """Data as the entries of an option such as `train_file`. InputError for what is none."""
    several = data if isinstance(data, list | tuple) else [data]
    return [_entry(one) for one in several]


def _entry(one: Any) -> Any:
    if isinstance(one, DataSet):
        return one.entry()
    if isinstance(one, str | os.PathLike):
        return os.path.expanduser(one)
    if isinstance(one, Mapping) and "path" in one:
        return dict(one)
    what = "a dictionary without path" if isinstance(one, Mapping) else type(one).__name__
    raise InputError(
        f"{what} is no source of records: give the path of a file of them, hub:OWNER/NAME, a list of these, or "
        "blip.data(...), whose limit and split choose a part"
    )


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
