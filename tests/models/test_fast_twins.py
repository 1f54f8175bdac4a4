"""The whole pre-training model against a slow, plain one: texts one by one, keys repeated, every token computed."""

import shutil

import pytest
import torch
from helpers.tiny import keep_padding, specials_of, spread, tiny_model, tiny_text
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from blip.models import losses
from blip.models.momentum import Candidates, Entries, Queue, Twin, candidates
from blip.models.pretrain import Output, PretrainModel
from blip.network.packing import Rows

SPECIALS = specials_of(tiny_text())
PAD, ENC, DEC = SPECIALS.pad, SPECIALS.enc, SPECIALS.dec
LENGTHS = torch.tensor([5, 3, 7, 4])
B, ALPHA = len(LENGTHS), 0.4


def most_similar(weights: Tensor) -> tuple[Tensor, Tensor]:
    return weights.argmax(dim=1), weights.sum(dim=1) > 0


def build() -> PretrainModel:
    return spread(tiny_model("pretrain"), std=0.3)


def inputs(equal: bool = False) -> tuple[Tensor, Tensor, Candidates]:
    ids = torch.randint(1, 48, (B, 7)).masked_fill(torch.arange(7) >= LENGTHS[:, None], PAD)
    image_m, text_m = F.normalize(torch.randn(B, 8), dim=1), F.normalize(torch.randn(B, 8), dim=1)
    caption_ids = torch.tensor([0, 1, 0, 3])  # two equal captions
    entries = Entries(image_m, text_m, caption_ids, torch.arange(B))
    others = candidates(entries, Queue(6, 8), equal_captions=equal, equal_images=equal)
    return torch.randn(B, 3, 32, 32), ids, others


def one(length: int) -> Rows:
    return Rows(torch.tensor([length]), length, torch.device("cpu"))


def slow_forward(model: PretrainModel, images: Tensor, ids: Tensor, others: Candidates) -> Output:
    """One text, one image, one pass at a time; each pass projects its image's keys anew; nothing is padded."""
    encoder, decoder = model.text_encoder, model.text_decoder
    states = [model.image_encoder(images[b : b + 1]) for b in range(B)]
    texts = [ids[b : b + 1, : LENGTHS[b]] for b in range(B)]
    image_features = torch.cat([F.normalize(model.image_proj(s[:, 0]), dim=-1) for s in states])
    first = torch.cat([encoder.text(t, one(t.shape[1]))[:1] for t in texts])
    text_features = F.normalize(model.text_proj(first), dim=-1)
    similarity = image_features @ others.texts / model.temperature, text_features @ others.images / model.temperature
    itc = torch.zeros(())
    for ours, mine, theirs in zip(
        similarity, (others.images, others.texts), (others.texts, others.images), strict=True
    ):
        twin = mine[:, :B].T @ theirs / model.temperature.detach()
        hard = others.positives / others.positives.sum(dim=1, keepdim=True)
        targets = ALPHA * twin.softmax(dim=1) + (1 - ALPHA) * hard
        itc = itc - (ours.log_softmax(dim=1) * targets).sum(dim=1).mean() / 2

    def first_state(text: Tensor, image: Tensor) -> Tensor:
        text = text.clone()
        text[:, 0] = ENC
        return encoder.multimodal(text, one(text.shape[1]), encoder.image_keys(image))[:1]

    hard_text, hard_image = ((s[:, :B].masked_fill(others.positives[:, :B], -1e9)).argmax(dim=1) for s in similarity)
    assert (hard_text != hard_image).any()  # else nobody sees them swapped
    pairs = [(texts[b], states[b]) for b in range(B)]
    pairs += [(texts[b], states[hard_image[b]]) for b in range(B)]
    pairs += [(texts[hard_text[b]], states[b]) for b in range(B)]
    logits = model.itm_head(torch.cat([first_state(text, image) for text, image in pairs]))
    itm = F.cross_entropy(logits, torch.tensor([1] * B + [0] * 2 * B))

    predicted, targets = [], []
    for text, image in zip(texts, states, strict=True):
        start = text.clone()
        start[:, 0] = DEC
        decoded = decoder(start, one(text.shape[1]), encoder.image_keys(image))
        predicted.append(decoder.head(decoded)[:-1])
        targets.append(text[0, 1:])
    lm = F.cross_entropy(torch.cat(predicted), torch.cat(targets), label_smoothing=0.1)
    return Output(itc, itm, lm, logits)


