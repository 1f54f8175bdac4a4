"""The few collective operations that the package needs, each working without a process group."""

import torch.distributed as dist
from torch import Tensor

from blip.distributed.group import long_waits, rank, world_size


def all_gather(x: Tensor) -> Tensor:
    """Equal shapes (B, ...) of every rank, concatenated in the order of the ranks: (world * B, ...). No gradient."""
    if world_size() == 1:
        return x
    whole = x.new_empty(world_size() * len(x), *x.shape[1:])
    # its name before torch 2.14 and since
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(whole, x.contiguous())
    return whole


def all_reduce(x: Tensor, op: str = "mean") -> Tensor:
    """The mean, sum or maximum of a tensor over ranks, as a new tensor; `op` is `mean`, `sum` or `max`."""
    x = x.clone()
    if world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
        if op == "mean":
            x /= world_size()
    return x


def gather_objects(item: object) -> list:
    """Every rank's (picklable) item, on every rank, in the order of the ranks."""
    if world_size() == 1:
        return [item]
    items: list = [None] * world_size()
    dist.all_gather_object(items, item, group=long_waits())
    return items


def share(count: int) -> tuple[int, int]:
    """This process's part of `count` items as (start, end). Parts differ by at most one, in the order of ranks."""
    own, world = rank(), world_size()
    return count * own // world, count * (own + 1) // world
