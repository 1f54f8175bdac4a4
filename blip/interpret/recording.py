"""What passed through a model while it was traced. `blip.interpret.hooks.Hooks` fills a `Trace`, users read it.

Shapes: R texts, T tokens, H heads, d head width; those of every point stand in `points.py`.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blip.errors import BlipError
from blip.interpret.points import ATTENTION_POINTS, Layout, names_of
from blip.network.attention import attention_pattern


class TraceError(BlipError):
    """A name, an edit or a gradient that a model does not have; the message lists what it has."""


@dataclass
class RecordedState:
    """The states that passed through a point in one pass."""

    tensor: Tensor
    layout: Layout

    def value(self) -> Tensor:
        return self.layout.grid(self.tensor.detach())

    def gradient(self) -> Tensor | None:
        return None if self.tensor.grad is None else self.layout.grid(self.tensor.grad)


@dataclass
class AttentionCall:
    """One call of an attention: queries, keys and values, and the results."""

    layout: Layout
    mask: Tensor | None
    causal: bool
    dropout: float  # of the pattern, in this pass
    layer_pass: int | None  # number of the pass through a text layer that the call was part of
    # what was requested, or is needed for it: q, k, v, z; `pattern` where it was edited; `before`: z before its edit
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def value(self, point: str) -> Tensor:
        """The tensor at q, k, v, z or pattern, in the shape that `points.py` gives."""
        if point in ("k", "v"):
            return self.tensors[point].detach()
        if point == "pattern" and point not in self.tensors:
            q, k = self.tensors["q"].detach(), self.tensors["k"].detach()
            return self.layout.grid(attention_pattern(q, k, self.mask, causal=self.causal))
        return self.layout.grid(self.tensors[point].detach())

    def gradient(self, point: str) -> Tensor | None:
        """The gradient at a point, or None where none has arrived."""
        if point == "pattern" and point not in self.tensors:
            if self.dropout:
                raise TraceError("attention dropout was on, and hides the pattern's gradient: call model.eval() first")
            z = self.tensors["before"].grad  # z = pattern v, so the pattern's gradient is z's times v
            return None if z is None else self.layout.grid(z @ self.tensors["v"].detach().transpose(-1, -2))
        grad = self.tensors[point].grad
        return grad if grad is None or point in ("k", "v") else self.layout.grid(grad)


class Trace:
    """What passed through a model inside a `blip.trace` block, readable after it too. Tensors must not be changed.

    `grid` holds the patches (height, width) of the images that went in, `wanted` the names that are traced.
    """

    def __init__(self, model: nn.Module, wanted: set[str], *, grads: bool) -> None:
        self.model, self.wanted, self.grads = model, wanted, grads
        self.grid: tuple[int, int] | None = None
        self._states: dict[str, list[RecordedState]] = {}
        self._calls: dict[str, list[list[AttentionCall]]] = {}  # by attention; the calls of one pass together

    # ---- reading

    def __getitem__(self, name: str) -> Tensor:
        """What passed through `name`, where that was one pass."""
        return self._only(name, self.all(name))

    def all(self, name: str) -> list[Tensor]:
        """What passed through `name` in each pass: writing text makes one pass a token."""
        return [_joined(parts) for parts in self._passes(name, AttentionCall.value, RecordedState.value)]

    def reached(self, name: str) -> bool:
        """Whether something has passed through a traced point."""
        site, _, point = name.rpartition(".")
        return name in self._states or (point in ATTENTION_POINTS and site in self._calls)

    def passes(self, name: str) -> int:
        """How many passes have gone through a point; TraceError for none."""
        return len(self._passes(name, lambda *_: None, lambda _: None))

    def reached_grads(self, name: str) -> list[Tensor]:
        """`grad` of each pass, zero for passes that none has reached; [] where none has reached any."""
        passes = self._passes(name, AttentionCall.gradient, RecordedState.gradient)
        known = [all(part is not None for part in parts) for parts in passes]
        if not any(known):
            return []
        values = self.all(name) if not all(known) else []
        return [_joined(parts) if known[i] else torch.zeros_like(values[i]) for i, parts in enumerate(passes)]

    def pattern(self, attention: str) -> Tensor:
        """Attention weights (R, H, T, keys) of an attention such as `text.6.cross`; rows sum to one."""
        return self[f"{attention}.pattern"]

    def grad(self, name: str) -> Tensor:
        """The gradient of what was differentiated with respect to `name`; gradients of several `backward` add up."""
        return self._only(name, self.all_grads(name))

    def all_grads(self, name: str) -> list[Tensor]:
        """`grad` of each pass."""
        if not self.grads:
            raise TraceError("gradients were not kept: trace(..., grads=True)")
        passes = self._passes(name, AttentionCall.gradient, RecordedState.gradient)
        if any(part is None for parts in passes for part in parts):
            raise TraceError(
                f"no gradient has reached {name}: call backward() on something that depends on it, inside or after the "
                "block, and see that gradients are not switched off around the model"
            )
        return [_joined(parts) for parts in passes]

    def pattern_grad(self, attention: str) -> Tensor:
        """The gradient with respect to `pattern(attention)`."""
        return self.grad(f"{attention}.pattern")

    def backward(self, scores: Tensor, again: bool = False) -> None:
        """Differentiates the sum of `scores` with respect to what was traced, and to nothing else.

        The parameters keep the gradients that they have. Gradients of an earlier call are forgotten.

        Args:
            scores: of any shape.
            again: there will be another call.
        """
        traced = [state.tensor for states in self._states.values() for state in states]
        calls = [call for passes in self._calls.values() for one_pass in passes for call in one_pass]
        traced += [x for call in calls for x in call.tensors.values()]
        inputs = [x for x in traced if x.requires_grad]
        if not self.grads or not inputs:
            raise TraceError("nothing that was traced has a gradient: trace(..., grads=True) around the model, without "
                             "torch.no_grad()")  # fmt: skip
        for x in inputs:
            x.grad = None
        torch.autograd.backward(scores.sum(), inputs=inputs, retain_graph=again)

    def _passes(self, name: str, of_call: Callable, of_state: Callable) -> list[list[Any]]:
        """For each pass through `name`, what `of_call` or `of_state` gives of its parts."""
        if name not in self.wanted:
            known = names_of(self.model)
            raise TraceError(
                f"{name} was not traced: name it in trace(...)" if name in known else no_such_point(name, known)
            )
        site, _, point = name.rpartition(".")
        if point in ATTENTION_POINTS and site in self._calls:
            return [[of_call(call, point) for call in calls] for calls in self._calls[site]]
        if name in self._states:
            return [[of_state(state)] for state in self._states[name]]
        raise TraceError(f"nothing passed through {name}: run the model inside the block, on a task that goes there "
                         "(match reads text.*, caption and answer decoder.*, BLIP-2 qformer.*)")  # fmt: skip

    def _only(self, name: str, values: list[Tensor]) -> Tensor:
        if len(values) != 1:
            raise TraceError(f"{len(values)} passes went through {name}: read them with all({name!r})")
        return values[0]

    # ---- recording, by the hooks

    def add_state(self, name: str, tensor: Tensor, layout: Layout) -> None:
        """Another pass through a point of states."""
        self._states.setdefault(name, []).append(RecordedState(tensor, layout))

    def calls_of(self, attention: str) -> list[list[AttentionCall]]:
        """The calls of an attention so far, those of one pass together, the last call of each first."""
        return self._calls.setdefault(attention, [])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def no_such_point(name: str, known: list[str]) -> str:
    """The message for an unknown name: the nearest names, and the layers that there are."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    layers = {f"{stack}.0 to {stack}.{max(numbers)}" for stack, numbers in _layer_numbers(known).items()}
    return (
        f"no point of this model is called {name!r}"
        + (f"; nearest: {', '.join(near)}" if near else "")
        + f". Its layers: {', '.join(sorted(layers))}; blip.names(m) lists every point"
    )


def _layer_numbers(known: list[str]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for name in known:
        stack, _, place = name.partition(".")
        if place:  # else it is of no layer
            numbers.setdefault(stack, []).append(int(place.split(".")[0]))
    return numbers
