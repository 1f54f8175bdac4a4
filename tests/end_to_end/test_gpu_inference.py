"""Inference and evaluation on a fake GPU: every path runs there, and waits for it no oftener than it has to.

What is generated cannot be tested, since the numbers of a fake GPU are 0: a check finds that all texts have ended, and
that no beam is done.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.fake_device import PAGEABLE, TO_CPU, FakeCuda, fake_cuda
from helpers.random_checkpoints import QUESTIONS, all_checkpoints, noise_images
from helpers.retrieval_set import SETS, TEXT, build, make_set, source
from helpers.tiny import specials_of, tiny_model, tiny_text
from torch import Tensor

import blip
from blip.data.batches import Batch
from blip.evaluation import retrieval
from blip.evaluation.pretraining import evaluate_pretraining
from blip.hardware.profile import PROFILES
from blip.inference.predictor import Predictor
from blip.models.answer_tree import AnswerTree
from blip.models.decoding import Decoding, uniforms_of
from blip.models.ranking import rank_answers
from blip.network.cross_attention import ProjectedKeys

pytestmark = pytest.mark.slow

SPECIALS = specials_of(TEXT)
NEW = 11
STEPS = PROFILES["cuda"].steps_between_checks


def sent(gpu: FakeCuda, x: Tensor) -> Tensor:
    return x.pin_memory().to(gpu.device, non_blocking=True)


def files(gpu: FakeCuda) -> Counter[str]:
    return Counter(wait.file for wait in gpu.waits)


# ---- generation ------------------------------------------------------------------------------------------------------

WAYS = {  # waits: checks, then what is read at the end
    "greedy": (Decoding(max_new_tokens=NEW), 1 + 1),
    "sampled": (Decoding(sample=True, top_p=0.9, top_k=12, max_new_tokens=NEW, num_return=2), 1 + 2),
    "beams": (Decoding(beams=3, max_new_tokens=NEW, num_return=2), NEW // STEPS + 1),
    "whole": (Decoding(beams=3, max_new_tokens=NEW, length_norm="whole"), NEW // STEPS + 1),
    "constrained": (Decoding(max_new_tokens=NEW, min_new_tokens=3, repetition_penalty=1.4, no_repeat_ngram=2), 1 + 1),
}


def waits_of_writing(how: Decoding, uniforms: Tensor | None, images: int = 4) -> Counter[str]:
    with fake_cuda() as gpu:
        model = tiny_model("caption", text=tiny_text(max_positions=40)).eval().to(gpu.device)
        prompt, pixels = torch.full((images, 1), SPECIALS.dec), torch.zeros(images, 3, 32, 32)
        prompt, pixels = sent(gpu, prompt), sent(gpu, pixels)
        gpu.clear()
        out = model.write(pixels, prompt, how, end_id=2, uniforms=uniforms)
        assert out.ids.device.type == "cuda" and len(out.ids) == images * how.num_return
        return files(gpu)


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("name", WAYS)
def test_writing_waits_once_in_several_tokens(name: str, seeded: bool) -> None:
    how, most = WAYS[name]
    waits = waits_of_writing(how, uniforms_of(range(4), how) if seeded else None)
    assert 1 <= sum(waits.values()) <= most
    assert set(waits) <= {"models/generation.py", "models/decoding.py"}


def test_a_wait_at_each_token_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "cuda", replace(PROFILES["cuda"], steps_between_checks=1))
    how, most = WAYS["beams"]
    assert sum(waits_of_writing(how, None).values()) > most


def test_images_have_keys_on_a_gpu() -> None:
    """Attending to states is slower there, however few tokens do."""
    with fake_cuda() as gpu:
        model = tiny_model("caption").eval().to(gpu.device)
        states = model.image_encoder(sent(gpu, torch.zeros(2, 3, 32, 32)))
        assert isinstance(model.text_decoder.keys_or_states(states, tokens=1), ProjectedKeys)


# ---- ranking answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("questions", [2, 9])
def test_ranking_answers_waits_once_for_all_questions(questions: int) -> None:
    tree = AnswerTree([[5], [5, 6], [5, 6, 7], [9, 6], [10, 11, 12]], SPECIALS.dec, 2)
    with fake_cuda() as gpu:
        model = tiny_model("vqa").eval().to(gpu.device)
        states = sent(gpu, torch.zeros(questions, 7, TEXT.width))
        keys = model.answer_keys(states, torch.tensor([4, 7] + [5] * (questions - 2)))
        rank_answers(model.text_decoder, keys, tree, k=3)  # moves the tree
        gpu.clear()
        ranked = rank_answers(model.text_decoder, keys, tree, k=3)
        assert ranked.scores.device.type == "cuda" and ranked.scores.shape == (questions, 3)
        assert [wait.kind for wait in gpu.waits] == [TO_CPU]
        assert gpu.waits[0].file == "models/ranking.py"


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [2, 6])
def test_matching_waits_once_for_all_images(images: int) -> None:
    pixels, texts = make_set(*SETS["uneven"])
    pairs = torch.tensor([[image, text] for image in range(images) for text in range(5)])
    with fake_cuda() as gpu, torch.no_grad():
        model = build().eval().to(gpu.device)
        states = retrieval.image_states(model, source(pixels), gpu.device)
        gpu.clear()
        logits = retrieval.match_pairs(model, states, texts, pairs=pairs, device=gpu.device, batch_size=2)
        assert logits.shape == (len(pairs), 2)
        assert [wait.kind for wait in gpu.waits] == [TO_CPU]


def test_retrieval_is_evaluated_on_the_device() -> None:
    """The waits depend neither on the images nor on the texts, as long as they are ranked at once."""
    waits = []
    for images, count in ((3, 6), (7, 17)):
        pixels, texts = make_set(images, count)
        with fake_cuda() as gpu:
            model = build().to(gpu.device)
            gpu.clear()
            retrieval.evaluate_retrieval(
                model, source(pixels), images, texts=texts, device=gpu.device, k=3, batch_size=2, losses=True
            )
            assert gpu.launches["sort"] + gpu.launches["stable"] >= 2 or "sort" in str(gpu.launches)
            waits.append(len(gpu.waits))
    assert waits[0] == waits[1] < 30


def test_pretraining_is_evaluated_on_the_device() -> None:
    def batch(gpu: FakeCuda, pairs: int) -> Batch:
        lengths = torch.arange(pairs) % 5 + 3
        numbers = torch.arange(pairs)
        ids = torch.ones(pairs, int(lengths.max()), dtype=torch.long)
        parts = Batch(torch.zeros(pairs, 3, 32, 32), ids, lengths, numbers, numbers, list(range(pairs)), [])
        return parts.pin_memory() if gpu else parts

    with fake_cuda() as gpu:
        model = tiny_model("pretrain").to(gpu.device)
        gpu.clear()
        found = evaluate_pretraining(model, [batch(gpu, 4), batch(gpu, 3)], gpu.device, val_loss=False)
        assert found.metrics["val_pairs"] == 7
        assert not [wait for wait in gpu.waits if wait.kind == PAGEABLE]


# ---- the predictor ---------------------------------------------------------------------------------------------------

CALLS: dict[str, tuple[str, Callable[[Predictor, list[Path]], object]]] = {
    "caption": ("caption", lambda m, images: m.write(images, decoding=Decoding(sample=True), seed=1)),
    "beams": ("caption", lambda m, images: m.write(images, decoding=Decoding(beams=3))),
    "match": ("retrieval", lambda m, images: m.match_logits(images, QUESTIONS)),
    "match all": ("retrieval", lambda m, images: m.match_all(images, m.encode_text(QUESTIONS), QUESTIONS)),
    "features": ("retrieval", lambda m, images: m.itc_score(images, QUESTIONS)),
    "choose": ("vqa", lambda m, images: m.answer(images, QUESTIONS, ["yes", "no"])),
    "answer": ("vqa", lambda m, images: m.answer(images, QUESTIONS, decoding=Decoding(beams=2, max_new_tokens=4))),
    "judge": ("nlvr", lambda m, images: m.judge(images, images, QUESTIONS)),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return all_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return noise_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize("name", CALLS)
def test_a_predictor_computes_on_the_device_in_its_precision(
    name: str, precision: str, checkpoints: dict[str, Path], images: list[Path]
) -> None:
    task, call = CALLS[name]
    loaded = blip.load(checkpoints[task], device="cpu")
    with fake_cuda() as gpu:
        model = Predictor(loaded.model, loaded.tokenizer, loaded.info, device=gpu.device, precision=precision)
        assert model.precision == ("bf16" if precision == "auto" else "fp32")
        formats: set[torch.dtype] = set()
        layer = next(module for module in model.model.modules() if isinstance(module, torch.nn.Linear))
        layer.register_forward_hook(lambda _, __, out: formats.add(out.dtype))
        call(model, images)
        assert formats == {torch.bfloat16 if precision == "auto" else torch.float32}
