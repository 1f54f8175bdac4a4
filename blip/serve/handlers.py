"""What happens on each event of the page: inputs of gradio's components in, markup out; errors become messages in it.

Values come as the browser sends them, and are checked here; files as the records of uploads, which `uploads.Uploads`
reads and removes.
"""

import functools
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

from PIL import Image

from blip.data.frame_choice import is_video_name
from blip.errors import BlipError, InputError, printable
from blip.inference.inputs import OneImage, Study
from blip.interpret.objectives import OBJECTIVES
from blip.serve import abilities, results
from blip.serve.items import AS_TRAINED, Item
from blip.serve.limits import Limits
from blip.serve.served import ServedModel
from blip.serve.uploads import Uploads, picture_of, shown_name

P = ParamSpec("P")
AT_ONCE = 8  # images of a batch between which other requests have their turn; of videos it is one
DEFECT = "the server made a mistake; whoever runs it finds what happened in its terminal"


def shown(function: Callable[P, str]) -> Callable[P, str]:
    """The handler with its errors as markup: those that a person can mend as they are, others as one sentence."""

    @functools.wraps(function)
    def handler(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return function(*args, **kwargs)
        except BlipError as error:
            return results.problem(str(error))
        except Exception as error:
            print(printable("".join(traceback.format_exception(error))), file=sys.stderr, flush=True)
            return results.problem(DEFECT)

    return handler


@dataclass
class Handlers:
    """The events of the page.

    Args:
        models: the checkpoints by name.
        examples: the operator's images by the names that the page shows.
        uploads: the images of open pages.
        limits: of each request.
    """

    models: dict[str, ServedModel]
    examples: dict[str, Path]
    uploads: Uploads
    limits: Limits

    # ---- images

    def opened(self, file: Any, window: object, parts: object, page: str, *, slot: str = "") -> str:
        """Uploaded files, those of one item, become that of their page -> its preview."""
        files = records_of(file)
        try:
            self._check_count(files, "no file arrived: choose it again")
            pictures = tuple(self.uploads.read(one) for one in files)
        finally:
            self.uploads.forget(files)
        return self._chosen(Item(pictures, *_view(window, parts)), page, slot)

    def example(self, name: object, window: object, parts: object, page: str) -> str:
        """One of the operator's images, or the series of a folder, becomes that of the page -> its preview."""
        if not isinstance(name, str) or name not in self.examples:
            raise InputError("there is no such image: choose one of the list")
        path = self.examples[name]
        files = () if path.is_dir() else (picture_of(path, name, self.limits),)
        return self._chosen(Item(files, *_view(window, parts), None if files else (path, name)), page, "")

    def viewed(self, window: object, parts: object, page: str) -> str:
        """The item of a page with another window, or other parts of its scan -> its preview."""
        window, parts = _view(window, parts)
        return self._chosen(replace(self.uploads.of(page), window=window, parts=parts), page, "")

    def _chosen(self, item: Item, page: str, slot: str) -> str:
        pictures = item.open(self.limits)  # before it is kept: a broken file does not replace the last image
        self.uploads.keep(page, item, slot)
        return results.preview(item, pictures)

    def _check_count(self, files: Sequence[Any], none: str) -> None:
        if not files:
            raise InputError(none)
        if len(files) > self.limits.max_files:
            raise InputError(f"there are {len(files)} files; at most {self.limits.max_files} are read at once")

    def _image(self, served: ServedModel, page: str) -> OneImage:
        """The image of a page as a model takes it, or its item of several pictures."""
        return self._taken(served, self.uploads.of(page))

    def _taken(self, served: ServedModel, item: Item) -> OneImage:
        """An item as a model takes it: scans, and how many pictures there may be, as in its training."""
        pictures = item.open(self.limits, served.model.limits)
        return pictures[0] if len(pictures) == 1 else Study(pictures)

    def _single(self, served: ServedModel, page: str, slot: str = "") -> Image.Image:
        """One image of a page, where no model reads several pictures."""
        item = self.uploads.of(page, slot)
        pictures = item.open(self.limits, served.model.limits)
        if len(pictures) > 1:
            raise InputError(f"{item.name} has {len(pictures)} pictures, and a statement is about two images, left and "
                             "right: choose one picture of it, such as slice=3, or frames=1 of a video")  # fmt: skip
        return pictures[0]

    # ---- what models can do

    def ask(self, name: str, question: str, page: str) -> str:
        served = self._model(name, "answer")
        image = self._image(served, page)
        question = abilities.checked_text(question, "question", self.limits)
        answers = served.call(lambda m: abilities.ask(m, image, question), self.limits.max_seconds)
        about = "Probabilities are those among the answers that the model knows." if len(answers) > 1 else ""
        return results.scores("Answer", answers, column="Answer", about=about, given=question)

    def caption(self, name: str, beams: float, page: str) -> str:
        served = self._model(name, "caption")
        image = self._image(served, page)
        count = max(1, min(self.limits.max_beams, int(beams))) if isinstance(beams, int | float) else 1
        captions = served.call(lambda m: abilities.caption(m, image, count), self.limits.max_seconds)
        about = "The probability is that of the whole text, word by word; long texts have small ones."
        return results.scores("Caption", captions, column="Caption", about=about)

    def match(self, name: str, texts: str, page: str) -> str:
        served = self._model(name, "match")
        image = self._image(served, page)
        lines = abilities.checked_lines(texts, "text", self.limits)
        matches = served.call(lambda m: abilities.match(m, image, lines), self.limits.max_seconds)
        about = "The probability that the text belongs to the image, each text on its own; they do not add up to 100 %."
        return results.scores("Match", matches, column="Text", about=about, ranked=False)

    def judge(self, name: str, statement: str, page: str) -> str:
        served = self._model(name, "judge")
        left, right = self._single(served, page), self._single(served, page, "second")
        statement = abilities.checked_text(statement, "statement", self.limits)
        judged = served.call(lambda m: abilities.judge(m, left, right, statement), self.limits.max_seconds)
        judged.sort(key=lambda one: -one.probability)
        return results.scores("The statement is", judged, column="Verdict", given=statement)

    def explain(self, name: str, text: str, objective: str, method: str, layer: str, page: str) -> str:
        served = self._model(name)
        image = self._image(served, page)
        if objective not in served.explains:
            raise InputError(f"{served.name} has no maps of {objective!r}: choose another result to explain")
        if OBJECTIVES[objective].of_image:
            text, method, layer = "", "", ""  # the only ones that it has
        elif text or not OBJECTIVES[objective].writes_texts:  # the model writes a caption where none is given
            what = "question" if OBJECTIVES[objective].has_answers else "text"
            text = abilities.checked_text(text, what, self.limits)
        number = int(layer) if str(layer).isdecimal() else None
        explanation, words = served.call(
            lambda m: abilities.explain(m, image, text or "", objective=objective, method=method, layer=number),
            self.limits.max_seconds,
        )
        return results.maps(explanation, words)

    def batch(self, name: str, file: Any, action: str, texts: str) -> str:
        """A table of all images of an upload; its files are removed, whatever happens."""
        files = records_of(file)
        try:
            return self._batch(self._model(name, action), files, action, texts)
        finally:
            self.uploads.forget(files)

    def _batch(self, served: ServedModel, files: list[dict[str, Any]], action: str, texts: str) -> str:
        self._check_count(files, "there is no image: choose the files first")
        lines = [] if action == "caption" else abilities.checked_lines(texts, "text", self.limits)
        end = time.monotonic() + self.limits.max_seconds
        rows: list[dict[str, Any]] = []
        problems: list[str] = []
        several = any(is_video_name(str(file.get("orig_name"))) for file in files)
        step = 1 if several else AT_ONCE
        for start in range(0, len(files), step):
            part = files[start : start + step]
            left = end - time.monotonic()
            if left <= 0:
                problems += [f"{shown_name(str(file.get('orig_name')))}: there was no time left" for file in part]
                continue
            names, images = self._readable(served, part, problems)
            if images:
                call = functools.partial(abilities.batch, images=images, action=action, texts=lines)
                made = served.call(call, left)
                rows += [{"image": name, **row} for name, several in zip(names, made, strict=True) for row in several]
        return results.table(rows, len(files), problems)

    def _readable(
        self, served: ServedModel, files: list[dict[str, Any]], problems: list[str]
    ) -> tuple[list[str], list[OneImage]]:
        """Names and images of the files that can be read; messages about the others go to `problems`."""
        names: list[str] = []
        images: list[OneImage] = []
        for file in files:
            try:
                picture = self.uploads.read(file)
                images.append(self._taken(served, Item((picture,))))
                names.append(picture.name)
            except InputError as error:
                problems.append(str(error))
        return names, images

    def _model(self, name: str, ability: str = "") -> ServedModel:
        """The checkpoint of a name; InputError where there is none, or where it lacks the ability."""
        served = self.models.get(str(name))
        if served is None:
            raise InputError("there is no such model: choose one of the list")
        if ability and ability not in served.can:
            raise InputError(f"{served.name} cannot do this: it {served.title}")
        return served


def _view(window: object, parts: object) -> tuple[str, str]:
    """How scans are shown, as the fields of the page have it, for `Item`."""
    chosen = window.strip() if isinstance(window, str) else ""
    return chosen or AS_TRAINED, parts.strip() if isinstance(parts, str) else ""


def records_of(files: Any) -> list[dict[str, Any]]:
    """The records of an upload of one or several files, as gradio gives them without its own preparation."""
    several: Sequence[Any] = files if isinstance(files, list) else [files]
    return [one for one in several if isinstance(one, dict)]
