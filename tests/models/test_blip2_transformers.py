"""Random small `Blip2ForConditionalGeneration` of transformers: the same losses, and the same texts token by token.

`BLIP_CASES` sets how many random cases of generation are compared; the suite compares a few.
"""

import copy
import os
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from helpers.language import WORDS, small_tokenizer
from torch import Tensor, nn

from blip.checkpoints.adapters import merge, wrapped
from blip.checkpoints.blip2_names import HUGGINGFACE_BLIP2
from blip.checkpoints.format import load_strict
from blip.checkpoints.names import inverse, rename
from blip.checkpoints.part_adapters import add_lora_to_parts
from blip.models.blip2_language import LANGUAGE_MODEL, Blip2LanguageModel
from blip.models.decoding import Decoding
from blip.models.language_models import language_model
from blip.models.language_tokens import LanguageTokens, TextBatch
from blip.models.losses import IGNORED
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("BLIP_CASES", "24"))
SEEDS = 4  # random models of each kind
QUERIES, WIDTH, PIXELS = 4, 24, 16
VIT = ViTConfig(PIXELS, 8, WIDTH, 2, 4, 2)
QFORMER = QFormerConfig(
    vocab_size=40, width=WIDTH, layers=2, heads=4, hidden=32, max_positions=16, image_width=WIDTH, dropout=0.0,
    queries=QUERIES, text=False,
)  # fmt: skip
IMAGE, PAD, START = len(WORDS) + 4, 1, 2  # the token in whose place transformers puts a query, and others
VOCABULARY = len(WORDS) + 5
NEVER_WRITTEN = [IMAGE, PAD, START]  # only one side counts these among the tokens of a prompt


@dataclass
class Both:
    theirs: Any
    ours: Blip2LanguageModel
    tokens: LanguageTokens


@lru_cache
def both(kind: str, seed: int) -> Both:
    """A random model of `kind`, opt or t5, on both sides."""
    import transformers as t

    torch.manual_seed(seed)
    if kind == "opt":
        text = t.OPTConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, word_embed_proj_dim=WIDTH, ffn_dim=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=START, eos_token_id=START,
        )  # fmt: skip
    else:
        text = t.T5Config(
            vocab_size=VOCABULARY, d_model=WIDTH, d_kv=6, d_ff=48, num_layers=2, num_heads=4, pad_token_id=PAD,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, eos_token_id=3, decoder_start_token_id=PAD,
            relative_attention_num_buckets=8, relative_attention_max_distance=16,
        )  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": PIXELS, "patch_size": 8, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    qformer = {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
        "encoder_hidden_size": WIDTH, "cross_attention_frequency": 2, "vocab_size": 40, "max_position_embeddings": 16,
    }  # fmt: skip
    config = t.Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text.to_dict(), num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )  # fmt: skip
    theirs = t.Blip2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3 if name.startswith("language_model") else 0.2)
        bias = torch.zeros(VOCABULARY)
        bias[NEVER_WRITTEN] = -1e4
        theirs.language_model.lm_head.bias = nn.Parameter(bias)
    ours = Blip2LanguageModel(VIT, QFORMER, WIDTH)
    state = {n: x for n, x in theirs.state_dict().items() if not n.startswith(LANGUAGE_MODEL)}
    load_strict(ours, {str(rename(name, HUGGINGFACE_BLIP2)): tensor for name, tensor in state.items()}, "model")
    # queries that attend to states round differently, which these large weights multiply a hundredfold
    ours.qformer.keys_or_states = lambda states, _: ours.qformer.image_keys(states)  # type: ignore[method-assign]
    language, tokens = language_model(copy.deepcopy(theirs.language_model), small_tokenizer(kind))
    return Both(theirs, ours.attach(language).eval(), tokens)


def text_of(rng: random.Random, fewest: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(fewest, most)))


