"""The forward hooks that record and edit what passes through a model; `blip.trace` attaches and removes them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blip.interpret.points import (
    ATTENTION_POINTS,
    QUERIES,
    AnyLayer,
    AsItIs,
    LayerPass,
    Layout,
    States,
    attentions,
    layers_of,
    mlps_of,
    pass_of,
    queries_of,
)
from blip.interpret.recording import AttentionCall, Trace, TraceError
from blip.network.attention import Attention

Edit = Callable[[Tensor], Tensor | None]


class Hooks:
    """Forward hooks at the points that are traced or edited.

    Encoder and decoder may share modules: a hook of a shared module finds out from `_layer_pass` which of the two
    calls it.
    """

    def __init__(self, trace: Trace, edits: Mapping[str, Edit]) -> None:
        self.trace, self._edits = trace, edits
        self._needed = trace.wanted | edits.keys()
        self._layer_pass: LayerPass | None = None  # the latest pass through a text layer
        self._layer_passes = 0
        self._handles: list[Any] = []

    def attach(self) -> None:
        if not self._needed:
            return
        model = self.trace.model
        patches = getattr(getattr(model, "image_encoder", None), "patch_embed", None)
        if patches is not None:
            self._handles.append(patches.register_forward_hook(self._note_grid))
        queries = queries_of(model)
        if queries is not None and QUERIES in self._needed:
            self._handles.append(queries.register_forward_hook(self._at_queries))
        hooked: set[nn.Module] = set()
        for name, layer in layers_of(model):
            text = not name.startswith("image")
            if not text and not any(point.startswith(name + ".") for point in self._needed):
                continue
            self._handles.append(layer.register_forward_pre_hook(self._entering(name, text), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._leaving(name, text)))
            for point, feed_forward in mlps_of(layer).items():
                if feed_forward not in hooked:
                    hooked.add(feed_forward)
                    self._handles.append(feed_forward.register_forward_hook(self._after_mlp(name, text, point)))
            for site, attention in attentions(layer).items():
                if attention not in hooked:
                    hooked.add(attention)
                    self._attach_to_attention(name, text, site=site, attention=attention)

    def _attach_to_attention(self, name: str, text: bool, *, site: str, attention: Attention) -> None:
        layers = layers_of(self.trace.model)
        sites = {f"{own}.{site}" for own, layer in layers if attentions(layer).get(site) is attention}
        if not any(f"{own}.{point}" in self._needed for own in sites for point in ATTENTION_POINTS):
            return
        self._handles.append(attention.register_forward_pre_hook(self._calling(name, text, site), with_kwargs=True))
        for point in ATTENTION_POINTS:
            # a hook on `pattern` makes the soft-max explicit
            if point != "pattern" or any(f"{own}.pattern" in self._edits for own in sites):
                hook = self._at_point(name, text, site=site, point=point)
                self._handles.append(getattr(attention, point).register_forward_hook(hook))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # ---- layers: states, and which text layer runs

    def _note_grid(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.trace.grid = (output.shape[-2], output.shape[-1])

    def _entering(self, name: str, text: bool) -> Callable:
        def hook(module: AnyLayer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            layout: Layout = AsItIs()
            if text:
                self._layer_pass = pass_of(name, module, args, kwargs)
                layout = States(self._layer_pass.rows)
                self._layer_passes += 1
            new = self._state(f"{name}.in", args[0], layout)
            return None if new is None else ((new, *args[1:]), kwargs)

        return hook

    def _leaving(self, name: str, text: bool) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            return self._state(f"{name}.out", output, self._states_layout(text))

        return hook

    def _after_mlp(self, name: str, text: bool, point: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            layout = self._layer_pass.mlp_layout(point) if text and self._layer_pass else AsItIs()
            return self._state(f"{self._layer_name(name, text)}.{point}", output, layout)

        return hook

    def _at_queries(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return self._state(QUERIES, output, AsItIs())

    def _states_layout(self, text: bool) -> Layout:
        return States(self._layer_pass.queries) if text and self._layer_pass else AsItIs()

    def _layer_name(self, name: str, text: bool) -> str:
        return self._layer_pass.name if text and self._layer_pass else name

    # ---- attention

    def _calling(self, name: str, text: bool, site: str) -> Callable:
        def hook(module: Attention, args: tuple, kwargs: dict) -> None:
            _, k, _, *more = args
            mask = more[0] if more else kwargs.get("mask")
            causal = more[1] if len(more) > 1 else kwargs.get("causal", False)
            passes = self.trace.calls_of(f"{self._layer_name(name, text)}.{site}")
            layer_pass, number = (self._layer_pass, self._layer_passes) if text else (None, None)
            again = bool(passes) and number is not None and passes[-1][0].layer_pass == number
            earlier = len(passes[-1]) if again else 0
            layout = layer_pass.layout(site, len(k), earlier=earlier) if layer_pass else AsItIs()
            call = AttentionCall(layout, mask, causal, module.dropout if module.training else 0.0, number)
            if again:
                passes[-1].insert(0, call)  # texts of `extra` images are computed first and stand last
            else:
                passes.append([call])

        return hook

    def _at_point(self, name: str, text: bool, *, site: str, point: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            attention = f"{self._layer_name(name, text)}.{site}"
            call, kept = self.trace.calls_of(attention)[-1][0], self._kept_points(attention)
            layout = AsItIs() if point in ("k", "v") else call.layout
            before = output
            if point == "z" and "before" in kept:
                before = self._differentiable(output)
                call.tensors["before"] = self._stored(before)
            after = self._edited(f"{attention}.{point}", before, layout)
            if point in kept:
                after = self._differentiable(after)
                call.tensors[point] = self._stored(after)
            return after if after is not output else None

        return hook

    def _kept_points(self, attention: str) -> set[str]:
        """The tensors of an attention that are kept: those requested, and what patterns and their gradients need."""
        kept = {point for point in ATTENTION_POINTS if f"{attention}.{point}" in self.trace.wanted}
        if "pattern" in kept and f"{attention}.pattern" not in self._edits:
            kept |= {"q", "k", "v", "before"} if self.trace.grads else {"q", "k"}
        return kept

    # ---- one tensor

    def _state(self, name: str, value: Tensor, layout: Layout) -> Tensor | None:
        """Edits and records a state; returns what replaces it, or None."""
        after = self._edited(name, value, layout)
        if name in self.trace.wanted:
            after = self._differentiable(after)
            self.trace.add_state(name, self._stored(after), layout)
        return after if after is not value else None

    def _edited(self, name: str, value: Tensor, layout: Layout) -> Tensor:
        if name not in self._edits:
            return value
        shown = layout.grid(value)
        new = self._edits[name](shown.clone())  # an edit may change its copy in place: without effect
        if new is None:
            return value
        if not isinstance(new, Tensor) or new.shape != shown.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise TraceError(
                f"the edit of {name} returned {got}; it has to be a tensor of {tuple(shown.shape)}, or None"
            )
        return layout.flat(new.to(value.dtype))

    def _stored(self, value: Tensor) -> Tensor:
        return value if self.trace.grads else value.detach()

    def _differentiable(self, value: Tensor) -> Tensor:
        """The tensor itself, ready for a gradient; below frozen parameters a leaf that requires one.

        Without gradients the tensor is returned as it is.
        """
        if not self.trace.grads:
            return value
        if not value.requires_grad and torch.is_grad_enabled():
            value = value.detach().requires_grad_()
        if value.requires_grad:
            value.retain_grad()
        return value
