"""Ablation over a data set: what a metric loses when one head, feed-forward network or layer after the other is taken
away. `blip.ablate` and `blip ablate`.

What a component adds is replaced by something that tells nothing about the pair: zeros, its mean over the data, or what
it adds for another record. Of a layer that is what it adds to the states that come in. Every component is a row of one
pass, as in `blip.patch_sweep`: an image is encoded once for all components of the text.

Shapes: R pairs, C components, H heads, T tokens, d head width, D width.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip.data.image_bytes import UnreadableImage
from blip.errors import InputError
from blip.evaluation.bootstrap import Interval, bootstrap
from blip.inference.predictor import Predictor
from blip.interpret.causes.donors import Donors, fitted, name_of
from blip.interpret.causes.labelled import Labelled
from blip.interpret.causes.metrics import Metric, metric_of, unit_of
from blip.interpret.causes.patching import Pair, Patch, check_pair, ready, recorded, value_of
from blip.interpret.causes.sweep import effects_of
from blip.interpret.explain import pictures_in

POINTS = {"head": ["*.z"], "mlp": ["*mlp"], "layer": ["*.in", "*.out"]}
METHODS = ("zero", "mean", "resample")
MEAN_RECORDS = 256  # the mean is that of the first records


@dataclass(frozen=True)
class Component:
    """A point that is ablated, and the head of an attention."""

    point: str
    head: int | None = None

    def __str__(self) -> str:
        return self.point if self.head is None else f"{self.point} {self.head}"


@dataclass(frozen=True)
class Effect:
    """What the ablation of a component changes: the mean over pairs, and the share of them whose metric falls."""

    component: Component
    change: Interval
    falls: float


@dataclass(frozen=True)
class Ablation:
    """The changes of a metric by pair and component.

    Args:
        components: C of them, in the order of computation.
        clean: (R,), the metric of the whole model.
        changes: (R, C), the metric without a component minus `clean`.
        groups: R names of images; pairs that share one are not independent.
        by, method, unit: what was ablated and how, and the unit of the metric.
    """

    components: Sequence[Component]
    clean: NDArray
    changes: NDArray
    groups: Sequence[str]
    by: str
    method: str
    unit: str

    def ranked(self) -> list[Effect]:
        """Every component, that with the largest mean change first, with bootstrap intervals of the paired changes."""
        effects = []
        for component, values in zip(self.components, self.changes.T, strict=True):
            change = bootstrap(values, self.groups, shares=False)
            effects.append(Effect(component, change, float((values < 0).mean())))
        return sorted(effects, key=lambda effect: -abs(effect.change.mean))

    def labelled(self) -> Labelled:
        """The mean changes, by (point, head) or by point: as a heat map, as CSV."""
        points = list(dict.fromkeys(one.point for one in self.components))
        coords: dict[str, list[str]] = {"point": points}
        values = np.full(len(points), np.nan)
        if self.by == "head":
            heads = 1 + max(one.head or 0 for one in self.components)
            coords["head"] = [str(head) for head in range(heads)]
            values = np.full((len(points), heads), np.nan)
        for one, mean in zip(self.components, self.changes.mean(axis=0), strict=True):
            values[points.index(one.point) if one.head is None else (points.index(one.point), one.head)] = mean
        notes = {"pairs": float(len(self.clean)), "metric of the whole model": float(self.clean.mean())}
        return Labelled(values, tuple(coords), coords, f"change by {self.method} ablation", self.unit, notes)


def ablate(
    m: Predictor,
    pairs: Sequence[Pair],
    *,
    by: str = "head",
    metric: str | Metric = "match",
    method: str = "zero",
    seed: int = 0,
    batch_size: int = 256,
) -> Ablation:
    """How a metric changes over pairs of image and text without each head, feed-forward network or layer.

    Args:
        m: what `blip.load` returns.
        pairs: (image, text); for the metric `answer` (image, (question, answer)). An image may be a `blip.Study`.
        by: head, mlp or layer.
        metric: match, cosine, caption, answer, or a function, see `blip/interpret/causes/metrics.py`.
        method: zero; mean, over the first 256 pairs, of a picture for each patch, of texts over all tokens; or
            resample, what the component adds for another pair, with another image and, if there is one, a text of equal
            length and as many pictures.
        seed: of the pairs that resampling draws.
        batch_size: rows at once, as in `blip.patch_sweep`.

    Raises:
        InputError: an unknown value, or fewer pairs than a method needs.
        UnreadableImage: an image cannot be read.

    Example:
        >>> m = blip.load("checkpoint")
        >>> pairs = [("chest.png", "small left effusion"), ("normal.png", "normal chest")]
        >>> ablation = blip.ablate(m, pairs, by="head", method="resample")
        >>> ablation.ranked()[0].component  # without it the match logit changes most
        Component(point='text.1.cross.z', head=0)
        >>> ablation.labelled().picture("heads.png")
    """
    ablator = Ablator(m, pairs, by=by, metric=metric, method=method, seed=seed, batch_size=batch_size)
    return ablator.ablation({number: ablator.of_pair(number) for number in range(len(pairs))})


class Ablator:
    """Ablates the components of a model, pair by pair; the result for a pair depends on the list, not on the order.

    Arguments and errors as in `ablate`.
    """

    def __init__(
        self, m: Predictor, pairs: Sequence[Pair], *, by: str, metric: str | Metric, method: str, seed: int,
        batch_size: int,
    ) -> None:  # fmt: skip
        self.metric, self.unit = metric_of(metric), unit_of(metric)
        if not isinstance(by, str) or by not in POINTS:
            raise InputError(f"by is {by!r}; it can be {', '.join(POINTS)}")
        if method not in METHODS:
            raise InputError(f"method is {method!r}; it can be {', '.join(METHODS)}")
        if not pairs:
            raise InputError("there are no pairs")
        for pair in pairs:
            check_pair(m, pair)
        self.m, self.pairs, self.by, self.method, self.batch_size = m, pairs, by, method, batch_size
        self.groups = [name_of(image) for image, _ in pairs]
        self.donors = Donors(m, pairs, self.groups, seed=seed) if method == "resample" else None
        self.means = self._means(range(min(len(pairs), MEAN_RECORDS))) if method == "mean" else {}
        _, first = self._first_readable(range(len(pairs)))
        self.components = [
            Component(point, head)
            for point, (_, adds) in first.items()
            for head in (range(adds.shape[0]) if by == "head" else [None])
        ]

    def added(self, pair: Pair) -> dict[str, tuple[Tensor, Tensor]]:
        """By point, what stays without the component, and what it adds: (H, T, d) or (T, D) each."""
        pair = ready(self.m, pair)
        values, _ = recorded(self.m, self.metric, pair, points=POINTS[self.by])
        if self.by != "layer":
            return {point: (torch.zeros_like(value), value) for point, value in values.items()}
        found = {}
        for point in (name for name in values if name.endswith(".out")):
            out = values[point]
            before, pictures = values[point.removesuffix("out") + "in"], self._pictures(point, pair)
            each = before.unflatten(0, (pictures, -1))  # a last layer may run for its first token, or that of a picture
            before = each[:, : len(out) // pictures].flatten(0, 1)
            found[point] = (before, out - before)
        return found

    def _pictures(self, point: str, pair: Pair) -> int:
        """How many pictures stand side by side on the tokens of a point."""
        return pictures_in(pair[0]) if point.startswith("image.") else 1

    def _first_readable(self, numbers: Iterable[int]) -> tuple[Pair, dict[str, tuple[Tensor, Tensor]]]:
        """The first of some pairs whose image can be read, and its `added`; UnreadableImage where there is none."""
        problem: UnreadableImage | None = None
        for number in numbers:
            try:
                pair = ready(self.m, self.pairs[number])
                return pair, self.added(pair)
            except UnreadableImage as error:
                problem = error
        assert problem is not None, "at least one number is given"
        raise problem

    def of_pair(self, number: int) -> tuple[float, list[float]]:
        """The metric of a pair, and what the ablation of each component changes; UnreadableImage for its image."""
        pair = ready(self.m, self.pairs[number])
        added = self.added(pair)
        donor, other = self._first_readable(self.donors.of(number)) if self.donors else (pair, {})
        patches = []
        for component in self.components:
            stays, adds = added[component.point]
            instead = torch.zeros_like(adds)
            if self.method == "mean":
                mean = self.means[component.point].to(adds)
                instead = torch.cat([mean] * self._pictures(component.point, pair), dim=-2).expand_as(adds)
            elif self.method == "resample":
                counts = self._pictures(component.point, donor), self._pictures(component.point, pair)
                instead = fitted(other[component.point][1], adds.shape[-2], pictures=counts)
            patches.append(Patch(component.point, stays + instead, component.head))
        changes = effects_of(self.m, self.metric, pair, patches=patches, batch_size=self.batch_size)
        with torch.no_grad():
            return float(value_of(self.m, self.metric, pair)), changes

    def _means(self, numbers: Iterable[int]) -> dict[str, Tensor]:
        """What components add in the mean over those of these pairs whose images can be read: (H, T, d) or (T, D) in a
        picture, (H, 1, d) or (1, D) in texts."""
        sums: dict[str, Tensor] = {}
        counts = Counter[str]()
        for number in numbers:
            with suppress(UnreadableImage):
                pair = ready(self.m, self.pairs[number])
                for point, (_, adds) in self.added(pair).items():
                    of_image, pictures = point.startswith("image."), self._pictures(point, pair)
                    each = adds.double().unflatten(-2, (pictures, -1))
                    total = each.sum(dim=-3) if of_image else adds.double().sum(dim=-2, keepdim=True)
                    sums[point] = sums[point] + total if point in sums else total
                    counts[point] += pictures if of_image else adds.shape[-2]
        if not sums:
            self._first_readable(numbers)  # raises
        return {point: total / counts[point] for point, total in sums.items()}

    def ablation(self, results: Mapping[int, tuple[float, Sequence[float]]]) -> Ablation:
        """The results of pairs, by their numbers."""
        clean, changes = zip(*results.values(), strict=True)
        groups = [self.groups[number] for number in results]
        return Ablation(self.components, np.array(clean), np.array(changes), groups, self.by, self.method, self.unit)
