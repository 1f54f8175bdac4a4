"""Explanations as pictures: the map of each word over the image, as PNG, as one HTML page, or as arrays (`.npz`).

Each panel has its own scale, from 0 to the largest value, which is printed on it: colours of two panels do not compare.
"""

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from blip import html_page
from blip.errors import BlipError
from blip.files import whole_file
from blip.interpret.explain import Explanation
from blip.interpret.objectives import OBJECTIVES

NOT_FOR_DIAGNOSIS = "not for diagnosis"
ENDINGS = (".png", ".html", ".npz")
SMALLEST, LARGEST = 256, 512  # pixels of a panel's longer side
TILE, QUALITY = 208, 75  # the same in a page, as JPEG
COLUMNS = 4
HEADLINES, TITLE_LINES = 12, 4  # lines of text at most, above the panels and above each
NEEDS_MATPLOTLIB = "pictures need matplotlib: pip install -e '.[pictures]'"


class PictureError(BlipError):
    """A picture that cannot be made; the message gives the reason."""


Shown = list[tuple[str, Image.Image]]  # a row of panels, each with its title
Base = Image.Image | Sequence[Image.Image]  # an image, or the pictures of an item


def panels(image: Base, explanation: Explanation) -> list[Shown]:
    """(title, picture) of the image itself, the sentence, and each word; a row for each picture of an item."""
    if isinstance(image, Image.Image):
        return [_row("image", image, explanation, explanation.sentence, explanation.maps)]
    return [
        _row(f"picture {number + 1}", picture, explanation, explanation.sentence[number], explanation.maps[:, number])
        for number, picture in enumerate(image)
    ]


def _row(name: str, image: Image.Image, explanation: Explanation, sentence: Tensor, maps: Tensor) -> Shown:
    base = sized(image)
    whole = "sentence" if explanation.text else "whole image"
    shown = [(name, base), (_title(whole, sentence), blend(base, sentence))]
    for word, values in zip(explanation.words, maps, strict=True):
        shown.append((_title(word, values), blend(base, values)))
    return shown


