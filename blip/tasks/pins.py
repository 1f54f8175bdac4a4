"""Names of weights on other machines, pinned to what they stand for when a run begins."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from blip import distributed
from blip.checkpoints import places
from blip.config import ModelConfig, load_config
from blip.hub.names import unpinned
from blip.tasks.data_options import saved_config

Run = TypeVar("Run", bound=ModelConfig)
# options that may name files of other machines, and what pins them
NAMES: dict[str, Callable[[str], str]] = {
    "init_from": places.pinned,
    "text_init": places.pinned,
    "tokenizer": places.pinned_tokenizer,
    "language_model": places.pinned_language_model,
}


def pin(config: Run, checkpoint: Path | None = None) -> Run:
    """The configuration with the names of weights on other machines pinned to what they stand for today.

    They are fetched. A run that continues from a `checkpoint` keeps the names of its `config.yaml`: nothing is fetched
    that it does not read. Every process has to call this.
    """
    names = {key: getattr(config, key) for key in NAMES if hasattr(config, key)}
    saved = saved_config(checkpoint)
    before = load_config(saved, type(config)) if saved else None
    for key, name in names.items():
        beside = key == "language_model" and any(Path(p, name).is_dir() for p in (config.init_from, checkpoint) if p)
        if name and not beside and places.is_remote(name):
            kept = getattr(before, key, "")
            if kept and unpinned(kept) == unpinned(name):
                names[key] = kept
            else:
                names[key] = distributed.from_main(partial(NAMES[key], name))
    return config.model_copy(update=names)
