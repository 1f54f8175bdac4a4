"""A frozen language model behind published queries returns the published numbers: inputs, losses, beams and texts.

Every size comes from the folder of numbers. The way of the image to the queries is tested elsewhere.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.golden_numbers import FEATURES, close
from helpers.language import GoldenTexts, golden_module, golden_texts
from torch import Tensor

from blip.models.decoding import Decoding
from blip.models.generation import generate
from blip.models.losses import IGNORED

pytestmark = [pytest.mark.golden, pytest.mark.slow]

LOGITS = 5e-5
CAUSAL = ["opt_pretrain", "opt_prompt", "opt_caption"]
KINDS = [*CAUSAL, "t5_pretrain"]


def queries_of(golden: GoldenTexts) -> Tensor:
    """(B, Q, W)."""
    if "query_inputs0" in golden.numbers:
        return golden.numbers["query_inputs0"]
    embeddings, ids = golden.number("inputs_embeds"), golden.number("input_ids")
    return embeddings[:, : embeddings.shape[1] - ids.shape[1]]


def decoding_of(args: dict[str, Any], causal: bool) -> Decoding:
    """The published arguments in our terms: lengths count one token that is not new, except where they are limits of
    new tokens by their name."""
    answers = "max_len" in args
    longest = args["max_len"] if answers else args["max_length"] - 1 if causal else args["max_length"]
    usual = (0.0 if causal else -1.0) if answers else 1.0
    return Decoding(
        beams=args["num_beams"],
        max_new_tokens=longest,
        min_new_tokens=max(0, (args["min_len"] if answers else args["min_length"]) - 1),
        num_return=args.get("num_captions", 1),
        length_penalty=float(args.get("length_penalty", usual)),
        repetition_penalty=args.get("repetition_penalty", 1.0),
        length_norm="whole_blip2",
    )


def write(golden: GoldenTexts, prompts: list[str], decoding: Decoding) -> Tensor:
    batch, model = golden.tokens.prompts(prompts), golden.model
    room = decoding.texts * decoding.max_new_tokens
    with torch.no_grad():
        step = model.step(queries_of(golden), batch.ids, batch.mask, room=room)
        first = model.first(len(prompts), batch.ids.device)
        return generate(step, first, decoding, end_id=model.ids.end, pad_id=model.ids.pad).ids


def check(golden: GoldenTexts, ids: Tensor, expected: list[list[int]], texts: list[str]) -> None:
    """Published ids begin with a token that is not new; published texts have no space before a comma and the like."""
    expected_ids = torch.tensor(expected)[:, 1:]
    ids = torch.nn.functional.pad(ids, (0, expected_ids.shape[1] - ids.shape[1]), value=golden.model.ids.pad)
    assert ids.tolist() == expected_ids.tolist()
    cleaned = golden.tokens.tokenizer.clean_up_tokenization
    assert [cleaned(text) for text in golden.tokens.decode(ids)] == texts


@pytest.mark.parametrize("kind", CAUSAL)
def test_inputs_and_loss_of_a_causal_model(golden2_dir: Path, kind: str) -> None:
    golden = golden_texts(golden2_dir, kind)
    settings, model = golden.settings, golden.model
    prompt = settings["prompt"]
    texts = [text.removeprefix(prompt).strip() for text in settings["text_input"]]
    batch = golden.tokens.training(texts, [prompt] * len(texts) if prompt else None)
    queries = queries_of(golden)
    count = queries.shape[1]
    assert batch.ids.tolist() == golden.number("input_ids").tolist()
    embeddings, seen = model.inputs(queries, batch.ids, batch.mask)
    close(embeddings, golden.number("inputs_embeds"), FEATURES)
    assert seen.long().tolist() == golden.number("attention_mask").tolist()
    labels = golden.number("labels")
    assert labels[:, :count].eq(IGNORED).all() and labels[:, count:].tolist() == batch.targets.tolist()
    with torch.no_grad():
        logits = model.predictions(queries, batch.ids, batch.mask, targets=batch.targets)
        real = batch.mask  # padding is computed as published too, but nothing reads it
        close(logits[real], golden.number("logits")[:, count - 1 : -1][real], LOGITS)
        loss = model.loss(queries, batch.ids, batch.mask, targets=batch.targets)
        each = model.log_probs(queries, batch.ids, batch.mask, targets=batch.targets)
    close(loss, torch.tensor(settings["losses"][0][0]), FEATURES)
    counted = batch.targets != IGNORED
    close(-each.sum() / counted.sum(), loss, FEATURES)
    assert each[~counted].eq(0).all() and each[counted].lt(0).all()


def test_inputs_and_loss_of_an_encoder_decoder(golden2_dir: Path) -> None:
    golden = golden_texts(golden2_dir, "t5_pretrain")
    settings, model = golden.settings, golden.model
    batch = golden.tokens.training(settings["text_output"], settings["text_input"])
    queries = queries_of(golden)
    assert batch.ids.tolist() == golden.number("input_ids").tolist()
    embeddings, seen = model.inputs(queries, batch.ids, batch.mask)
    close(embeddings, golden.number("inputs_embeds"), FEATURES)
    assert seen.long().tolist() == golden.number("attention_mask").tolist()
    assert batch.targets.tolist() == golden.number("labels").tolist()
    counts = batch.targets != IGNORED
    assert counts.long().tolist() == golden.number("decoder_attention_mask").tolist()
    with torch.no_grad():
        logits = model.predictions(queries, batch.ids, batch.mask, targets=batch.targets)
        loss = model.loss(queries, batch.ids, batch.mask, targets=batch.targets)
    close(logits[counts], golden.number("logits")[counts], LOGITS)
    close(loss, torch.tensor(settings["losses"][0][0]), FEATURES)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_written_as_published(golden2_dir: Path, kind: str) -> None:
    golden = golden_texts(golden2_dir, kind)
    count = len(queries_of(golden))
    for case in golden.settings["generate"]:
        prompts = case.get("prompt_in_samples", golden.settings["prompt"])
        prompts = [prompts] * count if isinstance(prompts, str) else prompts
        ids = write(golden, prompts, decoding_of(case["args"], kind in CAUSAL))
        check(golden, ids, case["ids"], case["texts"])


@pytest.mark.parametrize("kind", ["opt_pretrain", "t5_pretrain"])
def test_questions_are_answered_as_published(golden2_dir: Path, kind: str) -> None:
    golden = golden_texts(golden2_dir, kind)
    questions = golden.settings["questions"]
    for case in golden.settings["predict_answers"]:
        template = case["args"]["prompt"]
        prompts = [template.format(question) for question in questions] if template else questions
        ids = write(golden, prompts, decoding_of(case["args"], kind in CAUSAL))
        check(golden, ids, case["ids"], case["answers"])
    if "question_ids" in golden.numbers:
        template = golden.settings["predict_answers"][0]["args"]["prompt"]
        batch = golden.tokens.prompts([template.format(question) for question in questions])
        assert batch.ids.tolist() == golden.numbers["question_ids"].tolist()
        assert batch.mask.long().tolist() == golden.numbers["question_mask"].tolist()


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_tokenizers_give_the_published_ids(golden2_dir: Path, name: str) -> None:
    """White space at the end of a text is no part of it for the tokenizers of today; ours is removed before."""
    expected = json.loads((golden2_dir / f"{name}_tokenizer.json").read_text())
    _, tokenizer = golden_module(golden2_dir, name)
    for i, text in enumerate(expected["texts"]):
        if name == "opt" or text == text.rstrip():
            assert tokenizer(text)["input_ids"] == expected["ids"][i], text
        if "ids_without_special" in expected:
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected["ids_without_special"][i]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (expected["eos"], expected["pad"])
    assert len(tokenizer) == expected["size"]
