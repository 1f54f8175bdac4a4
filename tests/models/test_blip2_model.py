"""BLIP-2's first stage against a slow, plain one: texts one by one, keys made anew in every pass, every token."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from helpers.tiny import spread, tiny_blip2
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from blip.data.batches import Batch
from blip.evaluation.pretraining import evaluate_pretraining
from blip.evaluation.retrieval import Texts, evaluate_retrieval
from blip.models.blip2 import Blip2Model, Output, positives_among
from blip.models.decoding import Decoding
from blip.models.momentum import cosines
from blip.network.packing import Rows

LENGTHS = torch.tensor([5, 3, 7, 4])
B, DEC, CPU = len(LENGTHS), 48, torch.device("cpu")


def most_similar(weights: Tensor) -> tuple[Tensor, Tensor]:
    return weights.argmax(dim=1), weights.sum(dim=1) > 0


def build() -> Blip2Model:
    torch.manual_seed(2)
    return spread(tiny_blip2(), std=0.3)  # type: ignore[return-value]


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, 48, (B, 7)).masked_fill(torch.arange(7) >= LENGTHS[:, None], 0)
    return torch.randn(B, 3, 32, 32), ids


def one(length: int) -> Rows:
    return Rows(torch.tensor([length]), length, CPU)


def slow_forward(model: Blip2Model, images: Tensor, ids: Tensor, *, positives: Tensor, both: bool) -> Output:
    """One text, one image, one pass at a time; each projects its image's keys anew; nothing is padded."""
    qformer = model.qformer
    states = [model.image_encoder(images[b : b + 1]) for b in range(B)]
    texts = [ids[b : b + 1, : LENGTHS[b]] for b in range(B)]
    image_features = [
        F.normalize(model.image_proj(qformer.look(qformer.image_keys(s)).states[0]), dim=-1) for s in states
    ]
    text_features = [F.normalize(model.text_proj(qformer.text(t, one(t.shape[1]))[0]), dim=-1) for t in texts]
    found = [x if both else x.detach() for x in image_features], [x if both else x.detach() for x in text_features]
    image_to_text = torch.stack([torch.stack([(i @ t).max() for t in found[1]]) for i in image_features])
    text_to_image = torch.stack([torch.stack([(i @ t).max() for i in found[0]]) for t in text_features])
    itc, similarity = torch.zeros(()), [x / model.temperature for x in (image_to_text, text_to_image)]
    for scores in similarity:
        targets = 0.9 * positives / positives.sum(dim=1, keepdim=True) + 0.1 / B
        itc = itc - (scores.log_softmax(dim=1) * targets).sum(dim=1).mean() / 2
    hard_text, hard_image = (s.masked_fill(positives, -1e9).argmax(dim=1) for s in similarity)
    assert (hard_text != hard_image).any()  # else nobody sees them swapped
    pairs = [(b, b) for b in range(B)] + [(b, int(hard_image[b])) for b in range(B)]
    pairs += [(int(hard_text[b]), b) for b in range(B)]
    logits = torch.cat([
        model.itm_head(qformer.match(texts[t], one(texts[t].shape[1]), qformer.image_keys(states[i]))).mean(dim=1)
        for t, i in pairs
    ])  # fmt: skip
    itm = F.cross_entropy(logits, torch.tensor([1] * B + [0] * 2 * B))
    predicted, following = [], []
    for text, image in zip(texts, states, strict=True):
        first = text.clone()
        first[:, 0] = DEC
        read = qformer.look(qformer.image_keys(image))
        predicted.append(qformer.head(qformer.write(first, one(text.shape[1]), read.cache()))[:-1])
        following.append(text[0, 1:])
    lm = F.cross_entropy(torch.cat(predicted), torch.cat(following), label_smoothing=0.1)
    return Output(itc, itm, lm, logits)


def gradients(model: Blip2Model, out: Output) -> dict[str, Tensor]:
    model.zero_grad()
    (out.itc + out.itm + out.lm).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}  # type: ignore[union-attr]


