"""Linear layers multiplied by oneDNN, from outside of the network: twice as fast as MKL on a processor of AMD.

torch multiplies float32 by MKL, which does not use the units for AVX-512 of such processors. On a core of an AMD EPYC
(Zen 5) a layer of 768 to 3072 numbers takes .93 ms for 8 rows and 6.6 ms for 128, by oneDNN .63 and 3.1. torch calls
oneDNN for tensors in its layout, `Tensor.to_mkldnn`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip.hardware.processor import is_amd
from blip.network.embeddings import LMHead


class OneDnnProducts:
    """Copies of the weights of a model's linear layers in oneDNN's layout, made when they are first needed.

    They take the memory of the weights once more. A weight that has changed since is copied again.
    """

    def __init__(self, module: nn.Module):
        layers = [layer for layer in module.modules() if type(layer) in (nn.Linear, LMHead)]
        self.products = {layer: _Product(layer) for layer in layers if layer.bias is not None}
        self.depth = 0  # of blocks within one another

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within this block the layers multiply by oneDNN, where that is quicker; results are equal up to rounding.

        What needs gradients, is in another format than float32 or lies on another device is computed as ever, and so is
        everything on other processors.
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
        weight = next((product.weights[0] for product in self.products.values()), None)
        here = weight is not None and weight.device.type == "cpu" and weight.dtype == torch.float32
        return here and is_amd() and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")


class _Product:
    """In place of the method of a layer that is a product: x (..., D) -> x @ weight.T + bias (..., O)."""

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self.name = "logits" if isinstance(layer, LMHead) else "forward"
        self.usual = getattr(layer, self.name)
        self.state: tuple[int, ...] = ()  # of the weights that were copied
        self.copies: tuple[Tensor, ...] = ()

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        matrix = self.layer.words if isinstance(self.layer, LMHead) else self.layer
        return matrix.weight, self.layer.bias  # type: ignore[return-value]

    def __call__(self, x: Tensor, *more: Tensor | None) -> Tensor:
        plain = x.dtype == torch.float32 and x.numel() and all(one is None for one in more)
        if not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return self.usual(x, *more)
        state = tuple(number for weight in self.weights for number in (weight.data_ptr(), weight._version))
        if state != self.state:
            self.copies, self.state = tuple(weight.detach().to_mkldnn() for weight in self.weights), state
        rows = x.reshape(-1, x.shape[-1])
        return F.linear(rows.to_mkldnn(), *self.copies).to_dense().view(*x.shape[:-1], -1)
