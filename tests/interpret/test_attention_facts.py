"""Facts about attention equal those of plain loops over single pairs, also through the queries of BLIP-2."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bad_finetune_cases import answerer
from helpers.tiny import spread, tiny_blip2, tiny_qformer, tiny_vit
from torch import Tensor

import blip
from blip.errors import BlipError
from blip.inference.blip2 import Blip2Predictor
from blip.inference.predictor import Predictor
from blip.interpret.attention_facts import AttentionFacts
from blip.interpret.attention_sums import HeadSums
from blip.interpret.explain import word_spans
from blip.interpret.objectives import explained
from blip.tokenizer import Tokenizer

TEXTS = ["a small bright lesion on the left", "head with a large lesion", "normal chest"]
CLASSES = {"size": ["small", "Large"], "side": ["left", "right"]}


def facts_of(m: Predictor, pictures: list[Path], **options: object) -> AttentionFacts:
    return blip.attention_facts(m, pictures, TEXTS, classes=CLASSES, **options)  # type: ignore[arg-type]


def names_of_tokens(m: Predictor, text: str, first: str) -> list[str]:
    names = [first] + ["?"] * (m.tokenizer.count([text])[0] - 2) + ["[SEP]"]
    for word, span in word_spans(m, text):
        of_word = {"small": "size", "large": "size", "left": "side"}.get(word, "other words")
        names[span] = [of_word] * (span.stop - span.start)
    return names


@pytest.mark.parametrize(("task", "stack"), [("match", "text"), ("caption", "decoder")])
def test_facts_are_those_of_a_loop(model: Predictor, pictures: list[Path], task: str, stack: str) -> None:
    facts = facts_of(model, pictures, task=task, batch_size=2)
    layer, head = f"{stack}.0.cross", 1
    first = "[ENC]" if task == "match" else "[DEC]"
    rows, reads, classes = [], [], []
    for picture, text in zip(pictures, TEXTS, strict=True):
        with blip.trace(model, [f"{layer}.pattern", f"{layer}.z"]) as t:
            explained(model, task).scores(model, [picture], [text])
        for token, name in enumerate(names_of_tokens(model, text, first)):
            rows.append(t.pattern(layer)[0, :, token].double().numpy())  # (H, 1+N)
            reads.append(t[f"{layer}.z"][0, :, token].double().numpy())  # (H, d)
            classes.append(name)
    assert "?" not in classes and facts.maps.coords["class"] == [first, "size", "side", "other words", "[SEP]"]
    entropy = np.mean([-(p[head] * np.log2(p[head])).sum() for p in rows])
    assert facts.entropy.select(layer=layer, head="1").values == pytest.approx(entropy)
    assert facts.entropy.notes["most"] == pytest.approx(np.log2(rows[0].shape[1]))
    assert facts.on_cls.select(layer=layer, head="1").values == pytest.approx(np.mean([p[head, 0] for p in rows]))
    for name in set(classes):
        expected = np.mean([p[head, 1:] for p, own in zip(rows, classes, strict=True) if own == name], axis=0)
        found = facts.maps.select(**{"class": name}, layer=layer, head="1").values
        np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-7)
    agreement = []
    for p in rows:
        middle = (p[0] + p[1]) / 2
        agreement.append(1 - sum((x * np.log2(x / middle)).sum() for x in p[:2]) / 2)
    assert facts.agreement.select(layer=layer, head="0", other="1").values == pytest.approx(np.mean(agreement))
    x, y = (np.stack([read[h] for read in reads]) for h in (0, 1))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    cka = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert facts.similarity.select(layer=layer, head="1", other="0").values == pytest.approx(cka, rel=1e-4)
    assert facts.redundancy.select(layer=layer, head="1").values == pytest.approx(cka, rel=1e-4)  # of two heads


def test_the_last_layer_of_a_match_runs_for_one_token(model: Predictor, pictures: list[Path]) -> None:
    maps = facts_of(model, pictures).maps.select(layer="text.1.cross", head="0")
    assert not np.isnan(maps.select(**{"class": "[ENC]"}).values).any()
    assert np.isnan(maps.select(**{"class": "side"}).values).all()


def test_batches_do_not_matter(model: Predictor, pictures: list[Path]) -> None:
    one, other = facts_of(model, pictures, batch_size=1), facts_of(model, pictures, batch_size=3)
    for name in ("entropy", "maps", "agreement", "similarity"):
        a, b = getattr(one, name).values, getattr(other, name).values
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_known_heads() -> None:
    """One attends to one key, one to another, one to all; what the second reads is what the first reads, rotated."""
    z = torch.randn(50, 3, 4, 8)
    z[:, 1] = 2 * z[:, 0] @ torch.linalg.qr(torch.randn(8, 8))[0] + 1
    pattern = torch.zeros(50, 3, 4, 5)
    pattern[:, 0, :, 0] = pattern[:, 1, :, 2] = 1
    pattern[:, 2] = 0.2
    classes = torch.ones(50, 4, 1)
    classes[:, 3] = 0  # padding
    pattern[:, :, 3], z[:, :, 3] = 0, 9
    sums = HeadSums()
    sums.add(pattern[:20], z[:20], classes[:20])
    sums.add(pattern[20:], z[20:], classes[20:])
    assert sums.rows == 150
    np.testing.assert_allclose(sums.mean("entropy"), [0, 0, np.log2(5)], atol=1e-12)
    assert sums.mean("on_cls").tolist() == pytest.approx([1, 0, 0.2])
    assert sums.mean("agreement")[0].tolist()[:2] == pytest.approx([1, 0]) and 0 < sums.mean("agreement")[0, 2] < 1
    similarity = sums.similarity()
    assert similarity[0, 1] == pytest.approx(1) and similarity[0, 2] < 0.3 and similarity[2, 2] == pytest.approx(1)


def test_questions_and_a_picture(tiny_checkpoint: Path, pictures: list[Path], tmp_path: Path) -> None:
    m = blip.load(answerer(tmp_path, tiny_checkpoint))
    facts = facts_of(m, pictures, answers=["yes", "no", "left"])
    assert list(facts.entropy.coords["layer"]) == ["text.0.cross", "text.1.cross"]
    facts.picture(tmp_path / "heads.png")
    facts.agreement.select(layer="text.0.cross").picture(tmp_path / "agreement.png")
    assert (tmp_path / "heads.png").read_bytes()[:4] == b"\x89PNG" and "redundancy" in str(facts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": TEXTS[:2]}, "3 images and 2 texts"),
        ({"texts": ""}, "text 1 is empty"),
        ({"task": "image"}, "match, caption or answer"),
        ({"task": "answer"}, "cannot answer"),
        ({"classes": {"a": ["left"], "b": ["Left"]}}, "'left' is in two classes"),
        ({"classes": {"side": "left"}}, "the class 'side' is a string"),
        ({"classes": {"[SEP]": ["left"]}}, "a class cannot be called"),
    ],
)
def test_bad_input(model: Predictor, pictures: list[Path], change: dict, message: str) -> None:
    with pytest.raises(BlipError, match=message):
        blip.attention_facts(model, pictures, **{"texts": TEXTS, **change})


# ---- BLIP-2 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def queries() -> Blip2Predictor:
    """The first stage with random weights; three queries, as many as the shortest text here has tokens."""
    torch.manual_seed(0)
    words = Tokenizer.train(iter(TEXTS * 9), 90)
    sizes = tiny_qformer(vocab_size=words.size, max_positions=48)
    model = spread(tiny_blip2(qformer=sizes), 0.2)
    info = {"task": "blip2", "image_encoder": asdict(tiny_vit()), "qformer": asdict(sizes), "embed_dim": 8}
    return Blip2Predictor(model, words, info, precision="fp32")


@pytest.mark.parametrize("task", ["match", "caption"])
def test_flow_through_queries(queries: Blip2Predictor, task: str) -> None:
    images = [torch.randn(3, 32, 32) for _ in range(3)]
    facts = blip.attention_facts(queries, images, TEXTS, task=task, classes=CLASSES, batch_size=2)
    assert facts.maps.coords["class"] == ["query 1", "query 2", "query 3"] and facts.flow is not None
    assert list(facts.entropy.coords["layer"]) == ["qformer.0.cross", "qformer.2.cross"]
    words, patches = facts.flow.words(), facts.flow.patches()
    layers = [0, 1, 2] if task == "match" else [0, 1, 2, 3]  # the texts' last states are not needed for a match
    assert list(words.coords["layer"]) == [f"qformer.{layer}.self" for layer in layers]
    to_queries: dict[str, list[Tensor]] = {}
    to_patches: dict[str, list[Tensor]] = {}
    for image, text in zip(images, TEXTS, strict=True):
        with blip.trace(queries, ["qformer.*.self.pattern", "qformer.*.cross.pattern"]) as t:
            explained(queries, task).scores(queries, [image], [text])
        names = names_of_tokens(queries, text, "[DEC]")
        looked = (t.pattern("qformer.0.cross") + t.pattern("qformer.2.cross")).mean(dim=1)[0, :, 1:] / 2  # (Q, N)
        for token, name in enumerate(names):
            row = token + 3 * (task == "match")
            each = [t.all(f"qformer.{n}.self.pattern")[-1].mean(dim=1)[0, row, :3] for n in layers]
            to_queries.setdefault(name, []).append(torch.stack(each))
            to_patches.setdefault(name, []).append(torch.stack(each).mean(dim=0) @ looked)
    for name in to_queries:
        expected = torch.stack(to_queries[name]).mean(dim=0).numpy()
        np.testing.assert_allclose(words.select(**{"class": name}).values, expected, rtol=1e-4, atol=1e-6)
        expected = torch.stack(to_patches[name]).mean(dim=0).view(4, 4).numpy()
        np.testing.assert_allclose(patches.select(**{"class": name}).values, expected, rtol=1e-4, atol=1e-6)
