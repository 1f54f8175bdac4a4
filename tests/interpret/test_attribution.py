"""Attribution equals the slope of real patching, its integrated form adds up, and it takes few passes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exact_effects import LEFT, RIGHT, exact_model, odds, single_edit
from torch import Tensor

import blip
from blip.errors import InputError
from blip.inference.inputs import OneImage
from blip.inference.predictor import Predictor
from blip.interpret.causes.metrics import OneText
from blip.interpret.recording import TraceError


@pytest.fixture(scope="module")
def exact(tiny_checkpoint: Path) -> Predictor:
    return exact_model(tiny_checkpoint)


@pytest.fixture
def images(exact: Predictor, pictures: list[Path]) -> list[Tensor]:
    return [image.double() for image in exact.pixels(pictures)]


def value(m: Predictor, pair: tuple) -> float:
    return float(odds(m, [pair[0]], [pair[1]]).detach())


@pytest.mark.parametrize(
    ("points", "by"),
    [
        (["text.*.self.z", "text.*.cross.q", "text.0.cross.z"], ("head", "token")),
        (["text.*.mlp", "text.*.in", "text.*.out"], "token"),
        (["image.*.attn.k", "text.*.cross.v"], ("head", "patch")),
        (["text.0.self.pattern", "text.1.cross.pattern", "image.0.attn.z"], "head"),
    ],
)
def test_attribution_is_the_slope_of_patching_a_single_place(
    exact: Predictor, images: list[Tensor], points: list[str], by: str | tuple
) -> None:
    clean, corrupt = (images[0], LEFT), (images[1], RIGHT)
    estimates = blip.attribute(exact, clean, corrupt, metric=odds, points=points, by=by)
    names = estimates.coords["point"]
    with torch.no_grad(), blip.trace(exact, names) as of_clean:
        odds(exact, [clean[0]], [clean[1]])
    with torch.no_grad(), blip.trace(exact, names) as of_corrupt:
        odds(exact, [corrupt[0]], [corrupt[1]])

    def moved(point: str, head: int | None, position: int | None, step: float) -> float:
        target = of_corrupt[point] + step * (of_clean[point] - of_corrupt[point])
        with torch.no_grad(), blip.trace(exact, edit={point: single_edit(head, position, lambda x: target)}):
            return value(exact, corrupt)

    checked = 0
    for place, estimate in enumerate(estimates.values.ravel()):
        labels = estimates.labels_at(place)
        axis = next((dim for dim in ("token", "patch") if dim in labels), "")
        position = [*estimates.coords[axis]].index(labels[axis]) if axis else None
        if np.isnan(estimate):
            assert of_clean[labels["point"]].shape[-2] <= (position or 0)
        elif place % 3 == 0 or estimates.values.size < 10:
            head, step = int(labels["head"]) if "head" in labels else None, 1e-4
            slope = moved(labels["point"], head, position, step) - moved(labels["point"], head, position, -step)
            assert estimate == pytest.approx(slope / (2 * step), rel=1e-6, abs=1e-7), labels
            checked += 1
    assert checked >= 3


def test_integrated_gradients_add_up_to_the_difference(exact: Predictor, images: list[Tensor]) -> None:
    clean, corrupt = (images[0], LEFT), (images[0], RIGHT)  # the image is the same: all differences pass text.0.in
    difference = value(exact, clean) - value(exact, corrupt)
    points = ["text.0.in", "text.0.out", "text.1.out"]
    whole = blip.attribute(exact, clean, corrupt, metric=odds, points=points, by="token", steps=24)
    assert whole.sum("token").values == pytest.approx(np.full(3, difference), abs=1e-4)
    linear = blip.attribute(exact, clean, corrupt, metric=odds, points=points, by="token").sum("token").values
    assert np.abs(linear - difference).max() > 0.01, "one step is not exact here, so more steps are seen to help"
    # the image's states are all that differs between images
    other = (images[1], LEFT)
    of_image = blip.attribute(exact, clean, other, metric=odds, points="image.*.out", by="patch", steps=24)
    difference = value(exact, clean) - value(exact, other)
    assert of_image.sum("patch").values == pytest.approx(np.full(2, difference), abs=1e-4)


def test_heads_together_add_up_to_the_effect_of_patching_the_point(exact: Predictor, images: list[Tensor]) -> None:
    clean, corrupt = (images[0], LEFT), (images[1], RIGHT)
    options = {"metric": odds, "points": ["text.*.z", "image.1.attn.z"]}
    heads = blip.attribute(exact, clean, corrupt, steps=24, **options).sum("head")
    real = blip.patch_sweep(exact, corrupt, clean, by="layer", **options)
    for point, found in zip(heads.coords["point"], heads.values, strict=True):
        stack, number, part = point.split(".", 2)
        expected = real.select(layer=f"{stack}.{number}", part=part).values
        assert found == pytest.approx(float(expected), abs=1e-4), point


def test_layers_heads_and_tokens_are_sums_of_the_same_numbers(exact: Predictor, images: list[Tensor]) -> None:
    pairs = (images[0], LEFT), (images[1], RIGHT)
    both = blip.attribute(exact, *pairs, metric=odds, points="text.*.self.z", by=("head", "token"))
    assert both.dims == ("point", "head", "token") and both.unit == "odds"
    assert [*both.coords["token"]][:3] == ["0 start", "1 a", "2 small"]
    heads = blip.attribute(exact, *pairs, metric=odds, points="text.*.self.z")
    tokens = blip.attribute(exact, *pairs, metric=odds, points="text.*.self.z", by="token")
    layers = blip.attribute(exact, *pairs, metric=odds, points="text.*.self.z", by="layer")
    assert np.allclose(both.sum("token").values, heads.values)
    assert np.allclose(np.nan_to_num(both.sum("head").values), np.nan_to_num(tokens.values))
    assert np.allclose(heads.sum("head").values, layers.values[:, 0])


def test_agreement_with_patching(exact: Predictor, images: list[Tensor]) -> None:
    clean, corrupt = (images[0], LEFT), (images[1], RIGHT)
    estimates = blip.attribute(exact, clean, corrupt, metric=odds, points="text.*.z", verify=8)
    real = blip.patch_sweep(exact, corrupt, clean, metric=odds, points="text.*.z")
    difference = np.abs(estimates.values - real.values)
    assert estimates.notes["patched"] == 8
    assert estimates.notes["largest difference"] == pytest.approx(difference.max(), rel=1e-9)
    assert estimates.notes["correlation"] == pytest.approx(
        np.corrcoef(estimates.values.ravel(), real.values.ravel())[0, 1], rel=1e-9
    )
    assert "correlation: " in str(estimates)
    few = blip.attribute(exact, clean, corrupt, metric=odds, points="text.*.z", verify=3)
    assert few.notes["patched"] == 3


def test_captions_and_cosines(exact: Predictor, images: list[Tensor]) -> None:
    clean, corrupt = (images[0], LEFT), (images[1], RIGHT)
    for metric, points in (("caption", "decoder.*.z"), ("cosine", ["text.*.z", "image.*.attn.z"])):
        found = blip.attribute(exact, clean, corrupt, metric=metric, points=points)
        assert (np.abs(found.values[~np.isnan(found.values)]) > 0).any()
    assert all(point.endswith((".self.z", ".attn.z")) for point in found.coords["point"]), "no text attends to images"


def test_two_forward_passes_and_nothing_stays_behind(exact: Predictor, images: list[Tensor]) -> None:
    passes = []
    handle = exact.model.text_encoder.embeddings.register_forward_hook(lambda *_: passes.append(1))
    blip.attribute(
        exact, (images[0], LEFT), (images[1], RIGHT), metric=odds, points=["text.*.z", "text.*.out"], by="token"
    )
    handle.remove()
    assert len(passes) == 2
    for module in exact.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module.training
    assert all(p.grad is None and p.requires_grad for p in exact.model.parameters()) and not exact.differentiable


def test_messages(exact: Predictor, images: list[Tensor]) -> None:
    def says(
        message: str, error: type[Exception] = InputError, *, clean: object = (images[0], LEFT), **options
    ) -> None:
        with pytest.raises(error, match=message):
            blip.attribute(exact, clean, (images[1], RIGHT), **{"metric": odds, **options})  # type: ignore[arg-type]

    def without_gradient(m: Predictor, images: Sequence[OneImage], texts: Sequence[OneText]) -> Tensor:
        return odds(m, images, texts).detach()

    def of_text_alone(m: Predictor, images: Sequence[OneImage], texts: Sequence[OneText]) -> Tensor:
        return odds(m, images, texts) * 0 + m.encode_text([str(text) for text in texts]).sum(dim=1).double()

    says("metric is 'odd'", metric="odd")
    says(r"'a lesion' has 4 tokens and .* has 7", clean=(images[0], "a lesion"))
    says("the metric has no gradient", metric=without_gradient)
    says("no point of this model is called 'txt.0.z'; nearest", TraceError, points="txt.0.z")
    says(r"nothing passed through decoder\.0\.cross\.z", TraceError, points="decoder.*.z")
    says("2 passes go through text.0.self.z", TraceError, metric=of_text_alone)
    says("steps is 0", steps=0)
    says("steps is 1 and verify -1", verify=-1)
