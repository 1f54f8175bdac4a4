"""Fine-tuning, decoding and ranking return the published code's numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.golden_numbers import FEATURES, LATER, Golden, arg_max, check_gradients, check_twin, close, train

from blip.checkpoints.format import load_strict
from blip.models.answer_tree import AnswerTree
from blip.models.caption import CaptionModel
from blip.models.decoding import Decoding, Generated
from blip.models.momentum import Entries, Queue, Twin, candidates, update_twin
from blip.models.nlvr import NlvrModel, statement_loss
from blip.models.ranking import rank_answers
from blip.models.vqa import VqaModel
from blip.network.embeddings import TextConfig
from blip.network.packing import with_first

pytestmark = pytest.mark.golden


@pytest.mark.usefixtures("packed")
def test_retrieval_training(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "retrieval")
    settings, numbers = golden.settings, golden.numbers
    model, queue = golden.retrieval_model(), Queue(settings["queue_size"], golden.info["embed_dim"])
    twin = Twin(model).eval()
    load_strict(twin, golden.twin_tensors, "twin")
    load_strict(queue, golden.queue_tensors, "queue")
    optimizer_settings = dict(settings["optimizer"])
    optimizer = getattr(torch.optim, optimizer_settings.pop("kind"))(model.parameters(), **optimizer_settings)
    ids, lengths = golden.ids()
    image_ids = torch.tensor(settings["idx"])
    last = len(settings["losses"]) - 1
    for step, expected in enumerate(settings["losses"]):
        images = numbers[f"image{step}"]
        entries = Entries(*twin(images, ids, lengths), image_ids, image_ids)
        columns = candidates(entries, queue, equal_captions=False)
        out = model(images, ids, lengths, columns, settings["alpha"], draw=arg_max)
        losses = torch.stack([out.itc, out.itm])
        assert settings["loss_names"] == ["ita", "itm"]
        close(losses, torch.tensor(expected), FEATURES if step == 0 else LATER)
        optimizer.zero_grad()
        losses.sum().backward()
        if step == 0:
            check_gradients(golden, model)
        optimizer.step()
        with torch.no_grad():
            model.temperature.clamp_(0.001, 0.5)
        if step == last:
            check_twin(golden, twin)
        update_twin(*twin.pairs_with(model), settings["momentum"])
        queue.push(entries)
    close(queue.images, numbers["after.image_queue"], LATER)
    close(queue.texts, numbers["after.text_queue"], LATER)
    assert queue.image_ids.tolist() == numbers["after.idx_queue"].long().flatten().tolist()
    assert queue.pointer == numbers["after.ptr_queue"].item()


def caption_model(golden: Golden) -> CaptionModel:
    smoothing = golden.settings.get("label_smoothing", 0.1)
    model = CaptionModel(golden.vit, golden.text, golden.specials, label_smoothing=smoothing)
    load_strict(model, golden.model_tensors, "model")
    return model.eval()


@pytest.mark.usefixtures("packed")
def test_caption_training(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "caption")
    model = caption_model(golden)
    ids, lengths = golden.ids()
    prompt_length = golden.settings["prompt_length"]
    train(golden, model, lambda step: model(golden.numbers[f"image{step}"], ids, lengths, prompt_length=prompt_length))


def decoding(arguments: dict[str, Any], prompt_length: int) -> Decoding:
    """The published arguments, whose lengths count the prompt."""
    names = {"num_beams": "beams", "max_length": "max_new_tokens", "min_length": "min_new_tokens"}
    assert arguments.keys() <= names.keys() | {"length_penalty", "repetition_penalty", "no_repeat_ngram_size"}
    values = {names.get(name, name.removesuffix("_size")): value for name, value in arguments.items()}
    values["max_new_tokens"] -= prompt_length
    values["min_new_tokens"] = max(0, values.get("min_new_tokens", 0) - prompt_length)
    return Decoding(**values, length_norm="whole")


@pytest.mark.parametrize("kind", ["caption", "caption_short"])
def test_captions(golden_dir: Path, kind: str) -> None:
    golden = Golden(golden_dir, kind)
    model, words, settings = caption_model(golden), golden.tokenizer, golden.settings
    prompt = words.encode([settings["prompt"]], golden.text.max_positions)[0][:-1]
    assert len(prompt) == settings["prompt_length"]
    images = golden.numbers["image0"]
    first = with_first(torch.tensor([prompt] * len(images)), words.dec_id)
    for case in settings["generate"]:
        how = decoding(case["args"], len(prompt))
        out = model.write(images, first, how, end_id=words.sep_id)
        texts = torch.cat([first, out.ids], dim=1)
        width = max(texts.shape[1], max(len(row) for row in case["ids"]))
        assert padded(texts.tolist(), width) == padded(case["ids"], width), case["args"]
        for one in range(len(images)):  # a batch ends when all are done: nobody's text changes with its neighbours
            alone = model.write(images[one : one + 1], first[:1], how, end_id=words.sep_id)
            assert padded(alone.ids.tolist(), width) == padded(out.ids[one : one + 1].tolist(), width)
            close(alone.scores, out.scores[one : one + 1], FEATURES)


def padded(rows: list[list[int]], width: int) -> list[list[int]]:
    return [row + [0] * (width - len(row)) for row in rows]


def vqa_model(golden: Golden) -> VqaModel:
    answer = TextConfig(**golden.info["text_decoder"])
    smoothing = golden.settings["label_smoothing"]
    model = VqaModel(golden.vit, golden.text, golden.specials, answer=answer, label_smoothing=smoothing)
    load_strict(model, golden.model_tensors, "model")
    return model.eval()


@pytest.mark.usefixtures("packed")
def test_vqa_training(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "vqa")
    model, settings = vqa_model(golden), golden.settings
    questions, answers = golden.ids("questions"), golden.ids("answers")
    owner = torch.arange(len(settings["n"])).repeat_interleave(torch.tensor(settings["n"]))
    weights = torch.tensor(settings["weights"])
    rest = {
        "answer_ids": answers[0],
        "answer_lengths": answers[1],
        "owner": owner,
        "weights": weights,
    }
    train(golden, model, lambda step: model(golden.numbers[f"image{step}"], *questions, **rest))


@torch.no_grad()
def test_vqa_answers(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "vqa")
    model, words, settings = vqa_model(golden), golden.tokenizer, golden.settings
    keys = model.question_keys(golden.numbers["image0"], *golden.ids("questions"))
    out: Generated = model.answer(keys, decoding(settings["generate_args"], 1), words.sep_id)
    assert [words.decode(row) for row in out.ids.tolist()] == settings["generate_one_by_one"]
    plain = [ids[1:-1] for ids in words.encode(settings["answer_list"], golden.text.max_positions)]
    tree = AnswerTree(plain, words.dec_id, words.sep_id)
    for k, expected in settings["rank"].items():
        ranked = rank_answers(model.text_decoder, keys, tree, k=int(k), label_smoothing=settings["label_smoothing"])
        assert [settings["answer_list"][i] for i in ranked.answers[:, 0].tolist()] == expected


@pytest.mark.usefixtures("packed")
def test_nlvr(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "nlvr")
    model, numbers = NlvrModel(golden.vit, golden.text, golden.specials), golden.numbers
    load_strict(model, golden.model_tensors, "model")
    model.eval()
    ids, lengths = golden.ids("texts")
    labels = torch.tensor(golden.settings["targets"])

    def predict(step: int) -> torch.Tensor:
        images = torch.stack([numbers[f"image{step}"][: len(ids)], numbers[f"extra{step}"]], dim=1)
        return model(images, ids, lengths)

    close(predict(0), numbers["predictions"], FEATURES)
    train(golden, model, lambda step: statement_loss(predict(step), labels))
