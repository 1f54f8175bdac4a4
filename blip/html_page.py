"""Reports as HTML pages, and foreign text in the cells of CSV and Markdown tables.

A page is one file that loads nothing from elsewhere. It is rendered by jinja2 from a template that lies beside the
module that fills it and extends `html_page.html`, which forbids scripts and requests. Every value of a template is text
and is escaped, unless it is `Html`, which only the functions here make.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from blip.errors import visible
from blip.files import write_whole

WIDTH, HEIGHT = 400, 100  # of a histogram's bars, in pixels
BAR = 240  # pixels of the longest bar of a table
Html = Markup  # markup, which is not escaped again

# ---- pages -----------------------------------------------------------------------------------------------------------


def page(template: str, **values: Any) -> str:
    """A whole page.

    Args:
        template: its path below the package, such as `capfilt/report.html`.
        values: of the template; `title` and `heading` are part of every page.

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    return _engine().get_template(template).render(values)


def write_page(path: Path, content: str) -> None:
    """Writes a page, and its folder where that is missing.

    Raises:
        WriteError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def table(rows: Iterable[Iterable[object]], header: Sequence[str] = ()) -> Html:
    """Rows of cells, markup or whatever `str` makes of a value; "none" where there are no rows."""
    return _part("table", [list(row) for row in rows], header)


def table_of_counts(rows: Iterable[tuple[Any, ...]]) -> Html:
    """(name, count, further words ...) of each row, with a bar as long as the count."""
    rows = list(rows)
    longest = max((row[1] for row in rows), default=0)
    lines = []
    for name, count, *rest in rows:
        length = BAR * count / longest if 0 < count <= longest else 0
        lines.append((name, f"{count:,}", f"{length:.0f}", " ".join(map(str, rest))))
    return _part("table_of_counts", lines)


def histogram(title: str, counts: Sequence[int], low: float, *, high: float, mark: float | None = None) -> Html:
    """Bars of equal width from `low` to `high` as SVG, with a red line at `mark`."""
    top, width = max(max(counts), 1), WIDTH / len(counts)
    bars = []
    for place, count in enumerate(counts):
        tall = HEIGHT * count / top
        numbers = (place * width, HEIGHT - tall, width - 1, tall)  # x, y, width, height
        bars.append((count, *(f"{number:.1f}" for number in numbers)))
    line = None if mark is None else f"{WIDTH * (mark - low) / (high - low):.1f}"
    return _part("histogram", title, bars, f"{low:.2f}", f"{high:.2f}", line, top, WIDTH, HEIGHT)


def image(picture: Image.Image, format: str = "PNG", quality: int | None = None, *, alt: str = "") -> Html:
    """A picture as part of the page: its bytes stand in the address.

    Args:
        format: "PNG" or "JPEG".
        quality: of a JPEG, 1 to 95.
    """
    data = io.BytesIO()
    picture.save(data, format, **({} if quality is None else {"quality": quality}))
    text = base64.b64encode(data.getvalue()).decode()
    return _part("image", f"data:image/{format.lower()};base64,{text}", alt)


# what plotting libraries write and what a drawing needs of it
SVG_ELEMENTS = ("svg", "g", "defs", "clipPath", "path", "rect", "use", "text", "tspan")
SVG_ATTRIBUTES = ("viewBox", "id", "d", "x", "y", "width", "height", "transform", "style", "clip-path", "href")
SVG_STYLE = re.compile(r"[\w\s:;.,#%()+-]*")  # no quotes, no addresses
LONG_DECIMALS = re.compile(r"(\.\d\d)\d+")  # hundredths of a point are enough for any screen


def drawing(svg: str, alt: str, colours: Mapping[str, str]) -> Html:
    """A drawing of matplotlib as part of the page: its paths and texts alone, in colours that follow the page's.

    Args:
        svg: a whole SVG document, whose texts are texts (`svg.fonttype: none`).
        alt: what the drawing shows, for those who do not see it.
        colours: a colour of the drawing -> what stands for it in the style of the page, such as `var(--ink)`.
    """
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]  # two drawings on a page may use the same names
    root = ElementTree.fromstring(svg)
    for name in ("width", "height"):  # the page decides
        root.attrib.pop(name, None)
    return Html(_svg_element(root, prefix, colours, extra=f' role="img" aria-label="{_escaped(alt)}"'))


def _svg_element(node: ElementTree.Element, prefix: str, colours: Mapping[str, str], *, extra: str = "") -> str:
    name = node.tag.rpartition("}")[2]
    if name not in SVG_ELEMENTS:
        return ""
    attributes = []
    for key, value in node.attrib.items():
        key = key.rpartition("}")[2]
        if key == "id":
            value = f"{prefix}{value}" if name in ("clipPath", "path") else ""
        elif key == "href":
            value = f"#{prefix}{value[1:]}" if value.startswith("#") else ""
        elif key == "clip-path":
            value = value.replace("url(#", f"url(#{prefix}")
        elif key == "style":
            value = _svg_style(value, colours)
        elif key in ("d", "x", "y", "width", "height", "transform"):
            value = LONG_DECIMALS.sub(r"\1", " ".join(value.split()))
        if key in SVG_ATTRIBUTES and value:
            attributes.append(f' {key}="{_escaped(value)}"')
    inside = "".join(_svg_element(child, prefix, colours) for child in node)
    text = _escaped(node.text) if name in ("text", "tspan") and node.text else ""
    return f"<{name}{extra}{''.join(attributes)}>{text}{inside}</{name}>\n"


def _svg_style(style: str, colours: Mapping[str, str]) -> str:
    kept = []
    for one in style.split(";"):
        name, _, value = (part.strip() for part in one.partition(":"))
        if name == "font":  # its size; the family is the page's
            name, value = "font-size", next(iter(re.findall(r"[\d.]+px", value)), "10px")
        if name and SVG_STYLE.fullmatch(value):
            kept.append(f"{name}: {colours.get(value, value)}")
    return "; ".join(kept)


def _escaped(text: str) -> str:
    return str(escape(_value(text)))


def _part(macro: str, *values: object) -> Html:
    """A macro of `html_parts.html`."""
    return getattr(_engine().get_template("html_parts.html").module, macro)(*values)


@cache
def _engine() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _value(value: object) -> object:
    """What stands in a page for a value of a template, before it is escaped."""
    # white space has no effect in a page, and stays
    return value if isinstance(value, Markup) else visible(str(value), keep="\t\n\r")


# ---- tables of other formats -----------------------------------------------------------------------------------------

# characters that nobody sees, beside white space: those that Unicode lets programs ignore, and blanks that are letters
UNSEEN = (
    "\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# signs with which spreadsheets recognise a formula, also in full width, behind characters that some of them remove
FORMULA = re.compile(rf"'*+(?:[\x00-\x1f\x7f-\x9f]|[\s{UNSEEN}]*+[=+\-@\uff1d\uff0b\uff0d\uff20])")


def csv_cell(value: object) -> object:
    """A value as a cell of a CSV file, in which no spreadsheet recognises a formula.

    Numbers and None stay as they are. Text that a spreadsheet could take for a formula gets an apostrophe in front, one
    more where it begins with one; control characters become visible.
    """
    if value is None or isinstance(value, Real):
        return value
    text = str(value)
    return f"'{visible(text)}" if FORMULA.match(text) else visible(text)


# beginnings of headings, lines below headings, lists; then signs that have a meaning anywhere in a line
MARKDOWN = re.compile(
    r"(?P<escaped>^\s*+(?:[#=]|[+-](?!\d)|\d++[.)](?!\S))|[\\`*\[\]{}|~$]|(?<![^\W_])_|_(?![^\W_]))"
    r"|(?P<coded>[<>&@]|:(?=//)|(?<=www)\.)",
    re.IGNORECASE,
)


def markdown(value: object) -> str:
    """A value as text of a Markdown document, without a meaning as Markdown, HTML or address, in one line."""
    return MARKDOWN.sub(_without_meaning, visible(str(value)))


def _without_meaning(found: re.Match[str]) -> str:
    sign = found[0][-1]
    if found["escaped"]:
        return f"{found[0][:-1]}\\{sign}"
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(sign, f"&#{ord(sign)};")
