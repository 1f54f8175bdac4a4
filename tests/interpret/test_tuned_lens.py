"""Lenses of all stacks, and the tuned lens: it agrees better with the decoder's words than the plain one."""

from pathlib import Path

import pytest
import torch

import blip
from blip.errors import BlipError
from blip.inference.predictor import Predictor
from blip.inference.scoring import caption_log_probs
from blip.interpret.activations import Capture, capture
from blip.interpret.explain_files import find_pairs
from blip.interpret.features.tuned_lens import TunedLens
from blip.interpret.lenses import image_lens, match_lens
from blip.interpret.recording import TraceError

POINTS = ["decoder.0.out", "decoder.1.out"]


@pytest.fixture(scope="module")
def shards(model: Predictor, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("activations")
    capture(model, list(find_pairs(phantoms / "captions.json", [])), Capture("w", "d", POINTS, "caption"), folder)
    return folder


def test_lenses_of_encoder_and_image_end_with_the_models_own_values(model: Predictor, pictures: list[Path]) -> None:
    texts = ["a small lesion", "chest", "a dark square"]
    with blip.trace(model, ["text.*.out", "image.*.out"]) as t:
        logits = model.match_logits(pictures, texts)
    by_layer = match_lens(t)
    assert list(by_layer) == ["text.0.out", "text.1.out"]
    assert torch.allclose(by_layer["text.1.out"], logits, atol=1e-6) and not torch.allclose(
        by_layer["text.0.out"], logits, atol=1e-3
    )
    enc = t["text.0.out"][:, 0]
    assert torch.allclose(by_layer["text.0.out"], enc @ model.model.itm_head.weight.T + model.model.itm_head.bias)
    seen = image_lens(t, model.encode_text(texts))
    assert torch.allclose(seen["image.1.out"][:, 0], model.itc_score(pictures, texts), atol=1e-5)
    patches = blip.patch_lens(model, pictures, texts).flatten(2).transpose(1, 2)
    assert torch.allclose(seen["image.1.out"][:, 1:], patches, atol=1e-5)
    words = blip.logit_lens(t, "text")
    assert words["text.0.out"].shape[:2] == (3, int(model.ids(texts)[1].max()))
    assert torch.allclose(words["text.0.out"].exp().sum(-1), torch.ones(()), atol=1e-5)
    with pytest.raises(TraceError, match="stack is 'image'; it can be decoder or text"):
        blip.logit_lens(t, "image")


def test_a_tuned_lens_agrees_better_and_is_stored(
    model: Predictor, shards: Path, pictures: list[Path], tmp_path: Path
) -> None:
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    with torch.no_grad():
        lens = blip.tuned_lens(model, shards, steps=80, batch_size=64, learning_rate=1e-2)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.model.named_parameters())
    assert lens.divergence is not None
    plain, tuned = lens.divergence.values[0]
    assert tuned < 0.7 * plain
    lens.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(tmp_path / "lens.safetensors")
    with blip.trace(model, "decoder.*.out") as t:
        caption_log_probs(model, pictures, ["chest"] * 3)
    read, own = again(t), blip.logit_lens(t)
    assert torch.equal(read["decoder.1.out"], own["decoder.1.out"])  # the last layer needs no map
    assert torch.equal(read["decoder.0.out"], lens(t)["decoder.0.out"])
    assert not torch.allclose(read["decoder.0.out"], own["decoder.0.out"])


def test_an_untrained_lens_is_the_logit_lens(model: Predictor, pictures: list[Path]) -> None:
    with blip.trace(model, "decoder.*.out") as t:
        caption_log_probs(model, pictures, ["chest"] * 3)
    read, own = TunedLens(POINTS, 32)(t), blip.logit_lens(t)
    assert all(torch.equal(read[point], own[point]) for point in POINTS)


def test_the_lens_of_one_layer_is_stored(tmp_path: Path) -> None:
    TunedLens(POINTS[:1], 32).save(tmp_path / "lens.safetensors")
    assert TunedLens.load(tmp_path / "lens.safetensors").points == POINTS[:1]


@pytest.mark.parametrize("other", [{"dtype": torch.float64}, {"device": "meta"}])  # meta stands for a GPU
def test_a_lens_reads_states_of_another_type_or_device(other: dict) -> None:
    states = torch.zeros(2, 32, **other)
    read = TunedLens(POINTS, 32).states(0, states)
    assert (read.dtype, read.device) == (states.dtype, states.device)


def test_bad_input(model: Predictor, phantoms: Path, shards: Path, pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BlipError, match="holds no activations: write them with blip activations"):
        blip.tuned_lens(model, tmp_path)
    wanted = list(find_pairs(phantoms / "captions.json", []))
    capture(model, wanted[:8], Capture("w", "d", POINTS[:1], "caption"), tmp_path / "one")
    with pytest.raises(BlipError, match=r"no states at 'decoder\.1\.out'; it has decoder\.0\.out"):
        blip.tuned_lens(model, tmp_path / "one")
    capture(model, wanted[:1], Capture("w", "d", POINTS, "caption"), tmp_path / "few")
    with pytest.raises(BlipError, match="the states are of one record"):
        blip.tuned_lens(model, tmp_path / "few")
    with pytest.raises(BlipError, match="batch_size 0"):
        blip.tuned_lens(model, shards, batch_size=0)
    (tmp_path / "lens.safetensors").write_bytes(b"nothing")
    with pytest.raises(BlipError, match="is no tuned lens"):
        TunedLens.load(tmp_path / "lens.safetensors")
    with blip.trace(model, "decoder.*.out") as t:
        caption_log_probs(model, pictures, ["chest"] * 3)
    with pytest.raises(TraceError, match="a text decoder of width 8"):
        TunedLens(POINTS, 8)(t)
