"""`blip.load`: images and strings in; a batch gives what single inputs give; wrong input gives a clear message."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bad_checkpoint_cases import CAPTIONS, folder
from helpers.tiny import STORED_EMBED, STORED_TEXT, STORED_VIT, add_noise, stored_info
from PIL import Image

import blip
from blip.checkpoints import convert
from blip.checkpoints.format import CheckpointError, unique_state
from blip.data.images import open_image
from blip.data.transforms import eval_transform
from blip.inference.predictor import Predictor
from blip.models.decoding import Decoding
from blip.models.generation import generate
from blip.models.momentum import unit_features
from blip.models.pretrain import PretrainModel
from blip.network.med import DecoderStep
from blip.network.packing import Rows, with_first
from blip.tokenizer import Tokenizer


def greedy(model: PretrainModel, states: torch.Tensor, first: torch.Tensor, end: int, pad: int, limit: int):
    step = DecoderStep(model.text_decoder, model.text_decoder.image_keys(states))
    return generate(step, first, Decoding(max_new_tokens=limit), end_id=end, pad_id=pad).ids


TEXTS = ["large lesion in the left lung", "normal", "a chest x-ray in the lung normal left"]
TOLERANCE = 1e-5
close = torch.testing.assert_close


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training folder of ours with random weights that are large enough for answers to differ."""
    path = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(3)
    words = Tokenizer.train(CAPTIONS, STORED_TEXT.vocab_size)
    words.save(path / "words.json")
    text = replace(STORED_TEXT, vocab_size=words.size)
    model = PretrainModel(STORED_VIT, text, words.specials, embed_dim=STORED_EMBED)
    add_noise(model, std=0.2)
    convert.write(
        path / "ours", unique_state(model), stored_info("pretrain", text), to="blip", tokenizer_file=path / "words.json"
    )
    return path / "ours"


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return blip.load(checkpoint)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]


def reference_logits(predictor: Predictor, image: Image.Image, text: str) -> torch.Tensor:
    """One image, one text, no padding, no predictor: (1, 2)."""
    model, words = predictor.model, predictor.tokenizer
    pixels = eval_transform(STORED_VIT.image_size)(open_image(image))[None]
    ids = torch.tensor(words.encode([text], 40))
    rows = Rows(torch.tensor([ids.shape[1]]), ids.shape[1], ids.device)
    keys = model.text_encoder.image_keys(model.image_encoder(pixels))
    states = model.text_encoder.multimodal(with_first(ids, words.enc_id), rows, keys)
    return model.itm_head(states[:1])


def test_importing_blip_stays_cheap() -> None:
    code = "import sys, blip; assert 'torch' not in sys.modules; blip.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = blip.nothing_like_it


def test_model_is_in_evaluation_mode(predictor: Predictor, images: list[Image.Image]) -> None:
    assert not any(module.training for module in predictor.model.modules())
    assert STORED_TEXT.dropout > 0
    close(predictor.encode_text(TEXTS), predictor.encode_text(TEXTS), rtol=0, atol=0)
    assert not predictor.encode_image(images).requires_grad


