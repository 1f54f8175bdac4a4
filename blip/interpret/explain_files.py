"""`blip explain`: maps of images, folders and annotation files, in batches, written as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.data.formats import iter_records
from blip.data.images import find_images, readable_batches
from blip.data.places import is_annotation_file
from blip.data.records import path_problem, text_problem
from blip.inference.predictor import Predictor
from blip.interpret.explain import Explanation, explain_pairs
from blip.interpret.objectives import explained
from blip.interpret.pictures import PictureError, check_ending, files_of, needs_matplotlib, save


@dataclass
class Wanted:
    """An image to explain with its text, and its answer where the text is a question."""

    image: Path
    text: str
    answer: str = ""


def find_pairs(place: str | Path, texts: Sequence[str]) -> list[Wanted]:
    """Every text about an image, or about every image of a folder; or the records of an annotation file.

    Records have `image`, and `caption`, or `question` and perhaps `answer`; of several captions the first is taken.
    A record with neither gets an empty text, which is enough where none is needed.
    """
    place = Path(place)
    if not is_annotation_file(place):
        return [Wanted(image, text) for image in find_images([place]) for text in texts or [""]]
    if texts:
        raise PictureError(f"{place} has its own texts: leave out {texts[0]!r}")
    wanted = []
    for where, record in iter_records(place, needed=("image",), also=("caption", "question", "answer")):
        record = record if isinstance(record, dict) else {}
        image, text = record.get("image"), _first(record.get("question") or record.get("caption"))
        answer = _first(record.get("answer")) if record.get("question") else ""
        if not isinstance(image, str) or text is None or answer is None:
            raise PictureError(f"{place}, {where}: needs image, and caption, or question and answer, as texts")
        if problem := path_problem(image) or text_problem(text) or text_problem(answer):
            raise PictureError(f"{place}, {where}: its image or text {problem}")
        wanted.append(Wanted(place.parent / image, text, answer))
    return wanted


def _first(value: Any) -> str | None:
    """A text, or the first one of a list; "" for nothing, None for anything else."""
    value = value[0] if isinstance(value, list) and value else value
    value = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    return "" if value is None or value == [] else value if isinstance(value, str) else None


def check_wanted(m: Predictor, wanted: Sequence[Wanted], needed: bool) -> None:
    """PictureError, before any work, for a text that is too long for the model, or empty where texts are `needed`."""
    counts = m.tokenizer.count([m.cleaned(one.text) for one in wanted])
    for one, tokens in zip(wanted, counts, strict=True):
        if tokens > m.max_text_tokens:
            raise PictureError(f"{one.image}: its text has {tokens} tokens, the model reads {m.max_text_tokens}")
        if needed and tokens < 3:
            raise PictureError(f"{one.image}: its text is empty; give an annotation file, or a text")


def explain_files(
    m: Predictor,
    wanted: Sequence[Wanted],
    out: Path,
    *,
    task: str = "",
    method: str = "gradcam",
    layer: int | None = None,
    rows: str = "words",
    batch_size: int = 8,
) -> tuple[list[Path], list[str]]:
    """Writes maps as pictures, one page or several files, see `pictures.save`; arguments as in `explain_pairs`.

    Returns:
        The files, and a message for each image that could not be read.
    """
    check_ending(out)
    check_wanted(m, wanted, needed=not explained(m, task).writes_texts)
    needs_matplotlib()
    images: list[Any] = []
    explanations: list[Explanation] = []
    names: list[str] = []
    problems: list[str] = []
    for asked, opened, unread in readable_batches(wanted, batch_size, lambda one: one.image, limits=m.limits):
        problems += unread
        if not asked:
            continue
        explanations += explain_pairs(
            m,
            opened,
            [one.text for one in asked],
            answers=[one.answer for one in asked],
            task=task,
            method=method,
            layer=layer,
            rows=rows,
            batch_size=batch_size,
        )
        images += opened
        names += [str(one.image) for one in asked]
    files = files_of(out, len(wanted))
    return (save(images, explanations, names, files) if explanations else []), problems
