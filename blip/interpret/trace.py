"""Reading and editing the inside of a model while it runs: `names`, `trace`, and two edits that are often wanted.

    m = blip.load("checkpoint")
    with blip.trace(m, "text.*.cross.*", grads=True) as t:
        m.match_logits(image, "small left effusion")[:, 1].sum().backward()
    pattern = t.pattern("text.6.cross")  # (R, H, T, 1+N)

The names and their shapes are those of `points.py`. Nothing is hooked, and nothing costs anything, outside of `trace`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from blip.inference.predictor import Predictor
from blip.interpret.hooks import Edit, Trace, TraceError, no_such_point
from blip.interpret.points import layers_of, names_of

Patterns = str | Iterable[str]


def names(m: Predictor | nn.Module) -> list[str]:
    """Every name that `trace` knows of this model, in the order of computation; shapes stand in `points.py`."""
    return names_of(_network(m))


@contextmanager
def trace(
    m: Predictor | nn.Module, points: Patterns = (), edit: Mapping[str, Edit] | None = None, grads: bool = False
) -> Iterator[Trace]:
    """Keeps what passes through `points` inside the block, and edits it.

    Compiled models run eagerly and activation checkpointing is off inside; afterwards, also after an exception,
    everything is as it was. The fused attention stays in use: patterns are computed from queries and keys when they are
    read. It gives way to the soft-max written out only at an attention whose pattern is edited.

    Args:
        m: what `blip.load` returns, or a model.
        points: names, or patterns of them (`text.*.cross.*`).
        edit: for names or patterns, a function from the tensor there to its replacement, or to None to leave it (what
            it writes in place is lost). Several of one point follow one another, in the order given. Of two traces,
            one inside the other, the outer one reads what was there before the inner one's edits.
        grads: keep gradients too; a `Predictor` then computes them. Read them after `backward()`.

    Raises:
        TraceError: no such name; an edit of another shape.
    """
    network = _network(m)
    wanted = _matching(network, points)
    edits: dict[str, Edit] = {}
    for pattern, fn in (edit or {}).items():
        for name in _matching(network, pattern):
            edits[name] = _then(edits[name], fn) if name in edits else fn
    with ExitStack() as undo:
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        for _, layer in layers_of(network):
            if "forward" in layer.__dict__:  # put there by activation checkpointing
                undo.callback(setattr, layer, "forward", layer.__dict__["forward"])
                del layer.forward
        if grads and isinstance(m, Predictor):
            undo.callback(setattr, m, "grads", m.grads)
            m.grads = True
        found = Trace(network, wanted, edits, grads)
        undo.callback(found.let_go)
        found.attach()
        yield found


def _network(m: Predictor | nn.Module) -> nn.Module:
    """The model itself, out of a predictor, `torch.compile` or DistributedDataParallel."""
    network: Any = m.model if isinstance(m, Predictor) else m
    while hasattr(network, "_orig_mod") or isinstance(network, nn.parallel.DistributedDataParallel):
        network = network._orig_mod if hasattr(network, "_orig_mod") else network.module
    return network


def _matching(model: nn.Module, points: Patterns) -> set[str]:
    known = names_of(model)
    found: set[str] = set()
    for pattern in [points] if isinstance(points, str) else points:
        matched = {name for name in known if fnmatchcase(name, pattern)}
        if not matched:
            raise TraceError(no_such_point(pattern, known))
        found |= matched
    return found


# ---- edits -----------------------------------------------------------------------------------------------------------


def _then(first: Edit, second: Edit) -> Edit:
    def both(x: Tensor) -> Tensor | None:
        between = first(x)
        after = second(x if between is None else between)
        return between if after is None else after

    return both


def zero_head(*heads: int) -> Edit:
    """An edit for `z`: these heads say nothing (ablation)."""

    def edit(z: Tensor) -> Tensor:
        if z.dim() != 4:
            raise TraceError(f"zero_head edits q, k, v or z, which have heads; this is {tuple(z.shape)}")
        if wrong := [head for head in heads if not -z.shape[1] <= head < z.shape[1]]:
            raise TraceError(f"there is no head {wrong[0]}: this attention has {z.shape[1]}, from 0")
        z = z.clone()
        z[:, list(heads)] = 0
        return z

    return edit


def patch_from(other: Trace, name: str, tokens: Sequence[int] | slice = slice(None)) -> Edit:
    """An edit for `name`: at these tokens, what passed through it in another trace (activation patching)."""
    value = other[name]

    def edit(x: Tensor) -> Tensor:
        if x.shape != value.shape:
            raise TraceError(f"{name} is {tuple(x.shape)} here and {tuple(value.shape)} in the other trace")
        if not isinstance(tokens, slice) and (far := [t for t in tokens if not -x.shape[-2] <= t < x.shape[-2]]):
            raise TraceError(f"there is no token {far[0]}: {name} has {x.shape[-2]}, from 0")
        x = x.clone()
        x[..., tokens, :] = value[..., tokens, :].to(x)
        return x

    return edit
