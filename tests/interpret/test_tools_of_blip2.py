"""The tools for reading a model with a BLIP-2: what works equals a loop of edits, the rest ends in messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.running import code_and_text
from helpers.tiny import spread, tiny_blip2, tiny_qformer
from PIL import Image

import blip
from blip.errors import BlipError
from blip.inference.blip2 import Blip2Predictor
from blip.interpret import map_controls
from blip.interpret.activation_shards import read_shards
from blip.interpret.activations import Capture, capture
from blip.interpret.causes.ablation import Ablator
from blip.interpret.causes.metrics import METRICS
from blip.interpret.explain import explain_pairs
from blip.interpret.explain_files import Wanted
from blip.interpret.features.sae import check_point
from blip.interpret.features.sae_report import _marked
from blip.interpret.lenses import image_lens
from blip.interpret.map_boxes import Boxed
from blip.interpret.map_scores import MapScorer, Scoring, methods_of
from blip.tokenizer import Tokenizer

TEXTS = ["a bright left lesion", "a dark right lesion"]


@pytest.fixture(scope="module")
def model() -> Blip2Predictor:
    torch.manual_seed(0)
    words = Tokenizer.train(TEXTS, 60)
    made = spread(tiny_blip2(qformer=tiny_qformer(vocab_size=words.dec_id + 1)), std=0.3)
    return Blip2Predictor(made, words, {"task": "blip2"})


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    noise = np.random.default_rng(7)
    return [Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]


def test_maps_are_scored(model: Blip2Predictor, images: list) -> None:
    records = [Boxed(str(i), image, text, "", []) for i, (image, text) in enumerate(zip(images, TEXTS, strict=False))]
    for task in ("match", "caption"):
        scorer = MapScorer(model, records, Scoring(task, scores=("curves", "sanity"), steps=2))
        assert methods_of(model) == ["gradcam", "raw", "rollout"]
        lines = scorer.table(["gradcam"])
        assert [line.maps for line in lines[:3]] == ["own", "other text", "random model"]
        explained = explain_pairs(model, images[:2], TEXTS, task=task, method="gradcam")
        expected, _ = scorer.curves(torch.stack([one.sentence for one in explained]))
        assert lines[0].curves["deletion"] == pytest.approx(expected.mean(dim=0).tolist())
        assert list(lines[0].cascade) == [
            "heads", *(f"qformer.{n}" for n in (3, 2, 1, 0)), "image.1", "image.0", "embeddings"
        ]  # fmt: skip
        before = model.model.qformer.head.transform.weight.clone()
        *_, (_, random) = map_controls.randomised(model, scorer.objective)
        assert isinstance(random, Blip2Predictor)
        assert not torch.equal(random.model.qformer.queries, model.model.qformer.queries)
        assert torch.equal(model.model.qformer.head.transform.weight, before)


PLACES = [
    (["qformer.*.self.z", "qformer.*.cross.z", "qformer.*.cross.v", "qformer.1.self.q"], "head"),
    (["qformer.*.in", "qformer.*.out", "qformer.*.mlp", "qformer.0.query_mlp"], "token"),
    (["qformer.2.self.z"], ("head", "token")),
]


@pytest.mark.parametrize("metric", ["match", "cosine", "caption"])
@pytest.mark.parametrize(("points", "by"), PLACES)
def test_a_sweep_equals_a_loop_of_single_edits(
    model: Blip2Predictor, images: list, metric: str, points: list[str], by: str | tuple
) -> None:
    """Also where queries and text pass one after the other: their tokens stand side by side."""
    score, queries = METRICS[metric], model.model.qformer.config.queries
    base, source = ((image, text) for image, text in zip(images, TEXTS, strict=False))
    effects = blip.patch_sweep(model, base, source, metric=metric, points=points, by=by)
    with blip.trace(model, points) as other:
        score(model, [source[0]], [source[1]])
    plain = float(score(model, [base[0]], [base[1]]))
    for place, found in enumerate(effects.values.ravel()):
        labels = effects.labels_at(place)
        point, head = labels["point"], int(labels["head"]) if "head" in labels else None
        passes = iter(other.all(point))
        token = None
        if "token" in labels:
            name, number = labels["token"].split()
            token = int(number) - 1 if name == "query" else int(name) + queries * (not point.endswith(".mlp"))
        if np.isnan(found):
            assert (token is not None and token >= sum(x.shape[-2] for x in other.all(point))) or "mlp" in point, labels
            continue
        begin = 0

        def edit(x: torch.Tensor, head: int | None = head, token: int | None = token, passes=passes) -> torch.Tensor:  # type: ignore[no-untyped-def]
            nonlocal begin
            given, heads = next(passes), slice(None) if head is None else head
            at = slice(None) if token is None else slice(max(token - begin, 0), max(token + 1 - begin, 0))
            begin += x.shape[-2]
            where = (slice(None), heads, at) if x.dim() == 4 else (slice(None), at)
            x[where] = given[where]
            return x

        with blip.trace(model, edit={point: edit}):
            expected = float(score(model, [base[0]], [base[1]])) - plain
        assert found == pytest.approx(expected, abs=2e-5), labels
    assert np.nanmax(np.abs(effects.values)) > 2e-4


@pytest.mark.parametrize("metric", ["cosine", "caption"])
def test_other_tools_where_queries_and_text_pass_one_after_the_other(
    model: Blip2Predictor, images: list, metric: str
) -> None:
    pairs = list(zip(images, TEXTS, strict=False))
    for by in ("head", "mlp", "layer"):
        for method in ("zero", "mean", "resample"):
            assert not np.isnan(blip.ablate(model, pairs, metric=metric, by=by, method=method).changes).any()
    added = Ablator(model, pairs, by="layer", metric=metric, method="zero", seed=0, batch_size=8).added(pairs[0])
    with blip.trace(model, ["qformer.3.in", "qformer.3.out"]) as t:
        METRICS[metric](model, [images[0]], [TEXTS[0]])
    stays, adds = added["qformer.3.out"]
    torch.testing.assert_close(stays + adds, torch.cat(t.all("qformer.3.out"), dim=1)[0])
    first = [x[0, : len(y[0])] for x, y in zip(t.all("qformer.3.in"), t.all("qformer.3.out"), strict=True)]
    torch.testing.assert_close(stays, torch.cat(first))
    # everything passes through the text's first state, or the queries' keys: the integrated gradient is the whole
    effects = blip.attribute(model, *pairs, metric=metric, points="qformer.1.in", by="layer", steps=24)
    patched = blip.patch_sweep(model, pairs[1], pairs[0], metric=metric, points="qformer.1.in", by="layer")
    assert float(effects.values[0, 0]) == pytest.approx(float(patched.values[0, 0]), abs=2e-3)
    for point in ("qformer.1.self.k", "qformer.1.self.pattern"):
        with pytest.raises(BlipError, match=rf"2 passes go through {point} in this metric"):
            blip.patch_sweep(model, *pairs, metric=metric, points=point)


def test_what_a_metric_does_not_read_has_no_effect(model: Blip2Predictor, images: list) -> None:
    """A caption reads keys and values of the queries in each layer, and nothing of their last network."""
    pairs = [(image, TEXTS[0]) for image in images[:2]]
    for steps in (1, 2):
        found = blip.attribute(model, *pairs, metric="caption", points="qformer.*.query_mlp", by="layer", steps=steps)
        last = found.select(layer=found.coords["layer"][-1], part="query_mlp").values
        assert float(last) == 0 and np.abs(found.values).max() > 1e-4
    with pytest.raises(BlipError, match="the metric has no gradient at these points"):
        blip.attribute(model, *pairs, metric="caption", points="queries", by="layer")


def test_lenses_of_patches_are_of_cls(model: Blip2Predictor, images: list) -> None:
    with pytest.raises(BlipError, match="projected from its queries, not from patches"):
        blip.patch_lens(model, images, TEXTS)
    with blip.trace(model, "image.*.out") as t:
        model.match_logits(images[:2], TEXTS)
    with pytest.raises(BlipError, match="projected from its queries, not from patches"):
        image_lens(t, model.encode_text(TEXTS))


def test_activations_of_captions(model: Blip2Predictor, images: list, tmp_path: Path) -> None:
    for number, image in enumerate(images[:2]):
        image.save(tmp_path / f"{number}.png")
    wanted = [Wanted(tmp_path / f"{number}.png", text) for number, text in enumerate(TEXTS)]
    points = ["qformer.0.cross.z", "qformer.1.query_mlp", "queries"]
    capture(model, wanted, Capture("w", "d", points, "caption"), tmp_path / "a")
    ((_, tensors),) = read_shards(tmp_path / "a")
    with blip.trace(model, points) as t:
        METRICS["caption"](model, images[:2], TEXTS)
    for point in points:
        torch.testing.assert_close(tensors[point], t[point], rtol=1e-4, atol=1e-5)
    with pytest.raises(BlipError, match=r"2 passes go through qformer\.0\.out in the task caption"):
        capture(model, wanted, Capture("w", "d", ["qformer.0.out"], "caption"), tmp_path / "b")
    capture(model, wanted, Capture("w", "d", points[1:], "match", pool="first"), tmp_path / "c")


def test_features_of_queries_are_named(model: Blip2Predictor) -> None:
    queries = model.model.qformer.config.queries
    for point in ("queries", "qformer.1.query_mlp", "qformer.0.out"):
        check_point(point)
        assert _marked(model, TEXTS[0], 1, {"point": point}) == ("", f"query 2 of {queries}", f"with: {TEXTS[0]}")
    ids = model.ids(TEXTS[:1])[0][0].tolist()
    second = model.tokenizer.token(ids[1])
    assert _marked(model, TEXTS[0], queries + 1, {"point": "qformer.0.out"})[1] == second
    assert _marked(model, TEXTS[0], 1, {"point": "qformer.0.mlp"})[1] == second
    with pytest.raises(BlipError, match="is no state"):
        check_point("qformer.0.cross.z")


def test_items_of_several_pictures(model: Blip2Predictor, images: list) -> None:
    """One picture more is one picture's patches more, of which each is patched alone."""
    base, source = (blip.Study(images[:2]), TEXTS[0]), (blip.Study(images[1:]), TEXTS[0])
    effects = blip.patch_sweep(model, base, source, points="qformer.0.cross.v", by="patch")
    assert effects.coords["patch"][17] == "picture 2 cls" and len(effects.coords["patch"]) == 34
    with blip.trace(model, "qformer.0.cross.v") as other:
        METRICS["match"](model, [source[0]], [source[1]])
    plain = float(METRICS["match"](model, [base[0]], [base[1]]))
    for position in (3, 17, 33):

        def edit(v: torch.Tensor, position: int = position) -> torch.Tensor:
            v[:, :, position] = other["qformer.0.cross.v"][:, :, position]
            return v

        with blip.trace(model, edit={"qformer.0.cross.v": edit}):
            expected = float(METRICS["match"](model, [base[0]], [base[1]])) - plain
        assert effects.values[0, position] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(BlipError, match="give each picture of a study as an image of its own"):
        blip.attention_facts(model, [base[0]], [base[1]], task="match")


