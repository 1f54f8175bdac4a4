"""Causes in items of several pictures: equal to loops of single edits, and named by picture and patch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exact_effects import LEFT, RIGHT, exact_model, odds
from helpers.running import run_verb
from torch import Tensor

import blip
from blip.errors import BlipError
from blip.inference.predictor import Predictor
from blip.interpret.causes.ablation import Ablator, Component
from blip.interpret.causes.donors import fitted
from blip.interpret.causes.metrics import METRICS
from blip.interpret.recording import Trace

Pair = tuple[blip.Study, str]


@pytest.fixture(scope="module")
def exact(tiny_checkpoint: Path) -> Predictor:
    return exact_model(tiny_checkpoint)


@pytest.fixture
def pairs(exact: Predictor, pictures: list[Path]) -> list[Pair]:
    """Two items of two pictures."""
    first, second, third = exact.pixels(pictures).double()
    return [(blip.Study([first, second]), LEFT), (blip.Study([third, first]), RIGHT)]


def value(m: Predictor, pair: Pair) -> float:
    return float(odds(m, [pair[0]], [pair[1]]).detach())


def read(m: Predictor, pair: Pair, points: list[str]) -> Trace:
    with torch.no_grad(), blip.trace(m, points) as t:
        odds(m, [pair[0]], [pair[1]])
    return t


def where(point: str, labels: dict[str, str], grid: list[str]) -> tuple:
    """The place of labels in what passes through a point: of the image encoder a row a picture."""
    head = int(labels["head"]) if "head" in labels else slice(None)
    if "patch" not in labels:
        return (slice(None), head)
    _, number, patch = labels["patch"].split(" ")
    picture, position = int(number) - 1, grid.index(patch)
    if point.startswith("image."):
        return (picture, head, position) if ".attn." in point else (picture, position)
    return (slice(None), head, picture * len(grid) + position)


def loop(m: Predictor, base: Pair, source: Pair, effects: blip.Labelled) -> Iterator[tuple[float, float]]:
    """(of the sweep, of a single edit) for each number of a sweep."""
    other, plain = read(m, source, list(effects.coords["point"])), value(m, base)
    grid = ["cls", *(f"{row},{column}" for row in range(2) for column in range(2))]
    for place, found in enumerate(effects.values.ravel()):
        labels = effects.labels_at(place)
        point = labels["point"]

        def edit(x: Tensor, point: str = point, at: tuple = where(point, labels, grid)) -> Tensor:
            x[at] = other[point][at]
            return x

        with torch.no_grad(), blip.trace(m, edit={point: edit}):
            yield found, value(m, base) - plain


@pytest.mark.parametrize(
    ("points", "by"),
    [
        (["image.*.attn.v", "text.*.cross.[kv]"], "patch"),
        (["image.*.in", "image.0.mlp"], "patch"),
        (["image.1.attn.z"], ("head", "patch")),
        (["image.*.attn.z", "text.*.z", "text.1.cross.k", "image.0.attn.pattern"], "head"),
    ],
)
def test_a_sweep_equals_a_loop_of_single_edits(
    exact: Predictor, pairs: list[Pair], points: list[str], by: str | tuple
) -> None:
    effects = blip.patch_sweep(exact, *pairs, metric=odds, points=points, by=by, batch_size=40)
    if "patch" in by:
        assert effects.coords["patch"][:2] == ["picture 1 cls", "picture 1 0,0"]
        assert effects.coords["patch"][5] == "picture 2 cls" and len(effects.coords["patch"]) == 10
    both = list(loop(exact, *pairs, effects))
    assert all(found == pytest.approx(expected, abs=1e-9) for found, expected in both)
    assert len({round(expected, 7) for _, expected in both}) > len(both) // 2, "the effects differ"


def test_frozen_layers_keep_the_values_of_all_pictures(exact: Predictor, pairs: list[Pair]) -> None:
    """What a patch of the last but one block changes then passes through residuals alone."""
    base, source = pairs
    found = blip.patch_sweep(exact, base, source, metric=odds, points="image.0.mlp", by="layer", freeze=True)
    other, clean = read(exact, source, ["image.0.mlp"]), read(exact, base, ["image.1.attn.z", "image.1.mlp"])
    edits = {"image.0.mlp": lambda x: other["image.0.mlp"]}
    edits |= {name: lambda x, n=name: clean[n] for name in ("image.1.attn.z", "image.1.mlp")}  # type: ignore[misc]
    with torch.no_grad(), blip.trace(exact, edit=edits):
        expected = value(exact, base)
    assert float(found.values[0, 0]) == pytest.approx(expected - value(exact, base), abs=1e-9) != 0


def test_a_last_block_that_gives_cls_alone(model: Predictor, pictures: list[Path]) -> None:
    base, source = ((blip.Study(pictures[start : start + 2]), LEFT) for start in (0, 1))
    effects = blip.patch_sweep(model, base, source, metric="cosine", points=["image.*.out"], by="patch")
    last = effects.select(point="image.1.out")
    computed = [label for label, one in zip(last.coords["patch"], last.values, strict=True) if not np.isnan(one)]
    assert computed == ["picture 1 cls", "picture 2 cls"] and not np.isnan(effects.values[0]).any()
    whole = METRICS["cosine"](model, [source[0]], [LEFT]) - METRICS["cosine"](model, [base[0]], [LEFT])
    both = blip.patch_sweep(model, base, source, metric="cosine", points=["image.1.out"], by="layer")
    assert float(both.values[0, 0]) == pytest.approx(float(whole), abs=1e-6)


def test_attribution_is_the_slope_and_adds_up(exact: Predictor, pairs: list[Pair]) -> None:
    corrupt, clean = pairs
    clean = (clean[0], corrupt[1])
    target, start = (read(exact, pair, ["image.0.attn.z"])["image.0.attn.z"] for pair in (clean, corrupt))
    slopes = blip.attribute(exact, clean, corrupt, metric=odds, points="image.0.attn.z", by=("head", "patch"))
    for label, picture, position in (("picture 1 cls", 0, 0), ("picture 2 0,1", 1, 2)):
        moved = []
        for step in (-1e-4, 1e-4):

            def edit(z: Tensor, step: float = step, at: tuple = (picture, 1, position)) -> Tensor:
                z[at] = start[at] + step * (target[at] - start[at])
                return z

            with torch.no_grad(), blip.trace(exact, edit={"image.0.attn.z": edit}):
                moved.append(value(exact, corrupt))
        slope = (moved[1] - moved[0]) / 2e-4
        place = slopes.select(point="image.0.attn.z", head="1", patch=label)
        assert float(place.values) == pytest.approx(slope, rel=1e-6)
    whole = blip.attribute(exact, clean, corrupt, metric=odds, points="image.0.in", by="patch", steps=24, verify=2)
    assert float(whole.values.sum()) == pytest.approx(value(exact, clean) - value(exact, corrupt), abs=1e-4)


def test_paths_from_all_pictures(exact: Predictor, pairs: list[Pair]) -> None:
    base, source = pairs
    sender, receiver = "image.1.attn.z", "text.0.cross.k"
    found = blip.path_patch(exact, base, source, senders=sender, receivers=receiver, metric=odds, by="layer")
    other, clean = read(exact, source, [sender]), read(exact, base, ["image.1.mlp"])
    edits = {sender: lambda z: other[sender], "image.1.mlp": lambda x: clean["image.1.mlp"]}
    with torch.no_grad(), blip.trace(exact, receiver, edits) as arriving:
        value(exact, base)
    with torch.no_grad(), blip.trace(exact, edit={receiver: lambda k: arriving[receiver]}):
        expected = value(exact, base)
    assert float(found.values[0, 0]) == pytest.approx(expected - value(exact, base), abs=1e-9) != 0


def test_items_of_as_many_pictures_correspond(model: Predictor, pictures: list[Path]) -> None:
    pair = blip.Study(pictures[:2]), LEFT
    for other in ((pictures[0], LEFT), (blip.Study(pictures), LEFT)):
        with pytest.raises(BlipError, match=r"has 2 pictures and the other [13]: .* give items of as many"):
            blip.patch_sweep(model, pair, other)
    with pytest.raises(BlipError, match="give each picture of a study as an image of its own"):
        blip.patch_lens(model, [pair[0]], LEFT)
    with pytest.raises(BlipError, match="give each picture of a study as an image of its own"):
        blip.attention_facts(model, [pair[0]], [LEFT], task="match")
    table = blip.contributions(model, [pair[0]], LEFT, by="patch")
    assert list(table.coords["patch"])[5:7] == ["picture 2 CLS", "picture 2 0,0"]


# ---- ablation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_ablation_equals_traced_edits(model: Predictor, pictures: list[Path], method: str) -> None:
    """An item of two pictures, one of three and one picture alone."""
    images = [blip.Study(pictures[:2]), blip.Study(pictures), pictures[2]]
    pairs = list(zip(images, [LEFT, LEFT, RIGHT], strict=True))
    point, how = "image.0.attn.z", {"by": "head", "metric": "match", "seed": 0, "batch_size": 9}
    ablator = Ablator(model, pairs, method=method, **how)  # type: ignore[arg-type]
    column = ablator.components.index(Component(point, 1))
    values = [read(model, pair, [point])[point][:, 1] for pair in pairs]  # type: ignore[arg-type]  # (F, T, d) each
    mean = torch.cat(values).mean(dim=0)
    for number, pair in enumerate(pairs):

        def edit(z: Tensor, number: int = number) -> Tensor:
            other = values[next(ablator.donors.of(number))] if ablator.donors else mean[None]
            for picture in range(len(z)):
                given = mean if method == "mean" else other[min(picture, len(other) - 1)]
                z[picture, 1] = 0 if method == "zero" else given
            return z

        plain = float(METRICS["match"](model, [pair[0]], [pair[1]]))
        with blip.trace(model, edit={point: edit}):
            expected = float(METRICS["match"](model, [pair[0]], [pair[1]])) - plain
        clean, changes = ablator.of_pair(number)
        assert clean == pytest.approx(plain, abs=1e-5) and changes[column] == pytest.approx(expected, abs=1e-5)


def test_what_a_layer_adds_for_cls_of_each_picture(model: Predictor, pictures: list[Path]) -> None:
    pair = blip.Study(pictures[:2]), LEFT
    ablator = Ablator(model, [pair], by="layer", metric="cosine", method="zero", seed=0, batch_size=9)
    with torch.no_grad(), blip.trace(model, ["image.1.in", "image.1.out"]) as t:
        METRICS["cosine"](model, [pair[0]], [pair[1]])
    stays, adds = ablator.added(pair)["image.1.out"]
    torch.testing.assert_close(stays, t["image.1.in"][:, 0])
    torch.testing.assert_close(stays + adds, t["image.1.out"][:, 0])


def test_values_of_other_numbers_of_pictures() -> None:
    values = torch.arange(6.0)[:, None]  # two pictures of three tokens
    assert fitted(values, 9, pictures=(2, 3))[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert fitted(values, 3, pictures=(2, 1))[:, 0].tolist() == [0, 1, 2]


def test_the_verb_reads_records_of_several_pictures(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    names = [str(phantoms / "images" / f"00000{number}.png") for number in range(3)]
    records = [
        {"images": names[:2], "caption": LEFT},
        {"images": [names[0], "gone.png"], "caption": LEFT},
        {"image": names[2], "caption": RIGHT},
    ]
    (tmp_path / "studies.json").write_text(json.dumps(records))
    done = run_verb("ablate", tmp_path / "studies.json", "--checkpoint", tiny_checkpoint, "--out", tmp_path / "out",
                    "--by", "mlp", "--method", "resample")  # fmt: skip
    assert done.exit_code == 1 and "gone.png" in done.output and "4 components, 2 pairs" in done.output, done.output
    model = blip.load(tiny_checkpoint)
    pairs = [(blip.Study(names[:2]), LEFT), (names[2], RIGHT)]
    expected = blip.ablate(model, pairs, by="mlp", method="resample").ranked()
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [one["point"] for one in content["components"]] == [effect.component.point for effect in expected]
    assert content["components"][0]["mean"] == pytest.approx(expected[0].change.mean, abs=1e-5)
