"""The files of low-rank adapters: a folder that is loaded together with the checkpoint that they were trained on.

adapter.safetensors    A and B of each wrapped layer, the parts trained beside them, and tensors that the base lacks
adapter.json           format version, rank, alpha, dropout, wrapped layers, parts, tensors that the base lacks; and
                       `base`, the checkpoint that training started from, and `model`, as in `model.json`
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from blip.checkpoints.adapters import (
    PEFT_NAME,
    LoraError,
    adapter_state,
    add_lora,
    load_adapter_state,
    needs_peft,
    public_state,
    wrapped,
)
from blip.checkpoints.format import WEIGHTS, CheckpointError, check_numbers, load_tensors, save_tensors, write_info
from blip.checkpoints.info import MAX_INFO, check_info
from blip.files import ReadError, checked_as, read_json

FORMAT_VERSION = 1
ADAPTER, ADAPTER_INFO = "adapter.safetensors", "adapter.json"
SETTINGS = ("rank", "targets", "alpha", "dropout", "trainable")  # arguments of `add_lora`


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)

    format_version: int = Field(ge=1)


class AdapterInfo(BaseModel):
    """The entries of `adapter.json`; others are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    rank: int = Field(gt=0, le=1 << 16)
    alpha: float | None
    dropout: float = Field(ge=0, lt=1)
    targets: list[str] = Field(min_length=1)
    trainable: list[str]
    new: list[str] = []
    base: str | None = None
    model: dict[str, Any] | None = None


def save_adapter(
    folder: str | Path, model: nn.Module, info: dict[str, Any], *, new: Sequence[str] = (), flush: bool = True
) -> None:
    """Writes `adapter.safetensors` and `adapter.json`, which `blip.load` reads together with the base checkpoint.

    Args:
        folder: to write to.
        model: with adapters.
        info: goes into `adapter.json`: `base`, the path of the base checkpoint, and `model`, as in `model.json`.
        new: names of tensors that the base lacks; they are saved too, frozen or not.
        flush: as in `save_weights`.
    """
    layers = wrapped(model)
    if not layers:
        raise LoraError("lora: the model has no adapters to save")
    one = next(iter(layers.values()))  # all have the same settings
    state = adapter_state(model)
    every = public_state(model)
    only_here = {name: every[name] for name in new if name not in state}
    adapters = tuple(f"{name}.lora_" for name in layers)
    about = {
        "format_version": FORMAT_VERSION,
        "rank": one.r[PEFT_NAME],
        "alpha": one.lora_alpha[PEFT_NAME],
        "dropout": getattr(one.lora_dropout[PEFT_NAME], "p", 0.0),
        "targets": list(layers),
        "trainable": [name for name in state if not name.startswith(adapters)],
        "new": list(only_here),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.contiguous() for name, t in {**state, **only_here}.items()}
    save_tensors(tensors, folder / ADAPTER, flush=flush)
    write_info(folder / ADAPTER_INFO, {**info, **about}, flush=flush)


def is_adapter(path: str | Path) -> bool:
    """Whether this is a folder with an adapter and no weights of a whole model."""
    return (Path(path) / ADAPTER).is_file() and not (Path(path) / WEIGHTS).is_file()


def adapter_info(folder: str | Path) -> dict[str, Any]:
    """The content of `adapter.json`.

    Raises:
        CheckpointError: the folder holds no adapter, a damaged one, or one of a newer version.
    """
    folder = Path(folder)
    for name in (ADAPTER, ADAPTER_INFO):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no adapter: it has no {name}")
    path = folder / ADAPTER_INFO
    try:
        version = read_json(path, _Header, MAX_INFO).format_version
        about: dict[str, Any] = read_json(path, dict[str, Any], MAX_INFO)
        if version <= FORMAT_VERSION:
            checked_as(about, AdapterInfo, path)
    except ReadError as error:
        raise CheckpointError(f"{path} is damaged: {error.problem}") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{folder} was written by a newer blip (format {version}): update blip")
    if about.get("model") is not None:
        check_info(about["model"], path)
    return about


@torch.no_grad()
def load_adapter(model: nn.Module, folder: str | Path) -> dict[str, Any]:
    """Wraps a model that holds the base weights in the saved adapters; returns the content of `adapter.json`.

    Tensors that the base lacks are copied into the model.

    Raises:
        CheckpointError: the folder holds no adapter, a damaged one, or one of another model.
        LoraError: peft is absent.
    """
    folder = Path(folder)
    about = adapter_info(folder)
    tensors = load_tensors(folder / ADAPTER)
    check_numbers(tensors, folder / ADAPTER)
    _check_rank(tensors, about["rank"], folder / ADAPTER_INFO)
    new = {name: tensors.pop(name) for name in about.get("new", []) if name in tensors}
    needs_peft()  # raises here: an absent package is no defect of the folder
    try:
        add_lora(model, **{key: about[key] for key in SETTINGS})
    except LoraError as error:
        raise CheckpointError(f"{folder} does not fit the model: {error}") from error
    load_adapter_state(model, tensors, str(folder))
    own = public_state(model)
    for name, tensor in new.items():
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(f"{folder} does not fit the model: it has no {name} of shape {tuple(tensor.shape)}")
        own[name].copy_(tensor)
    return about


def _check_rank(tensors: dict[str, torch.Tensor], rank: int, path: Path) -> None:
    """CheckpointError unless the stored A and B have the stated rank: layers of another one are not made."""
    for name, tensor in tensors.items():
        axis = 0 if ".lora_A." in name else 1 if ".lora_B." in name else None
        if axis is not None and (tensor.dim() != 2 or tensor.shape[axis] != rank):
            raise CheckpointError(f"{path} does not fit: rank is {rank}, and {name} is {tuple(tensor.shape)}")