def test_features_are_the_models_own(predictor: Predictor, images: list[Image.Image], tmp_path: Path) -> None:
    model = predictor.model
    pixels = torch.stack([eval_transform(STORED_VIT.image_size)(open_image(image)) for image in images])
    with torch.no_grad():
        expected = unit_features(model.image_proj, model.image_encoder(pixels)[:, 0])
    features = predictor.encode_image(images)
    close(features, expected, rtol=0, atol=TOLERANCE)
    close(features.norm(dim=1), torch.ones(3))
    images[0].save(tmp_path / "one.png")
    close(predictor.encode_image(tmp_path / "one.png"), features[:1], rtol=0, atol=TOLERANCE)
    close(predictor.encode_image(str(tmp_path / "one.png")), features[:1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batch_equals_one_by_one(predictor: Predictor, images: list[Image.Image], batch_size: int) -> None:
    """Texts of different lengths: padding in a batch changes nothing."""
    one_by_one = torch.cat([predictor.encode_image(image) for image in images])
    close(predictor.encode_image(images, batch_size), one_by_one, rtol=0, atol=TOLERANCE)
    one_by_one = torch.cat([predictor.encode_text(text) for text in TEXTS])
    close(predictor.encode_text(TEXTS, batch_size), one_by_one, rtol=0, atol=TOLERANCE)
    one_by_one = torch.cat([reference_logits(predictor, *pair) for pair in zip(images, TEXTS, strict=True)])
    close(predictor.match_logits(images, TEXTS, batch_size), one_by_one, rtol=0, atol=TOLERANCE)
    captions = [predictor.caption(image, "a chest")[0] for image in images]
    assert predictor.caption(images, "a chest", batch_size=batch_size) == captions
    assert len(set(captions)) == len(images), "the images must tell in this test"


@pytest.mark.parametrize("batch_size", [2, 32])
def test_one_image_goes_with_many_texts(predictor: Predictor, images: list[Image.Image], batch_size: int) -> None:
    expected = torch.cat([reference_logits(predictor, images[1], text) for text in TEXTS])
    close(predictor.match_logits(images[1], TEXTS, batch_size), expected, rtol=0, atol=TOLERANCE)
    expected = torch.cat([reference_logits(predictor, image, TEXTS[0]) for image in images])
    close(predictor.match_logits(images, TEXTS[0], batch_size), expected, rtol=0, atol=TOLERANCE)
    close(predictor.match_probability(images, TEXTS[0]), expected.softmax(dim=1)[:, 1], rtol=0, atol=TOLERANCE)


def test_itc_score_is_a_cosine_of_all_pairs(predictor: Predictor, images: list[Image.Image]) -> None:
    score = predictor.itc_score(images[:2], TEXTS)
    assert score.shape == (2, 3)
    expected = torch.nn.functional.cosine_similarity(predictor.encode_image(images[1]), predictor.encode_text(TEXTS[2]))
    close(score[1, 2], expected[0], rtol=0, atol=TOLERANCE)


def test_empty_lists_give_empty_answers(predictor: Predictor) -> None:
    assert predictor.encode_image([]).shape == (0, 24)
    assert predictor.encode_text([]).shape == (0, 24)
    assert predictor.match_logits([], []).shape == (0, 2)
    assert predictor.caption([]) == []


@torch.no_grad()
def test_caption_starts_with_dec(predictor: Predictor, images: list[Image.Image]) -> None:
    model, words = predictor.model, predictor.tokenizer
    ids = words.encode(["a chest"], 40)[0][:-1]
    first = torch.tensor([[words.dec_id, *ids[1:]]])
    states = model.image_encoder(predictor.pixels(images[:1]))
    new = greedy(model, states, first, words.sep_id, words.pad_id, 30)
    expected = words.decode(ids + new[0].tolist())
    assert predictor.caption(images[0], "a chest") == [expected]
    with_cls = greedy(model, states, torch.tensor([ids]), words.sep_id, words.pad_id, 30)
    assert words.decode(ids + with_cls[0].tolist()) != expected, "the first token must tell in this test"


def test_prompt_begins_the_caption(predictor: Predictor, images: list[Image.Image]) -> None:
    caption = predictor.caption(images[0], "a chest", max_new_tokens=5)[0]
    assert caption.startswith("a chest")
    assert predictor.caption(images[0], "a chest", max_new_tokens=0) == ["a chest"]
    with pytest.raises(ValueError, match="the model has 40 positions"):
        predictor.caption(images[0], max_new_tokens=40)


@torch.no_grad()
def test_greedy_equals_no_cache_and_no_batch(predictor: Predictor, images: list[Image.Image]) -> None:
    """Each text written alone, everything recomputed at each step; texts end at different lengths."""
    model, words = predictor.model, predictor.tokenizer
    states = model.image_encoder(predictor.pixels(images))
    ends = []
    for end in range(5, words.dec_id):  # whatever token the random model writes may serve as the end
        expected = []
        for one in states:
            ids, keys = [words.dec_id], model.text_encoder.image_keys(one[None])
            while len(ids) < 9 and ids[-1] != end:
                rows = Rows(torch.tensor([len(ids)]), len(ids), states.device)
                last = model.text_decoder(torch.tensor([ids]), rows, keys)[-1]
                ids.append(int(model.text_decoder.head(last).argmax()))
            expected.append(ids[1:])
        first = torch.full((len(images), 1), words.dec_id)
        got = greedy(model, states, first, end, words.pad_id, 8).tolist()
        longest = max(len(ids) for ids in expected)
        assert got == [ids + [words.pad_id] * (longest - len(ids)) for ids in expected]
        ends.append(len({len(ids) for ids in expected}))
    assert max(ends) > 1, "some end must come at different lengths"


@torch.no_grad()
def test_selected_texts_go_on_as_if_alone(predictor: Predictor, images: list[Image.Image]) -> None:
    """Two texts an image, as beams are: images and texts drop out and change places."""
    decoder, words = predictor.model.text_decoder, predictor.tokenizer
    states = predictor.model.image_encoder(predictor.pixels(images))
    step = DecoderStep(decoder, decoder.image_keys(states))
    step(torch.full((3, 1), words.dec_id))
    step.select(torch.tensor([0, 0, 1, 1, 2, 2]), per_image=2)
    tokens = torch.tensor([7, 8, 9, 10, 11, 12])
    step(tokens[:, None])
    step.select(torch.tensor([1, 0, 5, 5]), per_image=2)  # the second image is finished
    next_tokens = torch.tensor([20, 21, 22, 23])
    logits = step(next_tokens[:, None])
    for row, (image, token, following) in enumerate([(0, 8, 20), (0, 7, 21), (2, 12, 22), (2, 12, 23)]):
        alone = DecoderStep(decoder, decoder.image_keys(states[image][None]))
        expected = alone(torch.tensor([[words.dec_id, token, following]]))
        close(logits[row : row + 1], expected, rtol=0, atol=TOLERANCE)


def test_other_image_size_interpolates_positions(checkpoint: Path, images: list[Image.Image]) -> None:
    larger = blip.load(checkpoint, image_size=48)
    assert larger.info["image_encoder"]["image_size"] == 48
    assert larger.pixels(images).shape == (3, 3, 48, 48)
    original = blip.load(checkpoint)
    with torch.no_grad():  # the network interpolates by itself, too, when an image is larger
        expected = unit_features(original.model.image_proj, original.model.image_encoder(larger.pixels(images))[:, 0])
    close(larger.encode_image(images), expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="multiple of the patch, 8"):
        blip.load(checkpoint, image_size=50)


def test_all_formats_give_the_same_answers(checkpoint: Path, images: list[Image.Image], tmp_path: Path) -> None:
    tensors, info = convert.read(checkpoint)
    words = checkpoint / "tokenizer.json"
    convert.write(tmp_path / "model.pth", tensors, info, to="salesforce")
    convert.write(tmp_path / "hf", tensors, info, to="huggingface", tokenizer_file=words, hf_class="retrieval")
    ours = blip.load(checkpoint)
    released = blip.load(
        tmp_path / "model.pth", image_heads=STORED_VIT.heads, text_heads=STORED_TEXT.heads, tokenizer=words
    )
    foreign = blip.load(tmp_path / "hf")
    for other in (released, foreign):
        close(other.match_logits(images, TEXTS), ours.match_logits(images, TEXTS), rtol=0, atol=0)
        close(other.itc_score(images, TEXTS), ours.itc_score(images, TEXTS), rtol=0, atol=0)
    assert released.caption(images) == ours.caption(images)


def test_clear_errors(predictor: Predictor, images: list[Image.Image], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint of retrieval cannot write captions: it has no text decoder"):
        blip.load(folder(tmp_path)).caption(images)
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        predictor.match_logits(images, TEXTS[:2])


def test_texts_are_cleaned_as_in_training(checkpoint: Path) -> None:
    tensors, info = convert.read(checkpoint)
    plain = blip.load(checkpoint)
    cleaned = Predictor(plain.model, plain.tokenizer, {**info, "text_cleaning": "blip", "max_text_tokens": 6})
    ids, lengths = cleaned.ids(["(normal)", "a large lesion in the left lung"])
    assert lengths.tolist() == [len(plain.tokenizer.encode(["normal"], 6)[0]), 6]
    assert ids[1, -1] == plain.tokenizer.sep_id
    assert tensors
