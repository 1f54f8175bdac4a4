"""Path patching: what one part of a model sends to another directly. `blip.path_patch`."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import batches_of
from blip.inference.predictor import Predictor
from blip.interpret.causes.items import of_items
from blip.interpret.causes.labelled import Labelled
from blip.interpret.causes.metrics import Metric, metric_of, unit_of
from blip.interpret.causes.patching import (
    Pair,
    Patch,
    component_of,
    component_values,
    needs_own_image,
    order_of_components,
    ready,
    recorded,
    run_patches,
)
from blip.interpret.causes.places import Place
from blip.interpret.causes.sweep import ROWS_WITH_IMAGES, Source, effects_of, source_values
from blip.interpret.explain import pictures_in
from blip.interpret.trace import Patterns, trace


def path_patch(
    m: Predictor,
    base: Pair,
    source: Source,
    *,
    senders: Patterns,
    receivers: Patterns,
    metric: str | Metric = "match",
    by: str = "head",
    batch_size: int = 64,
) -> Labelled:
    """How the metric of `base` changes when a receiver gets what a sender has for `source`, and no other part does.

    For each sender the model runs once with its values for `source`, while all other attentions and feed-forward
    networks keep theirs for `base`: only residuals and norms pass them on (Wang et al. 2022). What arrives at a
    receiver then replaces its values in a run of `base`, in which all that follows is computed.

    Args:
        m: what `blip.load` returns.
        base, source, metric: as in `blip.patch_sweep`.
        senders: points, usually `z` or `mlp`.
        receivers: points, usually `q`, `k` or `v` of later attentions.
        by: `head`, each head of a point that has heads is a sender or a receiver of its own, or `layer`.
        batch_size: senders at once; an eighth of it where each needs an image of its own.

    Returns:
        The change of the metric by sender and receiver (`text.0.self.z 1` for a head); NaN where no path leads from one
        to the other.

    Raises:
        InputError, TraceError: as in `blip.patch_sweep`.

    Example:
        >>> m = blip.load("checkpoint")
        >>> left, right = ("chest.png", "small left effusion"), ("chest.png", "small right effusion")
        >>> paths = blip.path_patch(m, left, right, senders="text.0.self.z", receivers="text.1.*.q")
        >>> paths.dims
        ('sender', 'receiver')
    """
    if by not in ("head", "layer"):
        raise InputError(f"by is {by!r}; of paths it can be head or layer")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, it must be 1 or more")
    measure, base = metric_of(metric), ready(m, base)
    sent, _ = source_values(m, measure, base, source=source, points=senders)
    received, _ = recorded(m, measure, base, points=receivers)
    starts, ends, frozen = _places(sent, by), _places(received, by), component_values(m, measure, base)
    effects = np.full((len(starts), len(ends)), np.nan)
    for own_images in (False, True):
        rows = [i for i, sender in enumerate(starts) if needs_own_image(m, sender.point) == own_images]
        for batch in batches_of(rows, max(1, batch_size // ROWS_WITH_IMAGES) if own_images else batch_size):
            patches = [Patch(starts[i].point, sent[starts[i].point], starts[i].head) for i in batch]
            with trace(m, list(received)) as arriving:  # it reads values before they are frozen
                run_patches(m, measure, base, patches=patches, frozen=frozen)
            values = {point: of_items(arriving, point, pictures_in(base[0])) for point in received}
            paths = _paths(m, patches, ends, arriving=values)
            changes = effects_of(m, measure, base, patches=[patch for *_, patch in paths])
            effects[[batch[row] for row, *_ in paths], [column for _, column, _ in paths]] = changes
    coords = {"sender": list(map(_label, starts)), "receiver": list(map(_label, ends))}
    return Labelled(effects, ("sender", "receiver"), coords, "effect of path", unit_of(metric))


def _paths(
    m: Predictor, senders: list[Patch], receivers: list[Place], *, arriving: Mapping[str, Tensor]
) -> list[tuple[int, int, Patch]]:
    """(sender, receiver, the patch of what arrives there) of each path, in the order of receivers."""
    order = order_of_components(m)
    paths = []
    for column, receiver in enumerate(receivers):
        values = arriving[receiver.point]
        for row, sender in enumerate(senders):
            later = order[component_of(sender.point)] < order[component_of(receiver.point)]
            if later and row < len(values):  # an image that all rows share has one row: no text changes it
                paths.append((row, column, Patch(receiver.point, values[row], receiver.head)))
    return paths


def _places(values: Mapping[str, Tensor], by: str) -> list[Place]:
    return [
        Place(point, head)
        for point, value in values.items()
        for head in (range(len(value)) if by == "head" and value.dim() == 3 else [None])
    ]


def _label(place: Place) -> str:
    return place.point if place.head is None else f"{place.point} {place.head}"
