"""Tensors on torch's `meta` device, which have shapes and no data, computed with the kernels that a GPU would use.

A step of training can so be counted without a GPU and without memory (`counting.py`). torch chooses other kernels on
`meta` than on CUDA in four places: attention, dropout, layer norm and autocast. `as_on_gpu` chooses as on CUDA.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd import graph
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

META = torch.device("meta")
aten = torch.ops.aten


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Within this block operations on `meta` are those of a GPU, and `torch.autocast("meta")` has an effect.

    torch has no autocast on `meta`. Its state is therefore kept as that of the CPU, and the casts are made here.
    """
    casts: dict[int, Tensor] = {}
    with (
        patch.object(torch, "autocast", _Autocast),
        patch.object(torch, "is_autocast_enabled", _of_cpu(torch.is_autocast_enabled)),
        patch.object(torch, "get_autocast_dtype", _of_cpu(torch.get_autocast_dtype)),
        patch.object(torch, "clear_autocast_cache", casts.clear),  # autocast calls it at its end
        _GpuKernels(casts),
    ):
        yield


def backward(loss: Tensor) -> None:
    """`loss.backward()`, within which torch would leave `as_on_gpu`: what is recomputed there needs it."""
    ones = (torch.ones_like(loss),)
    graph._engine_run_backward((loss,), ones, False, False, (), allow_unreachable=True, accumulate_grad=True)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any):
        super().__init__("cpu" if device_type == "meta" else device_type, *args, **kwargs)


def _of_cpu(call: Callable) -> Callable:
    return lambda device="cpu": call("cpu" if device == "meta" else device)


class _GpuKernels(TorchFunctionMode):
    """Calls that would choose another kernel on `meta` than on CUDA, replaced.

    Args:
        casts: weights in bf16, which autocast keeps until its end, by the number of the weight.
    """

    def __init__(self, casts: dict[int, Tensor]):
        super().__init__()
        self.casts = casts
        self.instead: dict[Any, Callable] = {
            F.scaled_dot_product_attention: self.attention,
            F.dropout: self.dropout,
            F.layer_norm: self.layer_norm,
        }
        products: tuple[Any, ...] = (F.linear, F.conv2d, torch.matmul, torch.bmm, torch.addmm, torch.mm, torch.baddbmm)
        products += (Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm)
        self.instead |= {product: functools.partial(self.product, product) for product in products}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        instead = self.instead.get(func)
        if instead is not None and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return instead(*args, **kwargs)
        return func(*args, **kwargs)

    def product(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """A product under autocast: its operands are cast."""
        return func(*map(self.cast, args), **{name: self.cast(value) for name, value in kwargs.items()})

    def cast(self, x: Any) -> Any:
        """A float32 tensor in autocast's type; a trained weight is cast once in an autocast region."""
        if not isinstance(x, Tensor) or not torch.is_autocast_enabled("cpu") or x.dtype != torch.float32:
            return x
        kind = torch.get_autocast_dtype("cpu")
        if not (x.is_leaf and x.requires_grad and torch.is_autocast_cache_enabled()):
            return x.to(kind)
        if id(x) not in self.casts:
            self.casts[id(x)] = x.to(kind)
        return self.casts[id(x)]

    def layer_norm(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """On CUDA autocast computes it in float32."""
        return F.layer_norm(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)

    def dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """One kernel, which keeps a byte for each number."""
        return aten.native_dropout(x, p, True)[0] if training and p > 0 else x

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> Tensor:
        """Flash attention in bf16 without a mask, else the memory-efficient kernel, which takes a mask of numbers."""
        q, k, v = map(self.cast, (q, k, v))
        if attn_mask is None and q.dtype != torch.float32:
            return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]
        bias = None
        if attn_mask is not None:
            bias = attn_mask
            if bias.dtype == torch.bool:
                bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill(~bias, float("-inf"))
            bias = bias.expand(*q.shape[:3], k.shape[2])
        needs = q.requires_grad or k.requires_grad or v.requires_grad
        return aten._scaled_dot_product_efficient_attention(q, k, v, bias, needs, dropout_p, is_causal)[0]
