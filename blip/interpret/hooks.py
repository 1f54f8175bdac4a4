"""What passes through a model while it is traced, and the hooks that keep or edit it; `internals.trace` makes one."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blip.errors import BlipError
from blip.interpret.points import LOOKS, AsItIs, Layout, States, Visit, attentions, layers_of, mlp_of, names_of
from blip.network.attention import Attention, attention_pattern
from blip.network.packing import ONE_TOKEN

Edit = Callable[[Tensor], Tensor | None]


class TraceError(BlipError):
    """Something asked of the inside of a model that it does not have; the message says what it has."""


@dataclass
class Kept:
    """A state as it passed."""

    value: Tensor
    layout: Layout


@dataclass
class Look:
    """One call of an attention: queries, keys and values, and what came of them."""

    layout: Layout
    mask: Tensor | None
    causal: bool
    dropout: float  # of the pattern, in this pass
    visit: int | None  # number of the visit of a text layer that it was part of
    # what was asked for, or is needed for it: q, k, v, z; `pattern` where it was edited; `before`: z before its edit
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def read(self, point: str) -> Tensor:
        """As `points.py` says."""
        if point in ("k", "v"):
            return self.tensors[point].detach()
        if point == "pattern" and point not in self.tensors:
            q, k = self.tensors["q"].detach(), self.tensors["k"].detach()
            return self.layout.grid(attention_pattern(q, k, self.mask, causal=self.causal))
        return self.layout.grid(self.tensors[point].detach())

    def gradient(self, point: str) -> Tensor | None:
        if point == "pattern" and point not in self.tensors:
            if self.dropout:
                raise TraceError("attention dropout was on, and hides the pattern's gradient: call model.eval() first")
            z = self.tensors["before"].grad  # z = pattern v, so the pattern's gradient is z's times v
            return None if z is None else self.layout.grid(z @ self.tensors["v"].detach().transpose(-1, -2))
        grad = self.tensors[point].grad
        return grad if grad is None or point in ("k", "v") else self.layout.grid(grad)


class Trace:
    """What passed through a model inside a `trace` block, readable after it too; not to be written into."""

    def __init__(self, model: nn.Module, wanted: set[str], edits: dict[str, Edit], grads: bool):
        self.model, self.grads = model, grads
        self.grid: tuple[int, int] | None = None  # patches (height, width) of the images that went in
        self.wanted, self._edits = wanted, edits
        self._states: dict[str, list[Kept]] = {}
        self._looks: dict[str, list[list[Look]]] = {}  # by attention; the calls of one visit together
        self._visit: Visit | None = None
        self._visits = 0
        self._hooks: list[Any] = []

    # ---- reading

    def __getitem__(self, name: str) -> Tensor:
        """What passed through `name`, where that was one pass."""
        return self._only(name, self.all(name))

    def all(self, name: str) -> list[Tensor]:
        """What passed through `name` in each pass: writing text makes one pass a token."""
        return [_joined(parts) for parts in self._passes(name, lambda look, point: look.read(point), _value)]

    def pattern(self, attention: str) -> Tensor:
        """Who looks where (R, H, T, keys), of an attention such as `text.6.cross`; rows sum to one."""
        return self[f"{attention}.pattern"]

    def grad(self, name: str) -> Tensor:
        """The gradient of what was differentiated with respect to `name`; gradients of several `backward` add up."""
        return self._only(name, self.all_grads(name))

    def all_grads(self, name: str) -> list[Tensor]:
        """`grad` of each pass."""
        if not self.grads:
            raise TraceError("gradients were not kept: trace(..., grads=True)")
        found = self._passes(name, lambda look, point: look.gradient(point), _gradient)
        if any(part is None for parts in found for part in parts):
            raise TraceError(
                f"no gradient has reached {name}: call backward() on something that depends on it, inside or after the "
                "block, and see that gradients are not switched off around the model"
            )
        return [_joined(parts) for parts in found]

    def pattern_grad(self, attention: str) -> Tensor:
        """The gradient with respect to `pattern(attention)`."""
        return self.grad(f"{attention}.pattern")

    def _passes(self, name: str, of_look: Callable, of_state: Callable) -> list[list[Any]]:
        if name not in self.wanted:
            known = names_of(self.model)
            raise TraceError(
                f"{name} was not traced: name it in trace(...)" if name in known else no_such_point(name, known)
            )
        site, _, point = name.rpartition(".")
        if point in LOOKS and site in self._looks:
            return [[of_look(look, point) for look in looks] for looks in self._looks[site]]
        if name in self._states:
            return [[of_state(kept)] for kept in self._states[name]]
        raise TraceError(f"nothing passed through {name}: run the model inside the block, on a task that goes there "
                         "(match reads text.*, caption and answer decoder.*)")  # fmt: skip

    def _only(self, name: str, values: list[Tensor]) -> Tensor:
        if len(values) != 1:
            raise TraceError(f"{len(values)} passes went through {name}: read them with all({name!r})")
        return values[0]

    def backward(self, scores: Tensor, again: bool = False) -> None:
        """Differentiates the sum of `scores` with respect to what was traced, and to nothing else: the parameters keep
        the gradients they have. Gradients of an earlier call are forgotten. `again`: there will be another call.
        """
        traced = [kept.value for several in self._states.values() for kept in several]
        traced += [x for passes in self._looks.values() for looks in passes for k in looks for x in k.tensors.values()]
        inputs = [x for x in traced if x.requires_grad]
        if not self.grads or not inputs:
            raise TraceError("nothing that was traced has a gradient: trace(..., grads=True) around the model, without "
                             "torch.no_grad()")  # fmt: skip
        for x in inputs:
            x.grad = None
        torch.autograd.backward(scores.sum(), inputs=inputs, retain_graph=again)

    # ---- hooks

    def attach(self) -> None:
        needed = self.wanted | self._edits.keys()
        if not needed:
            return
        patches = getattr(getattr(self.model, "image_encoder", None), "patch_embed", None)
        if patches is not None:
            self._hooks.append(patches.register_forward_hook(self._note_grid))
        seen: set[nn.Module] = set()  # decoder and encoder share modules: whose pass it is, the visit says
        for name, layer in layers_of(self.model):
            text = not name.startswith("image")
            if not text and not any(point.startswith(name + ".") for point in needed):
                continue
            self._hooks.append(layer.register_forward_pre_hook(self._entering(name, text), with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(self._leaving(name, text)))
            feed_forward = mlp_of(layer)
            if feed_forward not in seen:
                seen.add(feed_forward)
                self._hooks.append(feed_forward.register_forward_hook(self._after_mlp(name, text)))
            for site, attention in attentions(layer).items():
                if attention not in seen:
                    seen.add(attention)
                    self._watch(name, text, site, attention)

    def _watch(self, name: str, text: bool, site: str, attention: Attention) -> None:
        # encoder and decoder may share it
        sites = {f"{own}.{site}" for own, layer in layers_of(self.model) if attentions(layer).get(site) is attention}
        points = {p for p in LOOKS for s in sites if f"{s}.{p}" in self.wanted | self._edits.keys()}
        if not points:
            return
        self._hooks.append(attention.register_forward_pre_hook(self._looking(name, text, site), with_kwargs=True))
        for point in LOOKS:
            # a hook on `pattern` makes the soft-max explicit
            if point != "pattern" or any(f"{s}.pattern" in self._edits for s in sites):
                hook = self._tapped(name, text, site, point)
                self._hooks.append(getattr(attention, point).register_forward_hook(hook))

    def let_go(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _note_grid(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.grid = (output.shape[-2], output.shape[-1])

    def _entering(self, name: str, text: bool) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            layout: Layout = AsItIs()
            if text:
                _, rows, keys, *_ = args
                queries = ONE_TOKEN if kwargs.get("first_only") else rows
                self._visit, layout = Visit(name, rows, keys, queries), States(rows)
                self._visits += 1
            new = self._through(f"{name}.in", args[0], layout)
            return None if new is None else ((new, *args[1:]), kwargs)

        return hook

    def _leaving(self, name: str, text: bool) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            return self._through(f"{name}.out", output, self._of_states(text))

        return hook

    def _after_mlp(self, name: str, text: bool) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            return self._through(f"{self._here(name, text)}.mlp", output, self._of_states(text))

        return hook

    def _of_states(self, text: bool) -> Layout:
        return States(self._visit.queries) if text and self._visit else AsItIs()

    def _here(self, name: str, text: bool) -> str:
        return self._visit.name if text and self._visit else name

    def _looking(self, name: str, text: bool, site: str) -> Callable:
        def hook(module: Attention, args: tuple, kwargs: dict) -> None:
            _, k, _, *more = args
            mask = more[0] if more else kwargs.get("mask")
            causal = more[1] if len(more) > 1 else kwargs.get("causal", False)
            passes = self._looks.setdefault(f"{self._here(name, text)}.{site}", [])
            visit, number = (self._visit, self._visits) if text else (None, None)
            again = bool(passes) and number is not None and passes[-1][0].visit == number
            layout = visit.layout(site, len(k), earlier=len(passes[-1]) if again else 0) if visit else AsItIs()
            look = Look(layout, mask, causal, module.dropout if module.training else 0.0, number)
            if again:
                passes[-1].insert(0, look)  # texts that look at `extra` images come first and stand last
            else:
                passes.append([look])

        return hook

    def _tapped(self, name: str, text: bool, site: str, point: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            here = f"{self._here(name, text)}.{site}"
            look, needed = self._looks[here][-1][0], self._needed(here)
            layout = AsItIs() if point in ("k", "v") else look.layout
            before = output
            if point == "z" and "before" in needed:
                before = self._kept(output)
                look.tensors["before"] = self._stored(before)
            after = self._edited(f"{here}.{point}", before, layout)
            if point in needed:
                after = self._kept(after)
                look.tensors[point] = self._stored(after)
            return after if after is not output else None

        return hook

    def _needed(self, attention: str) -> set[str]:
        """The tensors of an attention that are kept: those asked for, and what patterns and their gradients need."""
        found = {point for point in LOOKS if f"{attention}.{point}" in self.wanted}
        if "pattern" in found and f"{attention}.pattern" not in self._edits:
            found |= {"q", "k", "v", "before"} if self.grads else {"q", "k"}
        return found

    def _through(self, name: str, value: Tensor, layout: Layout) -> Tensor | None:
        """Edits and keeps a state; returns what stands for it, or None."""
        after = self._edited(name, value, layout)
        if name in self.wanted:
            after = self._kept(after)
            self._states.setdefault(name, []).append(Kept(self._stored(after), layout))
        return after if after is not value else None

    def _edited(self, name: str, value: Tensor, layout: Layout) -> Tensor:
        if name not in self._edits:
            return value
        seen = layout.grid(value)
        new = self._edits[name](seen.clone())  # what is written into it in place is lost, here and everywhere
        if new is None:
            return value
        if not isinstance(new, Tensor) or new.shape != seen.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise TraceError(
                f"the edit of {name} returned {got}; it has to be a tensor of {tuple(seen.shape)}, or None"
            )
        return layout.flat(new.to(value.dtype))

    def _stored(self, value: Tensor) -> Tensor:
        return value if self.grads else value.detach()

    def _kept(self, value: Tensor) -> Tensor:
        """The tensor itself, ready for a gradient; below frozen parameters it becomes one that has a gradient."""
        if not self.grads:
            return value
        if not value.requires_grad and torch.is_grad_enabled():
            value = value.detach().requires_grad_()
        if value.requires_grad:
            value.retain_grad()
        return value


def _value(kept: Kept) -> Tensor:
    return kept.layout.grid(kept.value.detach())


def _gradient(kept: Kept) -> Tensor | None:
    return None if kept.value.grad is None else kept.layout.grid(kept.value.grad)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def no_such_point(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    parts = {f"{stack}.0 to {stack}.{max(layers)}" for stack, layers in _numbers(known).items()}
    return (
        f"no point of this model is called {name!r}"
        + (f"; nearest: {', '.join(near)}" if near else "")
        + f". Its layers: {', '.join(sorted(parts))}; blip.names(m) lists every point"
    )


def _numbers(known: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name in known:
        stack, number, _ = name.split(".", 2)
        found.setdefault(stack, []).append(int(number))
    return found
