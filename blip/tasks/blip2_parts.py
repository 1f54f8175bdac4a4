"""What a run of BLIP-2 trains, and what its checkpoints hold: adapters, frozen parts, tensors."""

from typing import Any

import torch
from torch import Tensor, nn

from blip.checkpoints.format import CheckpointError
from blip.checkpoints.frozen import without_tower
from blip.checkpoints.initialize import Source
from blip.checkpoints.part_adapters import (
    add_lora_to_parts,
    restore_adapters,
    trained_line,
    trained_parts,
    trained_state,
)
from blip.config import ConfigError
from blip.tasks.part_options import LoraConfig
from blip.train.freeze import freeze, freeze_for_good


def lora_of(lora: LoraConfig | None, source: Source | None) -> dict[str, Any] | None:
    """The adapters of a run, as `lora` of `model.json` says them: the configured ones, else those of its start.

    Raises:
        ConfigError: the checkpoint has adapters already, and others.
    """
    known = source.info.get("lora") if source else None
    if lora is None:
        return known
    if lora.targets:
        raise ConfigError("lora: targets is for BLIP; of BLIP-2 give language_model, qformer or image_encoder")
    alpha = float(lora.rank if lora.alpha is None else lora.alpha)
    asked = {"rank": lora.rank, "alpha": alpha, "dropout": lora.dropout, "parts": lora.of_parts()}
    if known and known != asked:
        raise ConfigError(f"{source.path if source else ''} has adapters already ({known}): leave out lora")
    return asked


OF_TOWER = ("norm", "picture_embeddings")  # what is trained of a frozen image encoder, where it has them


def prepare(model: nn.Module, config: Any, lora: dict[str, Any] | None, *, source: Source | None) -> str:
    """Adapters, and what is frozen -> a line on what is trained, by part.

    Args:
        lora: from `lora_of`.
        source: has the numbers of its adapters, if it has any.

    Raises:
        LoraError: peft is absent, a target is no layer, or nothing of a part that has adapters is trained.
        ConfigError: `freeze` names no part, or nothing is left to train.
    """
    named: list[str] = []
    if lora is not None:
        add_lora_to_parts(model, lora["rank"], lora["parts"], alpha=lora["alpha"], dropout=lora["dropout"])
        named = list(lora["parts"])
        if source is not None and source.info.get("lora"):
            restore_adapters(model, lora, source.tensors, source.path)
    if not config.train_image_encoder and "image_encoder" not in named:
        tower = model.get_submodule("image_encoder")
        freeze_for_good(tower, trained=[name for name in OF_TOWER if getattr(tower, name) is not None])
    freeze(model, config.freeze)
    return trained_line(trained_parts(model, named))


def frozen_tower(model: nn.Module, frozen: dict[str, Any]) -> dict[str, Any]:
    """`frozen` of `model.json`: which file the tower is from, if it is known and its norm alone changes."""
    changes = any(p.requires_grad for name, p in model.get_submodule("image_encoder").named_parameters()
                  if name.split(".")[0] not in OF_TOWER)  # fmt: skip
    return {} if changes else frozen


def saved_state(model: nn.Module, info: dict[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint holds: all but the language model's own tensors, and those of a tower that `frozen` names."""
    tensors = trained_state(model, without=["language_model"])
    return without_tower(tensors) if info.get("frozen") else tensors


def load_saved(model: nn.Module, tensors: dict[str, Tensor], info: dict[str, Any], path: str) -> None:
    """Copies what `saved_state` gave into the model; CheckpointError where a tensor is absent, unknown or misshapen."""
    expected = saved_state(model, info)
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        which = f"it lacks {missing[0]}" if missing else f"{unknown[0]} is not known"
        raise CheckpointError(f"{path} does not fit the model: {which} ({len(missing) + len(unknown)} tensors in all)")
    for name, own in expected.items():
        if own.shape != tensors[name].shape:
            theirs = tuple(tensors[name].shape)
            raise CheckpointError(f"{path}: {name} is {theirs}, the model needs {tuple(own.shape)}")
        with torch.no_grad():
            own.copy_(tensors[name])
