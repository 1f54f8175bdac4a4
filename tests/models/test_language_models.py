"""Adapters of language models: tokens, losses and texts of a batch are those of its members alone, and those of
transformers' own `generate`."""

from typing import Any

import pytest
import torch
from helpers.language import FAMILIES, WIDTH, WORDS, random_module, small, small_tokenizer, words
from torch import Tensor

from blip.errors import InputError
from blip.models import language_models
from blip.models.decoding import Decoding
from blip.models.generation import generate
from blip.models.language_models import LanguageModel, language_model, padding_first
from blip.models.language_steps import CausalStep, SharedPrefixStep
from blip.models.language_tokens import TextBatch
from blip.models.losses import IGNORED

pytestmark = pytest.mark.slow

CAUSAL = ("opt", "gpt2", "llama")
QUERIES = 5


def prompts(seed: int, count: int, fewest: int = 0, most: int = 6) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return [words(generator, fewest, most) for _ in range(count)]


def queries(count: int) -> Tensor:
    return torch.randn(count, QUERIES, WIDTH)


def write(model: LanguageModel, image: Tensor, batch: TextBatch, decoding: Decoding) -> Tensor:
    with torch.no_grad():
        step = model.step(image, batch.ids, batch.mask, room=decoding.texts * decoding.max_new_tokens)
        first = model.first(len(image), image.device)
        return generate(step, first, decoding, end_id=model.ids.end, pad_id=model.ids.pad).ids


def rows_of(ids: Tensor, model: LanguageModel) -> list[list[int]]:
    """Without padding and what follows the end."""
    rows = []
    for row in ids.tolist():
        end = row.index(model.ids.end) + 1 if model.ids.end in row else len(row)
        rows.append(row[:end])
    return rows


