"""Maps of BLIP-2's queries: the formula, a planted square that a taught model finds, both stages, the command."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.running import code_and_text
from helpers.tiny import tiny_qformer, tiny_vit
from PIL import Image
from torch import Tensor, nn

import blip
from blip.checkpoints import convert
from blip.checkpoints.format import save_weights, unique_state
from blip.errors import BlipError
from blip.inference.blip2 import Blip2Predictor
from blip.inference.query_scoring import written_log_probs, written_spans
from blip.interpret.explain import explain_pairs
from blip.models.blip2 import Blip2Model
from blip.models.decoding import Decoding
from blip.network.qformer import layers_of
from blip.tokenizer import Specials, Tokenizer

pytestmark = pytest.mark.slow
ROWS, COLUMNS = ("top", "upper", "lower", "bottom"), ("first", "second", "third", "fourth")
TEXTS = [f"square {row} {column}" for row in ROWS for column in COLUMNS]  # where the square is, among 4 x 4 patches


def squares(seed: int) -> Tensor:
    """16 images of noise (16, 3, 32, 32), each with a bright square in another patch."""
    images = 0.3 * torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    for i in range(16):
        row, column = divmod(i, 4)
        images[i, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 3
    return images


@torch.no_grad()
def plant(model: Blip2Model) -> None:
    """Places are easy to tell apart, no patch tells another where it is, and queries begin with the brightest one."""
    nn.init.normal_(model.image_encoder.positions)
    for block in model.image_encoder.blocks:
        nn.init.zeros_(block.proj.weight)
        nn.init.zeros_(block.proj.bias)
    model.image_encoder.requires_grad_(False)
    states, numbers = model.image_encoder(squares(0)), torch.arange(16)
    bright = states[numbers, 1 + numbers].mean(dim=0) - states[:, 1:].mean(dim=(0, 1))
    attention = layers_of(model.qformer)[0].cross_attention
    attention.k.weight.add_(bright / (bright @ bright))
    attention.q.bias.fill_(2.0)


@pytest.fixture(scope="module")
def taught() -> Blip2Predictor:
    """A model that has learned to tell where the square is."""
    torch.manual_seed(0)
    words = Tokenizer.train(iter(TEXTS * 9), 90)
    sizes = tiny_qformer(vocab_size=words.size, layers=2, max_positions=48)
    model = Blip2Model(tiny_vit(depth=1), sizes, Specials(words.pad_id, -1, words.dec_id), embed_dim=8)
    plant(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    encoded = words.encode(TEXTS, 16)
    lengths = torch.tensor([len(ids) for ids in encoded])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in encoded], batch_first=True)
    for step in range(STEPS):
        out = model(squares(step), ids, lengths)
        optimizer.zero_grad()
        (out.itc + out.itm + out.lm).backward()
        optimizer.step()
    info = {
        "task": "blip2",
        "image_encoder": asdict(model.image_encoder.config),
        "qformer": asdict(sizes),
        "embed_dim": 8,
    }
    return Blip2Predictor(model, words, info, precision="fp32")


STEPS = 300  # of eight other seeds 81 % of the words' maps or more point at the square; after 200 steps half to all


def hits(maps: list[Tensor]) -> float:
    """The share of maps (h, w), one an image, that are largest at the square."""
    return sum(int(one.flatten().argmax()) == i for i, one in enumerate(maps)) / len(maps)


def test_words_point_at_the_square(taught: Blip2Predictor) -> None:
    """The words that tell where it is; of images that the model has not seen."""
    images = list(squares(10_000))
    written = taught.caption(images, decoding=Decoding(max_new_tokens=10))
    assert sum(a == b for a, b in zip(written, TEXTS, strict=True)) >= 13
    found = explain_pairs(taught, images, TEXTS, task="caption", batch_size=16)
    assert found[5].words == TEXTS[5].split() and found[5].maps.shape == (3, 4, 4)
    for word in (1, 2):
        assert hits([one.maps[word] for one in found]) >= 0.7


def test_queries_point_at_the_square(taught: Blip2Predictor) -> None:
    images = list(squares(10_001))
    for task in ("caption", "match"):
        found = explain_pairs(taught, images, TEXTS, task=task, rows="queries", method="raw", batch_size=16)
        assert found[0].words == ["query 1", "query 2", "query 3"]
        assert hits([one.sentence for one in found]) >= 0.8
    matched = explain_pairs(taught, images, TEXTS, batch_size=16)
    assert matched[3].task == "match" and matched[3].maps.shape == (3, 4, 4)
    assert matched[3].score == pytest.approx(float(taught.match_logits(images[3:4], TEXTS[3:4])[0, 1]), abs=1e-4)


def naive(m: Blip2Predictor, image: Tensor, text: str, column: int) -> Tensor:
    """Sum over layers and queries of the mean over heads of A * max(ds/dA, 0), with every soft-max written out."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    crossing = [one.cross_attention.attention.pattern for one in layers_of(m.model.qformer) if one.cross_attention]
    handles = [pattern.register_forward_hook(keep) for pattern in crossing]
    with m.gradients():
        written_log_probs(m, [image], [text])[0, column].backward()
    for handle in handles:
        handle.remove()
    assert len(kept) == len(crossing)
    maps = [(a.detach() * a.grad.clamp(min=0)).mean(dim=1).sum(dim=1)[0, 1:] for a in kept]  # type: ignore[union-attr]
    return torch.stack(maps).sum(dim=0).view(4, 4)


