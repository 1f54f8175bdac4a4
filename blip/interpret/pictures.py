"""Explanations as pictures: a panel a word over the image, as PNG, as one HTML page, or as plain numbers (`.npz`).

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
from blip.interpret.explain import Explanation

NOT_FOR_DIAGNOSIS = "not for diagnosis"
ENDINGS = (".png", ".html", ".npz")
SMALLEST, LARGEST = 256, 512  # pixels of a panel's longer side
COLUMNS = 4
NEEDS_MATPLOTLIB = "pictures need matplotlib: pip install -e '.[pictures]'"


class PictureError(BlipError):
    """A picture that cannot be made; the message says why."""


def panels(image: Image.Image, found: Explanation) -> list[tuple[str, Image.Image]]:
    """(title, picture) of the image itself, the sentence, and each word."""
    base = _sized(image)
    shown = [("image", base), (_title("sentence", found.sentence), blend(base, found.sentence))]
    for word, values in zip(found.words, found.maps, strict=True):
        shown.append((_title(word, values), blend(base, values)))
    return shown


def needs_matplotlib() -> None:
    """PictureError where it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PictureError(NEEDS_MATPLOTLIB)


def blend(image: Image.Image, values: Tensor) -> Image.Image:
    """A map (h, w) over an image of any size, bilinear; the map covers the whole image, whatever its shape."""
    needs_matplotlib()
    from matplotlib import colormaps

    size = (image.height, image.width)
    values = F.interpolate(values.detach()[None, None].float().cpu(), size=size, mode="bilinear", align_corners=False)[
        0, 0
    ]
    top = float(values.max())
    share = (values / top if top > 0 else torch.zeros_like(values)).clamp(min=0).numpy()
    colours = colormaps["inferno"](share)[..., :3] * 255
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    weight = 0.75 * share[..., None]
    return Image.fromarray((pixels * (1 - weight) + colours * weight).round().astype(np.uint8))


def _sized(image: Image.Image) -> Image.Image:
    """With its longer side between SMALLEST and LARGEST pixels, in its own proportions."""
    longer = max(image.size)
    scale = max(1, -(-SMALLEST // longer)) if longer < SMALLEST else min(1.0, LARGEST / longer)
    if scale == 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _title(word: str, values: Tensor) -> str:
    return f"{word}  [{float(values.min()):.2g}, {float(values.max()):.2g}]"


def headline(found: Explanation) -> str:
    """What the picture is of, in one line."""
    layer = "all layers" if found.layer is None else f"layer {found.layer}"
    said = f"{found.text} {found.answer}".strip()
    value = "match logit" if found.task == "match" else "log-probability"
    return f"{said} - {found.task}, {found.method}, {layer}, {value} {found.score:.2f}"


def figure(image: Image.Image, found: Explanation) -> Image.Image:
    """All panels of one explanation on one page."""
    needs_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = panels(image, found)
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    height = 2.4 * min(2.0, max(0.5, image.height / image.width))
    page = Figure(figsize=(2.6 * columns, (height + 0.45) * lines + 0.9), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(page)
    page.suptitle("\n".join(textwrap.wrap(headline(found), 28 * columns)), fontsize=9, parse_math=False)
    axes = page.subplots(lines, columns, squeeze=False).flatten()
    for place in axes:
        place.axis("off")
    for place, (title, picture) in zip(axes, shown, strict=False):
        place.imshow(picture)
        place.set_title("\n".join(textwrap.wrap(title, 30)), fontsize=8, parse_math=False)
    page.supxlabel(NOT_FOR_DIAGNOSIS, fontsize=8)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def save(images: Sequence[Image.Image], found: Sequence[Explanation], names: Sequence[str], out: Path) -> list[Path]:
    """Writes one page, or one file an explanation where there are several PNGs; returns what was written.

    `.html` is one page for all, `.npz` one file for all: `words_0`, `maps_0` (words, h, w), `sentence_0` (h, w), ...
    """
    if out.suffix not in ENDINGS:
        raise PictureError(f"{out}: pictures end in {', '.join(ENDINGS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".html":
        html_page.write_page(out, page_of(images, found, names))
    elif out.suffix == ".npz":
        arrays: dict[str, np.ndarray] = {}
        for i, (one, name) in enumerate(zip(found, names, strict=True)):
            arrays |= {f"image_{i}": np.array(name), f"text_{i}": np.array(one.text), f"score_{i}": np.array(one.score)}
            arrays |= {f"words_{i}": np.array(one.words, dtype=np.str_), f"maps_{i}": one.maps.cpu().numpy()}
            about = f"{one.task}, {one.method}, {'all layers' if one.layer is None else f'layer {one.layer}'}"
            arrays |= {f"answer_{i}": np.array(one.answer), f"about_{i}": np.array(f"{about}; {NOT_FOR_DIAGNOSIS}")}
            arrays |= {f"sentence_{i}": one.sentence.cpu().numpy()}
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    elif len(found) == 1:
        figure(images[0], found[0]).save(out)
    else:
        files = [out.with_stem(f"{out.stem}_{i:04d}") for i in range(len(found))]
        for file, image, one in zip(files, images, found, strict=True):
            figure(image, one).save(file)
        return files
    return [out]


def page_of(images: Sequence[Image.Image], found: Sequence[Explanation], names: Sequence[str]) -> html_page.Html:
    """One self-contained HTML page."""
    note = html_page.element("b", f"{NOT_FOR_DIAGNOSIS}.")
    body = [html_page.element("p", note, SCALES)]
    for image, one, name in zip(images, found, names, strict=True):
        figures = []
        for title, picture in panels(image, one):
            shown = html_page.image(picture, alt=title)
            figures.append(html_page.element("figure", shown, html_page.element("figcaption", title)))
        about = html_page.element("p", f"{name} \u00b7 ", html_page.element("b", NOT_FOR_DIAGNOSIS))
        body.append(html_page.element("section", html_page.element("h2", headline(one)), about, *figures))
    return html_page.page(TITLE, TITLE, STYLE, body=body)


TITLE = "What the model looked at"
SCALES = " Each panel has its own scale, from 0 to its largest value; the raw range is printed in brackets."
STYLE = """
body { font: 15px/1.4 sans-serif; margin: 2em; }
figure { display: inline-block; margin: 0.3em; vertical-align: top; max-width: 260px; }
img { width: 256px; height: auto; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
h2 { font-size: 1.1em; margin-bottom: 0; }
"""
