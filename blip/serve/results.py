"""Values as the markup of the page, by `results.html`; every text is escaped there. Tables as CSV."""

import base64
import csv
import io
import secrets
from collections.abc import Sequence
from typing import Any

from PIL import Image

from blip import html_page
from blip.interpret.explain import Explanation
from blip.interpret.objectives import OBJECTIVES
from blip.serve.abilities import Scored, WordMap, reduced
from blip.serve.items import Item

NOT_FOR_CLINICAL_USE = "Not for clinical use"
PREVIEW, SMALL_PREVIEW = 512, 112  # pixels of the longer side, of an image and of each of several
PREVIEW_ROWS = 20  # of a batch's table in the page
QUALITY = 85  # of JPEGs


def problem(message: str) -> str:
    """A message about what went wrong."""
    return _filled("problem", message=message)


def hint(message: str) -> str:
    """A quiet sentence, such as what stands in the place of a result that is not there yet."""
    return _filled("hint", message=message)


def header(title: str, message: str) -> str:
    """The title of the page, and its warning."""
    return _filled("header", title=title, message=message)


def about_model(name: str, title: str) -> str:
    """The chosen model and what it does."""
    return _filled("model", name=name, title=title)


def preview(item: Item, images: Sequence[Image.Image]) -> str:
    """The chosen image, or all pictures of an item."""
    about, count = item.described(images), len(images)
    alts = [f"The chosen image: {item.name}, {about}"]
    if count > 1:
        alts = [f"Picture {place} of {count} of the chosen item: {item.name}" for place in range(1, count + 1)]
    side = PREVIEW if count == 1 else SMALL_PREVIEW
    shown = [
        html_page.image(reduced(one, side), "JPEG", QUALITY, alt=alt) for one, alt in zip(images, alts, strict=True)
    ]
    return _filled("preview", pictures=shown, name=item.name, about=about)


def scores(
    heading: str, rows: Sequence[Scored], *, column: str, about: str = "", given: str = "", ranked: bool = True
) -> str:
    """Texts with their probabilities as bars.

    Args:
        heading: of the result.
        column: what the texts are, the head of their column.
        about: a sentence that explains the numbers.
        given: the question or statement, as it was asked.
        ranked: the first row is the result, and is shown large.
    """
    lines = [
        (row.text or "(no words)", _percent(row.probability), f"{100 * min(1.0, row.probability):.1f}",
         "" if row.cosine is None else f"{row.cosine:.3f}")
        for row in rows
    ]  # fmt: skip
    cosines = any(row.cosine is not None for row in rows)
    first = lines[0][0] if ranked else ""
    return _filled(
        "scores", heading=heading, rows=lines, column=column, about=about, given=given, cosines=cosines, first=first
    )


def _percent(probability: float) -> str:
    return "below 0.1 %" if 0 < probability < 0.0005 else f"{100 * probability:.1f} %"


def maps(explanation: Explanation, words: Sequence[WordMap]) -> str:
    """The map of a text over the image, and buttons that show those of its words instead."""
    panels = [
        (one.word, html_page.image(one.picture, "JPEG", QUALITY, alt=f"Map of {one.word} over the image"),
         f"{one.largest:.2g}")
        for one in words
    ]  # fmt: skip
    layer = "all layers" if explanation.layer is None else f"layer {explanation.layer}"
    about = f"{explanation.method}, {layer}"
    if name := OBJECTIVES[explanation.task].score_name:
        about += f"; {name} {explanation.score:.2f}"
    number = secrets.token_hex(4)  # of this result among those of the page
    text = explanation.text or "The image alone, without a text"
    return _filled("maps", text=text, answer=explanation.answer, about=about, panels=panels, number=number)


def table(rows: Sequence[dict[str, Any]], images: int, problems: Sequence[str]) -> str:
    """The rows of a batch: a link that downloads all of them as CSV, the first of them, and what could not be read."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    data = base64.b64encode(csv_of(rows, columns).encode()).decode()
    shown = [[_cell(row.get(name, "")) for name in columns] for row in rows[:PREVIEW_ROWS]]
    return _filled(
        "table",
        columns=[name.replace("_", " ") for name in columns],
        rows=shown,
        count=len(rows),
        images=images,
        problems=problems,
        address=f"data:text/csv;charset=utf-8;base64,{data}",
    )


def csv_of(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV, with a byte order mark, without which spreadsheets do not recognise UTF-8."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([*columns, "note"])
    for row in rows:
        writer.writerow([*(html_page.csv_cell(row.get(name, "")) for name in columns), NOT_FOR_CLINICAL_USE.lower()])
    return "\ufeff" + out.getvalue()


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _filled(kind: str, **values: object) -> str:
    return html_page.page("serve/results.html", kind=kind, warning=NOT_FOR_CLINICAL_USE, **values)
