"""Activation patching of many places at once: `blip.patch_sweep`."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import batches_of
from blip.inference.predictor import Predictor
from blip.interpret.causes.labelled import Labelled
from blip.interpret.causes.metrics import Metric, metric_of, unit_of
from blip.interpret.causes.patching import (
    Pair,
    Patch,
    check_same_lengths,
    component_values,
    needs_own_image,
    ready,
    recorded,
    run_patches,
    stack_of,
)
from blip.interpret.causes.places import places_of
from blip.interpret.recording import Trace
from blip.interpret.trace import Patterns

# another pair, or pairs whose mean is taken; values by point; zeros; noise
Source = Pair | Sequence[Pair] | Mapping[str, Tensor] | Trace | Literal["zero", "noise"]
ROWS_WITH_IMAGES = 8  # a row with an image of its own needs about as much memory as so many rows without


def patch_sweep(
    m: Predictor,
    base: Pair,
    source: Source,
    *,
    metric: str | Metric = "match",
    points: Patterns = "text.*.z",
    by: str | Sequence[str] = "head",
    freeze: bool = False,
    batch_size: int = 256,
) -> Labelled:
    """How a metric of `base` changes when the values at one place after another are replaced by those of `source`.

    Each place is a row of one pass: all rows share the image, and each is computed from its patch on only. A place at
    which nothing is computed, such as a word in the last layer of a match, is NaN.

    Args:
        m: what `blip.load` returns.
        base: (image, text); for the metric `answer` (image, (question, answer)).
        source: another pair with a text of as many tokens; a list of pairs, for their mean; `zero`; `noise`, normal and
            with the mean and the spread of each head (of each point without heads); a trace, or a tensor by point.
        metric: match, cosine, caption, answer, or a function, see `blip/interpret/causes/metrics.py`.
        points: names of `blip.names`, or patterns of them.
        by: what a place is: a `layer` (a point as a whole), `head`, `token` or `patch`; or (`head`, `token`).
        freeze: keep the later attentions and feed-forward networks of the same stack as they are without the patch: the
            direct effect, which passes through residuals and norms alone.
        batch_size: rows at once; an eighth of it where each needs an image of its own.

    Returns:
        The metric with each patch minus that without, by point and place.

    Raises:
        InputError: unknown metric or `by`, texts of different lengths, values of another shape.
        TraceError: there is no such point, or nothing passes through it.

    Example:
        >>> m = blip.load("checkpoint")
        >>> left, right = ("chest.png", "small left effusion"), ("chest.png", "small right effusion")
        >>> effects = blip.patch_sweep(m, left, right, points="text.*.self.z")
        >>> effects.dims
        ('point', 'head')
        >>> most = effects.top(3)  # [({'point': 'text.0.self.z', 'head': '1'}, ...), ...]
        >>> effects.to_csv("effects.csv")
    """
    measure = metric_of(metric)
    base = ready(m, base)
    values, grid = source_values(m, measure, base, source=source, points=points)
    places = places_of(m, base, values, by=by, grid=grid)
    patches = [Patch(place.point, values[place.point], place.head, place.token) for place in places]
    effects = effects_of(m, measure, base, patches=patches, freeze=freeze, batch_size=batch_size)
    name = "direct effect of patching" if freeze else "effect of patching"
    return places.labelled(effects, name, unit_of(metric))


def effects_of(
    m: Predictor, metric: Metric, base: Pair, *, patches: Sequence[Patch], freeze: bool = False, batch_size: int = 256
) -> list[float]:
    """The metric with each patch minus that without; patches are in the order of computation."""
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, it must be 1 or more")
    frozen = component_values(m, metric, base) if freeze else {}
    groups: dict[tuple[bool, str], list[int]] = {}
    for i, patch in enumerate(patches):
        groups.setdefault((needs_own_image(m, patch.point), stack_of(patch.point) if freeze else ""), []).append(i)
    effects: dict[int, float] = {}
    for (own_images, stack), rows in groups.items():
        held = {name: value for name, value in frozen.items() if stack_of(name) == stack}
        for batch in batches_of(rows, max(1, batch_size // ROWS_WITH_IMAGES) if own_images else batch_size):
            scores, _ = run_patches(m, metric, base, patches=[patches[i] for i in batch], frozen=held)
            effects |= dict(zip(batch, (scores[:-1] - scores[-1]).double().tolist(), strict=True))
    return [effects[i] for i in range(len(patches))]


def source_values(
    m: Predictor, metric: Metric, base: Pair, *, source: Source, points: Patterns
) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
    """The values that a source has at each point, (H, T, d) or (T, D), and the grid of patches."""
    if isinstance(source, tuple):
        source = ready(m, source)
        check_same_lengths(m, base, source)
        values, t = recorded(m, metric, source, points=points)
        return values, t.grid
    if isinstance(source, list):
        return _mean(m, metric, base, pairs=source, points=points)
    values, t = recorded(m, metric, base, points=points)
    if source == "zero":
        return {name: torch.zeros_like(value) for name, value in values.items()}, t.grid
    if source == "noise":
        draws = torch.Generator().manual_seed(0)
        return {name: _noise(value, draws) for name, value in values.items()}, t.grid
    if isinstance(source, Mapping | Trace):
        return {name: _given(source, name, tuple(value.shape)) for name, value in values.items()}, t.grid
    raise InputError(
        f"source is {source!r}; it can be a pair, a list of pairs, values by point, a trace, zero or noise"
    )


def _given(source: Mapping[str, Tensor] | Trace, name: str, shape: tuple[int, ...]) -> Tensor:
    """The value at a point, of its shape or with a dimension of one row before it."""
    if isinstance(source, Mapping) and name not in source:
        raise InputError(f"the source has no values for {name}")
    value = source[name]
    if not isinstance(value, Tensor) or tuple(value.shape) not in (shape, (1, *shape)):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the source's value for {name} is {got}; it has to be a tensor of {shape}")
    return value.reshape(shape)


def _mean(
    m: Predictor, metric: Metric, base: Pair, *, pairs: Sequence[Pair], points: Patterns
) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
    if not pairs:
        raise InputError("the list of pairs is empty: there is no mean")
    total: dict[str, Tensor] = {}
    grid = None
    for pair in (ready(m, pair) for pair in pairs):
        check_same_lengths(m, base, pair)
        values, t = recorded(m, metric, pair, points=points)
        grid = t.grid
        total = {name: total[name] + value if total else value for name, value in values.items()}
    return {name: value / len(pairs) for name, value in total.items()}, grid


def _noise(value: Tensor, draws: torch.Generator) -> Tensor:
    """Normal values with the mean and the spread of each head of (H, T, d), or of all of (T, D)."""
    normal = torch.randn(value.shape, generator=draws).to(value)
    mean, std = value.mean(dim=(-2, -1), keepdim=True), value.std(dim=(-2, -1), keepdim=True)
    return mean + std * normal
