"""Reading and editing the inside of a model while it runs: `names`, `trace`, and two common edits.

    m = blip.load("checkpoint")
    with blip.trace(m, "text.*.cross.*", grads=True) as t:
        m.match_logits(image, "small left effusion")[:, 1].sum().backward()
    pattern = t.pattern("text.6.cross")  # (R, H, T, 1+N)

The names and their shapes are those of `points.py`. Outside of `trace` no hook is attached: there is no overhead.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from blip.inference.predictor import Predictor
from blip.interpret.hooks import Edit, Hooks
from blip.interpret.points import layers_of, names_of
from blip.interpret.recording import Trace, TraceError, no_such_point

Patterns = str | Iterable[str]


def names(m: Predictor | nn.Module) -> list[str]:
    """The names of all points of this model that `trace` can read, in the order of computation.

    The table in `points.py` gives the shape of each.

    Example:
        >>> m = blip.load("checkpoint")
        >>> blip.names(m)[:3]
        ['image.0.in', 'image.0.attn.q', 'image.0.attn.k']
    """
    return names_of(_network(m))


@contextmanager
def trace(
    m: Predictor | nn.Module, points: Patterns = (), edit: Mapping[str, Edit] | None = None, *, grads: bool = False
) -> Iterator[Trace]:
    """Records the tensors that pass through `points` inside the block, and edits them.

    Inside the block compiled models run eagerly and activation checkpointing is off; when it ends, also by an
    exception, both are restored. The fused attention stays in use: patterns are computed from queries and keys when
    they are read. Only an attention whose pattern is edited computes its soft-max explicitly.

    Args:
        m: what `blip.load` returns, or a model.
        points: names, or patterns of names (`text.*.cross.*`).
        edit: for names or patterns, a function from the tensor there to its replacement, or to None to keep it. Changes
            in place have no effect. Several edits of one point are applied in the order given. Of two nested traces,
            the outer one reads the tensors before the inner one's edits.
        grads: keep gradients too; a `Predictor` then computes them. Read them after `backward()`.

    Raises:
        TraceError: there is no such name; an edit returned another shape.

    Example:
        >>> m = blip.load("checkpoint")
        >>> with blip.trace(m, "text.*.cross.*", grads=True) as t:
        ...     m.match_logits("chest.png", "small left effusion")[:, 1].sum().backward()
        >>> pattern = t.pattern("text.0.cross")  # (R, H, T, 1+N)
        >>> gradient = t.pattern_grad("text.0.cross")  # the same shape
    """
    network = _network(m)
    wanted = matching(network, points)
    edits: dict[str, Edit] = {}
    for pattern, fn in (edit or {}).items():
        for name in matching(network, pattern):
            edits[name] = _then(edits[name], fn) if name in edits else fn
    with ExitStack() as undo:
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        for _, layer in layers_of(network):
            if "forward" in layer.__dict__:  # put there by activation checkpointing
                undo.callback(setattr, layer, "forward", layer.__dict__["forward"])
                del layer.forward
        if grads and isinstance(m, Predictor):
            undo.enter_context(m.gradients())
        recorded = Trace(network, wanted, grads=grads)
        hooks = Hooks(recorded, edits)
        undo.callback(hooks.remove)
        hooks.attach()
        yield recorded


def _network(m: Predictor | nn.Module) -> nn.Module:
    """The model itself, out of a predictor, `torch.compile` or DistributedDataParallel."""
    network: Any = m.model if isinstance(m, Predictor) else m
    while hasattr(network, "_orig_mod") or isinstance(network, nn.parallel.DistributedDataParallel):
        network = network._orig_mod if hasattr(network, "_orig_mod") else network.module
    return network


def matching(model: nn.Module, points: Patterns) -> set[str]:
    """The names of a model's points that one of these patterns matches; TraceError where a pattern matches none."""
    known = names_of(model)
    chosen: set[str] = set()
    for pattern in [points] if isinstance(points, str) else points:
        matched = {name for name in known if fnmatchcase(name, pattern)}
        if not matched:
            raise TraceError(no_such_point(pattern, known))
        chosen |= matched
    return chosen


# ---- edits -----------------------------------------------------------------------------------------------------------


def _then(first: Edit, second: Edit) -> Edit:
    def both(x: Tensor) -> Tensor | None:
        between = first(x)
        after = second(x if between is None else between)
        return between if after is None else after

    return both


def zero_head(*heads: int) -> Edit:
    """An edit for q, k, v or z: the values of these heads become zero (ablation of heads).

    Raises:
        TraceError: when applied to a tensor without heads, or for a head that the attention does not have.

    Example:
        >>> m = blip.load("checkpoint")
        >>> with blip.trace(m, edit={"text.*.cross.z": blip.zero_head(0, 1)}):
        ...     without_two_heads = m.match_probability("chest.png", "small left effusion")
    """

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
    """An edit for `name`: its values at these tokens come from another trace (activation patching).

    Raises:
        TraceError: when applied, where the two traces have different shapes or a token does not exist.

    Example:
        >>> m = blip.load("checkpoint")
        >>> with blip.trace(m, "image.0.out") as other:
        ...     of_other = m.match_probability("normal.png", "small left effusion")
        >>> with blip.trace(m, edit={"image.0.out": blip.patch_from(other, "image.0.out", tokens=[0])}):
        ...     with_other_cls = m.match_probability("chest.png", "small left effusion")
    """
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
