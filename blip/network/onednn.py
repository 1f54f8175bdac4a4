"""Linear layers multiplied by oneDNN, from outside of the network: twice as fast as MKL on AMD's processors, or more.

torch multiplies float32 by MKL, which does not use the units for AVX-512 of such processors. Compiled code multiplies
by oneDNN through an operator of torch that takes tensors as they are; here layers that are not compiled call it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from blip.hardware.processor import is_amd
from blip.network.embeddings import LMHead


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (P, D) -> x @ weight.T + bias (P, O), by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _ProductOfConstants(torch.autograd.Function):
    """`product` whose gradient with respect to x, and to nothing else, is multiplied by oneDNN too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return product(gradients[0].contiguous(), weight.t(), None), None, None


def is_available() -> bool:
    """Whether this torch has the operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDnnProducts:
    """The linear layers of a model, which multiply by oneDNN within a block."""

    def __init__(self, module: nn.Module):
        layers = [layer for layer in module.modules() if type(layer) in (nn.Linear, LMHead)]
        self.products = {layer: _Product(layer) for layer in layers}
        self.depth = 0  # of blocks within one another

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within this block the layers multiply by oneDNN, where that is quicker; results are equal up to rounding.

        Layers whose weights need gradients, what is in another format than float32 and what lies on another device is
        computed as ever, and so is everything on other processors.
        """
        if not (self.depth or self._help()):
            yield
            return
        self.depth += 1
        for layer, product in self.products.items():
            setattr(layer, product.name, product)
        try:
            yield
        finally:
            self.depth -= 1
            for layer, product in self.products.items() if not self.depth else ():
                vars(layer).pop(product.name, None)

    def _help(self) -> bool:
        weight = next((product.weight for product in self.products.values()), None)
        here = weight is not None and weight.device.type == "cpu" and weight.dtype == torch.float32
        return here and is_amd() and is_available() and not torch.is_autocast_enabled("cpu")


class _Product:
    """In place of the method of a layer that is a product: x (..., D) -> x @ weight.T + bias (..., O)."""

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self.name = "logits" if isinstance(layer, LMHead) else "forward"
        self.usual = getattr(layer, self.name)

    @property
    def weight(self) -> Tensor:
        matrix = self.layer.words if isinstance(self.layer, LMHead) else self.layer
        return matrix.weight  # type: ignore[return-value]

    def __call__(self, x: Tensor, *more: Tensor | None) -> Tensor:
        weight = self.weight
        plain = x.dtype == weight.dtype == torch.float32 and x.numel() and all(one is None for one in more)
        bias: Tensor | None = self.layer.bias  # type: ignore[assignment]
        learns = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (weight, bias))
        if not plain or learns or torch.is_autocast_enabled("cpu"):
            return self.usual(x, *more)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        multiply = _ProductOfConstants.apply if torch.is_grad_enabled() and x.requires_grad else product
        return multiply(rows, weight, bias).view(*x.shape[:-1], -1)
