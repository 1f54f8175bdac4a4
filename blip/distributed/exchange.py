"""Rows of tensors that lie on several processes: the last of all, or those that each process asks for.

Shapes: W processes, B rows on each, R rows that a process asks for.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from blip.distributed.collectives import all_gather
from blip.distributed.group import rank, world_size

# ---- the last rows of all --------------------------------------------------------------------------------------------


def gather_last(columns: Sequence[Tensor], most: int) -> list[Tensor]:
    """The last `most` rows of several columns on every process, those of all processes one after the other.

    Each column is (B, ...), of equal shapes and types on all processes. All of them travel together, and where the
    processes have more than `most` rows, those that are not wanted stay where they are.
    """
    if world_size() == 1:
        return [column[-most:] for column in columns]
    packed = _as_bytes(columns)
    count, world = len(packed), world_size()
    if count * world > most:
        packed = _spread(packed, most)
    return _from_bytes(all_gather(packed)[: min(most, count * world)], columns)


def _spread(rows: Tensor, most: int) -> Tensor:
    """Of the last `most` rows of all processes an equal share for each, in their order; the last shares are filled up.

    What a gather would do with the rows of the last processes alone, where all processes want them.
    """
    count, world = len(rows), world_size()
    share, first = -(-most // world), count * world - most  # the number of the first row that is wanted

    def common(owner: int, receiver: int) -> tuple[int, int]:
        """Which rows of `owner` are in the share of `receiver`, as (start, end) among its own."""
        start = max(owner * count, first + receiver * share)
        end = min((owner + 1) * count, first + (receiver + 1) * share)
        return start - owner * count, max(start, end) - owner * count

    own = [common(rank(), receiver) for receiver in range(world)]
    sent = torch.cat([rows[start:end] for start, end in own])
    counts = [end - start for start, end in (common(owner, rank()) for owner in range(world))]
    received = _all_to_all(sent, [end - start for start, end in own], counts)
    return torch.cat([received, received.new_zeros(share - len(received), rows.shape[1])])


def _as_bytes(columns: Sequence[Tensor]) -> Tensor:
    """Columns of B rows each -> (B, bytes)."""
    return torch.cat([column.contiguous().view(len(column), -1).view(torch.uint8) for column in columns], dim=1)


def _from_bytes(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `_as_bytes`, for any number of rows."""
    widths = [column[0].numel() * column.element_size() for column in like]
    parts = rows.split(widths, dim=1)
    # `clone` also puts each part where a tensor of its type may begin
    return [
        part.clone(memory_format=torch.contiguous_format).view(column.dtype).view(len(rows), *column.shape[1:])
        for part, column in zip(parts, like, strict=True)
    ]


# ---- rows that each process asks for ---------------------------------------------------------------------------------


def fetch_rows(x: Tensor, wanted: Tensor) -> Tensor:
    """The rows (R, ...) that this process wants of those of all processes, in the order in which it wants them.

    Each row travels once for each process that wants it, and its gradient back, so that a process receives R rows
    however many processes there are. The gradients of all that wanted a row are summed.

    Args:
        x: (B, ...), of equal shapes on all processes.
        wanted: (W, R), for each process the numbers of rows among the W*B of all; on the CPU, equal on all processes.
    """
    own, count = rank(), len(x)
    owners, rows = wanted // count, wanted % count
    if world_size() == 1:
        return x.index_select(0, rows[0].to(x.device, non_blocking=True))
    sent = rows[owners == own]  # process by process, in the order in which each wants them
    sends = (owners == own).sum(dim=1).tolist()
    receives = owners[own].bincount(minlength=world_size()).tolist()
    received = _Exchange.apply(x, sent.to(x.device, non_blocking=True), sends, receives)
    places = owners[own].argsort(stable=True).argsort()  # of each row among those received, which come owner by owner
    return received.index_select(0, places.to(x.device, non_blocking=True))


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, sends: list[int], receives: list[int]) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape, ctx.sends, ctx.receives = x.shape, sends, receives
        return _all_to_all(x.index_select(0, rows), sends, receives)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        gradient = _all_to_all(gradient, ctx.receives, ctx.sends)
        whole = gradient.new_zeros(ctx.shape, dtype=torch.float32)  # many processes may have wanted one row
        return whole.index_add_(0, rows, gradient.float()).to(gradient.dtype), None, None, None


def _all_to_all(rows: Tensor, sends: list[int], receives: list[int]) -> Tensor:
    """Rows (sum of `sends`, ...) process by process -> what the others send here (sum of `receives`, ...)."""
    out = rows.new_empty(sum(receives), *rows.shape[1:])
    # as bytes, since gloo lacks some types
    given, taken = (t.view(-1).view(torch.uint8) for t in (rows.contiguous(), out))
    size = rows.element_size() * math.prod(rows.shape[1:])  # of a row
    dist.all_to_all_single(taken, given, [size * count for count in receives], [size * count for count in sends])
    return out
