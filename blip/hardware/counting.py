"""Counts what a step would do on a GPU: kernels with their FLOPs and bytes, waits, and the memory in use.

The step runs on torch's `meta` device, forward and backward, and nothing is computed: see `as_on_gpu.py`. Memory is
counted as torch's allocator does, in blocks of 512 bytes: a tensor counts from the operation that makes it until
nothing refers to it, autograd included. So the activations that are counted are those that each layer saves for its
backward pass, whatever the options are. What kernels need inside themselves is not counted.
"""

import itertools
import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

BLOCK = 512  # bytes, of torch's caching allocator
PRODUCT, ATTENTION, OTHER = "product", "attention", "other"
aten = torch.ops.aten

# kernels of an operation; most have one
LAUNCHES = {
    aten._scaled_dot_product_flash_attention_backward: 3,
    aten._scaled_dot_product_efficient_attention_backward: 3,
    aten.native_layer_norm_backward: 2,
    aten.sum: 2,  # over many rows, as of a bias' gradient: counters are set to zero before
    aten.convolution: 2,  # and its bias
    aten.convolution_backward: 3,
    aten.embedding_dense_backward: 8,  # a sort, then sums of equal ids
    aten.multinomial: 5,
    aten._index_put_impl_: 2,
}
# they read of their first tensor only what they return, or write only what they are given
SPARSE = {aten.index_select, aten.embedding, aten.gather, aten.index, aten.index_copy_, aten.index_add_}
SPARSE |= {aten.index_put_, aten._index_put_impl_, aten.select_backward, aten.slice_backward}
# memory alone
NO_KERNEL = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.lift_fresh}
NO_KERNEL |= {aten._unsafe_view, aten._reshape_alias, aten.alias, aten.detach}


@dataclass
class Kernel:
    """An operation on the device."""

    name: str
    kind: str  # PRODUCT, ATTENTION or OTHER
    dtype: torch.dtype
    flops: float = 0.0
    bytes: float = 0.0  # read and written
    launches: int = 1
    reads: dict[int, int] = field(default_factory=dict)  # number of a piece of memory -> bytes read of it
    writes: dict[int, int] = field(default_factory=dict)


class Counter(TorchDispatchMode):
    """Counts the operations on `meta` tensors within its block.

    `kernels` in their order; `waits`, the operations for which the CPU waits; `live` and `peak`, bytes in use now and
    at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.waits: list[str] = []
        self.live, self.peak = 0, 0
        self._numbers: dict[int, int] = {}  # address of a piece of memory -> its number; addresses are used again
        self._next = itertools.count()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts the memory of tensors that were made before."""
        for tensor in tensors:
            if tensor.is_meta:
                self._allocate(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func is aten._local_scalar_dense.default and inputs[0].is_meta:
            self.waits.append("item")
            return _number(inputs[0].dtype)
        if func is aten._to_copy.default and inputs[0].is_meta and _to_cpu(kwargs):
            self.waits.append("copy to the CPU")
            return _stand_in(inputs[0], kwargs.get("dtype"))
        with torch._C.DisableTorchFunction():  # torch's own parts of `func` are not calls of the model
            out = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.is_meta]
        if not _is_view(func):
            self.hold(outputs)
        inputs = [x for x in inputs if x.is_meta]
        if (inputs or outputs) and _is_kernel(func):
            kernel = _kernel(func, args, kwargs, inputs=inputs, outputs=outputs, out=out)
            kernel.reads = {self._number(x): _size(x) for x in inputs}
            kernel.writes = {self._number(x): _size(x) for x in outputs}
            self.kernels.append(kernel)
        return out

    def _number(self, tensor: Tensor) -> int:
        return self._numbers.get(tensor.untyped_storage()._cdata, -1)

    def _allocate(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._numbers or not storage.nbytes():
            return
        size = math.ceil(storage.nbytes() / BLOCK) * BLOCK
        self._numbers[address] = next(self._next)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: int) -> None:
        del self._numbers[address]
        self.live -= size


def _number(dtype: torch.dtype) -> bool | float:
    """In place of one that is unknown."""
    return True if dtype == torch.bool else 0.5 if dtype.is_floating_point else 1


def _to_cpu(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cpu"


def _stand_in(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Numbers in place of those that are unknown: 0, 1, 2 ... are valid places in a batch."""
    return torch.arange(x.numel(), dtype=dtype or x.dtype, device="cpu").view(x.shape)


def _is_kernel(func: Any) -> bool:
    """Whether an operation runs something on the device: it returns neither a view nor memory without content."""
    return func.overloadpacket not in NO_KERNEL and not _is_view(func)


def _is_view(func: Any) -> bool:
    """Whether an operation returns memory that is there already, unchanged."""
    aliases = [each.alias_info for each in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _kernel(func: Any, args: Any, kwargs: Any, *, inputs: list[Tensor], outputs: list[Tensor], out: Any) -> Kernel:
    packet, name = func.overloadpacket, func.overloadpacket.__name__
    flops = float(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0.0
    kind = ATTENTION if "dot_product" in name else PRODUCT if flops else OTHER
    lists = name.startswith("_foreach") or name.startswith("_fused")
    read = inputs[1:] if packet in SPARSE else inputs
    written = outputs or [x for x in inputs if lists]
    count = sum(map(_size, {id(x): x for x in (*read, *written)}.values()))
    if packet in SPARSE:
        count = 2 * min(map(_size, [x for x in (*read, *outputs) if x.is_floating_point()] or outputs))
    launches = many_tensors(inputs) if lists else LAUNCHES.get(packet, 1)
    first = next((x for x in (*outputs, *inputs) if x.is_floating_point()), inputs[0] if inputs else outputs[0])
    return Kernel(name, kind, first.dtype, flops, float(count), launches)


def _size(x: Tensor) -> int:
    """Bytes that reading a tensor takes: of one that was expanded, those in memory."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def many_tensors(tensors: Iterable[Tensor]) -> int:
    """Kernels of an operation on a list of tensors: at most 320 chunks of 65,536 numbers and 36 tensors each."""
    chunks = [math.ceil(x.numel() / 65536) for x in tensors]
    return max(1, math.ceil(sum(chunks) / 320), math.ceil(len(chunks) / 36))
