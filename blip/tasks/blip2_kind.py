"""Which kind of model a fine-tuning run trains, BLIP or BLIP-2: its configuration and its checkpoint say it."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip.checkpoints import places
from blip.checkpoints.format import INFO
from blip.checkpoints.info import MAX_INFO, read_info
from blip.config import ConfigError
from blip.files import ReadError, read_json
from blip.tasks.finetune import FineTuning
from blip.tasks.part_options import LanguageOptions

BLIP2 = ("blip2", "blip2_language")  # tasks of its checkpoints


def is_blip2(config: Any, checkpoint: Path | None = None) -> bool:
    """Whether a run trains BLIP-2: it names a language model, or starts from a checkpoint of BLIP-2."""
    if getattr(config, "language_model", ""):
        return True
    if checkpoint is None and not config.init_from:
        return False
    path = checkpoint or places.local(config.init_from)
    if (path / INFO).is_file():
        return read_info(path / INFO).get("task") in BLIP2
    if path.is_dir():
        with suppress(ReadError):
            return str(read_json(path / "config.json", dict[str, Any], MAX_INFO).get("model_type")).startswith("blip-2")
        return False
    return path.is_file() and _is_lavis(path)


def _is_lavis(path: Path) -> bool:
    """Whether a file of PyTorch has the names of a BLIP-2; of its tensors nothing is read."""
    with suppress(Exception):  # a damaged file is told when its weights are read
        state = torch.load(path, "cpu", weights_only=True, mmap=True)
        return "query_tokens" in state.get("model", state)
    return False


@dataclass(frozen=True)
class Kinds:
    """The classes of a task's runs."""

    blip: type[FineTuning]
    blip2: type[FineTuning]

    def of(self, config: Any, checkpoint: Path | None) -> type[FineTuning]:
        """The class for a configuration and the checkpoint that it resumes.

        Raises:
            ConfigError: options of BLIP-2 are set, and the model is a BLIP.
        """
        if is_blip2(config, checkpoint):
            return self.blip2
        _check_options(config)
        return self.blip


def _check_options(config: Any) -> None:
    known = {*LanguageOptions.model_fields, "question_in_qformer", "question_prompt"}
    if given := sorted(known & config.model_fields_set):
        named = [key for key in given if getattr(config, key) != type(config).model_fields[key].default]
        if named:
            raise ConfigError(f"{', '.join(named)}: for BLIP-2; set language_model, or start from a BLIP-2 (init_from)")
