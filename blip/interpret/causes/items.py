"""The pictures of an item at the points of the image encoder: a row each in the model, side by side here.

The image encoder sees each picture of an item alone: at its points R items of F pictures are R*F rows. What is measured
and patched is an item, as at the points that attend to it: R rows, the tokens of its pictures one after the other.

Shapes: R items, F pictures of each, H heads, T tokens of a picture, e the last dimension.
"""

from collections.abc import Callable

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


def of_items(t: Trace, point: str, pictures: int, read: Callable[[Trace, str], Tensor] = Trace.__getitem__) -> Tensor:
    """What passed through a point, or its gradient with `Trace.grad`, a row an item.

    Raises:
        TraceError: several passes go through the point, so that its name does not tell which is meant.
    """
    if (passes := t.passes(point)) > 1:
        about = (
            "in BLIP-2 queries and text pass one after the other, except in matching: take the metric match, or points "
            "of one of them, which are qformer.*.cross.*, qformer.*.query_mlp and qformer.*.mlp"
            if point.startswith("qformer.")
            else "take a metric that runs the model once"
        )
        raise TraceError(
            f"{passes} passes go through {point} in this metric, and its name does not tell them apart; {about}"
        )
    return by_item(point, read(t, point), pictures)
