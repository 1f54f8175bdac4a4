"""The pictures of an item at the points of the image encoder: a row each in the model, side by side here.

The image encoder sees each picture of an item alone: at its points R items of F pictures are R*F rows. What is measured
and patched is an item, as at the points that attend to it: R rows, the tokens of its pictures one after the other.

Shapes: R items, F pictures of each, H heads, T tokens of a picture, e the last dimension.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from blip.interpret.hooks import Edit
from blip.interpret.recording import Trace, TraceError


def by_item(point: str, x: Tensor, pictures: int) -> Tensor:
    """(R*F, T, e) -> (R, F*T, e) at a point of the image encoder, or (R*F, H, T, e) -> (R, H, F*T, e)."""
    if pictures == 1 or not point.startswith("image."):
        return x
    x = x.unflatten(0, (-1, pictures))
    return x.flatten(1, 2) if x.dim() == 4 else x.transpose(1, 2).flatten(2, 3)


def by_picture(x: Tensor, pictures: int) -> Tensor:
    """The inverse of `by_item`."""
    x = x.unflatten(-2, (pictures, -1))
    return (x if x.dim() == 4 else x.transpose(1, 2)).flatten(0, 1)


def edit_of_items(point: str, edit: Edit, pictures: int) -> Edit:
    """An edit of items as one of what passes through the point."""
    if pictures == 1 or not point.startswith("image."):
        return edit

    def of_pictures(x: Tensor) -> Tensor | None:
        changed = edit(by_item(point, x, pictures))
        return None if changed is None else by_picture(changed, pictures)

    return of_pictures


def of_items(t: Trace, point: str, pictures: int, *, gradient: bool = False) -> Tensor:
    """What passed through a point, or its gradient, a row an item.

    In BLIP-2 queries and a text may pass through the Q-Former one after the other: their tokens are side by side here,
    as in matching, where they pass together.

    Raises:
        TraceError: several passes go through the point, and it is not one of those.
    """
    count, last = t.passes(point), point.rpartition(".")[2]
    if count > 1 and (not point.startswith("qformer.") or last in ("k", "v", "pattern")):
        raise TraceError(
            f"{count} passes go through {point} in this metric, and its name does not tell them apart: take a metric "
            "that runs the model once, such as match, or other points"
        )
    passes = t.reached_grads(point) if gradient else t.all(point)
    return torch.cat([by_item(point, x, pictures) for x in passes], dim=-2)


def edit_of_passes(part_of: Callable[[slice], Edit], total: int) -> Edit:
    """An edit of `total` tokens that come in one pass or in several, one after the other.

    `part_of` gives the edit of some of the tokens. A pass that has too few is followed by another one.
    """
    start = 0

    def edit(x: Tensor) -> Tensor | None:
        nonlocal start
        tokens = slice(start, start + x.shape[-2])
        start = 0 if tokens.stop >= total else tokens.stop
        return part_of(tokens)(x)

    return edit
