"""Items of several pictures in a predictor and in the verbs: what a list means, and equal results in batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.running import code_and_text
from helpers.tiny import add_noise
from PIL import Image
from torch.testing import assert_close

import blip
from blip.data import pictures as kinds
from blip.data.image_bytes import ImageLimits
from blip.data.pictures import Kind
from blip.errors import InputError
from blip.inference.inputs import as_list
from blip.inference.predictor import Predictor
from blip.inference.scoring import caption_log_probs, match_groups
from blip.models.decoding import Decoding
from blip.models.vqa import VqaModel
from blip.network.pictures import Pictures

CLOSE = {"rtol": 0, "atol": 1e-5}
TEXTS = ["a round lesion", "normal", "two bright lesions"]


@pytest.fixture(scope="module", autouse=True)
def noisy(model: Predictor) -> None:
    """Weights that are large enough for results to differ."""
    add_noise(model.model, std=0.2)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(5)]


def studies(images: list[Image.Image]) -> list[Any]:
    """Of two, one and three pictures."""
    return [images[:2], [images[2]], blip.Study(images[2:])]


def test_what_a_list_means(images: list[Image.Image]) -> None:
    assert as_list(images) == images  # several images
    assert [len(one.pictures) for one in as_list(studies(images))] == [2, 1, 3]
    assert [len(one.pictures) for one in as_list(blip.Study(images))] == [5]
    assert len(as_list([np.zeros((2, 8, 8, 3), np.uint8)[0], images[:2]])) == 2
    for wrong in ([], [images]):
        with pytest.raises(InputError, match="one or more pictures"):
            blip.Study(wrong)


def test_features_and_matching_in_a_batch_as_alone(model: Predictor, images: list[Image.Image]) -> None:
    items = studies(images)
    pixels = model.pixels(items)
    assert isinstance(pixels, Pictures) and pixels.counts.tolist() == [2, 1, 3]
    features, logits = model.encode_image(items), model.match_logits(items, TEXTS)
    cosines, probabilities = model.match_all(items, model.encode_text(TEXTS), TEXTS)
    groups = match_groups(model, items, [TEXTS] * 3)
    for i, item in enumerate(items):
        assert_close(model.encode_image([item])[0], features[i], **CLOSE)
        assert_close(model.match_logits([item], TEXTS[i])[0], logits[i], **CLOSE)
        assert_close(model.match_probability([item], TEXTS), probabilities[i], **CLOSE)
        assert_close(model.itc_score([item], TEXTS)[0], cosines[i], **CLOSE)
        assert_close(torch.tensor([p for p, _ in groups[i]]), probabilities[i], **CLOSE)
        assert_close(torch.tensor([c for _, c in groups[i]]), cosines[i], **CLOSE)
    assert_close(features[1], model.encode_image(images[2])[0], **CLOSE)  # one picture
    assert not torch.allclose(features[0], model.encode_image(images[0])[0], atol=1e-3)
    assert_close(
        model.match_logits(blip.Study(images[:2]), TEXTS), model.match_logits([images[:2]] * 3, TEXTS), **CLOSE
    )


def test_writing(model: Predictor, images: list[Image.Image]) -> None:
    items, decoding = studies(images), Decoding(beams=2, max_new_tokens=6)
    together = model.write(items, decoding=decoding, batch_size=2)
    log_probs = caption_log_probs(model, items, TEXTS)
    for i, item in enumerate(items):
        (alone,) = model.write([item], decoding=decoding)
        assert alone[0].text == together[i][0].text and abs(alone[0].log_prob - together[i][0].log_prob) < 1e-4
        own = caption_log_probs(model, [item], [TEXTS[i]])
        assert_close(log_probs[i, : own.shape[1]], own[0], **CLOSE)


def test_answers(model: Predictor, images: list[Image.Image]) -> None:
    sizes = model.model.text_encoder.config
    answering = VqaModel(model.model.image_encoder.config, sizes, model.tokenizer.specials)
    m = Predictor(add_noise(answering, std=0.3), model.tokenizer, {"task": "vqa", "answers": TEXTS})
    items = studies(images)
    asked = ["where?", "how many lesions?", "normal?"]
    given = m.answer(items, asked)
    for item, question, answer in zip(items, asked, given, strict=True):
        (alone,) = m.answer([item], question)
        assert alone.text == answer.text and abs(alone.probability - answer.probability) < 1e-5
    several = m.answer(blip.Study(images[:2]), asked)  # one item, encoded once
    assert abs(several[0].probability - given[0].probability) < 1e-5


def test_more_pictures_than_are_read(model: Predictor, images: list[Image.Image]) -> None:
    model.limits = ImageLimits(max_pictures=2)
    try:
        ends = model.encode_image(blip.Study(images))
        assert_close(ends, model.encode_image(blip.Study([images[0], images[-1]])), **CLOSE)
    finally:
        model.limits = ImageLimits()


def test_verbs_read_studies(
    tiny_checkpoint: Path, tmp_path: Path, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row an item, which names all its pictures; references that mean several pictures stand for paths."""

    def read(reference: str, limits: ImageLimits) -> list[Image.Image]:
        return images[: int(reference.rpartition("#")[2])]

    monkeypatch.setitem(kinds.KINDS, "clip", Kind(lambda path: ".clip#" in path, read))
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    records = [
        {"images": ["0.png", "1.png"], "caption": TEXTS[0]},
        {"image": "2.png", "caption": TEXTS[1]},
        {"images": ["3.png", "absent.png"], "caption": TEXTS[2]},
        {"image": "a.clip#3", "caption": TEXTS[0]},
    ]
    file, out = tmp_path / "set.json", tmp_path / "out.json"
    file.write_text(json.dumps(records))
    m = blip.load(tiny_checkpoint)
    items = [images[:2], images[2], images[:3]]
    code, text = code_and_text("caption", str(file), "--checkpoint", str(tiny_checkpoint), "--out", str(out))
    assert code == 1 and "absent.png" in text
    rows = json.loads(out.read_text())
    assert [row.get("images") or row["image"] for row in rows] == [
        [str(tmp_path / "0.png"), str(tmp_path / "1.png")], str(tmp_path / "2.png"), str(tmp_path / "a.clip#3"),
    ]  # fmt: skip
    assert [row["caption"] for row in rows] == m.caption(items, decoding=Decoding(beams=3, max_new_tokens=30))
    code, _ = code_and_text("match", str(file), "--checkpoint", str(tiny_checkpoint), "--out", str(out), "--overwrite")
    found = [row["match_probability"] for row in json.loads(out.read_text())]
    expected = [
        float(m.match_probability([item], text)) for item, text in zip(items, [*TEXTS[:2], TEXTS[0]], strict=True)
    ]
    assert code == 1 and np.allclose(found, expected, atol=1e-5)
    code, text = code_and_text("match", str(file), "--text", "normal", "--checkpoint", str(tiny_checkpoint))
    assert code == 1 and text.count("normal") == 3  # a line an item