def gradients(model: PretrainModel, out: Output) -> dict[str, Tensor]:
    model.zero_grad()
    (out.itc + out.itm + out.lm).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_equal(model: PretrainModel, out: Output, expected: Output) -> None:
    """Losses, logits and every parameter's gradient, relative to the gradient's norm."""
    for name in ("itc", "itm", "lm", "match_logits"):
        assert_close(
            getattr(out, name), getattr(expected, name), rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    slow = gradients(model, expected)
    for name, gradient in gradients(model, out).items():
        error = (gradient - slow[name]).norm() / (slow[name].norm() + 1e-3)
        assert error < 1e-3, f"{name}: {error:.1e}"


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.usefixtures("packed")
def test_fast_equals_slow(equal: bool) -> None:
    torch.manual_seed(1)  # hard texts and hard images differ
    model = build()
    images, ids, others = inputs(equal)
    out = model(images, ids, LENGTHS, others, ALPHA, draw=most_similar)
    assert_equal(model, out, slow_forward(model, images, ids, others))


def test_packed_equals_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    images, ids, others = inputs()
    packed = model(images, ids, LENGTHS, others, ALPHA, draw=most_similar)
    keep_padding(monkeypatch)
    padded = model(images, ids, LENGTHS, others, ALPHA, draw=most_similar)
    assert_equal(model, packed, padded)


def test_padding_longer_than_the_batch_changes_nothing() -> None:
    model = build()
    images, ids, others = inputs()
    out = model(images, ids, LENGTHS, others, ALPHA, draw=most_similar)
    longer = model(images, F.pad(ids, (0, 5)), LENGTHS, others, ALPHA, draw=most_similar)
    assert_equal(model, out, longer)


def test_bf16_is_close_to_float32() -> None:
    torch.manual_seed(1)
    model = build()
    images, ids, others = inputs()

    def same_pairs(weights: Tensor) -> tuple[Tensor, Tensor]:  # rounding must not choose others
        return (torch.arange(B) + 1) % B, torch.ones(B, dtype=torch.bool)

    exact = model(images, ids, LENGTHS, others, ALPHA, draw=same_pairs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images, ids, LENGTHS, others, ALPHA, draw=same_pairs)
    for name in ("itc", "itm", "lm"):
        assert getattr(rounded, name).dtype == torch.float32
        assert_close(getattr(rounded, name), getattr(exact, name), rtol=0.05, atol=0)
    expected, got = (torch.cat([g.flatten() for g in gradients(model, out).values()]) for out in (exact, rounded))
    assert F.cosine_similarity(expected, got, dim=0) > 0.98


def test_pairs_without_negatives_do_not_count() -> None:
    model = build()
    images, ids, others = inputs()
    others.positives[:, :B] = True  # all captions equal
    out = model(images, ids, LENGTHS, others, ALPHA)
    matched = F.cross_entropy(out.match_logits[:B], torch.ones(B, dtype=torch.long))
    assert_close(out.itm, matched)


@pytest.mark.usefixtures("packed")
def test_twin_equals_the_model_it_copies() -> None:
    model = build()
    twin = Twin(model)
    images, ids, _ = inputs()
    image_features, text_features = twin(images, ids, LENGTHS)
    assert_close(image_features, F.normalize(model.image_proj(model.image_encoder(images)[:, 0]), dim=-1))
    first = torch.cat([model.text_encoder.text(ids[b : b + 1, :n], one(n))[:1] for b, n in enumerate(LENGTHS.tolist())])
    assert_close(text_features, F.normalize(model.text_proj(first), dim=-1), rtol=1e-4, atol=1e-5)
    assert not image_features.requires_grad and not text_features.requires_grad


def test_twin_pairs_have_equal_names() -> None:
    model = build()
    twin = Twin(model)
    own, theirs = twin.pairs_with(model)
    assert len(own) == len(list(twin.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in theirs] == [name for name, _ in twin.named_parameters()]


def test_forward_changes_no_state() -> None:
    model = build()
    images, ids, others = inputs()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model(images, ids, LENGTHS, others, ALPHA)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


NO_COMPILER = shutil.which("g++") is None and shutil.which("clang++") is None
INDUCTOR = pytest.param(
    "inductor",
    marks=[pytest.mark.slow, pytest.mark.skipif(NO_COMPILER, reason="torch.compile needs a C++ compiler on a CPU")],
)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_compiled_block_equals_eager(backend: str) -> None:
    model = build()
    block, x = model.image_encoder.blocks[0], torch.randn(2, 5, 24, requires_grad=True)
    weight = torch.randn(2, 5, 24)
    eager = block(x)
    (expected,) = torch.autograd.grad((eager * weight).sum(), x)
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    out = compiled(x)
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)
    assert_close(out, eager, rtol=1e-4, atol=1e-5)
    assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_itm_labels_follow_the_rows() -> None:
    """A head that always says 'match' is right on the first B rows and on no other."""
    model = build()
    images, ids, others = inputs()
    with torch.no_grad():
        model.itm_head.weight.zero_()
        model.itm_head.bias.copy_(torch.tensor([0.0, 2.0]))
    out = model(images, ids, LENGTHS, others, ALPHA, draw=most_similar)
    right, wrong = (
        losses.match(out.match_logits[:B], torch.ones(B)),
        losses.match(out.match_logits[B:], torch.zeros(2 * B)),
    )
    assert_close(out.itm, (right + 2 * wrong) / 3)
