"""Contributions: their rows sum to the score, by component and by token, and each is what its component writes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bad_finetune_cases import answerer
from helpers.tiny import add_noise

import blip
from blip.errors import BlipError
from blip.inference.predictor import Predictor
from blip.interpret.causes.labelled import Labelled
from blip.network.picture_embeddings import PictureEmbeddings

TEXTS = ["head with a small bright round lesion", "chest", "abdomen with a dark square lesion in the left"]


@pytest.fixture(scope="module")
def exact(tiny_checkpoint: Path) -> Predictor:
    """In float64, with noise in every weight: no bias is 0 and no gain 1."""
    m = blip.load(tiny_checkpoint)
    add_noise(m.model.double(), std=0.3)
    in_float64(m)
    return m


def in_float64(m: Predictor) -> None:
    """Pixels too, of one picture or of several."""
    make = m.pixels

    def pixels(images: object) -> object:
        made = make(images)  # type: ignore[arg-type]
        return made.double() if isinstance(made, torch.Tensor) else replace(made, tensor=made.tensor.double())

    m.pixels = pixels  # type: ignore[method-assign, assignment]


@pytest.fixture(scope="module")
def asker(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    m = blip.load(answerer(tmp_path_factory.mktemp("answerer"), tiny_checkpoint))
    add_noise(m.model.double(), std=0.3)
    in_float64(m)
    return m


def logits(m: Predictor, images: list[Path], captions: list[str]) -> Iterator[float]:
    """Of each token of each caption but the first, as the model computes it."""
    from blip.network.packing import Rows, with_first

    ids, lengths = m.ids(captions, m.positions)
    rows = Rows(lengths, ids.shape[1], m.device)
    decoder = m.model.text_decoder
    with torch.no_grad():
        keys = decoder.image_keys(m.states(images))
        states = decoder(with_first(ids, m.tokenizer.dec_id), rows, keys)
        values = rows.unpack(decoder.head(states))
    for row, length in enumerate(lengths.tolist()):
        for place in range(1, length):
            yield float(values[row, place - 1, ids[row, place]])


def sums(table: Labelled) -> np.ndarray:
    return table.values.sum(axis=1)


@pytest.mark.parametrize("by", ["component", "word", "patch"])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_sum_to_the_score(exact: Predictor, pictures: list[Path], by: str, count: int) -> None:
    images, texts = pictures[:count], TEXTS[:count]
    both = exact.match_logits(images, texts).numpy()
    assert sums(blip.contributions(exact, images, texts, by=by)) == pytest.approx(both[:, 1] - both[:, 0], abs=1e-5)
    cosines = exact.itc_score(images, texts).diagonal().numpy()
    table = blip.contributions(exact, images, texts, metric="cosine", by=by)
    assert sums(table) == pytest.approx(cosines, abs=1e-5)
    table = blip.contributions(exact, images, texts, metric="caption", by=by)
    assert sums(table) == pytest.approx(np.array([*logits(exact, images, texts)]), abs=1e-9)


def test_embeddings_of_pictures_are_parts(exact: Predictor, pictures: list[Path]) -> None:
    encoder = exact.model.image_encoder
    added = PictureEmbeddings("place", 2, encoder.config.width).double()
    torch.nn.init.normal_(added.table, std=0.1)
    study = blip.Study(pictures[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "picture_embeddings", added)
        table = blip.contributions(exact, pictures, TEXTS, metric="cosine")
        assert sums(table) == pytest.approx(exact.itc_score(pictures, TEXTS).diagonal().numpy(), abs=1e-5)
        assert (table.select(component="image.embedding.picture").values != 0).all()
        both = exact.match_logits([study], TEXTS[:1]).numpy()
        assert sums(blip.contributions(exact, [study], TEXTS[:1])) == pytest.approx(both[:, 1] - both[:, 0], abs=1e-5)
        by_key = blip.contributions(exact, [study], TEXTS[:1], by="patch")
        assert by_key.coords["patch"][4:6] == ["picture 1 1,1", "picture 2 CLS"] and sums(by_key) == pytest.approx(
            both[:, 1] - both[:, 0]
        )
    with pytest.raises(BlipError, match="a cosine of several pictures is of their mean"):
        blip.contributions(exact, [study], TEXTS[:1], metric="cosine")


def test_rows_sum_to_the_score_in_float32(model: Predictor, pictures: list[Path]) -> None:
    both = model.match_logits(pictures, TEXTS).numpy()
    assert sums(blip.contributions(model, pictures, TEXTS)) == pytest.approx(both[:, 1] - both[:, 0], abs=1e-5)
    table = blip.contributions(model, pictures, TEXTS, metric="caption")
    assert sums(table) == pytest.approx(np.array([*logits(model, pictures, TEXTS)]), abs=1e-5)


def test_answers(asker: Predictor, pictures: list[Path]) -> None:
    ids = asker.tokenizer.encode(["lesion"], 20)[0]
    pair = ("is there a lesion?", "lesion")
    table = blip.contributions(asker, pictures[0], pair, metric="answer")
    assert table.coords["score"][0] == f"0.1 {asker.tokenizer.token(ids[1])}"
    with torch.no_grad():
        keys = asker.model.question_keys(asker.pixels(pictures[:1]), *asker.ids([pair[0]]))
        start = torch.tensor([[asker.tokenizer.dec_id]])
        from blip.network.med import Cache

        expected = asker.model.text_decoder.step(start, keys, Cache())[0, ids[1]]
    assert table.values[0].sum() == pytest.approx(float(expected), abs=1e-9)
    by_question = blip.contributions(asker, pictures[0], pair, metric="answer", by="patch")
    assert by_question.coords["patch"][1].startswith("1 ") and sums(by_question) == pytest.approx(sums(table))
    assert "question" in blip.contributions(asker, pictures[0], pair, metric="answer", by="word").coords["word"]


def test_a_contribution_is_what_vanishes_when_scales_are_kept(exact: Predictor, pictures: list[Path]) -> None:
    """The last layer's heads: without one, and with the norm's observed scale, the logit falls by its contribution."""
    table = blip.contributions(exact, pictures, TEXTS)
    layer = exact.model.text_encoder.layers[-1]
    with blip.trace(exact, "text.1.mlp") as t:
        exact.match_logits(pictures, TEXTS)
    with torch.no_grad():
        out = layer.feed_forward
        seen: list[torch.Tensor] = []
        handle = out.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        exact.match_logits(pictures, TEXTS)
        handle.remove()
        u, mlp = seen[0], t["text.1.mlp"][:, 0] - out.down.bias
        scale = (u.var(dim=1, unbiased=False, keepdim=True) + out.norm.eps).sqrt()
        change = out.norm.weight * (mlp - mlp.mean(dim=1, keepdim=True)) / scale
        head = exact.model.itm_head.weight
        expected = change @ (head[1] - head[0])
    assert table.select(component="text.1.mlp").values == pytest.approx(expected.numpy(), abs=1e-9)


def test_attention_to_zero_values_contributes_nothing(exact: Predictor, pictures: list[Path]) -> None:
    with blip.trace(exact, edit={"text.0.cross.z": blip.zero_head(1)}):
        table = blip.contributions(exact, pictures, TEXTS)
    assert (table.select(component="text.0.cross.head.1").values == 0).all()
    assert (table.select(component="text.0.cross.head.0").values != 0).all()


def test_a_word_against_another(exact: Predictor, pictures: list[Path]) -> None:
    texts = [f"head with a lesion in the {side}" for side in ("left", "right", "left")]
    difference = blip.contributions(exact, pictures, texts, metric="caption", word="left", against="right")
    other_way = blip.contributions(exact, pictures, texts, metric="caption", word="right", against="left")
    assert difference.values.shape[0] == 3 and [label.split(".")[0] for label in difference.coords["score"]] == [*"012"]
    with pytest.raises(BlipError, match="text 2 has neither of the words asked for: left"):
        blip.contributions(exact, pictures, texts, metric="caption", word="left")
    with pytest.raises(BlipError, match="begin with the same token"):
        blip.contributions(exact, pictures[0], texts[0], metric="caption", word="left", against="left")
    assert np.abs(difference.values + other_way.values).max() < 1e-12
    alone = blip.contributions(exact, pictures[:1], texts[:1], metric="caption", word="left")
    place = next(label for label in alone.coords["score"])
    every = blip.contributions(exact, pictures[:1], texts[:1], metric="caption")
    assert every.select(score=place).values == pytest.approx(alone.values[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "logit"}, "metric is 'logit'; contributions are to match, cosine"),
        ({"by": "layer"}, "by is 'layer'; it can be component"),
        ({"word": "left"}, "word and against are for caption and answer"),
        ({"metric": "caption", "against": "left"}, "give word as well"),
        ({"metric": "answer"}, "pair \\(question, answer\\)"),
        ({"texts": TEXTS}, "1 images and 3 texts"),
        ({"texts": [""]}, "text 1 is empty"),
        ({"texts": [("which side?", "left")]}, "a text is a pair"),
    ],
)
def test_bad_input(model: Predictor, pictures: list[Path], options: dict, message: str) -> None:
    texts = options.pop("texts", TEXTS[:1])
    with pytest.raises(BlipError, match=message):
        blip.contributions(model, pictures[0], texts, **options)


def test_it_writes_tables(model: Predictor, pictures: list[Path], tmp_path: Path) -> None:
    table = blip.contributions(model, pictures[0], TEXTS[0], metric="caption", by="word")
    assert table.coords["word"][:2] == ["0 [DEC]", f"1 {model.tokenizer.token(model.ids(TEXTS[:1])[0][0, 1])}"]
    table.to_csv(tmp_path / "words.csv")
    assert (tmp_path / "words.csv").read_text().startswith("score,word,caption_contribution\n")
    patches = blip.contributions(model, pictures[0], TEXTS[0], by="patch")
    assert patches.coords["patch"][:3] == ["CLS", "0,0", "0,1"]
