"""How the methods of a predictor are computed: without gradients, except inside its `gradients` block, and in its
precision. Results are finite numbers."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn

from blip.hardware.precision import choose_precision, computing
from blip.inference.results import finite
from blip.network.onednn import OneDnnProducts

Method = TypeVar("Method", bound=Callable[..., Any])


class Computation:
    """A class whose decorated methods compute gradients only inside `gradients`, and in one `precision`."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str) -> None:
        """`precision` as in `choose_precision`, whose errors apply."""
        self.device, self.products = device, OneDnnProducts(model)
        self.precision = choose_precision(precision, device)
        self._differentiable = False

    @property
    def differentiable(self) -> bool:
        """Whether results are computed with gradients: true inside a `gradients` block."""
        return self._differentiable

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Inside the block scores and features can be differentiated; captions and answers never can."""
        before, self._differentiable = self._differentiable, True
        try:
            yield
        finally:
            self._differentiable = before

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A block in which the model is called in the precision of this predictor."""
        with computing(self.device, self.precision), self.products.used():
            yield

    @contextmanager
    def in_precision(self, precision: str) -> Iterator[None]:
        """Inside the block everything is computed in another precision."""
        before, self.precision = self.precision, choose_precision(precision, self.device)
        try:
            yield
        finally:
            self.precision = before


def gradients_on_request(method: Method) -> Method:
    """A method of a `Computation` that computes gradients only inside its `gradients` block.

    Its results are checked as in `finite`.
    """

    @functools.wraps(method)
    def run(self: Computation, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.differentiable), self.computing():
            results = method(self, *args, **kwargs)
        for values in results if isinstance(results, tuple) else (results,):
            finite(values)
        return results

    return cast(Method, run)


def without_gradients(method: Method) -> Method:
    """A method of a `Computation` that never computes gradients: it chooses tokens."""

    @functools.wraps(method)
    def run(self: Computation, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), self.computing():
            return method(self, *args, **kwargs)

    return cast(Method, run)
