"""Attribution patching: what every patch would change, estimated from one gradient. `blip.attribute`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
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
    check_same_lengths,
    needs_own_image,
    reached_of,
    ready,
    recorded,
    run_patches,
    value_of,
)
from blip.interpret.causes.places import Places, places_of
from blip.interpret.causes.sweep import ROWS_WITH_IMAGES, effects_of
from blip.interpret.explain import pictures_in
from blip.interpret.recording import Trace
from blip.interpret.trace import Patterns, trace

ROWS = 64  # at once, of integrated gradients: the tensors of a row stay in memory until the gradients are there


def attribute(
    m: Predictor,
    clean: Pair,
    corrupt: Pair,
    *,
    metric: str | Metric = "match",
    points: Patterns = "text.*.z",
    by: str | Sequence[str] = "head",
    steps: int = 1,
    verify: int = 0,
) -> Labelled:
    """How much the metric of `corrupt` would change if the values at each place became those of `clean`, estimated.

    (clean - corrupt) times the gradient at `corrupt`, added up over each place (Nanda 2023): two passes forward and one
    backward for all places together. `blip.patch_sweep` with `corrupt` as base and `clean` as source measures the same
    by patching; the two agree where the model is nearly linear between the pairs.

    Args:
        m: what `blip.load` returns.
        clean, corrupt: pairs (image, text) with texts of as many tokens; for the metric `answer` a text is
            (question, answer).
        metric: match, cosine, caption, answer, or a differentiable function, see `blip/interpret/causes/metrics.py`.
        points: names of `blip.names`, or patterns of them.
        by: what a place is: a `layer` (a point as a whole), `head`, `token` or `patch`; or (`head`, `token`).
        steps: more than one integrates the gradient over so many steps from `corrupt` to `clean`, for each point on its
            own. The sum over a point is then the effect of patching all of it, and that over a point through which
            everything passes (`text.0.in` of equal images) the difference of the metric.
        verify: patch so many places, half of them with the largest estimates and half drawn, and report in `notes` the
            correlation with the estimates, the share of equal signs and the largest difference.

    Raises:
        InputError: unknown metric or `by`, texts of different lengths, a metric without gradient.
        TraceError: there is no such point, nothing passes through it, or no gradient reaches it.

    Example:
        >>> m = blip.load("checkpoint")
        >>> left, right = ("chest.png", "small left effusion"), ("chest.png", "small right effusion")
        >>> effects = blip.attribute(m, left, right, by=("head", "token"), verify=8)
        >>> effects.dims
        ('point', 'head', 'token')
        >>> correlation = effects.notes["correlation"]
    """
    if steps < 1 or verify < 0:
        raise InputError(f"steps is {steps} and verify {verify}: at least 1 and 0")
    measure = metric_of(metric)
    clean, corrupt = ready(m, clean), ready(m, corrupt)
    check_same_lengths(m, clean, corrupt)
    target, t = recorded(m, measure, clean, points=points)
    places = places_of(m, clean, target, by=by, grid=t.grid)
    start, slopes = _slopes(m, measure, corrupt, points=points)
    if steps > 1:
        slopes = _mean_slopes(m, measure, corrupt, target=target, steps=steps)
    estimates = [
        value for point in target for value in places.summed(point, (target[point] - start[point]) * slopes[point])
    ]
    notes = {}
    if verify:
        notes = _agreement(m, measure, corrupt, target=target, places=places, estimates=estimates, count=verify)
    return places.labelled(estimates, "attribution", unit_of(metric), notes=notes)


def _slopes(
    m: Predictor, metric: Metric, pair: Pair, *, points: Patterns
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By point, its values (H, T, d) or (T, D) for a pair, and the gradient of the metric with respect to them."""
    with _constant_parameters(m), trace(m, points, grads=True) as t:
        values = value_of(m, metric, pair)
    _differentiate(t, values)
    names, count = reached_of(t, points), pictures_in(pair[0])
    values_there = {name: of_items(t, name, count)[0] for name in names}
    slopes = {name: of_items(t, name, count, gradient=True)[0] for name in names if t.reached_grads(name)}
    if not slopes:
        t.grad(names[0])  # raises
    return values_there, {name: slopes.get(name, torch.zeros_like(value)) for name, value in values_there.items()}


def _mean_slopes(
    m: Predictor, metric: Metric, pair: Pair, *, target: Mapping[str, Tensor], steps: int
) -> dict[str, Tensor]:
    """By point, the gradient averaged while all of the point moves from its values for the pair to `target`.

    The places of the steps are those of Gauss and Legendre: few suffice for a smooth curve.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # between -1 and 1; the weights add up to 2
    shares, weights = (nodes + 1) / 2, weights / 2
    means: dict[str, Tensor] = {}
    for own_images in (False, True):
        rows = [
            (point, share, weight)
            for point in target
            if needs_own_image(m, point) == own_images
            for share, weight in zip(shares.tolist(), weights.tolist(), strict=True)
        ]
        for batch in batches_of(rows, ROWS // ROWS_WITH_IMAGES if own_images else ROWS):
            patches = [Patch(point, target[point], share=share) for point, share, _ in batch]
            with _constant_parameters(m):
                scores, t = run_patches(m, metric, pair, patches=patches, grads=True)
            _differentiate(t, scores)
            for row, (point, _, weight) in enumerate(batch):
                if not t.reached_grads(point):
                    means.setdefault(point, torch.zeros_like(target[point]))
                    continue
                slope = weight * of_items(t, point, pictures_in(pair[0]), gradient=True)[row]
                means[point] = means[point] + slope if point in means else slope
    return means


@contextmanager
def _constant_parameters(m: Predictor) -> Iterator[None]:
    """Inside the block parameters have no gradients: nothing below the first traced point is kept for the way back."""
    learned = [parameter for parameter in m.model.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _differentiate(t: Trace, values: Tensor) -> None:
    if not values.requires_grad:
        raise InputError(
            "the metric has no gradient at these points: it has to depend on them by differentiable functions, without "
            "torch.no_grad()"
        )
    t.backward(values)


def _agreement(
    m: Predictor,
    metric: Metric,
    pair: Pair,
    *,
    target: Mapping[str, Tensor],
    places: Places,
    estimates: Sequence[float],
    count: int,
) -> dict[str, float]:
    """What real patching of `count` places gives beside the estimates: notes of the result."""
    order = sorted(range(len(estimates)), key=lambda i: -abs(estimates[i]))
    largest, others = order[: (count + 1) // 2], order[(count + 1) // 2 :]
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[: count // 2].tolist()
    chosen = sorted([*largest, *(others[i] for i in drawn)])
    every = list(places)
    patches = [Patch(every[i].point, target[every[i].point], every[i].head, every[i].token) for i in chosen]
    real = np.array(effects_of(m, metric, pair, patches=patches))
    found = np.array([estimates[i] for i in chosen])
    alike = bool(np.ptp(real) == 0 or np.ptp(found) == 0)
    return {
        "patched": float(len(chosen)),
        "correlation": float("nan") if alike else float(np.corrcoef(real, found)[0, 1]),
        "equal signs": float((np.sign(real) == np.sign(found)).mean()),
        "largest difference": float(np.abs(real - found).max()),
    }
