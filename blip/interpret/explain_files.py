"""`blip explain`: maps for images, folders and annotation files, in batches, written as pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.data.formats import iter_records
from blip.data.images import UnreadableImage, find_images, open_image
from blip.data.places import is_annotation_file
from blip.inference.predictor import Predictor
from blip.interpret.explain import OF_CHECKPOINT, Explanation, explain_pairs
from blip.interpret.pictures import ENDINGS, PictureError, needs_matplotlib, save


@dataclass
class Wanted:
    """An image to explain with its text, and its answer where the text is a question."""

    image: Path
    text: str
    answer: str = ""


def find_pairs(place: str | Path, texts: Sequence[str]) -> list[Wanted]:
    """Every text about an image, or about every image of a folder; or the records of an annotation file.

    Records have `image` and `caption`, or `question` and perhaps `answer`; of several captions the first is taken.
    Without either the text is empty, which is enough where none is needed.
    """
    place = Path(place)
    if not is_annotation_file(place):
        return [Wanted(image, text) for image in find_images([place]) for text in texts or [""]]
    if texts:
        raise PictureError(f"{place} brings its own texts: leave out {texts[0]!r}")
    found = []
    for where, record in iter_records(place, needed=("image",), also=("caption", "question", "answer")):
        record = record if isinstance(record, dict) else {}
        image, text = record.get("image"), _first(record.get("question") or record.get("caption"))
        answer = _first(record.get("answer")) if record.get("question") else ""
        if not isinstance(image, str) or text is None or answer is None:
            raise PictureError(f"{place}, {where}: needs image, and caption, or question and answer, as texts")
        found.append(Wanted(place.parent / image, text, answer))
    return found


def _first(value: Any) -> str | None:
    """A text, or the first one of a list; "" for nothing, None for anything else."""
    value = value[0] if isinstance(value, list) and value else value
    value = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    return "" if value is None or value == [] else value if isinstance(value, str) else None


def check_wanted(m: Predictor, wanted: Sequence[Wanted], needed: bool) -> None:
    """PictureError for a text that the model cannot read whole, before any work; `needed`: none may be empty."""
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
    task: str = "",
    method: str = "gradcam",
    layer: int | None = None,
    rows: str = "words",
    batch_size: int = 8,
) -> tuple[list[Path], list[str]]:
    """Writes the pictures; returns their files, and what is wrong with the images that could not be read."""
    if out.suffix not in ENDINGS:
        raise PictureError(f"{out}: --out has to end in {', '.join(ENDINGS)}")
    task = task or OF_CHECKPOINT.get(m.info["task"], "")
    check_wanted(m, wanted, needed=task != "caption")
    needs_matplotlib()
    out.parent.mkdir(parents=True, exist_ok=True)
    images: list[Any] = []
    found: list[Explanation] = []
    names: list[str] = []
    problems: list[str] = []
    for batch in _readable(wanted, batch_size, problems):
        opened = [image for _, image in batch]
        asked = [w for w, _ in batch]
        texts, answers = [w.text for w in asked], [w.answer for w in asked]
        found += explain_pairs(m, opened, texts, task, method, layer, rows, answers, batch_size)
        images += opened
        names += [str(w.image) for w in asked]
    return (save(images, found, names, out) if found else []), problems


def _readable(wanted: Sequence[Wanted], size: int, problems: list[str]) -> Iterator[list[tuple[Wanted, Any]]]:
    for start in range(0, len(wanted), size):
        batch = []
        for one in wanted[start : start + size]:
            try:
                batch.append((one, open_image(one.image)))
            except UnreadableImage as error:
                problems.append(str(error))
        if batch:
            yield batch