def with_images(ids: Tensor, mask: Tensor, left: bool) -> dict[str, Tensor]:
    """The inputs of transformers: places for the queries before each text, padding before or behind all of it."""
    images = torch.full((len(ids), QUERIES), IMAGE)
    ids, mask = torch.cat([images, ids], dim=1), torch.cat([mask.new_ones(images.shape), mask], dim=1)
    if left:
        order = mask.long().argsort(dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    return {"input_ids": ids.masked_fill(~mask, PAD), "attention_mask": mask.long()}


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("kind", ["opt", "t5"])
@torch.no_grad()
def test_losses_and_logits(kind: str, seed: int) -> None:
    side, rng = both(kind, seed), random.Random(seed)
    count = 1 + seed
    texts, prompts = ([text_of(rng, low, high) for _ in range(count)] for low, high in ((1, 9), (0, 5)))
    batch, images = side.tokens.training(texts, prompts), torch.randn(count, 3, PIXELS, PIXELS)
    batch.targets[batch.targets == START] = IGNORED
    inputs = with_images(batch.ids, batch.mask, left=False)
    labels = batch.targets
    if kind == "opt":
        labels = torch.cat([torch.full((count, QUERIES), IGNORED), labels], dim=1)
    theirs = side.theirs(pixel_values=images, **inputs, labels=labels)
    loss = side.ours(images, batch.ids, batch.mask, targets=batch.targets)
    torch.testing.assert_close(loss, theirs.loss, rtol=0, atol=1e-5)
    language = side.ours.language_model
    assert language is not None
    queries = side.ours.query_inputs(side.ours.image_encoder(images))
    logits = language.predictions(queries, batch.ids, batch.mask, targets=batch.targets)
    expected = theirs.logits[:, QUERIES - 1 : -1] if kind == "opt" else theirs.logits
    counted = batch.targets != IGNORED
    words = [i for i in range(VOCABULARY) if i not in NEVER_WRITTEN]
    torch.testing.assert_close(logits[counted][:, words], expected[counted][:, words], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", range(CASES))
@torch.no_grad()
def test_texts(case: int) -> None:
    rng = random.Random(case)
    kind = ("opt", "t5")[case % 2]
    side = both(kind, rng.randrange(SEEDS))
    count, beams, new = rng.randint(1, 5), rng.choice([1, 1, 2, 3, 5]), rng.randint(2, 14)
    prompts = [text_of(rng, 0, 6) for _ in range(count)]
    torch.manual_seed(case)
    images = torch.randn(count, 3, PIXELS, PIXELS)
    decoding = Decoding(
        beams=beams,
        max_new_tokens=new,
        min_new_tokens=rng.randint(0, min(4, new)),
        num_return=rng.randint(1, beams),
        length_penalty=rng.choice([1.0, 1.0, 0.0, -1.0, 2.0]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        no_repeat_ngram=rng.choice([0, 0, 2, 3]),
    )
    batch = side.tokens.prompts(prompts)
    ids = side.ours.write(images, batch.ids, batch.mask, decoding=decoding).ids
    inputs = with_images(batch.ids, batch.mask, left=kind == "opt")
    theirs = side.theirs.generate(
        pixel_values=images, **inputs, do_sample=False, num_beams=beams, max_new_tokens=new,
        min_new_tokens=decoding.min_new_tokens, num_return_sequences=decoding.num_return, early_stopping=False,
        length_penalty=decoding.length_penalty, repetition_penalty=decoding.repetition_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram, eos_token_id=side.tokens.ids.end, pad_token_id=PAD,
    )  # fmt: skip
    start = 1 if kind == "t5" else inputs["input_ids"].shape[1]
    assert written(ids, side.tokens) == written(theirs[:, start:], side.tokens)


def written(ids: Tensor, tokens: LanguageTokens) -> list[list[int]]:
    """Rows up to their end."""
    rows = ids.tolist()
    return [row[: row.index(tokens.ids.end) + 1] if tokens.ids.end in row else row for row in rows]


# ---- adapters --------------------------------------------------------------------------------------------------------

TARGETS = {"opt": ["q_proj", "v_proj"], "t5": ["q", "v"]}  # what the layers are called in the language models
UNWRAPPED = ("qformer.queries", "image_encoder.norm.weight", "image_encoder.norm.bias", "language_proj.weight")
RANK, ALPHA, RATE = 3, 6.0, 0.01
CLOSE = {"rtol": 0.0, "atol": 1e-6}


@dataclass
class Adapted:
    """A model of ours and one of transformers in float64, with adapters around the same layers; and by name what is
    trained, in ours and in theirs."""

    ours: Blip2LanguageModel
    theirs: Any
    trained: dict[str, tuple[nn.Parameter, nn.Parameter]]


def name_in_transformers(name: str) -> str:
    if name.startswith(LANGUAGE_MODEL):
        return name.replace("language_model.module.", LANGUAGE_MODEL)
    return str(rename(name, inverse(HUGGINGFACE_BLIP2)))


def adapted(kind: str) -> Adapted:
    """The adapters of the other side are by `peft.get_peft_model`; both sides have the same random numbers."""
    peft = pytest.importorskip("peft")
    side = both(kind, 0)
    ours, theirs = copy.deepcopy(side.ours).double(), copy.deepcopy(side.theirs).double()
    del ours.qformer.keys_or_states  # as users run it: queries attend to states where that takes less
    ours.requires_grad_(False)
    layers = add_lora_to_parts(
        ours, RANK, {"language_model": TARGETS[kind], "qformer": ["query", "value"]}, alpha=ALPHA
    )
    ends = "|".join(TARGETS[kind])
    targets = rf"language_model\..*\.({ends})|qformer\..*\.(query|value)"
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    by_peft = {id(p) for p in wrapped.parameters() if p.requires_grad}
    own, foreign, trained = dict(ours.named_parameters()), dict(theirs.named_parameters()), {}
    torch.manual_seed(1)
    for name, mine in own.items():
        layer, lora, end = name.partition(".lora_")
        if lora or name in UNWRAPPED:
            other = foreign[f"{name_in_transformers(layer)}{lora}{end}"]
            with torch.no_grad():
                other.copy_(mine.copy_(torch.randn_like(mine) * 0.2))
            trained[name] = mine.requires_grad_(True), other.requires_grad_(True)
    assert len(trained) == 2 * len(layers) + len(UNWRAPPED)
    assert by_peft <= {id(other) for _, other in trained.values()}  # it wraps no layer besides
    return Adapted(ours, theirs, trained)


def logits_of(model: Blip2LanguageModel, images: Tensor, batch: TextBatch) -> Tensor:
    queries = model.query_inputs(model.image_encoder(images))
    assert model.language_model is not None
    return model.language_model.predictions(queries, batch.ids, batch.mask, targets=batch.targets)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_adapters_train_and_merge_as_those_of_peft(kind: str) -> None:
    side, rng, tokens = adapted(kind), random.Random(0), both(kind, 0).tokens
    optimizers = [torch.optim.AdamW([pair[i] for pair in side.trained.values()], lr=RATE) for i in (0, 1)]
    for _ in range(3):
        texts, prompts = ([text_of(rng, low, high) for _ in range(3)] for low, high in ((1, 9), (0, 5)))
        batch, images = tokens.training(texts, prompts), torch.randn(3, 3, PIXELS, PIXELS, dtype=torch.float64)
        batch.targets[batch.targets == START] = IGNORED
        decoder = {} if kind == "opt" else {"labels": batch.targets}
        found = side.theirs(pixel_values=images, **with_images(batch.ids, batch.mask, left=False), **decoder).logits
        found = found[:, QUERIES - 1 : -1] if kind == "opt" else found
        logits, counted = logits_of(side.ours, images, batch), batch.targets != IGNORED
        torch.testing.assert_close(logits[counted], found[counted], **CLOSE)
        for values in (logits, found):  # in float64, which the models' own losses are not
            nn.functional.cross_entropy(values[counted], batch.targets[counted]).backward()
        for name, (mine, other) in side.trained.items():
            assert mine.grad is not None and mine.grad.abs().max() > 1e-5, name
            torch.testing.assert_close(mine.grad, other.grad, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for mine, other in side.trained.values():
        torch.testing.assert_close(mine, other, **CLOSE)

    ours, unmerged = side.ours, logits_of(side.ours, images, batch)
    layers = list(wrapped(ours))
    merge(ours)
    for name in layers:
        other = side.theirs.get_submodule(name_in_transformers(name))
        other.merge()
        torch.testing.assert_close(ours.get_parameter(f"{name}.weight"), other.base_layer.weight, **CLOSE)
    # T5 itself rounds to float32 inside
    torch.testing.assert_close(logits_of(ours, images, batch), unmerged, rtol=0, atol=1e-6 if kind == "opt" else 2e-5)
