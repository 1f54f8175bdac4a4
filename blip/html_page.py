"""What the HTML reports share: page frame, markup with escaped text, tables, bars, histograms, images in the page.

A page is one file that loads nothing from elsewhere. Text is escaped once, where it becomes part of an element: what is
`Html` is markup already, every other string is text.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from blip.files import write_whole

WIDTH, HEIGHT = 400, 100  # of a histogram's bars, in pixels
BAR = 240  # pixels of the longest bar of a table
EMPTY = ("img", "br")  # elements that have no content, and no end


class Html(str):
    """Markup, which is not escaped again."""


def page(title: str, heading: str, style: str, *, body: Iterable[str]) -> Html:
    """A whole page; `style` is CSS, the parts of `body` stand below one another."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{style}</style></head><body>",
        element("h1", heading),
        *map(escaped, body),
        "</body></html>",
    ]
    return Html("\n".join(parts) + "\n")


def write_page(path: Path, content: Html) -> None:
    """Writes a page, and its folder where that is missing; characters that UTF-8 cannot hold become question marks.

    Raises:
        WriteError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.encode("utf-8", errors="replace"))


def escaped(part: str) -> Html:
    """Markup as it is, text with its special characters escaped."""
    return part if isinstance(part, Html) else Html(html.escape(part))


def element(name: str, *content: str, **attributes: object) -> Html:
    """`<name attribute="value">content</name>`; `class_` and `text_anchor` stand for `class` and `text-anchor`."""
    values = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    if name in EMPTY:
        return Html(f"<{name}{values}>")
    return Html(f"<{name}{values}>{''.join(map(escaped, content))}</{name}>")


def table(rows: Iterable[Iterable[object]], header: Sequence[str] = ()) -> Html:
    """Rows of cells, markup or whatever `str` makes of a value; "none" where there are no rows."""
    head = element("tr", *(element("th", name) for name in header)) if header else Html()
    # `str` of an Html would be text again
    cells = [[element("td", value if isinstance(value, str) else str(value)) for value in row] for row in rows]
    lines = [element("tr", *row) for row in cells]
    return element("table", head, *lines) if lines else element("p", "none")


def table_of_counts(rows: Iterable[tuple[Any, ...]]) -> Html:
    """(name, count, further words ...) of each row, with a bar as long as the count."""
    rows = list(rows)
    longest = max((row[1] for row in rows), default=0) or 1
    cells = []
    for name, count, *rest in rows:
        bar = element("span", class_="bar", style=f"width:{BAR * count / longest:.0f}px")
        cells.append((name, f"{count:,}", bar, " ".join(map(str, rest))))
    return table(cells)


def histogram(title: str, counts: Sequence[int], low: float, *, high: float, mark: float | None = None) -> Html:
    """Bars of equal width from `low` to `high` as SVG, with a red line at `mark`."""
    top, width = max(max(counts), 1), WIDTH / len(counts)
    bars = []
    for place, count in enumerate(counts):
        tall = HEIGHT * count / top
        box = {"x": f"{place * width:.1f}", "y": f"{HEIGHT - tall:.1f}", "width": f"{width - 1:.1f}"}
        bars.append(element("rect", element("title", str(count)), **box, height=f"{tall:.1f}"))
    if mark is not None:
        x = f"{WIDTH * (mark - low) / (high - low):.1f}"
        bars.append(element("line", x1=x, x2=x, y1=0, y2=HEIGHT, stroke="#c00"))
    ends = [
        element("text", f"{low:.2f}", x=0, y=HEIGHT + 14),
        element("text", f"{high:.2f}", x=WIDTH, y=HEIGHT + 14, text_anchor="end"),
    ]
    tall_all = HEIGHT + 18
    drawing = element("svg", *bars, *ends, viewBox=f"0 0 {WIDTH} {tall_all}", width=WIDTH, height=tall_all)
    caption = element("figcaption", f"highest bar: {top}")
    return element("figure", element("figcaption", title), drawing, caption)


def image(picture: Image.Image, format: str = "PNG", quality: int | None = None, *, alt: str = "") -> Html:
    """A picture as part of the page: its bytes stand in the address.

    Args:
        format: "PNG" or "JPEG".
        quality: of a JPEG, 1 to 95.
    """
    data = io.BytesIO()
    picture.save(data, format, **({} if quality is None else {"quality": quality}))
    text = base64.b64encode(data.getvalue()).decode()
    return element("img", alt=alt, src=f"data:image/{format.lower()};base64,{text}")
