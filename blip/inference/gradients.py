"""Gradients on request: a predictor computes none, except inside its `gradients` block. Results are finite numbers."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

from blip.inference.results import finite

Method = TypeVar("Method", bound=Callable[..., Any])


class GradientsOnRequest:
    """A class whose methods decorated with `gradients_on_request` compute gradients only inside `gradients`."""

    def __init__(self) -> None:
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


def gradients_on_request(method: Method) -> Method:
    """A method of a `GradientsOnRequest` that computes gradients only inside its `gradients` block.

    Its results are checked as in `finite`.
    """

    @functools.wraps(method)
    def run(self: GradientsOnRequest, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.differentiable):
            results = method(self, *args, **kwargs)
        for values in results if isinstance(results, tuple) else (results,):
            finite(values)
        return results

    return cast(Method, run)
