"""Every task with items of several pictures in a batch: equal to each item alone, pictures one after the other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.tiny import spread, tiny_blip2, tiny_model, tiny_qformer, tiny_vit
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from blip.models import losses
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.decoding import Decoding
from blip.models.matching import match_logits
from blip.models.momentum import Candidates, Entries, Queue, Twin, candidates
from blip.models.scorers import scorer_of
from blip.network.packing import Rows, with_first
from blip.network.pictures import Pictures, beside_one_another, encode

COUNTS, LENGTHS = (2, 1, 3), torch.tensor([5, 3, 7])
B, CPU = 3, torch.device("cpu")
EXACT = {"rtol": 0, "atol": 1e-10}
TABLE = {"picture_embeddings": "time", "max_pictures": 4}


def build(task: str) -> Any:
    torch.manual_seed(2)
    vit = tiny_vit(**TABLE)
    model = tiny_blip2(vit) if task == "blip2" else tiny_model(task, vit)
    return spread(model, std=0.3).double().eval()


def inputs() -> tuple[Pictures, Tensor]:
    torch.manual_seed(1)
    items = [torch.randn(count, 3, 32, 32, dtype=torch.float64) for count in COUNTS]
    images = beside_one_another(items)
    assert isinstance(images, Pictures) and images.present is not None
    images.tensor[~images.present] = float("nan")  # absent ones take no part
    return images, torch.randint(1, 48, (B, 7)).masked_fill(torch.arange(7) >= LENGTHS[:, None], 0)


def alone(model: Any, images: Pictures, row: int) -> Tensor:
    """The tokens of an item's pictures (1, F*N, D), one picture after the other through the encoder."""
    count = COUNTS[row]
    states = [
        model.image_encoder(images.tensor[row, i : i + 1], False, torch.tensor([count - 1 - i])) for i in range(count)
    ]
    return torch.cat(states, dim=1)


def cls_of(states: Tensor) -> Tensor:
    """The first token of each picture of an item, from its tokens."""
    return states[0, ::17]


def others(images: Tensor | Pictures) -> Candidates:
    features = [F.normalize(torch.randn(B, 8), dim=1) for _ in range(2)]
    return candidates(Entries(*features, torch.arange(B), torch.arange(B)), Queue(4, 8))


def most_similar(weights: Tensor) -> tuple[Tensor, Tensor]:
    return weights.argmax(dim=1), weights.sum(dim=1) > 0


def text_of(ids: Tensor, row: int) -> Tensor:
    return ids[row : row + 1, : LENGTHS[row]]


