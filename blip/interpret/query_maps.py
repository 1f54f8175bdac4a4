"""Maps of BLIP-2: where its queries attended, for each query and for each word that was written.

A text does not attend to the image itself. A map of a word adds up the queries: Grad-CAM of the cross-attention of all
of them, with the gradient of that word's log-probability, which reaches the patterns through what the queries read.

Shapes: R pairs of image and text, Q queries, n scores of a pair, h*w patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blip.errors import InputError
from blip.interpret.maps import gradcam, raw, rollout
from blip.interpret.points import attentions, layers_of
from blip.interpret.recording import Trace

MAPS_OF_QUERIES = {"gradcam": gradcam, "raw": raw, "rollout": rollout}


def crossing_layers(model: nn.Module) -> list[int]:
    """The layers of the Q-Former that attend to images."""
    named = ((name.partition("."), layer) for name, layer in layers_of(model))
    return [int(number) for (stack, _, number), layer in named if stack == "qformer" and "cross" in attentions(layer)]


def chosen_layers(model: nn.Module, layer: int | None) -> list[int]:
    """The layers whose maps are added up: all that attend to images, or `layer` alone.

    Raises:
        InputError: `layer` does not attend to images.
    """
    possible = crossing_layers(model)
    if layer is not None and layer not in possible:
        raise InputError(f"layer {layer} has no queries that attend to the image; layers {possible} have")
    return possible if layer is None else [layer]


def maps_of_queries(t: Trace, scores: Tensor, layers: Sequence[int], *, method: str, by_query: bool) -> Tensor:
    """Maps (R, Q, h, w), one a query, or (R, n, h, w), one a score, summed over the queries.

    Args:
        t: a trace of `qformer.L.cross.*` of these layers, with gradients; for rollout of `image.*.attn.*` too.
        scores: (R, n), what is explained.
        method: `gradcam`, `raw` or `rollout`; the last two do not depend on the scores.
        by_query: one map a query, of the sum of the scores.
    """

    def each_query() -> Tensor:
        return torch.stack([MAPS_OF_QUERIES[method](t, f"qformer.{layer}.cross") for layer in layers]).sum(dim=0)

    if method != "gradcam":
        found = each_query()
        return found if by_query else found.sum(dim=1, keepdim=True).expand(-1, scores.shape[1], *found.shape[2:])
    if by_query:
        t.backward(scores, again=False)
        return each_query()
    maps = []
    for column in range(scores.shape[1]):
        t.backward(scores[:, column], again=True)
        maps.append(each_query().sum(dim=1))
    return torch.stack(maps, dim=1)
