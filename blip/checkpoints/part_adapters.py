"""Low-rank adapters on named parts of a model, beside parts that are trained whole (BLIP-2).

`adapters.add_lora` freezes whatever it does not wrap. Here the weights of a part that gets adapters are frozen, and
every other part stays as it was, trained or frozen. The adapters are not merged into weights: those of a language model
are not ours to write, and int8 layers cannot hold them. `trained_parts` is what a run prints before its first step.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blip.checkpoints.adapters import (
    PEFT_NAME,
    LoraError,
    adapter_parameters,
    matching_layers,
    needs_peft,
    public_name,
    public_state,
    wrapped,
)
from blip.checkpoints.format import CheckpointError

ADAPTER = ".lora_"  # in the names of the tensors of adapters
PARTS = ("language_model", "qformer", "image_encoder")
# what users of other packages call our layers: the last part of a name
ALIASES = {"query": "q", "key": "k", "value": "v", "q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}


def add_lora_to_parts(
    model: nn.Module,
    rank: int,
    parts: Mapping[str, Sequence[str]],
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> list[str]:
    """Wraps linear layers of parts in adapters, in place; returns the names of the wrapped layers.

    Args:
        rank: of A and B.
        parts: of each part, such as `language_model`, the endings of names of its linear layers; `*` for anything. An
            ending such as `query` also means our `q`, where the part has no layer of the first name.
        alpha: the adapter is scaled by alpha / rank; by 1 unless given.
        dropout: of the adapter's input.

    Raises:
        LoraError: peft is absent, a part or a layer is unknown, or there are adapters already. The model is unchanged.
    """
    peft = needs_peft()
    if wrapped(model):
        raise LoraError("lora: the model has adapters already; merge them first")
    names: dict[str, list[str]] = {}
    for part, endings in parts.items():
        if not endings:
            continue
        if not isinstance(getattr(model, part, None), nn.Module):
            there = ", ".join(name for name, _ in model.named_children())
            raise LoraError(f"lora: this model has no part {part!r}; it has {there}")
        inside = model.get_submodule(part)
        names[part] = [f"{part}.{name}" for name in _layers(inside, endings, part)]
    every = [name for several in names.values() for name in several]
    if not every:
        raise LoraError(f"lora names no layers: give some of {', '.join(PARTS)}")
    trained = {id(p): p.requires_grad for p in model.parameters()}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="|".join(map(re.escape, every)),  # a list would be read as endings of further layers
    )
    peft.inject_adapter_in_model(config, model, PEFT_NAME)
    for parameter in model.parameters():  # peft freezes all that it does not wrap
        parameter.requires_grad_(trained.get(id(parameter), False))
    for part in names:
        model.get_submodule(part).requires_grad_(False)
    for layer in wrapped(model).values():
        for weight in adapter_parameters(layer):
            weight.requires_grad_(True)
    return every


@torch.no_grad()
def restore_adapters(model: nn.Module, lora: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str) -> None:
    """Wraps layers as `lora` of `model.json` says, with the numbers that a checkpoint has among its tensors.

    Raises:
        CheckpointError: the adapters are not all there, or fit other layers; `what` names the checkpoint.
        LoraError: as in `add_lora_to_parts`.
    """
    if not wrapped(model):
        add_lora_to_parts(model, lora["rank"], lora["parts"], alpha=lora["alpha"], dropout=lora["dropout"])
    for name, own in public_state(model).items():
        if ADAPTER in name:
            theirs = tensors.get(name)
            if theirs is None or theirs.shape != own.shape:
                raise CheckpointError(f"{what} is half a checkpoint: it lacks {name} of shape {tuple(own.shape)}")
            own.copy_(theirs)


def _layers(part: nn.Module, endings: Sequence[str], name: str) -> list[str]:
    """Names of the part's linear layers with these endings, in the order of the part."""
    known = [one.rpartition(".")[2] for one, module in part.named_modules() if isinstance(module, nn.Linear)]
    asked = []
    for ending in endings:
        head, dot, last = ending.rpartition(".")
        asked.append(f"{head}{dot}{ALIASES[last]}" if last not in known and ALIASES.get(last) in known else ending)
    return matching_layers(part, asked, where=name)


def trained_parts(model: nn.Module, parts: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Of each part of a model: how many of its numbers are trained, and how many it has; a shared one counts once.

    Args:
        parts: those that must have something to train.

    Raises:
        LoraError: one of `parts` has nothing that is trained.
    """
    counts: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        part = name.partition(".")[0]
        trained, whole = counts.get(part, (0, 0))
        counts[part] = trained + parameter.requires_grad * parameter.numel(), whole + parameter.numel()
    for part in parts:
        if not counts.get(part, (0, 0))[0]:
            raise LoraError(f"nothing of {part} is trained, although the configuration names it: see lora and freeze")
    return counts


def trained_line(counts: Mapping[str, tuple[int, int]]) -> str:
    """`trained_parts` in a line, such as `trained: qformer 105.1 M of 105.1 M, language_model 2.6 M of 2,651.6 M`."""
    listed = [f"{part} {_millions(some)} of {_millions(whole)}" for part, (some, whole) in counts.items() if some]
    frozen = [f"{part} ({_millions(whole)})" for part, (some, whole) in counts.items() if not some]
    return f"trained: {', '.join(listed) or 'nothing'}" + (f"; frozen: {', '.join(frozen)}" if frozen else "")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"


def trained_state(model: nn.Module, *, without: Sequence[str] = ()) -> dict[str, Tensor]:
    """Every tensor once, by its name in files, but for those of parts of `without` that are not trained.

    Adapters of such a part are trained, and so are among them.
    """
    trained = {public_name(name) for name, p in model.named_parameters() if p.requires_grad}
    return {
        name: tensor
        for name, tensor in public_state(model).items()
        if name in trained or name.partition(".")[0] not in without
    }
