"""Configurations that claim published settings write what the published code writes.

The reference is written out here after the beam search of transformers 4.15, which the published code calls: one text
at a time, no cache, Python lists.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.running import ROOT
from helpers.tiny import tiny_model, tiny_text, tiny_vit
from torch import Tensor, nn

from blip.config import load_config
from blip.models.caption import CaptionModel
from blip.models.decoding import Decoding
from blip.models.generation import generate
from blip.models.vqa import VqaModel
from blip.network.cross_attention import ProjectedKeys
from blip.network.med import DecoderStep, TextDecoder
from blip.network.packing import Rows
from blip.tasks.config import CaptionConfig, VqaConfig

PAD, END, DEC, WORDS = 0, 2, 22, 24
PROMPT = [DEC, 5, 6, 7]  # [DEC] and the three words of "a picture of "
CPU = torch.device("cpu")

Next = Callable[[list[list[int]]], list[list[float]]]  # texts of equal length -> log-probabilities of the next token


class Hypotheses:
    """The finished texts of one prompt."""

    def __init__(self, beams: int):
        self.beams, self.kept = beams, list[tuple[float, list[int]]]()
        self.worst = 1e9

    def add(self, text: list[int], log_prob: float) -> None:
        score = log_prob / len(text)  # the whole length, prompt included, without the end token
        if len(self.kept) < self.beams or score > self.worst:
            self.kept.append((score, text))
            if len(self.kept) > self.beams:
                self.kept.remove(min(self.kept, key=lambda one: one[0]))
                self.worst = min(one[0] for one in self.kept)
            else:
                self.worst = min(score, self.worst)

    def is_done(self, best: float, length: int) -> bool:
        return len(self.kept) == self.beams and self.worst >= best / length


def published_search(log_probs: Next, prompt: list[int], *, beams: int, min_length: int, max_length: int) -> list[int]:
    """The published beam search of one prompt: its best text without prompt and end token.

    Both lengths count the prompt.
    """
    open_texts: list[tuple[float, list[int]]] = [(0.0, prompt)] + [(-1e9, prompt)] * (beams - 1)
    found = Hypotheses(beams)
    while True:
        length = len(open_texts[0][1])
        candidates = []
        following_each = log_probs([text for _, text in open_texts])
        for (so_far, text), following in zip(open_texts, following_each, strict=True):
            if length < min_length:
                following[END] = float("-inf")
            candidates += [(so_far + value, text, token) for token, value in enumerate(following)]
        candidates = sorted(candidates, key=lambda one: -one[0])[: 2 * beams]
        extended: list[tuple[float, list[int]]] = []
        for rank, (total, text, token) in enumerate(candidates):
            if token == END:
                if rank < beams:
                    found.add(text, total)
            elif len(extended) < beams:
                extended.append((total, [*text, token]))
            if len(extended) == beams:
                break
        done = found.is_done(candidates[0][0], length)
        open_texts = extended
        if done or length + 1 >= max_length:
            break
    if not done:
        for total, text in open_texts:
            found.add(text, total)
    return max(found.kept, key=lambda one: one[0])[1][len(prompt) :]


def next_token(decoder: TextDecoder, keys: ProjectedKeys, image: int) -> Next:
    """The decoder reads whole texts anew at every step, each with its own copy of the image's keys."""

    def log_probs(texts: list[list[int]]) -> list[list[float]]:
        count, length = len(texts), len(texts[0])
        rows = Rows(torch.full((count,), length), length, CPU)
        states = decoder(torch.tensor(texts), rows, keys.select(torch.full((count,), image)))
        last = decoder.head(states).unflatten(0, (count, length))[:, -1]
        return last.float().log_softmax(dim=1).tolist()

    return log_probs


def captioner(seed: int, end_bias: float) -> CaptionModel:
    torch.manual_seed(seed)
    text = tiny_text(vocab_size=WORDS, width=24, heads=2, hidden=32, max_positions=40, image_width=12)
    return varied(tiny_model("caption", tiny_vit(image_size=16, width=12, depth=1, heads=2), text), end_bias)


