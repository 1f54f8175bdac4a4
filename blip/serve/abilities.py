"""What a model does for the page: images and texts in, plain values out. No gradio, no markup.

Each function takes the predictor first and runs in the model's thread (`served.ServedModel.call`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import OneImage, Study
from blip.inference.predictor import Predictor
from blip.inference.scoring import check_texts, match_groups
from blip.interpret.explain import Explanation, explain_pairs
from blip.interpret.maps import METHODS
from blip.interpret.pictures import blend
from blip.models.decoding import Decoding
from blip.serve.limits import Limits

SHOWN = 5  # answers and captions at most
NEW_TOKENS = 40  # of a caption at most, where the model has positions for them
MAP_SIDE = 448  # pixels of the longer side of a map
SMALL_MAP_SIDE, ROW, GAP = 224, 4, 8  # of a map of one of several pictures; maps in a row, pixels between them
USUAL_METHOD = "relevance" if "relevance" in METHODS else METHODS[0]


@dataclass(frozen=True)
class Scored:
    """A text with its probability; `cosine` is that of the features, where a model has them."""

    text: str
    probability: float
    cosine: float | None = None


@dataclass(frozen=True)
class WordMap:
    """The map of a word over the image, and the largest value of the map."""

    word: str
    picture: Image.Image
    largest: float


def ask(m: Predictor, image: OneImage, question: str) -> list[Scored]:
    """The likeliest answers, the first one first; a single one where the model writes it instead of ranking."""
    check_texts(m, [question], "question")
    (answer,) = m.answer(image, question)
    candidates = answer.candidates or [(answer.text, answer.probability)]
    return [Scored(text, probability) for text, probability in candidates[:SHOWN]]


def caption(m: Predictor, image: OneImage, beams: int) -> list[Scored]:
    """The best captions of a search with `beams` beams, with the probability of the whole text."""
    count = min(beams, SHOWN)
    (written,) = m.write(image, decoding=Decoding(beams=beams, num_return=count, max_new_tokens=_new_tokens(m)))
    return [Scored(one.text, math.exp(one.log_prob)) for one in written]


def match(m: Predictor, image: OneImage, texts: Sequence[str]) -> list[Scored]:
    """The texts with the probability that they belong to the image, in their order."""
    check_texts(m, texts)
    (pairs,) = match_groups(m, [image], [texts])
    return [Scored(text, probability, cosine) for text, (probability, cosine) in zip(texts, pairs, strict=True)]


def judge(m: Predictor, left: Image.Image, right: Image.Image, statement: str) -> list[Scored]:
    """The probabilities that a statement about two images is true and that it is false."""
    check_texts(m, [statement], "statement")
    true = float(m.judge(left, right, statement)[0])
    return [Scored("true", true), Scored("false", 1 - true)]


def explain(
    m: Predictor, image: OneImage, text: str, *, objective: str, method: str, layer: int | None
) -> tuple[Explanation, list[WordMap]]:
    """The explanation of one text, and its maps as pictures: that of the whole text, then those of its words.

    Maps of the pictures of an item lie side by side.
    """
    (explanation,) = explain_pairs(m, image, text, task=objective, method=method, layer=layer)
    given: list[Any] = image.pictures if isinstance(image, Study) else [image]
    bases = [reduced(one, MAP_SIDE if len(given) == 1 else SMALL_MAP_SIDE) for one in given]
    whole = "whole text" if explanation.text else "image"
    named = [(whole, explanation.sentence), *zip(explanation.words, explanation.maps, strict=True)]
    return explanation, [WordMap(word, _over(bases, values), float(values.max())) for word, values in named]


def _over(bases: Sequence[Image.Image], values: Tensor) -> Image.Image:
    """A map (h, w) over its picture, or maps (F, h, w) over F pictures, in rows of at most ROW."""
    if values.dim() == 2:
        return blend(bases[0], values)
    drawn = [blend(base, one) for base, one in zip(bases, values, strict=True)]
    width, height = max(one.width for one in drawn), max(one.height for one in drawn)
    rows = -(-len(drawn) // ROW)
    sheet = Image.new("RGB", (min(ROW, len(drawn)) * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for place, one in enumerate(drawn):
        sheet.paste(one, (place % ROW * (width + GAP), place // ROW * (height + GAP)))
    return sheet


def batch(m: Predictor, images: Sequence[OneImage], action: str, texts: Sequence[str]) -> list[list[dict]]:
    """For each image its rows of a table: columns by name.

    Args:
        action: `answer`, `caption` or `match`.
        texts: the questions, or the texts to match; none for captions.
    """
    if action == "answer":
        check_texts(m, texts, "question")
        pairs = [(image, text) for image in images for text in texts]
        given = m.answer([image for image, _ in pairs], [text for _, text in pairs])
        rows = [
            {"question": text, "answer": one.text, "probability": one.probability}
            for (_, text), one in zip(pairs, given, strict=True)
        ]
        return [rows[start : start + len(texts)] for start in range(0, len(rows), len(texts))]
    if action == "caption":
        written = m.write(list(images), decoding=Decoding(beams=3, max_new_tokens=_new_tokens(m)))
        return [[{"caption": one[0].text, "log_probability": one[0].log_prob}] for one in written]
    if action == "match":
        check_texts(m, texts)
        groups = match_groups(m, images, [texts] * len(images))
        return [
            [{"text": t, "match_probability": p, "cosine": c} for t, (p, c) in zip(texts, group, strict=True)]
            for group in groups
        ]
    raise InputError(f"a batch cannot be {action!r}")


def _new_tokens(m: Predictor) -> int:
    """Tokens of a caption: as many as there are positions for, behind the prompt."""
    prompt = m.tokenizer.count([m.info.get("prompt", "")])[0]
    return max(1, min(NEW_TOKENS, m.positions - prompt))


def reduced(image: Image.Image, side: int) -> Image.Image:
    """An image whose longer side has `side` pixels at most; smaller ones are enlarged, so that maps can be seen."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def checked_text(text: object, what: str, limits: Limits) -> str:
    """The text without blanks around it; InputError where it is empty or too long."""
    cleaned = text.strip() if isinstance(text, str) else ""
    if not cleaned:
        raise InputError(f"the {what} is empty: write one")
    if len(cleaned) > limits.max_characters:
        raise InputError(f"the {what} has {len(cleaned):,} characters; at most {limits.max_characters:,} are read")
    return cleaned


def lines_of(text: object) -> list[str]:
    """The lines of a text; none where it is something else."""
    return text.splitlines() if isinstance(text, str) else []


def checked_lines(text: object, what: str, limits: Limits) -> list[str]:
    """The lines of a text that are not blank, each checked as by `checked_text`."""
    lines = [checked_text(line, what, limits) for line in lines_of(text) if line.strip()]
    if not lines:
        raise InputError(f"there is no {what}: write one in each line")
    if len(lines) > limits.max_texts:
        raise InputError(f"there are {len(lines)} lines; at most {limits.max_texts} are read")
    return lines
