"""`blip caption`, `blip answer` and `blip match`: a model over files and folders, in batches, to a table or JSON.

An image that cannot be read is reported and left out; it never ends the run.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from blip.data.images import NoImages, readable_batches
from blip.data.places import Found
from blip.errors import printable, visible
from blip.files import json_text, write_whole
from blip.hashing import stable_hash
from blip.inference.predictor import Predictor
from blip.models.decoding import Decoding


def caption_rows(
    model: Predictor,
    paths: Sequence[Path],
    prompt: str | None,
    *,
    decoding: Decoding,
    batch_size: int,
    seed: int | None,
) -> Iterator[dict[str, Any]]:
    """One row an image: its path, captions and their log-probabilities; or `problem` alone, if it cannot be read.

    Samples follow from `seed` and the image's place among the paths.
    """
    numbered = list(enumerate(paths))
    for kept, images, problems in readable_batches(numbered, batch_size, _second, limits=model.limits):
        yield from ({"problem": problem} for problem in problems)
        seeds = None if seed is None else [stable_hash("captions", seed, number) for number, _ in kept]
        written = model.write(images, prompt, decoding, batch_size=batch_size, seed=seeds)
        for (_, path), several in zip(kept, written, strict=True):
            row: dict[str, Any] = {"image": str(path), "caption": several[0].text, "log_prob": several[0].log_prob}
            yield row | ({"captions": [asdict(text) for text in several]} if len(several) > 1 else {})


def _second(numbered: tuple[int, Path]) -> Path:
    return numbered[1]


def match_rows(
    model: Predictor, paths: Sequence[Path], texts: Sequence[str], *, batch_size: int
) -> Iterator[dict[str, Any]]:
    """One row an image and text: match probability of ITM and cosine of ITC. Unreadable images as in `caption_rows`."""
    for text in texts:
        if not text.strip():
            raise NoImages("a text is empty: there is nothing to match")
    text_features = model.encode_text(list(texts), batch_size)
    for kept, images, problems in readable_batches(paths, batch_size, limits=model.limits):
        yield from ({"problem": problem} for problem in problems)
        if not kept:
            continue
        cosines, probabilities = model.match_all(images, text_features, list(texts), batch_size=batch_size)
        for row, path in enumerate(kept):
            for column, text in enumerate(texts):
                values = {
                    "match_probability": float(probabilities[row, column]),
                    "itc_score": float(cosines[row, column]),
                }
                yield {"image": str(path), "text": text, **values}


def matched_pairs(model: Predictor, pairs: Sequence[tuple[str, str]], *, batch_size: int) -> Iterator[dict[str, Any]]:
    """One row an image with its own text, as in `match_rows`."""
    for kept, images, problems in readable_batches(pairs, batch_size, _first, limits=model.limits):
        yield from ({"problem": problem} for problem in problems)
        if not kept:
            continue
        texts = [text for _, text in kept]
        probabilities = model.match_probability(images, texts, batch_size).tolist()
        features = model.encode_image(images, batch_size), model.encode_text(texts, batch_size)
        cosines = (features[0] * features[1]).sum(dim=1) if features[0].dim() == 2 else _nearest(*features)
        for (path, text), probability, cosine in zip(kept, probabilities, cosines.tolist(), strict=True):
            yield {"image": path, "text": text, "match_probability": probability, "itc_score": cosine}


def _nearest(queries: Tensor, texts: Tensor) -> Tensor:
    """The cosine (B,) of each text (B, E) to the nearest of its image's queries (B, Q, E)."""
    return (queries * texts[:, None]).sum(dim=2).amax(dim=1)


def _first(pair: tuple[str, str]) -> str:
    return pair[0]


def answer_rows(
    model: Predictor,
    asked: Sequence[Found],
    *,
    answers: Sequence[str] | None,
    k: int,
    decoding: Decoding | None,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """One row a question: the answer, its probability, the five likeliest candidates where ranked, and the true answers
    where its record has some.

    Arguments as in `Predictor.answer`; unreadable images as in `caption_rows`. Questions about one image that follow
    each other share its encoding.
    """
    for one in asked:
        if not one.question.strip():
            raise NoImages("a question is empty")
    groups = [list(group) for _, group in itertools.groupby(asked, key=lambda one: one.image)]
    for kept, images, problems in readable_batches(groups, batch_size, _image_of, limits=model.limits):
        yield from ({"problem": problem} for problem in problems)
        if not kept:
            continue
        pairs = [(one, image) for group, image in zip(kept, images, strict=True) for one in group]
        shown, questions = [image for _, image in pairs], [one.question for one, _ in pairs]
        given = model.answer(shown, questions, answers, k=k, decoding=decoding, batch_size=batch_size)
        for (one, _), answer in zip(pairs, given, strict=True):
            row: dict[str, Any] = {"image": one.image, "question": one.question, "answer": answer.text}
            row |= {"probability": answer.probability}
            row |= {"truth": one.answers} if one.answers else {}
            yield row | ({"candidates": answer.candidates[:5]} if answer.candidates else {})


def _image_of(group: Sequence[Found]) -> str:
    return group[0].image


def show(rows: Iterable[dict[str, Any]], out: Path | None, as_json: bool) -> int:
    """Prints rows as a table or as JSON, or writes JSON to `out`; returns how many images could not be read."""
    everything = list(rows)
    good = [row for row in everything if "problem" not in row]
    problems = [row["problem"] for row in everything if "problem" in row]
    for problem in problems:
        Console(stderr=True).print(visible(problem), style="yellow", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        write_whole(out, json_text(good, allow_nan=False))
        print(visible(f"{len(good)} rows: {out}"))
    elif as_json:
        text = json_text(good, allow_nan=False).rstrip("\n")
        print(text if printable(text) == text else json.dumps(good, indent=1))
    elif good:
        names = [name for name in good[0] if not isinstance(good[0][name], list)]
        table = Table(*names)
        for row in good:
            table.add_row(*(f"{row[n]:.3f}" if isinstance(row[n], float) else visible(str(row[n])) for n in names))
        Console().print(table, markup=False)
    return len(problems)
