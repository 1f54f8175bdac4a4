"""`blip caption`, `blip answer` and `blip match`: a model over files and folders, in batches, to a table or JSON.

An image that cannot be read is reported and left out; it never ends the run.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from blip.data.image_bytes import ImageLimits
from blip.data.images import NoImages, UnreadableImage
from blip.data.pictures import open_pictures
from blip.data.places import Found
from blip.errors import printable, visible
from blip.files import json_text, write_whole
from blip.hashing import stable_hash
from blip.inference.inputs import Study
from blip.inference.predictor import Predictor
from blip.models.decoding import Decoding

Item = TypeVar("Item")


def readable_items(
    items: Sequence[Item], batch_size: int, paths_of: Callable[[Item], Sequence[Any]], *, limits: ImageLimits
) -> Iterator[tuple[list[Item], list[Image.Image | Study], list[str]]]:
    """Batches of items with their opened pictures, one or a study; unreadable ones are left out and described.

    `paths_of` gives the paths of an item; `batch_size` are items tried at once, see `readable_batches`.
    """
    for start in range(0, len(items), batch_size):
        kept: list[Item] = []
        images: list[Image.Image | Study] = []
        problems: list[str] = []
        for item in items[start : start + batch_size]:
            try:
                pictures = open_pictures([str(path) for path in paths_of(item)], limits)
            except UnreadableImage as error:
                problems.append(str(error))
                continue
            kept.append(item)
            images.append(pictures[0] if len(pictures) == 1 else Study(pictures))
        yield kept, images, problems


def of_item(paths: Sequence[Any]) -> dict[str, Any]:
    """The beginning of a row: `image`, or `images` of an item of several pictures, as annotations have them."""
    return {"image": str(paths[0])} if len(paths) == 1 else {"images": [str(path) for path in paths]}


def caption_rows(
    model: Predictor,
    items: Sequence[Sequence[Any]],
    prompt: str | None,
    *,
    decoding: Decoding,
    batch_size: int,
    seed: int | None,
) -> Iterator[dict[str, Any]]:
    """One row an item: the path of its image, or of its pictures; captions and their log-probabilities; or `problem`
    alone, if it cannot be read.

    Samples follow from `seed` and the item's place.
    """
    numbered = list(enumerate(items))
    for kept, images, problems in readable_items(numbered, batch_size, _second, limits=model.limits):
        yield from ({"problem": problem} for problem in problems)
        seeds = None if seed is None else [stable_hash("captions", seed, number) for number, _ in kept]
        written = model.write(images, prompt, decoding, batch_size=batch_size, seed=seeds)
        for (_, paths), several in zip(kept, written, strict=True):
            row = {**of_item(paths), "caption": several[0].text, "log_prob": several[0].log_prob}
            yield row | ({"captions": [asdict(text) for text in several]} if len(several) > 1 else {})


def _second(numbered: tuple[int, Sequence[Any]]) -> Sequence[Any]:
    return numbered[1]


def match_rows(
    model: Predictor, items: Sequence[Sequence[Any]], texts: Sequence[str], *, batch_size: int
) -> Iterator[dict[str, Any]]:
    """One row an item and text: match probability of ITM and cosine of ITC. Unreadable images as in `caption_rows`."""
    for text in texts:
        if not text.strip():
            raise NoImages("a text is empty: there is nothing to match")
    text_features = model.encode_text(list(texts), batch_size)
    for kept, images, problems in readable_items(items, batch_size, list, limits=model.limits):
        yield from ({"problem": problem} for problem in problems)
        if not kept:
            continue
        cosines, probabilities = model.match_all(images, text_features, list(texts), batch_size=batch_size)
        for row, paths in enumerate(kept):
            for column, text in enumerate(texts):
                values = {
                    "match_probability": float(probabilities[row, column]),
                    "itc_score": float(cosines[row, column]),
                }
                yield {**of_item(paths), "text": text, **values}


def matched_pairs(
    model: Predictor, pairs: Sequence[tuple[Sequence[Any], str]], *, batch_size: int
) -> Iterator[dict[str, Any]]:
    """One row an item with its own text, as in `match_rows`."""
    for kept, images, problems in readable_items(pairs, batch_size, _first, limits=model.limits):
        yield from ({"problem": problem} for problem in problems)
        if not kept:
            continue
        texts = [text for _, text in kept]
        probabilities = model.match_probability(images, texts, batch_size).tolist()
        features = model.encode_image(images, batch_size), model.encode_text(texts, batch_size)
        cosines = (features[0] * features[1]).sum(dim=1) if features[0].dim() == 2 else _nearest(*features)
        for (paths, text), probability, cosine in zip(kept, probabilities, cosines.tolist(), strict=True):
            yield {**of_item(paths), "text": text, "match_probability": probability, "itc_score": cosine}


def _nearest(queries: Tensor, texts: Tensor) -> Tensor:
    """The cosine (B,) of each text (B, E) to the nearest of its image's queries (B, Q, E)."""
    return (queries * texts[:, None]).sum(dim=2).amax(dim=1)


def _first(pair: tuple[Sequence[Any], str]) -> Sequence[Any]:
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
    groups = [list(group) for _, group in itertools.groupby(asked, key=lambda one: one.images)]
    for kept, images, problems in readable_items(groups, batch_size, _images_of, limits=model.limits):
        yield from ({"problem": problem} for problem in problems)
        if not kept:
            continue
        pairs = [(one, image) for group, image in zip(kept, images, strict=True) for one in group]
        shown, questions = [image for _, image in pairs], [one.question for one, _ in pairs]
        given = model.answer(shown, questions, answers, k=k, decoding=decoding, batch_size=batch_size)
        for (one, _), answer in zip(pairs, given, strict=True):
            row = {**of_item(one.images), "question": one.question, "answer": answer.text}
            row |= {"probability": answer.probability}
            row |= {"truth": one.answers} if one.answers else {}
            yield row | ({"candidates": answer.candidates[:5]} if answer.candidates else {})


def _images_of(group: Sequence[Found]) -> list[str]:
    return group[0].images


def _in_one_cell(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose `images` are one text."""
    return {"image": ", ".join(row["images"]), **row} if "images" in row else row


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
        good = [_in_one_cell(row) for row in good]
        names = [name for name in good[0] if not isinstance(good[0][name], list)]
        table = Table(*names)
        for row in good:
            table.add_row(*(f"{row[n]:.3f}" if isinstance(row[n], float) else visible(str(row[n])) for n in names))
        Console().print(table, markup=False)
    return len(problems)