def test_maps_follow_the_formula(taught: Blip2Predictor) -> None:
    image, text = squares(3)[6], "top unheard square"
    (found,) = explain_pairs(taught, image, text, task="caption")
    spans = written_spans(taught, text)
    assert [word for word, _ in spans] == found.words == text.split()
    assert any(span.stop - span.start > 1 for _, span in spans)
    tokens = taught.tokenizer.count([text])[0] - 2  # [CLS] is not written, and [SEP] is no word
    assert spans[0][1].start == 0 and spans[-1][1].stop == tokens
    for (_, span), of_word in zip(spans, found.maps, strict=True):
        expected = sum(naive(taught, image, text, column) for column in range(span.start, span.stop))
        torch.testing.assert_close(of_word, expected, rtol=1e-3, atol=1e-6)
    (one,) = explain_pairs(taught, image, text, task="caption", layer=0)
    assert one.layer == 0 and not taught.differentiable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "relevance"}, "of BLIP-2 it can be gradcam, raw, rollout"),
        ({"rows": "enc"}, "of BLIP-2 it can be words or queries"),
        ({"layer": 1}, r"layer 1 has no queries that attend to the image; layers \[0\] have"),
        ({"task": "answer"}, "cannot answer"),
    ],
)
def test_what_is_not_possible(taught: Blip2Predictor, options: dict, message: str) -> None:
    with pytest.raises(BlipError, match=message):
        explain_pairs(taught, squares(0)[0], TEXTS[0], **options)


def test_command(taught: Blip2Predictor, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save_weights(tmp_path / "model", unique_state(taught.model), taught.info)
    taught.tokenizer.save(tmp_path / "model" / "tokenizer.json")
    Image.fromarray((np.random.default_rng(0).random((32, 32, 3)) * 255).astype(np.uint8)).save(tmp_path / "a.png")
    options = ["--checkpoint", tmp_path / "model", "--task", "caption", "--out", tmp_path / "map.npz"]
    code, shown = code_and_text("explain", tmp_path / "a.png", "square top first", *options)
    assert code == 0, shown
    with np.load(tmp_path / "map.npz") as file:
        assert file["words_0"].tolist() == ["square", "top", "first"] and file["maps_0"].shape == (3, 4, 4)
    code, shown = code_and_text("explain", tmp_path / "a.png", *options[:-1], tmp_path / "map.png", "--rows", "queries")
    assert code == 0 and (tmp_path / "map.png").stat().st_size > 1000, shown


@pytest.mark.golden
def test_words_of_a_frozen_language_model(golden2_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    meta = json.loads((golden2_dir / "meta.json").read_text())
    heads = meta["vit"]["heads"], meta["qformer"]["heads"]
    path, tower = golden2_dir / "opt_pretrain.pth", str(golden2_dir / "eva_vit.pth")
    tensors, info = convert.read(path, *heads, image_encoder=tower)
    save_weights(tmp_path, tensors, info)
    m = blip.load(tmp_path, device="cpu", precision="fp32", language_model=str(golden2_dir / "opt"))
    text = "a large lesion"
    image = torch.randn(3, meta["vit"]["image_size"], meta["vit"]["image_size"])
    (found,) = explain_pairs(m, image, text)
    assert found.task == "caption" and found.words == text.split()
    side = meta["vit"]["image_size"] // meta["vit"]["patch_size"]
    assert found.maps.shape == (3, side, side) and (found.maps.flatten(1).amax(dim=1) > 0).all()
    (queries,) = explain_pairs(m, image, text, rows="queries")
    assert len(queries.words) == meta["qformer"]["query_tokens"]
