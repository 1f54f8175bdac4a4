"""Rows of one pair that differ from some layer on: each is computed from there on only.

A pass holds P patched rows, sorted by the layer of their patch, and behind them the row without one. A row equals the
last one until its patch, so a layer computes the rows that have been patched and one that stands for the others. Hooks
on the layers take rows out and put them in; the model does not know of it.

Shapes: R = P + 1 rows, n of them computed in a layer, T tokens, D width, N image tokens.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blip.errors import InputError
from blip.interpret.points import layers_of
from blip.network.cross_attention import ImageStates, LayerImages, LayerKeys, PairLayerKeys
from blip.network.med import Layer
from blip.network.packing import Rows
from blip.network.vit import Block


@contextmanager
def shared_prefix(network: nn.Module, starts: Sequence[str], *, own_images: bool, pictures: int = 1) -> Iterator[None]:
    """Inside the block a pass of R rows computes each from its layer on. To be entered inside of `blip.trace`.

    Args:
        network: the model.
        starts: the layer of each of P rows (`text.3`), in the order of computation; R = P + 1.
        own_images: each row comes with an image of its own, the same one; else there is one image for all.
        pictures: of each image, which is an item of several; a row of the image encoder has as many.

    Raises:
        InputError: in the block, where not all rows pass at once.
    """
    layers = [(name, layer) for name, layer in layers_of(network) if isinstance(layer, Block | Layer)]
    order = {name: number for number, (name, _) in enumerate(layers)}
    numbers = [order.get(start, -1) for start in starts]  # a layer of another kind computes all rows
    total, handles = len(starts) + 1, []
    for number, (name, layer) in enumerate(layers):
        if isinstance(layer, Block) and not own_images:
            continue
        count = bisect_right(numbers, number) + 1
        enter = partial(_enter_block, pictures=pictures) if isinstance(layer, Block) else _enter_layer
        handles.append(
            layer.register_forward_pre_hook(_with_counts(enter, count, total), prepend=True, with_kwargs=True)
        )
        last = number + 1 == len(layers) or layers[number + 1][0].split(".")[0] != name.split(".")[0]
        if last and count < total:
            handles.append(layer.register_forward_hook(_all_rows(count, total)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_counts(enter: Any, count: int, total: int) -> Any:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return enter(args, count, total), kwargs

    return hook


def _enter_block(args: tuple, count: int, total: int, *, pictures: int) -> tuple:
    x, *more = args
    return (fitted(x, count, pictures), *more)


def _enter_layer(args: tuple, count: int, total: int) -> tuple:
    x, rows, keys, *more = args
    if rows.count != total:
        raise InputError(
            f"the metric passed {rows.count} of {total} texts through the model at once; it has to pass all that it "
            "gets: batch_size=len(texts)"
        )
    tokens = rows.longest
    lengths = torch.full((count,), tokens)
    return (fitted(x, count, tokens), Rows(lengths, tokens, x.device), _keys_of(keys, count), *more)


def _all_rows(count: int, total: int) -> Any:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return fitted(output, total, len(output) // count)

    return hook


def fitted(x: Tensor, count: int, tokens: int) -> Tensor:
    """x (R'*T, ...) -> (count*T, ...): the first rows, or all and copies of the last one."""
    missing = count - len(x) // tokens
    if missing <= 0:
        return x[: count * tokens]
    return torch.cat([x, x[-tokens:].repeat(missing, *[1] * (x.dim() - 1))])


def _keys_of(keys: LayerImages | None, count: int) -> LayerImages | None:
    """What the first `count` rows attend to; one image is that of all rows."""
    if isinstance(keys, LayerKeys) and len(keys.keys[0]) > 1:
        k, v = keys.keys
        return replace(keys, keys=(k[:count], v[:count]), mask=None if keys.mask is None else keys.mask[:count])
    if isinstance(keys, ImageStates) and len(keys) > 1:
        return ImageStates(keys.states[:count], None if keys.mask is None else keys.mask[:count])
    if isinstance(keys, PairLayerKeys):
        first, second = _keys_of(keys.first, count), _keys_of(keys.second, count)
        assert isinstance(first, LayerKeys) and isinstance(second, LayerKeys)
        return PairLayerKeys(first, second)
    return keys