def varied(model: nn.Module, end_bias: float) -> Any:
    """Random weights with which a text depends on its image and on each of its tokens, and may end anywhere."""
    decoder: Any = model.text_decoder
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.fill_(float("norm" in name and name.endswith("weight")))
            else:
                nn.init.normal_(parameter, std=1.0 if "embeddings" in name else 0.2)
        decoder.head.bias[END] += end_bias
        decoder.head.bias[PAD] -= 1000  # padding is no word
    return model.eval()


def written(ids: Tensor) -> list[list[int]]:
    return [row[: row.index(END)] if END in row else [t for t in row if t != PAD] for row in ids.tolist()]


def differing(decoding: Decoding, seeds: int = 20, images: int = 16) -> tuple[int, set[int]]:
    """Captions of random models that differ from the published ones, and all lengths of the latter.

    The published lengths are 5 to 20 with the prompt.
    """
    wrong, lengths = 0, set()
    for seed in range(seeds):
        model = captioner(seed, end_bias=[1.0, 2.0, 3.0, 5.0][seed % 4])
        pixels = torch.randn(images, 3, 16, 16)
        ours = written(model.write(pixels, torch.tensor([PROMPT] * images), decoding, end_id=END).ids)
        with torch.no_grad():
            keys = model.text_decoder.image_keys(model.image_encoder(pixels))
            for row, text in enumerate(ours):
                one = next_token(model.text_decoder, keys, row)
                published = published_search(one, PROMPT, beams=3, min_length=5, max_length=20)
                wrong += text != published
                lengths.add(len(published))
    return wrong, lengths


def test_captions_are_written_as_published() -> None:
    """320 captions of 20 models."""
    coco, nocaps = (
        load_config(ROOT / "configs" / f"{name}.yaml", CaptionConfig) for name in ("caption_coco", "nocaps")
    )
    assert coco.prompt == nocaps.prompt == "a picture of "
    assert replace(coco.decoding(), repetition_penalty=1.1) == nocaps.decoding()
    wrong, lengths = differing(coco.decoding())
    assert wrong == 0
    assert {1, 16} <= lengths and len(lengths) > 5, "some texts end at once, others not at all"


@pytest.mark.parametrize("change", [{"min_new_tokens": 5}, {"length_norm": "generated"}, {"max_new_tokens": 15}])
def test_other_settings_write_other_captions(change: dict) -> None:
    config = load_config(ROOT / "configs" / "caption_coco.yaml", CaptionConfig)
    assert differing(replace(config.decoding(), **change), seeds=4)[0] > 0


def test_answers_are_written_as_published() -> None:
    """Published answers have a length of 1 to 10 with their first token, `[DEC]`: at most 9 new tokens."""
    decoding = load_config(ROOT / "configs" / "vqa_v2.yaml", VqaConfig).decoding()
    assert decoding.max_new_tokens == 9
    text = tiny_text(vocab_size=WORDS, width=24, heads=2, hidden=32, max_positions=40, image_width=12)
    lengths: set[int] = set()
    for seed in range(20):
        torch.manual_seed(seed)
        vit = tiny_vit(image_size=16, width=12, depth=1, heads=2)
        model: VqaModel = varied(tiny_model("vqa", vit, text), [1.0, 2.0, 3.0, 5.0][seed % 4])
        with torch.no_grad():
            questions = torch.randint(3, 20, (16, 5))
            keys = model.question_keys(torch.randn(16, 3, 16, 16), questions, torch.full((16,), 5))
            first = torch.full((16, 1), DEC)
            step = DecoderStep(model.text_decoder, keys)
            ours = written(generate(step, first, decoding, end_id=END, pad_id=PAD).ids)
            for row, answer in enumerate(ours):
                one = next_token(model.text_decoder, keys, row)
                assert answer == published_search(one, [DEC], beams=3, min_length=1, max_length=10)
                lengths.add(len(answer))
    assert {0, 9} <= lengths and len(lengths) > 5
