"""Where an effect is measured: a point as a whole, or each of its heads, tokens or patches; and the names of these."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from blip.errors import InputError
from blip.inference.predictor import Predictor
from blip.interpret.causes.labelled import Labelled
from blip.interpret.causes.patching import Pair
from blip.interpret.explain import pictures_in
from blip.interpret.points import ATTENTION_POINTS, queries_of

BY = ("layer", "head", "token", "patch")


@dataclass(frozen=True)
class Place:
    """A part of a point: a head, a position, or all of them."""

    point: str
    head: int | None = None
    token: int | None = None


@dataclass(frozen=True)
class Places:
    """The places at which effects are measured, in the order of computation.

    Args:
        shapes: by point, that of its values, (H, T, d) or (T, D).
        heads: whether each head is a place of its own.
        positions: the name of the positions that are places of their own, token or patch; empty where none are.
        labels: by point, those of its positions.
        axis: the labels of all of them, in order.
    """

    shapes: Mapping[str, tuple[int, ...]]
    heads: bool
    positions: str
    labels: Mapping[str, Sequence[str]]
    axis: Sequence[str] = ()

    def __iter__(self) -> Iterator[Place]:
        for point, shape in self.shapes.items():
            for head in range(shape[0]) if self.heads else [None]:
                for token in range(shape[-2]) if self.positions else [None]:
                    yield Place(point, head, token)

    def summed(self, point: str, values: Tensor) -> list[float]:
        """Values (H, T, d) or (T, D) at a point, added up to a number for each of its places."""
        values = values.double().sum(dim=-1)  # (H, T) or (T,)
        if not self.positions:
            values = values.sum(dim=-1)
        if not self.heads and len(self.shapes[point]) == 3:
            values = values.sum(dim=0)
        return values.flatten().tolist()

    def labelled(
        self, values: Sequence[float], name: str, unit: str, *, notes: Mapping[str, float] | None = None
    ) -> Labelled:
        """The numbers of all places, in their order, as an array; NaN where a point has no such head or position."""
        coords: dict[str, list[str]] = {}
        if self.heads or self.positions:
            coords["point"] = list(self.shapes)
        else:
            coords["layer"] = list(dict.fromkeys(_layer_and_part(point)[0] for point in self.shapes))
            coords["part"] = list(dict.fromkeys(_layer_and_part(point)[1] for point in self.shapes))
        if self.heads:
            coords["head"] = [str(head) for head in range(max(shape[0] for shape in self.shapes.values()))]
        if self.positions:
            coords[self.positions] = list(self.axis)
        columns = {label: number for number, label in enumerate(coords.get(self.positions, ()))}
        array = np.full([len(labels) for labels in coords.values()], np.nan)
        for place, value in zip(self, values, strict=True):
            layer, part = _layer_and_part(place.point)
            start = (
                [coords["point"].index(place.point)]
                if "point" in coords
                else [coords["layer"].index(layer), coords["part"].index(part)]
            )
            start += [] if place.head is None else [place.head]
            if place.token is not None:
                start.append(columns[self.labels[place.point][place.token]])
            array[tuple(start)] = value
        return Labelled(array, tuple(coords), coords, name, unit, notes or {})


def places_of(
    m: Predictor, pair: Pair, values: Mapping[str, Tensor], *, by: str | Sequence[str], grid: tuple[int, int] | None
) -> Places:
    """The places of points by what they pass on, (H, T, d) or (T, D) each; `grid` is that of the patches.

    Raises:
        InputError: unknown `by`, or the points do not have what it names.
    """
    parts = {by} if isinstance(by, str) else set(by)
    if not parts or parts - set(BY) or len(parts & {"token", "patch"}) > 1 or ("layer" in parts and len(parts) > 1):
        raise InputError(f"by is {by!r}; it can be layer, head, token or patch, or head with token or patch")
    shapes = {point: tuple(value.shape) for point, value in values.items()}
    if "head" in parts and (without := [point for point in shapes if point.rpartition(".")[2] not in ATTENTION_POINTS]):
        raise InputError(f"{without[0]} has no heads; q, k, v, z and pattern have")
    positions = "".join(parts & {"token", "patch"})
    labels: dict[str, list[str]] = {}
    axis: list[str] = []
    if positions:
        labels, axis = _labels(m, pair, shapes, positions=positions, grid=grid)
    return Places(shapes, "head" in parts, positions, labels, axis)


def _labels(
    m: Predictor, pair: Pair, shapes: Mapping[str, tuple[int, ...]], *, positions: str, grid: tuple[int, int] | None
) -> tuple[dict[str, list[str]], list[str]]:
    """By point the labels of its positions, and those of all points in order."""
    found: dict[str, list[str]] = {}
    pictures, most = pictures_in(pair[0]), list[str]()
    for point, shape in shapes.items():
        of_image = _is_of_image(point, shape[-2], grid, pictures=pictures)
        if of_image != (positions == "patch"):
            has, lacks = ("patches", "token") if of_image else ("tokens", "patch")
            raise InputError(f"{point} has {has}, so by cannot be {lacks} there: name points of one kind")
        if of_image and grid:
            found[point] = _patch_labels(grid, pictures, shape[-2])
        elif queries_of(m.model) is not None:
            every = _labels_of_queries(m, pair)
            found[point] = _of_queries(m, point, every, count=shape[-2])
            most = most or [*every, *(f"{i}" for i in range(shape[-2]))]
        else:
            found[point] = _token_labels(m, pair, point, count=shape[-2])[: shape[-2]]
        fewer, most = sorted((most, found[point]), key=len)
        if not set(fewer) <= set(most):
            raise InputError(f"{point} has other tokens than the points before it: name points of one stack")
    used = {label for labels in found.values() for label in labels}
    return found, [label for label in most if label in used]


def _labels_of_queries(m: Predictor, pair: Pair) -> list[str]:
    """`query 1`, `query 2`, ... and behind them `0 start`, `1 small`, ... of a text that the Q-Former reads."""
    queries = [f"query {number + 1}" for number in range(m.model.qformer.config.queries)]
    if not m.model.qformer.config.text:
        return queries
    text = pair[1] if isinstance(pair[1], str) else pair[1][0]
    ids = m.ids([text], m.positions)[0][0].tolist()
    return [*queries, "0 start", *(f"{i} {m.tokenizer.token(token)}" for i, token in enumerate(ids) if i)]


def _of_queries(m: Predictor, point: str, every: list[str], *, count: int) -> list[str]:
    """The labels of a point of the Q-Former; numbers where more pass through it."""
    first = m.model.qformer.config.queries if point.endswith(".mlp") else 0
    labels = every[first : first + count]
    return labels if len(labels) == count else [str(i) for i in range(count)]


def _is_of_image(point: str, count: int, grid: tuple[int, int] | None, *, pictures: int) -> bool:
    keys = ".cross." in point and point.rpartition(".")[2] in ("k", "v")
    return point.startswith("image.") or (keys and grid is not None and count == pictures * (1 + grid[0] * grid[1]))


def _patch_labels(grid: tuple[int, int], pictures: int, count: int) -> list[str]:
    """`cls`, `0,0`, `0,1`, ... of one picture, `picture 2 0,1` of several: `count` in all, as many of each picture."""
    of_one = ["cls", *(f"{row},{column}" for row in range(grid[0]) for column in range(grid[1]))][: count // pictures]
    if pictures == 1:
        return of_one
    return [f"picture {number + 1} {label}" for number in range(pictures) for label in of_one]


def _token_labels(m: Predictor, pair: Pair, point: str, *, count: int) -> list[str]:
    """`0 start`, `1 small`, ...; numbers alone where the positions are no tokens of a text of this tokenizer."""
    text = pair[1] if isinstance(pair[1], str) else pair[1][point.startswith("decoder.")]
    ids = m.ids([text], m.positions)[0][0].tolist() if point.startswith(("text.", "decoder.")) else []
    if len(ids) < count:
        return [str(i) for i in range(count)]
    return ["0 start", *(f"{i} {m.tokenizer.token(token)}" for i, token in enumerate(ids) if i)]


def _layer_and_part(point: str) -> tuple[str, str]:
    """(`text.3`, `cross.z`) of `text.3.cross.z`; `queries` is its own layer."""
    stack, _, rest = point.partition(".")
    number, _, part = rest.partition(".")
    return (f"{stack}.{number}", part) if rest else (point, "out")
