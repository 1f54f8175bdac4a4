"""The files of low-rank adapters: a folder that is loaded together with the checkpoint that they were trained on.

adapter.safetensors    A and B of each wrapped layer, the parts trained beside them, and tensors that the base lacks
adapter.json           format version, rank, alpha, dropout, wrapped layers, parts, tensors that the base lacks; and
                       `base`, the checkpoint that training started from, and `model`, as in `model.json`
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
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
from blip.checkpoints.format import WEIGHTS, CheckpointError, save_tensors
from blip.files import write_whole

FORMAT_VERSION = 1
ADAPTER, ADAPTER_INFO = "adapter.safetensors", "adapter.json"
SETTINGS = ("rank", "targets", "alpha", "dropout", "trainable")  # arguments of `add_lora`


def save_adapter(folder: str | Path, model: nn.Module, info: dict[str, Any], *, new: Sequence[str] = ()) -> None:
    """Writes `adapter.safetensors` and `adapter.json`, which `blip.load` reads together with the base checkpoint.

    Args:
        folder: to write to.
        model: with adapters.
        info: goes into `adapter.json`: `base`, the path of the base checkpoint, and `model`, as in `model.json`.
        new: names of tensors that the base lacks; they are saved too, frozen or not.
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
    save_tensors(tensors, folder / ADAPTER)
    write_whole(folder / ADAPTER_INFO, json.dumps({**info, **about}, indent=1) + "\n")


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
    try:
        about = json.loads((folder / ADAPTER_INFO).read_text(encoding="utf-8"))
        version = int(about["format_version"])
        _ = [about[key] for key in SETTINGS]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / ADAPTER_INFO} is damaged: {error!r}") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{folder} was written by a newer blip (format {version}): update blip")
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
    try:
        tensors = load_file(folder / ADAPTER)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / ADAPTER} is damaged or cut short: {error}") from error
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
