"""Many patches of one pair in one pass: each is a row. What attribution, sweeps and path patching run.

Shapes: P patches, R = P + 1 rows, H heads, T tokens, d head width, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import OneImage, Study
from blip.inference.predictor import Predictor
from blip.inference.query_scoring import token_counts
from blip.inference.scoring import check_texts
from blip.interpret.causes.items import edit_of_items, edit_of_passes, of_items
from blip.interpret.causes.metrics import Metric, OneText
from blip.interpret.causes.prefix import shared_prefix
from blip.interpret.explain import pictures_in
from blip.interpret.hooks import Edit
from blip.interpret.points import ATTENTION_POINTS, names_of, queries_of
from blip.interpret.recording import Trace, TraceError
from blip.interpret.trace import Patterns, matching, trace

# an image, or a study of several, with its text; for the metric answer (image, (question, answer))
Pair = tuple[OneImage, OneText]
COMPONENTS = ("z", "mlp", "query_mlp")  # points at which an attention or a feed-forward network hands on its result


@dataclass(frozen=True)
class Patch:
    """What takes the place of the values at a point in one row.

    Args:
        point: a name of `blip.names`.
        value: (H, T, d) or (T, D), of which the patched part is read.
        head, token: the part that is patched; all of them unless given.
        share: how far the values move towards `value`; at 1 they become it.
    """

    point: str
    value: Tensor
    head: int | None = None
    token: int | None = None
    share: float = 1.0

    def part(self, tokens: slice) -> "Patch":
        """The patch of some of the tokens; of none of these where it is of another token."""
        value, token = self.value[..., tokens, :], self.token
        if token is None:
            return replace(self, value=value)
        inside = tokens.start <= token < tokens.stop
        return replace(self, value=value, token=token - tokens.start if inside else 0, share=self.share * inside)

    def weights(self) -> Tensor:
        """(H, T, 1) or (T, 1): `share` at the part that is patched, 0 elsewhere."""
        weights = torch.zeros(*self.value.shape[:-1], 1)
        tokens = slice(None) if self.token is None else self.token
        if self.value.dim() == 3:
            weights[slice(None) if self.head is None else self.head, tokens] = self.share
        else:
            weights[tokens] = self.share
        return weights


# ---- a pair through the model ----------------------------------------------------------------------------------------


def texts_of(pair: Pair) -> tuple[str, ...]:
    """The text of a pair, or its question and its answer."""
    return pair[1] if isinstance(pair[1], tuple) else (pair[1],)


def check_mode(m: Predictor) -> None:
    """InputError in training mode."""
    if m.model.training:
        raise InputError("the model is in training mode, in which dropout changes every pass: call m.model.eval()")


def check_pair(m: Predictor, pair: Pair) -> None:
    """InputError for a model that reads no images and texts or is in training mode, and for what is no pair."""
    if not isinstance(m, Predictor):
        raise InputError(
            f"the model is a {type(m).__name__}; give what blip.load returns, which reads images and texts"
        )
    check_mode(m)
    texts = texts_of(pair) if isinstance(pair, tuple) and len(pair) == 2 else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("a pair is (image, text), or (image, (question, answer))")


def ready(m: Predictor, pair: Pair) -> Pair:
    """The pair with its image decoded, so that every pass need not read it anew.

    Raises:
        InputError: as in `check_pair`; or the text is empty or longer than the model reads.
    """
    check_pair(m, pair)
    check_texts(m, texts_of(pair))
    pixels = m.pixels([pair[0]])
    return pixels[0] if isinstance(pixels, Tensor) else Study(pixels.tensor[0]), pair[1]


def check_same_lengths(m: Predictor, first: Pair, second: Pair) -> None:
    """InputError where the texts of two ready pairs have different numbers of tokens, or their items of pictures: their
    positions do not correspond."""
    numbers = pictures_in(first[0]), pictures_in(second[0])
    if numbers[0] != numbers[1]:
        raise InputError(
            f"one item has {numbers[0]} pictures and the other {numbers[1]}: their patches do not correspond; give "
            "items of as many"
        )
    for one, other in zip(texts_of(first), texts_of(second), strict=False):
        counts = token_counts(m, [one, other])
        if counts[0] != counts[1]:
            raise InputError(
                f"{one!r} has {counts[0]} tokens and {other!r} has {counts[1]}: positions of texts of different "
                "lengths do not correspond; give texts of equal length"
            )


def value_of(m: Predictor, metric: Metric, pair: Pair, *, rows: int = 1, own_images: bool = False) -> Tensor:
    """The metric (R,) of as many rows of one pair, in one pass; see `needs_own_image` for `own_images`.

    Raises:
        InputError: the metric did not return a number for each row.
    """
    image, text = pair
    values = metric(m, [image] * (rows if own_images else 1), [text] * rows)
    if not isinstance(values, Tensor) or values.shape != (rows,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"the metric returned {got} for {rows} pairs; it has to be a tensor of {(rows,)}")
    return values


def recorded(m: Predictor, metric: Metric, pair: Pair, *, points: Patterns) -> tuple[dict[str, Tensor], Trace]:
    """What passes through each point for one pair, (H, T, d) or (T, D), except for points that nothing passes through.

    In the image encoder these are the tokens of all pictures of an item, one picture after the other.

    Raises:
        TraceError: nothing passes through any point that a pattern names.
    """
    with torch.no_grad(), trace(m, points) as t:
        value_of(m, metric, pair)
    count = pictures_in(pair[0])
    return {name: of_items(t, name, count)[0] for name in reached_of(t, points)}, t


def reached_of(t: Trace, points: Patterns) -> list[str]:
    """The points that something passed through, in the order of computation; TraceError as in `recorded`."""
    patterns = [points] if isinstance(points, str) else list(points)
    if not patterns:
        raise InputError("no points are named; blip.names(m) lists them")
    for pattern in patterns:
        names = matching(t.model, pattern)
        if not any(map(t.reached, names)):
            t.all(min(names))  # raises: which points the model's tasks go through
    return [name for name in names_of(t.model) if name in t.wanted and t.reached(name)]


# ---- rows ------------------------------------------------------------------------------------------------------------


def needs_own_image(m: Predictor, point: str) -> bool:
    """Whether a row that is patched there needs an image of its own; others share the states of one image."""
    of_image = point.startswith("image.") or (".cross." in point and point.endswith((".k", ".v")))
    return of_image or queries_of(m.model) is not None


def layer_of(point: str) -> str:
    """`text.3` of `text.3.cross.z`."""
    return ".".join(point.split(".")[:2])


def stack_of(point: str) -> str:
    """`text` of `text.3.cross.z`."""
    return point.split(".")[0]


def component_of(point: str) -> str:
    """The attention of its queries, keys, values, pattern and result; else the point itself."""
    before, _, last = point.rpartition(".")
    return before if last in ATTENTION_POINTS else point


def component_values(m: Predictor, metric: Metric, pair: Pair) -> dict[str, Tensor]:
    """What each attention and feed-forward network that a pair passes through hands on, by point."""
    names = [name for name in names_of(m.model) if name.rpartition(".")[2] in COMPONENTS]
    with torch.no_grad(), trace(m, names) as t:
        value_of(m, metric, pair)
    return {name: of_items(t, name, pictures_in(pair[0]))[0] for name in names if t.reached(name)}


def order_of_components(m: Predictor) -> dict[str, int]:
    """By component (see `component_of`), its place in the order of computation."""
    return {component: i for i, component in enumerate(dict.fromkeys(map(component_of, names_of(m.model))))}


def run_patches(
    m: Predictor,
    metric: Metric,
    pair: Pair,
    *,
    patches: Sequence[Patch],
    frozen: Mapping[str, Tensor] | None = None,
    grads: bool = False,
) -> tuple[Tensor, Trace]:
    """The metric (R,) of a pair with each patch, and without any in the last row; one pass through the model.

    Args:
        m: what `blip.load` returns.
        metric: the metric.
        pair: of `ready`.
        patches: in the order of computation; all or none of them need images of their own.
        frozen: values that replace those of these components in every row whose patch is in an earlier component.
        grads: keep gradients at the points of patches. Row i of the trace there (see `of_items`) is patch i.
    """
    order = order_of_components(m)
    places = [order[component_of(patch.point)] for patch in patches]
    assert places == sorted(places), "patches stand in the order of computation"
    rows_of: dict[str, list[int]] = {}
    for row, patch in enumerate(patches):
        rows_of.setdefault(patch.point, []).append(row)
    frozen, pictures, edits = frozen or {}, pictures_in(pair[0]), {}
    for point in {**rows_of, **frozen}:
        earlier = sum(place < order[component_of(point)] for place in places) if point in frozen else 0
        rows = rows_of.get(point, [])
        if earlier or rows:
            some, held = [patches[row] for row in rows], frozen.get(point)
            if point.startswith("qformer."):  # queries and text may pass one after the other
                edits[point] = _edit_of_queries(some, rows, held=held, earlier=earlier)
            else:
                edits[point] = edit_of_items(point, _edit(some, rows, held=held, earlier=earlier), pictures)
    own_images = needs_own_image(m, patches[0].point)
    starts = [layer_of(patch.point) for patch in patches]
    with (
        torch.set_grad_enabled(grads),
        trace(m, list(rows_of) if grads else (), edits, grads=grads) as t,
        shared_prefix(t.model, starts, own_images=own_images, pictures=pictures),
    ):
        return value_of(m, metric, pair, rows=len(patches) + 1, own_images=own_images), t


def _edit_of_queries(patches: list[Patch], rows: list[int], *, held: Tensor | None, earlier: int) -> Edit:
    """`_edit` of values whose tokens pass together, or in several passes."""
    total = (held if held is not None else patches[0].value).shape[-2]

    def part_of(tokens: slice) -> Edit:
        some = [patch.part(tokens) for patch in patches]
        return _edit(some, rows, held=None if held is None else held[..., tokens, :], earlier=earlier)

    return edit_of_passes(part_of, total)


def _edit(patches: list[Patch], rows: list[int], *, held: Tensor | None, earlier: int) -> Edit:
    """The first `earlier` rows become `held`; the patched part of each of `rows` moves to the value of its patch."""

    def edit(x: Tensor) -> Tensor:
        shape = tuple((held if held is not None else patches[0].value).shape)
        needed = max([earlier, *(row + 1 for row in rows)])
        if len(x) < needed or x.shape[1:] != shape:
            raise TraceError(
                f"a patched point is {tuple(x.shape)} here, values for it are {shape}: it needs {needed} rows, one for "
                "each patch, and equal shapes"
            )
        if held is not None and earlier:
            x = torch.cat([held.to(x).expand(earlier, *shape), x[earlier:]])
        if not rows:
            return x
        values = torch.stack([patch.value for patch in patches]).to(x)
        weights = torch.stack([patch.weights() for patch in patches]).to(x)
        return x.index_copy(0, torch.tensor(rows, device=x.device), torch.lerp(x[rows], values, weights))

    return edit