def needs_matplotlib() -> None:
    """PictureError where it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PictureError(NEEDS_MATPLOTLIB)


def blend(image: Image.Image, values: Tensor) -> Image.Image:
    """A map (h, w) over an image of any size, bilinear; the map covers the whole image, of any proportions."""
    needs_matplotlib()
    from matplotlib import colormaps

    size = (image.height, image.width)
    values = values.detach()[None, None].float().cpu()  # (1, 1, h, w)
    values = F.interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0]  # (height, width)
    top = float(values.max())
    share = (values / top if top > 0 else torch.zeros_like(values)).clamp(min=0).numpy()
    colours = colormaps["inferno"](share)[..., :3] * 255
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    weight = 0.75 * share[..., None]
    return Image.fromarray((pixels * (1 - weight) + colours * weight).round().astype(np.uint8))


def sized(image: Image.Image) -> Image.Image:
    """The image, scaled so that its longer side has between SMALLEST and LARGEST pixels."""
    longer = max(image.size)
    scale = max(1, -(-SMALLEST // longer)) if longer < SMALLEST else min(1.0, LARGEST / longer)
    if scale == 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _tile(image: Image.Image) -> Image.Image:
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return image


def _title(word: str, values: Tensor) -> str:
    return f"{word}  [{float(values.min()):.2g}, {float(values.max()):.2g}]"


def headline(explanation: Explanation) -> str:
    """Text, answer, task, method, layer and score, in one line."""
    heading, facts = described(explanation)
    return ", ".join([heading, *(f"{name} {value}" for name, value in facts)])


def described(explanation: Explanation) -> tuple[str, list[tuple[str, str]]]:
    """A heading, and (name, value) of what is known about an explanation.

    The names tell whose words they are: "given", "predicted" by the model, or "true" in the data.
    """
    one, objective = explanation, OBJECTIVES[explanation.task]
    facts: list[tuple[str, str]] = []
    if objective.of_image:
        heading = "The image alone, without a text"
    elif objective.has_answers:
        heading = one.text
        facts += [(f"{one.answer_is} answer:", one.answer)]
        facts += [("true answer:", one.truth)] if one.truth else []
    elif objective.writes_texts:
        heading = f"{one.text_is} caption: {one.text}"
        facts += [("true caption:", one.truth)] if one.truth else []
    else:
        heading = f"{one.text_is} text: {one.text}"
    facts.append(("map:", _about(one)))
    if objective.score_name:
        facts.append((objective.score_name, f"{one.score:.2f}"))
    return heading, facts


def _about(explanation: Explanation) -> str:
    layer = "all layers" if explanation.layer is None else f"layer {explanation.layer}"
    return f"{explanation.task}, {explanation.method}, {layer}"


def figure(image: Base, explanation: Explanation) -> Image.Image:
    """All panels of one explanation on one page."""
    needs_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = panels(image, explanation)
    columns = min(COLUMNS, len(rows[0]))
    each = -(-len(rows[0]) // columns)  # lines of a picture
    lines, first = each * len(rows), rows[0][0][1]
    height = 2.4 * min(2.0, max(0.5, first.height / first.width))
    page = Figure(figsize=(2.6 * columns, (height + 0.45) * lines + 0.9), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(page)
    page.suptitle(_wrapped(headline(explanation), 28 * columns, HEADLINES), fontsize=9, parse_math=False)
    axes = page.subplots(lines, columns, squeeze=False)
    for place in axes.flatten():
        place.axis("off")
    for number, shown in enumerate(rows):  # each picture begins a line
        for place, (title, picture) in zip(axes[number * each :].flatten(), shown, strict=False):
            place.imshow(picture)
            place.set_title(_wrapped(title, 30, TITLE_LINES), fontsize=8, parse_math=False)
    page.supxlabel(NOT_FOR_DIAGNOSIS, fontsize=8)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _wrapped(text: str, width: int, lines: int) -> str:
    """Lines of text that a font can show; of a very long text as many as there is room for."""
    shown = html_page.visible(text[: 2 * width * lines], keep="\t\n\r")
    return "\n".join(textwrap.wrap(shown, width, max_lines=lines, placeholder=" ..."))


def save(
    images: Sequence[Base], explanations: Sequence[Explanation], names: Sequence[str], files: Sequence[Path]
) -> list[Path]:
    """Writes one page, or one PNG for each explanation; returns the files.

    `.html` is one page for all, `.npz` one file for all: `words_0`, `maps_0` (words, h, w), `sentence_0` (h, w), ...

    Args:
        images: of the explanations, one each.
        names: of the images, as a page shows them.
        files: as `files_of` gives them; PNGs of images that cannot be read, the last ones, are not written.
    """
    out = files[0]
    if out.suffix == ".html":
        html_page.write_page(out, page_of(images, explanations, names))
        return [out]
    if out.suffix == ".npz":
        with whole_file(out) as file:
            np.savez_compressed(file, **_arrays(explanations, names))  # type: ignore[arg-type]
        return [out]
    files = files[: len(explanations)]
    for path, image, explanation in zip(files, images, explanations, strict=True):
        with whole_file(path) as file:
            figure(image, explanation).save(file, "PNG")
    return list(files)


def check_ending(out: Path) -> None:
    """PictureError for a name that ends otherwise than pictures do."""
    if out.suffix not in ENDINGS:
        raise PictureError(f"{out}: --out has to end in {', '.join(ENDINGS)}")


def files_of(out: Path, count: int) -> list[Path]:
    """The files for a number of explanations: several PNGs are numbered."""
    if count < 2 or out.suffix != ".png":
        return [out]
    return [out.with_stem(f"{out.stem}_{i:04d}") for i in range(count)]


def _arrays(explanations: Sequence[Explanation], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The content of an `.npz` file."""
    arrays: dict[str, np.ndarray] = {}
    for i, (one, name) in enumerate(zip(explanations, names, strict=True)):
        arrays |= {f"image_{i}": np.array(name), f"text_{i}": np.array(one.text), f"score_{i}": np.array(one.score)}
        arrays |= {f"words_{i}": np.array(one.words, dtype=np.str_), f"maps_{i}": one.maps.cpu().numpy()}
        about = f"{_about(one)}; {NOT_FOR_DIAGNOSIS}"
        arrays |= {f"answer_{i}": np.array(one.answer), f"about_{i}": np.array(about)}
        arrays |= {f"text_is_{i}": np.array(one.text_is), f"answer_is_{i}": np.array(one.answer_is)}
        arrays |= {f"truth_{i}": np.array(one.truth)}
        arrays |= {f"sentence_{i}": one.sentence.cpu().numpy()}
    return arrays


def page_of(images: Sequence[Base], explanations: Sequence[Explanation], names: Sequence[str]) -> str:
    """One self-contained HTML page; arguments as in `save`."""
    sections = []
    for image, one, name in zip(images, explanations, names, strict=True):
        shown = [[(title, html_page.image(_tile(picture), "JPEG", QUALITY, alt=title)) for title, picture in row]
                 for row in panels(image, one)]  # fmt: skip
        sections.append((*described(one), name, shown))
    return html_page.page(
        "interpret/pictures.html", title=TITLE, heading=TITLE, warning=NOT_FOR_DIAGNOSIS, sections=sections
    )


TITLE = "What the model attended to"
