"""Contributions to the scores of BLIP-2's first stage: rows sum to the score, and parts are what components write."""

import numpy as np
import pytest
import torch
from helpers.exact_effects import odds
from helpers.tiny import spread, tiny_blip2, tiny_qformer
from torch import Tensor

import blip
from blip.errors import BlipError
from blip.inference.blip2 import Blip2Predictor
from blip.inference.inputs import OneImage
from blip.interpret.causes.labelled import Labelled
from blip.interpret.causes.metrics import METRICS
from blip.network.packing import Rows, with_first
from blip.tokenizer import Tokenizer

TEXTS = ["a bright left lesion", "a dark lesion", "right"]


def made(double: bool) -> Blip2Predictor:
    torch.manual_seed(0)
    words = Tokenizer.train(TEXTS, 60)
    model = spread(tiny_blip2(qformer=tiny_qformer(vocab_size=words.dec_id + 1)), std=0.3)
    return Blip2Predictor(model.double() if double else model, words, {"task": "blip2"})


@pytest.fixture(scope="module")
def exact() -> Blip2Predictor:
    return made(double=True)


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return list(torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def sums(table: Labelled) -> np.ndarray:
    return table.values.sum(axis=1)


def logits(m: Blip2Predictor, images: list[OneImage], captions: list[str]) -> np.ndarray:
    """Of each token of each caption but the first, as the model computes it."""
    ids, lengths = m.ids(captions, m.positions)
    rows, qformer = Rows(lengths, ids.shape[1], m.device), m.model.qformer
    with torch.no_grad():
        read = m.model.read_images(m.states(images))
        values = rows.unpack(qformer.head(qformer.write(with_first(ids, m.tokenizer.dec_id), rows, read.cache())))
    places = [(row, place) for row, length in enumerate(lengths.tolist()) for place in range(1, length)]
    return np.array([float(values[row, place - 1, ids[row, place]]) for row, place in places])


@pytest.mark.parametrize("count", [1, 3])
def test_rows_sum_to_the_score(exact: Blip2Predictor, images: list[Tensor], count: int, packed: bool) -> None:
    some, texts = images[:count], TEXTS[:count]
    table = blip.contributions(exact, some, texts)
    assert sums(table) == pytest.approx(odds(exact, some, texts).detach().numpy(), abs=1e-9)
    assert {"qformer.queries.0.cross.head.0", "qformer.queries.3.query_mlp", "itm_head.bias"} <= {
        *table.coords["component"]
    }
    table = blip.contributions(exact, some, texts, metric="cosine")
    expected = METRICS["cosine"](exact, some, texts).numpy()  # features are float32
    assert sums(table) == pytest.approx(expected, abs=1e-5)
    table = blip.contributions(exact, some, texts, metric="caption")
    assert sums(table) == pytest.approx(logits(exact, some, texts), abs=1e-9)
    assert not any(".queries." in name for name in table.coords["component"])


def test_rows_sum_to_the_score_in_float32_and_of_studies(images: list[Tensor]) -> None:
    m = made(double=False)
    some: list[OneImage] = [images[0].float(), blip.Study([images[1].float(), images[2].float()])]
    for metric, expected in (
        ("match", METRICS["match"](m, some, TEXTS[:2]).numpy()),
        ("cosine", METRICS["cosine"](m, some, TEXTS[:2]).numpy()),
        ("caption", logits(m, some, TEXTS[:2])),
    ):
        assert sums(blip.contributions(m, some, TEXTS[:2], metric=metric)) == pytest.approx(expected, abs=1e-5)


def test_parts_are_what_components_write(exact: Blip2Predictor, images: list[Tensor]) -> None:
    """The last network of the queries by its formula; the text of a cosine gives half of it."""
    table = blip.contributions(exact, images[:1], TEXTS[:1])
    qformer, head = exact.model.qformer, exact.model.itm_head
    last = qformer.layers[3]
    with blip.trace(exact, ["qformer.3.*", "queries"]) as t:
        odds(exact, images[:1], TEXTS[:1])
    added = t["qformer.3.query_mlp"][0] - last.query_feed_forward.down.bias  # (Q, D)
    z = t["qformer.3.self.z"][0].transpose(0, 1).flatten(1)
    before = last.self_attention.norm(t["qformer.3.in"][0, : len(z)] + last.self_attention.out(z))
    u = before + t["qformer.3.query_mlp"][0]
    centred = added - added.mean(dim=1, keepdim=True)
    written = last.query_feed_forward.norm.weight * centred / u.std(dim=1, correction=0, keepdim=True)
    expected = (written @ (head.weight[1] - head.weight[0])).mean()
    found = table.select(component="qformer.queries.3.query_mlp").values[0]
    assert found == pytest.approx(float(expected.detach()), abs=1e-9)
    one, other = (blip.contributions(exact, [image], TEXTS[:1], metric="cosine") for image in images[:2])
    shares = [
        part.values[0, [i for i, name in enumerate(part.coords["component"]) if name.startswith("qformer.text.")]]
        for part in (one, other)
    ]
    assert not np.allclose(*shares, atol=1e-6)  # in the directions of two images
    halves = [part.sum() for part in shares]
    bias = [float(part.select(component="text_proj.bias").values[0]) for part in (one, other)]
    assert [a + b for a, b in zip(halves, bias, strict=True)] == pytest.approx(
        [float(sums(part)[0]) / 2 for part in (one, other)], abs=1e-9
    )


def test_words_of_a_comparison(exact: Blip2Predictor, images: list[Tensor]) -> None:
    table = blip.contributions(exact, images[:1], TEXTS[:1], metric="caption", word="left", against="right")
    ids = exact.tokenizer.encode(["left right"], 9)[0][1:3]
    place = exact.ids(TEXTS[:1])[0][0].tolist().index(ids[0])
    rows, qformer = Rows(torch.tensor([place]), place, exact.device), exact.model.qformer
    with torch.no_grad():
        read = exact.model.read_images(exact.states(images[:1]))
        first = with_first(exact.ids(TEXTS[:1])[0], exact.tokenizer.dec_id)[:, :place]
        values = rows.unpack(qformer.head(qformer.write(first, rows, read.cache())))[0, -1]
    assert sums(table) == pytest.approx([float(values[ids[0]] - values[ids[1]])], abs=1e-9)


def test_messages(exact: Blip2Predictor, images: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    for by in ("word", "patch"):
        with pytest.raises(BlipError, match=f"by is '{by}'; of BLIP-2 it can be component"):
            blip.contributions(exact, images[:1], TEXTS[:1], by=by)
    with pytest.raises(BlipError, match="of BLIP-2 contributions are to match, cosine and caption"):
        blip.contributions(exact, images[:1], [("which side?", "left")], metric="answer")
    monkeypatch.setitem(exact.info, "language_model", "opt")
    with pytest.raises(BlipError, match="a language model writes its words, whose layers have no points"):
        blip.contributions(exact, images[:1], TEXTS[:1])
