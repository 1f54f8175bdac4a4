"""Stage 2 of BLIP-2 from pixels on returns the published numbers: states, losses, gradients, weights, texts.

The language model alone, behind published queries, is tested in `test_golden_language.py`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.golden_numbers import FEATURES, LATER, close
from helpers.language import GoldenImages, golden_images
from torch import Tensor

from blip.models.decoding import Decoding
from blip.models.language_tokens import TextBatch

pytestmark = [pytest.mark.golden, pytest.mark.slow]

WEIGHTS = 5e-4  # relative to the norm of each tensor
KINDS = ["opt_pretrain", "opt_prompt", "opt_caption", "t5_pretrain"]


def batch_of(golden: GoldenImages) -> TextBatch:
    settings = golden.texts.settings
    if golden.texts.prefix == "t5":
        return golden.texts.tokens.training(settings["text_output"], settings["text_input"])
    prompt = settings["prompt"]
    texts = [text.removeprefix(prompt).strip() for text in settings["text_input"]]
    return golden.texts.tokens.training(texts, [prompt] * len(texts))


def optimizer_of(golden: GoldenImages, uniform: bool) -> torch.optim.Optimizer:
    """No decay of vectors and biases, or with `uniform` the same decay of everything."""
    settings = dict(golden.texts.settings["optimizer"])
    kind, decay = getattr(torch.optim, settings.pop("kind")), settings.pop("weight_decay")
    settings.pop("groups")
    trained = {name: p for name, p in golden.model.named_parameters() if p.requires_grad}
    kept = [p for name, p in trained.items() if uniform or not (p.ndim == 1 or name.endswith(".bias"))]
    others = [p for p in trained.values() if not any(p is one for one in kept)]
    groups = [{"params": kept, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return kind(groups, **settings)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training(golden2_dir: Path, kind: str, uniform: bool) -> None:
    golden = golden_images(golden2_dir, kind)
    settings, numbers, model = golden.texts.settings, golden.texts.numbers, golden.model
    losses = settings.get("losses_uniform_decay" if uniform else "losses")
    if losses is None:
        pytest.skip("no such numbers of this kind")
    optimizer, batch = optimizer_of(golden, uniform), batch_of(golden)
    for step, expected in enumerate(losses):
        loss = model(numbers[f"image{step}"], batch.ids, batch.mask, targets=batch.targets)
        close(loss, torch.tensor(expected[0]), FEATURES if step == 0 else LATER)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            check_gradients(golden)
        optimizer.step()
    if not uniform:
        check_weights(golden, golden2_dir)


def check_gradients(golden: GoldenImages) -> None:
    gradients = {name: p.grad for name, p in golden.model.named_parameters()}
    published = [name for name in golden.texts.numbers if name.startswith("grad0.")]
    assert published
    for name in published:
        expected = golden.texts.numbers[name]
        gradient = golden.of_published(name.removeprefix("grad0."), gradients)
        assert (gradient - expected).norm() <= LATER * expected.norm(), name


def check_weights(golden: GoldenImages, folder: Path) -> None:
    """Those among the numbers, and those of the file of after the last step; a bias of keys is not determined."""
    ours = dict(golden.model.named_parameters())
    after = {n.removeprefix("after."): x for n, x in golden.texts.numbers.items() if n.startswith("after.")}
    compared = [(golden.of_published(name, ours), expected, name) for name, expected in after.items()]
    if (folder / f"{golden.kind}_after.pth").exists():
        whole = golden.load(folder, f"{golden.kind}_after.pth")
        compared += [(ours[name], expected, name) for name, expected in whole.items() if not _of_keys(name)]
    assert compared
    for tensor, expected, name in compared:
        assert (tensor - expected).norm() <= WEIGHTS * expected.norm() + 1e-12, name


def _of_keys(name: str) -> bool:
    return name.endswith((".k.bias", ".qkv.bias"))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_states_and_texts(golden2_dir: Path, kind: str) -> None:
    golden = golden_images(golden2_dir, kind)
    numbers, settings, model, tokens = golden.texts.numbers, golden.texts.settings, golden.model, golden.texts.tokens
    states = model.image_encoder(numbers["image0"])
    queries = model.query_inputs(states)
    if "image_states" in numbers:
        close(states, numbers["image_states"], FEATURES)
        close(queries, numbers["query_inputs0"], FEATURES)
    else:
        close(queries, golden.texts.number("inputs_embeds")[:, : queries.shape[1]], FEATURES)
    case: dict[str, Any] = settings["generate"][0]
    causal = golden.texts.prefix == "opt"
    args = case["args"]
    prompts = tokens.prompts([settings["prompt"]] * len(states))
    decoding = Decoding(
        beams=args["num_beams"], max_new_tokens=args["max_length"] - causal, min_new_tokens=args["min_length"] - 1,
        length_norm="whole_blip2",
    )  # fmt: skip
    ids: Tensor = model.write(numbers["image0"], prompts.ids, prompts.mask, decoding=decoding).ids
    cleaned = tokens.tokenizer.clean_up_tokenization
    assert [cleaned(text) for text in tokens.decode(ids)] == case["texts"]
