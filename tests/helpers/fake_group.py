"""A process group of any size that exchanges nothing: what a process keeps, and the bytes that it would exchange."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

# of the operation of torch that exchanges tensors: the place of the whole tensor among its arguments
WHOLE = {"_allgather_base_": 0, "_reduce_scatter_base_": 1, "allreduce_": 0}


@contextmanager
def fake_group(world: int) -> Iterator[None]:
    """Within this block this process is the first of `world`."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Exchanged(TorchDispatchMode):
    """Counts bytes of whole tensors, by operation: of what is gathered, of what is summed and divided."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.split("::")[1]
            if name not in WHOLE:
                raise AssertionError(f"{name} is not counted")
            whole = args[WHOLE[name]]
            for tensor in [whole] if isinstance(whole, torch.Tensor) else whole:
                self.bytes[name] += tensor.nbytes
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))
