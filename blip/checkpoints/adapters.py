"""Low-rank adapters (LoRA, Hu et al. 2022) around linear layers of any model, by `peft`.

A wrapped layer computes W x + alpha / rank * B A x, where only A (rank, in) and B (out, rank) are trained; B starts at
zero. `peft` keeps W as `NAME.base_layer`; files and `merged_state` use `NAME`. `adapter_files.py` writes and
reads adapters.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from blip.checkpoints.format import CheckpointError, unique_state
from blip.errors import BlipError

PEFT_NAME = "default"  # peft holds several adapters by name; here there is one


class LoraError(BlipError):
    """An adapter that cannot be made; the message gives the reason and the remedy."""


def add_lora(
    model: nn.Module,
    rank: int,
    targets: Sequence[str],
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    trainable: Sequence[str] = (),
) -> list[str]:
    """Wraps linear layers in adapters, in place, and freezes everything else; returns the names of the wrapped layers.

    Weights must be loaded before; copies of the model (the momentum twin), `data_parallel` and the optimizer come
    after. A layer that several parts share is wrapped once for all, under its first name.

    Args:
        rank: of A and B.
        targets: names of linear layers or their endings, `*` for anything: `qkv`, `cross_attention.v`,
            `image_encoder.*.proj`.
        alpha: the adapter is scaled by alpha / rank; by 1 unless given.
        dropout: of the adapter's input.
        trainable: further parts, by name, that stay trainable and are saved with the adapter, such as a new head.

    Raises:
        LoraError: peft is absent, a target or part is unknown, or there are adapters already. The model is unchanged.
    """
    peft = needs_peft()
    if wrapped(model):
        raise LoraError("lora: the model has adapters already; merge them first")
    if rank < 1:
        raise LoraError(f"lora: rank is {rank}; 4 to 64 are usual")
    names, extra = matching_layers(model, targets), _parameters_of(model, trainable)
    if both := [name for name in names if any(parameter.startswith(f"{name}.") for parameter in extra)]:
        raise LoraError(f"lora: among targets and trainable: {', '.join(both)}; leave it in one of the two")

    exactly = "|".join(map(re.escape, names))  # peft reads a list as endings, which can match further layers
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, lora_dropout=dropout, target_modules=exactly
    )
    places = {name: _places(model, model.get_submodule(name)) for name in names}
    peft.inject_adapter_in_model(config, model, PEFT_NAME)
    for name in names:  # peft replaces a layer under one name alone
        _put(model, places[name], model.get_submodule(name))

    model.requires_grad_(False)
    adapters = [p for layer in wrapped(model).values() for p in adapter_parameters(layer)]
    for parameter in [*adapters, *extra.values()]:
        parameter.requires_grad_(True)
    return names


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """A and B of each wrapped layer, and the parts that `add_lora` left trainable, by name."""
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    trained |= {id(p) for layer in wrapped(model).values() for p in adapter_parameters(layer)}
    return {public_name(name): p.detach() for name, p in model.named_parameters() if id(p) in trained}


@torch.no_grad()
def load_adapter_state(model: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Copies the result of `adapter_state` into a model with the same adapters; `what` names the source in errors."""
    expected = adapter_state(model)
    wrong = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    wrong += [f"{name} is not known" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        if tensors[name].shape != expected[name].shape:
            wrong.append(f"{name} is {tuple(tensors[name].shape)}, the model needs {tuple(expected[name].shape)}")
    if wrong:
        more = f", and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise CheckpointError(f"{what} does not fit the adapters: {'; '.join(sorted(wrong)[:12])}{more}")
    for name, tensor in expected.items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The result of `unique_state` after `merge`; the model is not changed."""
    layers = wrapped(model).values()
    folded = {id(layer.base_layer.weight): layer for layer in layers}
    adapters = {id(p) for layer in layers for p in adapter_parameters(layer)}
    tensors = model.state_dict(keep_vars=True)
    return {
        public_name(name): _fold(folded[id(tensors[name])]) if id(tensors[name]) in folded else tensor
        for name, tensor in unique_state(model).items()
        if id(tensors[name]) not in adapters
    }


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Folds every adapter into its layer, in place: plain linear layers again. Frozen parameters stay frozen."""
    for layer in wrapped(model).values():
        layer.base_layer.weight.copy_(_fold(layer))
        _put(model, _places(model, layer), layer.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config  # where peft lists what it wrapped


def needs_peft() -> ModuleType:
    """The `peft` package; LoraError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise LoraError(f"lora needs peft: pip install -e '.[lora]' ({error})") from error
    return peft


def wrapped(model: nn.Module) -> dict[str, Any]:
    """The layers of peft by name, each once; peft need not be installed where there are none."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def adapter_parameters(layer: Any) -> list[Tensor]:
    """A and B of a wrapped layer."""
    return [layer.lora_A[PEFT_NAME].weight, layer.lora_B[PEFT_NAME].weight]


def _fold(layer: Any) -> Tensor:
    weight = layer.base_layer.weight
    return (weight + layer.get_delta_weight(PEFT_NAME)).to(weight.dtype)


def public_name(name: str) -> str:
    """The name of a tensor in files, from the name that peft gives it."""
    return name.replace(".base_layer.", ".").replace(f".{PEFT_NAME}.", ".")


def public_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a model once, by its name in files."""
    return {public_name(name): tensor for name, tensor in unique_state(model).items()}


def _places(model: nn.Module, module: nn.Module) -> list[str]:
    """Every name of a module: a shared one has several."""
    return [name for name, other in model.named_modules(remove_duplicate=False) if other is module]


def _put(model: nn.Module, names: list[str], module: nn.Module) -> None:
    for name in names:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module)


def matching_layers(model: nn.Module, targets: Sequence[str], where: str = "this model") -> list[str]:
    """First names of the linear layers that match any target; `where` names the model in errors."""
    first = {id(module): name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    every = {name: first[id(m)] for name, m in model.named_modules(remove_duplicate=False) if id(m) in first}
    if not targets:
        raise LoraError(f"lora: targets is empty; linear layers are {', '.join(_kinds(every))}")
    found = set()
    for target in targets:
        meant = {own for name, own in every.items() if fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")}
        if not meant:
            raise LoraError(f"lora: target {target!r} is no linear layer of {where}; {_nearest(target, every)}")
        found |= meant
    return [name for name in first.values() if name in found]


def _parameters_of(model: nn.Module, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters, by first name, of parts of the model: modules or single parameters."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for part in parts:
        inside = [p for name, p in every.items() if name == part or name.startswith(f"{part}.")]
        if not inside:
            known = [*modules, *every]
            raise LoraError(f"lora: trainable {part!r} is no part with parameters; {_nearest(part, known)}")
        found.update({first[id(p)]: p for p in inside})
    return found


def _kinds(names: Iterable[str]) -> list[str]:
    """Names with `*` for a layer's number, each once."""
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names if name))


def _nearest(wanted: str, names: Iterable[str]) -> str:
    """The names most like the one wanted, whole or their endings, for a message."""
    endings = dict.fromkeys(kind.split(".", i)[-1] for kind in _kinds(names) for i in range(kind.count(".") + 1))
    near = difflib.get_close_matches(wanted, endings, n=4, cutoff=0.0)
    return f"the nearest are {', '.join(near)}"