@pytest.mark.parametrize(("equal", "both"), [(False, False), (True, False), (False, True)])
@pytest.mark.usefixtures("packed")
def test_fast_equals_slow(equal: bool, both: bool) -> None:
    model = build()
    images, ids = inputs()
    captions = torch.tensor([0, 1, 0, 3])
    positives = positives_among(captions, torch.arange(B), equal_captions=equal)
    assert positives.sum() == (6 if equal else 4)
    out = model(images, ids, LENGTHS, positives=positives, gather_gradients=both, draw=most_similar)
    expected = slow_forward(model, images, ids, positives=positives, both=both)
    for name in ("itc", "itm", "lm", "match_logits"):
        assert_close(getattr(out, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
    slow = gradients(model, expected)
    for name, gradient in gradients(model, out).items():
        error = (gradient - slow[name]).norm() / (slow[name].norm() + 1e-3)
        assert error < 1e-3, f"{name}: {error:.1e}"


def test_a_pair_is_its_own_only_positive_unless_told_otherwise() -> None:
    model = build()
    images, ids = inputs()
    own = torch.eye(B, dtype=torch.bool)
    first, second = (model(images, ids, LENGTHS, positives=p, draw=most_similar) for p in (None, own))
    assert torch.equal(first.itc, second.itc) and torch.equal(first.match_logits, second.match_logits)
    found = positives_among(torch.tensor([4, 5, 4, 6]), torch.tensor([1, 1, 2, 3]))
    assert found.int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_pairs_that_are_all_positives_have_no_negatives() -> None:
    model = build()
    images, ids = inputs()
    everything = torch.ones(B, B, dtype=torch.bool)
    out = model(images, ids, LENGTHS, positives=everything)
    expected = F.cross_entropy(out.match_logits[:B], torch.ones(B, dtype=torch.long))
    assert_close(out.itm, expected)


def test_a_small_temperature_leaves_negatives() -> None:
    """Though the soft-max over all pairs leaves nothing beside the pair itself."""
    model, chosen = build(), []
    images, ids = inputs()
    with torch.no_grad():
        model.temperature.fill_(1e-3)

    def draw(weights: Tensor) -> tuple[Tensor, Tensor]:
        chosen.append(weights.sum(dim=1))
        return most_similar(weights)

    model(images, ids, LENGTHS, draw=draw)
    for sums in chosen:
        assert_close(sums, torch.ones(B))


# ---- predictions -----------------------------------------------------------------------------------------------------


def test_cosines_are_those_of_the_nearest_feature() -> None:
    images, texts = torch.randn(5, 3, 4), torch.randn(6, 4)
    expected = torch.stack([torch.stack([max(q @ t for q in image) for t in texts]) for image in images])
    assert_close(cosines(images, texts), expected)
    assert_close(cosines(texts, images), expected.T)
    assert_close(cosines(images[:, 0], texts), images[:, 0] @ texts.T)


def source(pixels: Tensor) -> object:
    def images(numbers: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for batch in numbers:
            yield pixels[list(batch)]

    return images


@torch.no_grad()
def test_ranking_equals_pair_by_pair() -> None:
    model = build().eval()
    pixels, ids = inputs()
    texts = Texts(ids, LENGTHS, [[0], [1], [1], [3]])
    found = evaluate_retrieval(model, source(pixels), B, texts=texts, device=CPU, k=2, batch_size=3)  # type: ignore[arg-type]
    similarity, scores = torch.zeros(2, B, B)
    for i in range(B):
        for t, n in enumerate(LENGTHS.tolist()):
            features = (
                model.encode_image(pixels[i : i + 1])[0],
                model.encode_text(ids[t : t + 1, :n], LENGTHS[t : t + 1]),
            )
            keys = model.qformer.image_keys(model.image_encoder(pixels[i : i + 1]))
            similarity[i, t] = (features[0] @ features[1][0]).max()
            logits = model.match_logits(ids[t : t + 1, :n], LENGTHS[t : t + 1], keys)
            scores[i, t] = similarity[i, t] + logits[0, 1]
    for ranking, cosine, score in (
        (found.image_to_text, similarity, scores),
        (found.text_to_image, similarity.T, scores.T),
    ):
        for query, row in enumerate(ranking.candidates.tolist()):
            best = cosine[query].argsort(descending=True)[:2].tolist()
            assert row == sorted(best, key=lambda c: -score[query, c].item())
        assert_close(ranking.scores, score.gather(1, ranking.candidates), rtol=0, atol=1e-5)


@torch.no_grad()
def test_validation_equals_forward() -> None:
    """With the whole set as one batch, contrast without smoothing aside."""
    model = build().eval()
    images, ids = inputs()
    number = torch.arange(B)
    batch = Batch(images, ids, LENGTHS, number, number, number.tolist(), [])
    scores = evaluate_pretraining(model, [batch], CPU).metrics
    shifted = number.roll(1)
    out = model(images, ids, LENGTHS, draw=lambda weights: (shifted, torch.ones(B, dtype=torch.bool)))
    assert scores["val_lm"] == pytest.approx(out.lm.item(), abs=1e-5)
    right = out.match_logits[:B].argmax(dim=1) == 1
    assert scores["val_itm_matched"] == pytest.approx(right.float().mean().item())
    wrong = out.match_logits[2 * B :].argmax(dim=1) == 0
    assert scores["val_itm_unmatched"] == pytest.approx(wrong.float().mean().item())
    matched, unmatched = (F.cross_entropy(x, torch.full((B,), label)) for x, label in (
        (out.match_logits[:B], 1), (out.match_logits[2 * B :], 0)))  # fmt: skip
    assert scores["val_itm"] == pytest.approx((matched + 2 * unmatched).item() / 3, abs=1e-5)


@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=6), Decoding(beams=3, max_new_tokens=6, num_return=2)])
def test_captions_of_a_batch_equal_those_one_by_one(decoding: Decoding) -> None:
    model = build().eval()
    images, _ = inputs()
    prompt = torch.tensor([[DEC, 7]])
    batch = model.write(images, prompt.expand(B, -1), decoding, end_id=3)
    for i in range(B):
        alone = model.write(images[i : i + 1], prompt, decoding, end_id=3)
        own = slice(i * decoding.num_return, (i + 1) * decoding.num_return)
        assert torch.equal(alone.ids, batch.ids[own, : alone.ids.shape[1]])
        assert_close(alone.scores, batch.scores[own], rtol=1e-4, atol=1e-4)
