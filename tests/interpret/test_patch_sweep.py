"""Sweeps: many patches in one pass give what a plain loop of single traced edits gives, and nothing stays behind."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exact_effects import LEFT, RIGHT, exact_model, odds, single_edit
from helpers.tiny import add_noise, tiny_qformer, tiny_vit
from torch import Tensor

import blip
from blip.errors import InputError
from blip.inference.blip2 import Blip2Predictor
from blip.inference.inputs import OneImage
from blip.inference.predictor import Predictor
from blip.interpret.causes.metrics import METRICS, OneText
from blip.interpret.causes.sweep import Source
from blip.interpret.hooks import Edit
from blip.interpret.recording import TraceError
from blip.models.blip2 import Blip2Model
from blip.models.vqa import VqaModel
from blip.tokenizer import Specials, Tokenizer


@pytest.fixture(scope="module")
def exact(tiny_checkpoint: Path) -> Predictor:
    return exact_model(tiny_checkpoint)


@pytest.fixture
def images(exact: Predictor, pictures: list[Path]) -> list[Tensor]:
    return [image.double() for image in exact.pixels(pictures)]


def loop(
    m: Predictor, base: tuple, source: tuple, *, metric: Callable, effects: blip.Labelled, frozen: bool = False
) -> Iterator[tuple[float, float]]:
    """(of the sweep, of a single edit) for each number of a sweep."""
    points = list(effects.coords["point"])
    with blip.trace(m, points) as other:
        metric(m, [source[0]], [source[1]])
    with blip.trace(m, "*") as clean:
        plain = float(metric(m, [base[0]], [base[1]]).detach())
    for place, value in enumerate(effects.values.ravel()):
        labels = effects.labels_at(place)
        point, head, token = labels["point"], labels.get("head"), labels.get("token", labels.get("patch"))
        position = None if token is None else [*effects.coords["token" if "token" in labels else "patch"]].index(token)
        if np.isnan(value):
            assert other[point].shape[-2] <= (position or 0), labels
            continue
        edit = single_edit(None if head is None else int(head), position, lambda x, p=point: other[p])
        edits: dict[str, Edit] = {point: edit}
        if frozen:
            names = blip.names(m)
            after = names[names.index(point) + 1 :]
            for name in after:
                own = name.rpartition(".")[0] == point.rpartition(".")[0] and point[-2:] in (".q", ".k", ".v")
                if name.split(".")[0] == point.split(".")[0] and name.endswith((".z", ".mlp")) and not own:
                    edits[name] = lambda x, n=name: clean[n]
        with torch.no_grad(), blip.trace(m, edit=edits):
            yield value, float(metric(m, [base[0]], [base[1]]).detach()) - plain


def assert_equal_to_a_loop(*args: object, least: int, **kwargs: object) -> None:
    pairs = list(loop(*args, **kwargs))  # type: ignore[arg-type]
    assert len(pairs) >= least
    assert all(found == pytest.approx(expected, abs=1e-9) for found, expected in pairs)
    assert len({round(expected, 7) for _, expected in pairs}) > least // 2, "the effects differ"


CASES = [
    (["text.*.z", "text.0.self.q", "text.1.self.k"], "head"),
    (["text.*.self.z"], ("head", "token")),
    (["text.*.out", "text.*.mlp", "text.0.in"], "token"),
    (["text.*.cross.[kv]", "image.*.attn.v"], "patch"),
    (["image.*.attn.z", "text.1.cross.k", "text.0.cross.pattern"], "head"),
]


@pytest.mark.parametrize(("points", "by"), CASES)
@pytest.mark.parametrize("freeze", [False, True])
def test_a_sweep_equals_a_loop_of_single_edits(
    exact: Predictor, images: list[Tensor], points: list[str], by: str | tuple, freeze: bool
) -> None:
    base, source = (images[0], LEFT), (images[1], RIGHT)
    effects = blip.patch_sweep(exact, base, source, metric=odds, points=points, by=by, freeze=freeze, batch_size=24)
    assert_equal_to_a_loop(exact, base, source, metric=odds, effects=effects, frozen=freeze, least=6)


def test_by_layer_patches_whole_points(exact: Predictor, images: list[Tensor]) -> None:
    base, source = (images[0], LEFT), (images[1], RIGHT)
    effects = blip.patch_sweep(exact, base, source, metric=odds, points=["text.*.out", "text.*.self.z"], by="layer")
    assert effects.dims == ("layer", "part") and effects.coords["layer"] == ["text.0", "text.1"]
    # the last state decides alone
    whole = float((odds(exact, [images[1]], [RIGHT]) - odds(exact, [images[0]], [LEFT])).detach())
    assert float(effects.select(layer="text.1", part="out").values) == pytest.approx(whole, abs=1e-9)
    one = blip.patch_sweep(exact, base, source, metric=odds, points="text.0.self.z", by="layer")
    assert float(effects.select(layer="text.0", part="self.z").values) == pytest.approx(float(one.values[0, 0]))


def test_captions_answers_and_cosines_are_swept_too(exact: Predictor, images: list[Tensor]) -> None:
    base, source = (images[0], LEFT), (images[1], RIGHT)
    for metric, points in (("caption", "decoder.*.z"), ("cosine", "text.*.self.z"), ("cosine", "image.*.attn.z")):
        effects = blip.patch_sweep(exact, base, source, metric=metric, points=points)
        pairs = list(loop(exact, base, source, metric=METRICS[metric], effects=effects))
        assert len(pairs) >= 4 and max(abs(value) for value, _ in pairs) > 1e-4
        assert all(found == pytest.approx(expected, abs=2e-6) for found, expected in pairs), "results are float32"


def test_answers_read_questions_of_which_every_row_has_its_own(exact: Predictor, images: list[Tensor]) -> None:
    model, text = exact.model, exact.model.text_encoder.config
    vqa = VqaModel(model.image_encoder.config, text, exact.tokenizer.specials)
    m = Predictor(add_noise(vqa, 0.3).double(), exact.tokenizer, {**exact.info, "task": "vqa"})
    base, source = (images[0], (LEFT, "a left lesion")), (images[1], (RIGHT, "a right lesion"))
    for points in ("text.*.z", "decoder.*.z", "decoder.*.cross.k"):
        effects = blip.patch_sweep(m, base, source, metric="answer", points=points)
        pairs = list(loop(m, base, source, metric=METRICS["answer"], effects=effects))
        assert len(pairs) >= 4 and max(abs(value) for value, _ in pairs) > 1e-4
        assert all(found == pytest.approx(expected, abs=1e-5) for found, expected in pairs)


@pytest.mark.parametrize("kind", ["zero", "noise", "pairs", "values", "trace"])
def test_sources(exact: Predictor, images: list[Tensor], kind: str) -> None:
    base, point = (images[0], LEFT), "text.0.self.z"
    pairs = [(images[1], RIGHT), (images[2], LEFT)]
    read = []
    for image, text in [base, *pairs]:
        with blip.trace(exact, point) as t:
            odds(exact, [image], [text])
        read.append(t[point][0])
    with torch.no_grad(), blip.trace(exact, point) as other:
        odds(exact, *([of_pair] for of_pair in pairs[0]))
    sources = {"pairs": pairs, "values": {point: read[1]}, "trace": other}
    source: Source = sources.get(kind, kind)  # type: ignore[assignment]
    effects = blip.patch_sweep(exact, base, source, metric=odds, points=point)
    again = blip.patch_sweep(exact, base, source, metric=odds, points=point)
    assert (effects.values == again.values).all()
    if kind == "noise":
        assert np.abs(effects.values).min() > 1e-6
        return
    value = {"zero": torch.zeros_like(read[0]), "pairs": (read[1] + read[2]) / 2}.get(kind, read[1])
    for head in range(len(value)):
        with torch.no_grad(), blip.trace(exact, edit={point: single_edit(head, None, lambda x: value[None])}):
            edited = odds(exact, [base[0]], [base[1]])
        expected = float(edited - odds(exact, [base[0]], [base[1]]).detach())
        assert effects.values[0, head] == pytest.approx(expected, abs=1e-9)


def test_points_of_blip2() -> None:
    words = Tokenizer.train(iter([LEFT, RIGHT] * 9), 90)
    specials = Specials(pad=words.pad_id, enc=-1, dec=words.dec_id)
    model = Blip2Model(tiny_vit(), tiny_qformer(vocab_size=words.size), specials, embed_dim=8)
    m = Blip2Predictor(add_noise(model, 0.3), words, {"task": "blip2", "queries": 3})
    base, source = ((image, text) for image, text in zip(torch.randn(2, 3, 32, 32), (LEFT, RIGHT), strict=True))
    points = ["qformer.*.z", "image.1.attn.z"]
    with torch.no_grad():
        effects = blip.patch_sweep(m, base, source, points=points, batch_size=8 * 4)
        pairs = list(loop(m, base, source, metric=METRICS["match"], effects=effects))
    assert len(pairs) == 3 * (4 + 2 + 1) and all(found == pytest.approx(value, abs=1e-5) for found, value in pairs)
    assert blip.attribute(m, base, source, points=points, verify=4, steps=3).values.shape == effects.values.shape


def test_the_image_and_layers_before_a_patch_are_computed_once(exact: Predictor, images: list[Tensor]) -> None:
    base, source = (images[0], LEFT), (images[1], RIGHT)
    image, text = exact.model.image_encoder, exact.model.text_encoder
    parts = {"image": image.blocks[0], "image.1": image.blocks[1], "text.0": text.layers[0], "text.1": text.layers[1]}
    counts: dict[str, list[int]] = {name: [] for name in parts}
    handles = []
    for name, part in parts.items():

        def count(module: object, args: tuple, output: Tensor, name: str = name) -> None:
            counts[name].append(len(output))

        handles.append(part.register_forward_hook(count))
    blip.patch_sweep(exact, base, source, metric=odds, points=["text.1.self.z", "text.1.cross.z"])
    tokens, heads = int(exact.ids([LEFT])[1]), 2
    # the source, then all patches: one image, and one row for all of them in layer 0; the last layer gives [ENC] alone
    of_texts = {"image": [1, 1], "image.1": [1, 1], "text.0": [tokens, tokens], "text.1": [1, 2 * heads + 1]}
    assert counts == of_texts
    for passes in counts.values():
        passes.clear()
    blip.patch_sweep(exact, base, source, metric=odds, points="image.1.attn.z")
    assert counts["image"] == [1, 1] and counts["image.1"] == [1, heads + 1]
    for handle in handles:
        handle.remove()


def test_nothing_stays_behind(exact: Predictor, images: list[Tensor]) -> None:
    base = (images[0], LEFT)

    def failing(m: Predictor, images: Sequence[OneImage], texts: Sequence[OneText]) -> Tensor:
        if len(texts) > 1:
            raise RuntimeError("stop")
        return odds(m, images, texts)

    blip.patch_sweep(exact, base, (images[1], RIGHT), metric=odds)
    with pytest.raises(RuntimeError, match="stop"):
        blip.patch_sweep(exact, base, "zero", metric=failing)
    for module in exact.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module.training
    assert all(p.grad is None and p.requires_grad for p in exact.model.parameters()) and not exact.differentiable


def test_messages(exact: Predictor, images: list[Tensor]) -> None:
    base, source = (images[0], LEFT), (images[1], RIGHT)

    def says(message: str, error: type[Exception] = InputError, *, to: Source = source, **options: object) -> None:
        with pytest.raises(error, match=message):
            blip.patch_sweep(exact, base, to, **{"metric": odds, **options})  # type: ignore[arg-type]

    says("metric is 'mach'", metric="mach")
    says("no point of this model is called 'text.7.z'", TraceError, points="text.7.z")
    says(r"nothing passed through decoder\.0\.cross\.z", TraceError, points=["text.*.z", "decoder.*.z"])
    says("different lengths do not correspond", to=(images[1], "a lesion"))
    says("text.0.out has no heads", points="text.*.out")
    says(r"image\.0\.attn\.z has patches, so by cannot be token", points="image.*.attn.z", by="token")
    says("by is 'word'; it can be layer", by="word")
    says("by is", by=("layer", "head"))
    says("source is 'mean'", to="mean")  # type: ignore[arg-type]
    says("no values for text.0.self.z", to={})
    says(r"value for text\.0\.self\.z is int", to={"text.0.self.z": 3}, points="text.0.self.z")  # type: ignore[dict-item]
    says(
        r"is \(3,\); it has to be a tensor of \(2, 7, 16\)",
        to={"text.0.self.z": torch.zeros(3)},
        points="text.0.self.z",
    )
    says("the list of pairs is empty", to=[])
    says("no points are named", points=[])
    with pytest.raises(InputError, match="the model is a PretrainModel; give what"):
        blip.patch_sweep(exact.model, base, source)
    exact.model.train()
    says("in training mode")
    with pytest.raises(InputError, match="in training mode"):
        blip.contributions(exact, images[0], LEFT)
    exact.model.eval()
    says("a pair is", to=(images[1],))  # type: ignore[arg-type]
    says("a pair is", to=(images[1], 3))  # type: ignore[arg-type]
    says("text 1 is empty", to=(images[1], " "))
    says("the model reads 32: shorten it", to=(images[1], "left " * 40))
    says("batch_size is 0", batch_size=0)
    says(r"the metric returned \(1, 2\) for 1 pairs", metric=lambda m, i, t: m.match_logits(i, t))

    def few(m: Predictor, images: Sequence[OneImage], texts: Sequence[OneText]) -> Tensor:
        return m.match_logits(images, [str(text) for text in texts], 2)[:, 1]

    says("passed 2 of 9 texts through the model at once", metric=few)
    with pytest.raises(InputError, match="2 pictures and the other 1"):
        blip.patch_sweep(exact, (blip.Study(images[:2]), LEFT), source, metric=odds)
