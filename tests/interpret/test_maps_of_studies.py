"""Maps of items of several pictures: those of a picture, whatever its place, and a row of panels for each."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.running import code_and_text
from helpers.tiny import add_noise, spread, tiny_blip2
from PIL import Image
from torch.testing import assert_close

import blip
from blip.inference.blip2 import Blip2Predictor
from blip.inference.predictor import Predictor
from blip.interpret.explain import explain_pairs
from blip.interpret.maps import METHODS
from blip.interpret.pictures import figure, page_of, panels
from blip.tokenizer import Tokenizer

TEXT = "a bright lesion"


@pytest.fixture(scope="module", autouse=True)
def noisy(model: Predictor) -> None:
    add_noise(model.model, std=0.2)


def images(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(7)
    return [Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["match", "caption"])
def test_maps_follow_their_pictures(model: Predictor, method: str, task: str) -> None:
    first, second, third = images(3)
    options = {"task": task, "method": method}
    several = [blip.Study([first, second, third]), third, blip.Study([second, third, first])]
    one, alone, turned = explain_pairs(model, several, [TEXT] * 3, **options)
    words = len(one.words)
    assert one.maps.shape == (words, 3, 2, 2) and one.sentence.shape == (3, 2, 2) and alone.maps.shape == (words, 2, 2)
    assert_close(one.maps, turned.maps.roll(1, dims=1), rtol=1e-4, atol=1e-6)
    assert_close(one.sentence, turned.sentence.roll(1, dims=0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one.maps[:, 0], one.maps[:, 1], rtol=1e-2)
    (single,) = explain_pairs(model, third, TEXT, **options)
    assert_close(alone.maps, single.maps, rtol=1e-4, atol=1e-7)
    # two equal pictures have equal maps, whose sums are those of the one where texts attend to half of each
    (twice,) = explain_pairs(model, blip.Study([third, third]), TEXT, **options)
    assert_close(twice.maps[:, 0], twice.maps[:, 1], rtol=1e-4, atol=1e-7)
    if method in ("raw", "rollout"):
        assert_close(twice.maps.sum(dim=1), single.maps, rtol=1e-4, atol=1e-6)


def test_maps_of_the_images_alone_and_of_queries(model: Predictor) -> None:
    pair = images(2)
    (both,) = explain_pairs(model, blip.Study(pair), task="image")
    alone = explain_pairs(model, pair, task="image")
    assert_close(both.sentence, torch.stack([one.sentence for one in alone]))
    words = Tokenizer.train([TEXT, "normal"], 60)
    from helpers.tiny import tiny_qformer

    made = spread(tiny_blip2(qformer=tiny_qformer(vocab_size=words.dec_id + 1)), std=0.3)
    m = Blip2Predictor(made, words, {"task": "blip2"})
    for rows in ("words", "queries"):
        (one,) = explain_pairs(m, blip.Study(pair), TEXT, task="caption", rows=rows)
        (turned,) = explain_pairs(m, blip.Study(pair[::-1]), TEXT, task="caption", rows=rows)
        assert one.maps.shape[1:] == (2, 4, 4) and one.maps.abs().max() > 0
        assert_close(one.maps, turned.maps.flip(1), rtol=1e-3, atol=1e-6)


def test_a_row_of_panels_for_each_picture(model: Predictor) -> None:
    pair = images(2)
    (one,) = explain_pairs(model, blip.Study(pair), TEXT)
    rows = panels(pair, one)
    assert [row[0][0] for row in rows] == ["picture 1", "picture 2"]
    assert all(len(row) == 2 + len(one.words) for row in rows)
    (single,) = explain_pairs(model, pair[0], TEXT)
    small, large = figure(pair[0], single), figure(pair, one)
    assert large.height > 1.5 * small.height and large.width == small.width
    assert page_of([pair], [one], ["a, b"]).count('class="panels"') == 2


def test_the_verb(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for number, image in enumerate(images(3)):
        image.save(tmp_path / f"{number}.png")
    records = [{"images": ["0.png", "1.png"], "caption": TEXT}, {"image": "2.png", "caption": TEXT}]
    (tmp_path / "set.json").write_text(json.dumps(records))
    out = tmp_path / "maps.npz"
    code, text = code_and_text(
        "explain", str(tmp_path / "set.json"), "--checkpoint", str(tiny_checkpoint), "--out", str(out)
    )
    assert code == 0, text
    with np.load(out) as arrays:
        assert arrays["maps_0"].ndim == 4 and arrays["maps_0"].shape[1] == 2 and arrays["maps_1"].ndim == 3
        assert str(arrays["image_0"]) == f"{tmp_path / '0.png'}, {tmp_path / '1.png'}"
