"""The text of a JATS element, with formulas and indices in line and without what is not part of the sentence."""

import html
import re
from collections.abc import Iterator
from typing import Any

from lxml import etree

from blip.errors import BlipError

Element = Any  # lxml has no type annotations

# elements inside a caption that are not part of its text
LEFT_OUT = {"object-id", "supplementary-material", "graphic", "inline-graphic", "media", "permissions", "alt-text",
            "long-desc", "fig", "table-wrap"}  # fmt: skip
BLOCKS = {"p", "title", "sec", "list", "list-item", "disp-formula", "disp-quote", "break", "label", "def-item", "td",
          "th"}  # fmt: skip
POWER = re.compile(r"\s*[-\u2212\u2013+]?\d")
TEX = re.compile(r"\$+([^$]+)\$+")  # a formula in a LaTeX document of its own
INVISIBLE = dict.fromkeys((*range(0x2061, 0x2065), 0x200B, 0xFEFF))  # operators of MathML, spaces without width


MOST_COMPOSED = 64_000_000  # characters: far more than an article has, unless its paragraphs are nested


class JatsError(BlipError):
    """An article that cannot be read."""


class Texts:
    """Texts of elements of one article, each composed once, and not without end."""

    def __init__(self) -> None:
        self.known: dict[Element, str] = {}
        self.left = MOST_COMPOSED

    def of(self, element: Element | None) -> str:
        """`text_of` an element. JatsError where the texts of an article exceed MOST_COMPOSED together."""
        if element is None:
            return ""
        if element not in self.known:
            text = self.known[element] = text_of(element)
            self.left -= len(text)
            if self.left < 0:
                raise JatsError(f"its paragraphs repeat one another to {MOST_COMPOSED / 1e6:.0f} million characters")
        return self.known[element]


def text_of(element: Element | None) -> str:
    """The text of an element: blocks separated, formulas and indices in line, single spaces; "" for None."""
    if element is None:
        return ""
    parts: list[str] = []
    _collect(element, parts)
    return " ".join("".join(parts).translate(INVISIBLE).split())


def _collect(element: Element, parts: list[str]) -> None:
    tag = element.tag
    if tag is etree.Entity:  # never expanded; names that HTML defines are replaced by their character
        parts.append(html.unescape(element.text))
        return
    if not isinstance(tag, str):
        return
    name = tag.rpartition("}")[2]
    if name == "sup" and element.find("xref[@ref-type='bibr']") is not None:
        return  # a citation number
    if name == "tex-math":
        parts.append(" ".join(TEX.findall("".join(element.itertext()))) or "".join(element.itertext()))
        return
    block = name in BLOCKS
    if block:
        parts.append(" ")
    if name == "sup" and "".join(parts[-2:])[-1:].isdigit() and POWER.match(element.text or ""):
        parts.append("^")  # 10^5, not 105
    parts.append(element.text or "")
    for child in _readable(element, name):
        _collect(child, parts)
        parts.append(child.tail or "")
    if block:
        parts.append(" ")


def _readable(element: Element, name: str) -> Iterator[Element]:
    """The children that are part of the text: one of several alternatives, no source of formulas."""
    children = list(element)
    if name == "alternatives":
        chosen = next((c for c in children if str(c.tag).endswith("}math")), None)
        plain = (c for c in children if c.tag in ("tex-math", "textual-form"))
        chosen = next(plain, None) if chosen is None else chosen
        children = [] if chosen is None else [chosen]
    for child in children:
        if child.tag in LEFT_OUT or str(child.tag).endswith("}annotation"):
            yield _only_tail(child)
        else:
            yield child


def _only_tail(child: Element) -> Element:
    """Replaces a child that is left out: empty, with the text that follows the child."""
    empty = etree.Element("left-out")
    empty.tail = child.tail
    return empty