def test_the_verb_ablates_the_first_stage(
    model: Blip2Predictor, images: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = []
    for number, (image, text) in enumerate(zip(images, TEXTS, strict=False)):
        image.save(tmp_path / f"{number}.png")
        records.append({"image": f"{number}.png", "caption": text})
    (tmp_path / "set.json").write_text(json.dumps(records))
    monkeypatch.setattr("blip.interpret.causes.cli.load_model", lambda *_: model)
    command = ["ablate", tmp_path / "set.json", "--checkpoint", tmp_path / "set.json"]
    code, said = code_and_text(*command, "--out", tmp_path / "a")
    assert code == 0 and "components, 2 pairs" in said, said
    found = json.loads((tmp_path / "a" / "ablation.json").read_text())["components"]
    expected = blip.ablate(model, list(zip(images, TEXTS, strict=False))).ranked()
    assert {one["point"].rpartition(".")[0] for one in found} >= {"image.1.attn", "qformer.0.cross", "qformer.1.self"}
    assert found[0]["mean"] == pytest.approx(expected[0].change.mean, abs=1e-4)
    code, said = code_and_text(*command, "--out", tmp_path / "b", "--metric", "caption")
    assert code == 0 and "2 pairs; of the whole model" in said, said
    monkeypatch.setitem(model.info, "language_model", "opt")
    code, said = code_and_text(*command, "--out", tmp_path / "c")
    assert code == 1 and "the first stage of BLIP-2, and this is the second stage" in said, said