@pytest.mark.parametrize("task", ["pretrain", "retrieval", "blip2"])
def test_contrast_and_matching(task: str) -> None:
    """Features, logits of pairs with their hard negatives, and the language model's loss, item by item."""
    model = build(task)
    images, ids = inputs()
    scorer = scorer_of(model)
    states = [alone(model, images, row) for row in range(B)]
    features = scorer.image_features(images)
    for row in range(B):
        if task == "blip2":
            expected = F.normalize(model.image_proj(model.read_images(states[row]).states), dim=-1)
        else:
            expected = F.normalize(model.image_proj(cls_of(states[row])).mean(dim=0, keepdim=True), dim=-1)
        assert_close(features[row : row + 1], expected.float(), rtol=0, atol=1e-6)
    extra = () if task == "blip2" else (others(images), 0.4)
    drawn: list[Tensor] = []

    def draw(weights: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(weights.argmax(dim=1))
        return most_similar(weights)

    out = model(images, ids, LENGTHS, *extra, draw=draw)
    hard_text, hard_image = drawn
    pairs = [(b, b) for b in range(B)] + [(b, int(hard_image[b])) for b in range(B)]
    pairs += [(int(hard_text[b]), b) for b in range(B)]
    expected = [
        scorer.match_logits(text_of(ids, text), LENGTHS[text][None], scorer.image_keys(states[image]))
        for text, image in pairs
    ]
    assert_close(out.match_logits, torch.cat(expected), **EXACT)
    assert_close(out.itm, F.cross_entropy(torch.cat(expected), torch.tensor([1] * B + [0] * 2 * B)).float())
    if task == "retrieval":
        return
    each = []
    for row in range(B):
        text, seen = text_of(ids, row), scorer.see(states[row][:, None].squeeze(1))
        rows = Rows(LENGTHS[row : row + 1], text.shape[1], CPU)
        each.append(losses.language_model_each(scorer.next_tokens(text, rows, seen), rows.next_tokens(text), 0.1))
    counted = torch.cat([one[:-1] for one in each])
    assert_close(out.lm, counted.mean(), rtol=1e-6, atol=0)


def test_the_twin_and_the_gradient_of_embeddings() -> None:
    model = build("pretrain")
    images, ids = inputs()
    features, _ = Twin(model).eval()(images, ids, LENGTHS)
    assert_close(features, scorer_of(model).image_features(images))
    out = model(images, ids, LENGTHS, others(images), 0.4, draw=most_similar)
    (out.itc + out.itm + out.lm).backward()
    gradient = model.image_encoder.picture_embeddings.table.grad
    assert gradient[:3].abs().sum(dim=1).min() > 1e-6 and not gradient[3].any()


def test_captions() -> None:
    model = build("caption")
    images, ids = inputs()
    together, targets = model.predictions(encoded(model, images), ids, LENGTHS)
    start = 0
    for row in range(B):
        logits, own = model.predictions(alone(model, images, row), text_of(ids, row), LENGTHS[row : row + 1])
        assert_close(together[start : start + len(logits)], logits, **EXACT)
        assert torch.equal(targets[start : start + len(own)], own)
        start += len(logits)
    check_written(model, images, lambda model, states, **options: model.write_about(states, **options))


def test_captions_of_blip2() -> None:
    model = build("blip2")
    check_written(model, inputs()[0], lambda model, states, **options: model.write_about(states, **options))


def encoded(model: Any, images: Pictures) -> Any:
    return encode(model.image_encoder, images)


def check_written(model: Any, images: Pictures, write_about: Callable[..., Any]) -> None:
    """Beams of a batch are those of each item alone."""
    prompt = torch.full((B, 1), model.specials.dec)
    options: dict[str, Any] = {"decoding": Decoding(beams=2, max_new_tokens=5), "end_id": 2}
    together = model.write(images, prompt, **options)
    for row in range(B):
        own = write_about(model, alone(model, images, row), prompt=prompt[:1], **options)
        assert_close(together.log_probs[row].sum(), own.log_probs[0].sum(), rtol=0, atol=1e-6)
        assert together.ids[row, : own.ids.shape[1]].tolist() == own.ids[0].tolist()


def test_answers() -> None:
    model = build("vqa")
    images, ids = inputs()
    answers, owner = torch.randint(1, 48, (4, 3)), torch.tensor([0, 1, 1, 2])
    lengths = torch.full((4,), 3)
    keys = model.question_keys(images, ids, LENGTHS)
    found = model.answer_losses(keys, answers, lengths, owner=owner)
    for i, row in enumerate(owner.tolist()):
        own = model.keys_of_questions(alone(model, images, row), text_of(ids, row), LENGTHS[row : row + 1])
        expected = model.answer_losses(own, answers[i : i + 1], lengths[:1], owner=torch.tensor([0]))
        assert_close(found[i : i + 1], expected, **EXACT)
    loss = model(
        images, ids, LENGTHS, answer_ids=answers, answer_lengths=lengths, owner=owner, weights=torch.ones(4).double()
    )
    assert_close(loss.float(), found.sum() / B)


def test_what_a_language_model_is_shown() -> None:
    torch.manual_seed(3)
    model = spread(Blip2LanguageModel(tiny_vit(**TABLE), tiny_qformer(), 20), std=0.3).double().eval()
    images, ids = inputs()
    states = encoded(model, images)
    for questions in ({}, {"question_ids": ids, "question_lengths": LENGTHS}):
        together = model.query_inputs(states, **questions)
        for row in range(B):
            own = {} if not questions else {
                "question_ids": text_of(ids, row), "question_lengths": LENGTHS[row : row + 1]
            }  # fmt: skip
            assert_close(together[row : row + 1], model.query_inputs(alone(model, images, row), **own), **EXACT)


def test_the_first_picture_alone_is_another_item() -> None:
    """What the further pictures add reaches every score."""
    model = build("pretrain")
    images, ids = inputs()
    first = images.tensor[:, 0]
    scorer = scorer_of(model)
    assert not torch.allclose(scorer.image_features(images)[0], scorer.image_features(first)[0], atol=1e-3)
    several, one = (
        match_logits(model.text_encoder, model.itm_head, with_first(ids, model.specials.enc), lengths=LENGTHS,
                     keys=model.text_encoder.image_keys(states))
        for states in (encoded(model, images), model.image_encoder(first))
    )  # fmt: skip
    assert not torch.allclose(several[0], one[0], atol=1e-3)
    assert_close(several[1], one[1], **EXACT)  # an item of one picture