# ---- against transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_texts_are_those_of_transformers(family: str, seed: int) -> None:
    model, tokens = small(family)
    count, beams, new = 1 + seed, (1, 3, 5, 2)[seed], (8, 12, 6, 10)[seed]
    batch, image = tokens.prompts(prompts(seed, count)), queries(count)
    decoding = Decoding(
        beams=beams, max_new_tokens=new, min_new_tokens=seed, length_penalty=(1.0, 0.0, -1.0, 2.0)[seed]
    )
    ours = rows_of(write(model, image, batch, decoding), model)
    embeddings, seen = padding_first(*model.inputs(image, batch.ids, batch.mask))
    theirs = model.module.generate(
        inputs_embeds=embeddings, attention_mask=seen.long(), do_sample=False, num_beams=beams, max_new_tokens=new,
        min_new_tokens=seed, length_penalty=decoding.length_penalty, eos_token_id=model.ids.end, early_stopping=False,
        pad_token_id=model.ids.pad,
    )  # fmt: skip
    theirs = theirs[:, 1:] if family == "t5" else theirs
    assert ours == rows_of(theirs, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_transformers(family: str) -> None:
    model, tokens = small(family)
    batch = tokens.training(prompts(1, 4, 3, 9), prompts(2, 4, 1, 3))
    image = queries(4)
    embeddings, seen = model.inputs(image, batch.ids, batch.mask)
    targets = batch.targets
    if family != "t5":
        targets = torch.nn.functional.pad(targets, (QUERIES, 0), value=IGNORED)
    with torch.no_grad():
        theirs = model.module(inputs_embeds=embeddings, attention_mask=seen.long(), labels=targets).loss
        ours = model.loss(image, batch.ids, batch.mask, targets=batch.targets)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# ---- a batch and its members -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 4])
def test_a_batch_is_written_as_its_members_alone(family: str, beams: int) -> None:
    model, tokens = small(family)
    texts, image = prompts(3, 5), queries(5)
    decoding = Decoding(beams=beams, max_new_tokens=9, num_return=min(beams, 2))
    together = write(model, image, tokens.prompts(texts), decoding)
    alone = [write(model, image[i : i + 1], tokens.prompts(texts[i : i + 1]), decoding) for i in range(5)]
    assert rows_of(together, model) == [row for ids in alone for row in rows_of(ids, model)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_scored_as_its_members_alone(family: str) -> None:
    model, tokens = small(family)
    texts, before, image = prompts(4, 4, 1, 9), prompts(5, 4, 1, 4), queries(4)
    batch = tokens.training(texts, before)
    with torch.no_grad():
        together = model.log_probs(image, batch.ids, batch.mask, targets=batch.targets)
        for i in range(4):
            one = tokens.training(texts[i : i + 1], before[i : i + 1])
            alone = model.log_probs(image[i : i + 1], one.ids, one.mask, targets=one.targets)
            torch.testing.assert_close(together[i, : alone.shape[1]], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_of_what_is_written(family: str) -> None:
    """Those that generation returns are those of the same text as a target."""
    model, tokens = small(family)
    batch, image = tokens.prompts(prompts(6, 3, 1, 4)), queries(3)
    decoding = Decoding(beams=3, max_new_tokens=7)
    with torch.no_grad():
        step = model.step(image, batch.ids, batch.mask, room=21)
        out = generate(step, model.first(3, image.device), decoding, end_id=model.ids.end, pad_id=model.ids.pad)
        for i, row in enumerate(rows_of(out.ids, model)):
            before = batch.ids[i][batch.mask[i]]
            written = torch.tensor(row)
            if family == "t5":
                ids, targets = before[None], written[None]
            else:
                ids = torch.cat([before, written])[None]
                targets = torch.cat([torch.full_like(before, IGNORED), written])[None]
            scored = model.log_probs(image[i : i + 1], ids, torch.ones_like(ids, dtype=torch.bool), targets=targets)
            torch.testing.assert_close(out.log_probs[i, : len(row)], scored[0, -len(row) :], rtol=0, atol=5e-5)


# ---- keys held once an image -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CAUSAL)
def test_shared_keys_give_what_keys_of_each_text_give(family: str) -> None:
    """The texts of images come, change places, become fewer and lose images."""
    model, tokens = small(family)
    batch = tokens.prompts(prompts(7, 4, 0, 5))
    prefix, mask = model.inputs(queries(4), batch.ids, batch.mask)
    shared, plain = SharedPrefixStep(model.module, prefix, mask, room=40), CausalStep(model.module, prefix, mask)
    moves: list[tuple[list[int], int]] = [
        ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], 3),
        ([2, 0, 0, 3, 4, 5, 8, 8, 8, 10, 9, 11], 3),
        ([1, 2, 6, 6, 11, 10], 2),
        ([3, 2, 5, 5], 2),
        ([1, 3], 1),
        ([1], 1),
    ]
    with torch.no_grad():
        ids = torch.zeros(4, 1, dtype=torch.long)
        torch.testing.assert_close(shared(ids), plain(ids), rtol=0, atol=1e-5)
        for rows, each in moves:
            index = torch.tensor(rows)
            for step in (shared, plain):
                step.select(index, each)
            ids = torch.randint(4, len(WORDS), (len(rows), 1))
            torch.testing.assert_close(shared(ids), plain(ids), rtol=0, atol=1e-5)


def test_which_models_share_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(small(family)[0].shares_prefix for family in CAUSAL)  # type: ignore[attr-defined]
    monkeypatch.setattr(language_models, "SHARED_PREFIX", ())
    module = type(random_module("llama"))(
        random_module("llama").config.__class__(**random_module("llama").config.to_dict())
    )
    other, tokens = language_model(module, small_tokenizer("llama"))
    batch = tokens.prompts(["w1 w2"])
    assert isinstance(other.step(queries(1), batch.ids, batch.mask, room=1), CausalStep)


# ---- tokens ----------------------------------------------------------------------------------------------------------

LONG = " ".join(WORDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_ends_however_long_it_is(family: str) -> None:
    _, tokens = small(family)
    batch = tokens.training([LONG, "w1 w2"])
    assert batch.mask[0].all() and batch.targets.shape[1] == 16
    assert batch.targets[0, -1] == tokens.ids.end
    counted = batch.targets[1][batch.targets[1] != IGNORED]
    assert counted[-1] == tokens.ids.end and (counted == tokens.ids.end).sum() == 1


def test_a_line_break_in_a_text_does_not_end_it() -> None:
    _, tokens = small("opt")
    first, second = tokens.training(["w1\nw2 \n", "w1 w2"]).ids
    assert torch.equal(first, second) and (first == tokens.ids.end).sum() == 1


def test_the_published_order_cuts_the_end() -> None:
    _, tokens = small("opt", end_may_be_cut=True)
    batch = tokens.training([LONG, "w1"])
    assert tokens.ids.end not in batch.ids[0] and batch.ids[1, 2] == tokens.ids.end


@pytest.mark.parametrize("family", CAUSAL)
def test_the_tokens_of_a_prompt_are_no_targets(family: str) -> None:
    _, tokens = small(family)
    batch = tokens.training(["w3 w4", "w5"], ["w1 w2", "w1"])
    first = int(family != "gpt2")  # the first token is one of the tokenizer
    expected = [[IGNORED] * (first + 2) + [WORDS.index("w3") + 4, WORDS.index("w4") + 4, tokens.ids.end],
                [IGNORED] * (first + 1) + [WORDS.index("w5") + 4, tokens.ids.end] + [IGNORED] * 2]  # fmt: skip
    assert batch.targets.tolist() == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_come_back(family: str) -> None:
    _, tokens = small(family)
    batch = tokens.training(["w3 w4 w5", "w6"])
    assert tokens.decode(batch.targets.where(batch.targets != IGNORED, tokens.ids.pad)) == ["w3 w4 w5", "w6"]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_are_too_long(family: str) -> None:
    _, tokens = small(family)
    with pytest.raises(InputError, match=r"'w0 w1 .*\.\.\.' has \d+ tokens, at most 512 are read"):
        tokens.prompts([LONG * 20])
    if family != "t5":
        with pytest.raises(InputError, match=r"has \d+ tokens and leaves no place for a text.*max_text_tokens, now 16"):
            tokens.training(["w1"], [LONG])


def test_what_cannot_be_used_is_named() -> None:
    with pytest.raises(InputError, match="max_text_tokens is 1"):
        small("opt", 1)
    with pytest.raises(InputError, match="has 2 tokens in this tokenizer, it must be 1"):
        small("opt", end="w1 w2")
    with pytest.raises(InputError, match="takes no inputs_embeds"):
        language_model(torch.nn.Linear(2, 2), small_tokenizer("opt"))


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_language_model_is_frozen_and_passes_gradients_on(family: str) -> None:
    model, tokens = small(family)
    model.train()
    assert not any(module.training for module in model.modules())
    image = queries(2).requires_grad_()
    batch = tokens.training(["w1 w2", "w3"])
    model.loss(image, batch.ids, batch.mask, targets=batch.targets).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_dropout_of_the_language_model_is_an_option() -> None:
    model: Any = small("opt", dropout=True)[0]
    assert model.train().module.training and not model.eval().module.training
