"""One article of JATS XML: who wrote it, under which licence, its figures with captions, and where the text names them.

Read from its front to its end: the file (`parse_article`), its metadata, its figures, text as it is read (`text_of`).
Nothing is fetched, no entity is expanded (NISO Z39.96; figures as PubMed Central, PLOS and eLife write them).
"""

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lxml import etree

from blip.errors import BlipError

Element = Any  # of lxml, which has no types
HREF = "{http://www.w3.org/1999/xlink}href"

# parts of a caption that are no part of what it says
LEFT_OUT = {"object-id", "supplementary-material", "graphic", "inline-graphic", "media", "permissions", "alt-text",
            "long-desc", "fig", "table-wrap"}  # fmt: skip
BLOCKS = {
    "p",
    "title",
    "sec",
    "list",
    "list-item",
    "disp-formula",
    "disp-quote",
    "break",
    "label",
    "def-item",
    "td",
    "th",
}
POWER = re.compile(r"\s*[-\u2212\u2013+]?\d")
INVISIBLE = dict.fromkeys((*range(0x2061, 0x2065), 0x200B, 0xFEFF))  # operators of MathML, blanks of no width
FIGURE_HOMES = ("fig-group", "floats-group", "boxed-text", "app", "sub-article", "response")


class JatsError(BlipError):
    """An article that cannot be read; the message says why."""


@dataclass
class Figure:
    """What an article says of one figure."""

    id: str
    label: str  # "Figure 1."
    title: str  # the caption's heading, which `caption` begins with
    caption: str
    files: list[str]  # as the article names them
    section: str  # heading of the section that it stands in
    home: str  # one of FIGURE_HOMES, or "body"
    mentions: list[str] = field(default_factory=list)  # paragraphs that name it


@dataclass
class Article:
    """Metadata and figures; empty texts where the article does not say."""

    pmcid: str = ""
    pmid: str = ""
    doi: str = ""
    title: str = ""
    journal: str = ""
    year: int | None = None
    authors: list[str] = field(default_factory=list)
    license: str = ""  # such as CC-BY-4.0, CC0-1.0; "other" for words or links of another kind
    license_text: str = ""
    retracted: bool = False
    figures: list[Figure] = field(default_factory=list)
    other_graphics: Counter[str] = field(default_factory=Counter)  # images outside of figures, by the element around


def parse_article(source: Path | bytes) -> Article:
    """Reads one article; JatsError where it is no XML or holds no article."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True,
                             remove_pis=True, huge_tree=False)  # fmt: skip
    name = str(source) if isinstance(source, Path) else "(in memory)"
    try:
        root = etree.fromstring(source.read_bytes() if isinstance(source, Path) else source, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise JatsError(f"{name}: not readable XML ({error})") from None
    except OSError as error:
        raise JatsError(f"{name}: {error.strerror or error}") from None
    article = root if root.tag == "article" else root.find(".//article")  # E-utilities wrap it in a set
    if article is None:
        raise JatsError(f"{name}: holds no <article>; its root is <{root.tag}>")
    found = _metadata(article)
    mentions = _mentions(article)
    for element in article.iter("fig"):
        found.figures.append(_figure(element, mentions))
    found.other_graphics.update(_other_graphics(article))
    return found


# ---- metadata --------------------------------------------------------------------------------------------------------


def _metadata(article: Element) -> Article:
    meta, journal = article.find("front/article-meta"), article.find("front/journal-meta")
    found = Article(retracted=article.get("article-type") == "retraction")
    if journal is not None:
        found.journal = text_of(next(journal.iter("journal-title"), None))
    if meta is None:
        return found
    for number in meta.findall("article-id"):
        kind, value = number.get("pub-id-type"), (number.text or "").strip()
        if kind in ("pmc", "pmcid") and not found.pmcid:
            found.pmcid = value if value.upper().startswith("PMC") else f"PMC{value}"
        elif kind == "pmid" and not found.pmid:
            found.pmid = value
        elif kind == "doi" and not found.doi:
            found.doi = value
    found.title = text_of(meta.find("title-group/article-title"))
    years = [int(y) for date in meta.findall("pub-date") if (y := (date.findtext("year") or "").strip()).isdigit()]
    found.year = min(years, default=None)
    for person in meta.iterfind("contrib-group/contrib[@contrib-type='author']/name"):
        found.authors.append(f"{person.findtext('surname') or ''} {person.findtext('given-names') or ''}".strip())
    found.license, found.license_text = _license(meta)
    related = {item.get("related-article-type") for item in meta.iter("related-article")}
    retracted = found.title.upper().startswith(("RETRACTED", "RETRACTION"))
    found.retracted = found.retracted or retracted or bool(related & {"retraction-forward", "retracted-article"})
    return found


def _license(meta: Element) -> tuple[str, str]:
    """(its short name, its words) as `permissions` has it: by link, else by what the words say."""
    links, words = [], []
    for permissions in meta.findall("permissions"):
        words += [text_of(part) for part in permissions.iter("license-p", "p", "copyright-statement")]
        for part in permissions.iter():
            links += [part.get(HREF, "")]
            links += [part.text or ""] if isinstance(part.tag, str) and part.tag.endswith("license_ref") else []
    text = " ".join(words)
    for link in links:
        if name := license_name(link):
            return name, text
    return license_name(text) or ("other" if text else ""), text


def license_name(text: str) -> str:
    """CC-BY-4.0 and the like, from a link or from words; "" where it speaks of no Creative Commons licence."""
    if link := re.search(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(?:/(\d\.\d))?", text, re.IGNORECASE):
        kind = "CC0" if link[1].lower() == "publicdomain" else f"CC-{link[2].upper()}"
        return f"{kind}-{link[3]}" if link[3] else kind
    if re.search(r"\bCC0\b|public domain", text, re.IGNORECASE):
        return "CC0"
    if short := re.search(r"\bCC[ -](BY(?:[ -](?:NC|ND|SA))*)(?:[ -](\d\.\d))?", text):
        return f"CC-{short[1].replace(' ', '-')}" + (f"-{short[2]}" if short[2] else "")
    if re.search(r"Creative Commons", text):
        parts = ["BY"] if re.search(r"attribution", text, re.IGNORECASE) else []
        for name, words in (("NC", r"non-?commercial"), ("ND", r"no ?deriv"), ("SA", r"share ?-?alike")):
            # the name of the licence, not "non-commercial use is permitted" elsewhere in its words
            parts += [name] if re.search(rf"attribution[^.]*{words}", text, re.IGNORECASE) else []
        return "-".join(["CC", *parts]) if parts else ""
    return ""


# ---- figures ---------------------------------------------------------------------------------------------------------


def _figure(element: Element, mentions: dict[str, list[str]]) -> Figure:
    group = next((a for a in element.iterancestors() if a.tag == "fig-group"), None)
    caption, label = element.find("caption"), text_of(element.find("label"))
    if group is not None:  # what several figures share
        caption = group.find("caption") if caption is None else caption
        label = label or text_of(group.find("label"))
    section = next((a for a in element.iterancestors() if a.tag in ("sec", "boxed-text", "app")), None)
    home = next((a.tag for a in element.iterancestors() if a.tag in FIGURE_HOMES), "body")
    own = element.get("id", "")
    heading = "" if section is None else text_of(section.find("title"))
    title = "" if caption is None else text_of(caption.find("title"))
    return Figure(own, label, title, text_of(caption), _files(element), heading, home, mentions.get(own, []))


def _files(element: Element) -> list[str]:
    """Files of a figure, of alternatives the first that is no thumbnail."""
    found, seen = [], set()
    for graphic in element.iter("graphic"):
        around = list(_up_to(graphic, element))
        if any(a.tag in ("caption", "fig", "supplementary-material", "disp-formula") for a in around):
            continue
        choice = next((a for a in around if a.tag == "alternatives"), None)
        if choice is not None:
            if choice in seen:
                continue
            seen.add(choice)
            others = [g for g in choice.iter("graphic") if g.get("specific-use") != "thumbnail"]
            graphic = others[0] if others else graphic
        if href := graphic.get(HREF, "").strip():
            found.append(href)
    return list(dict.fromkeys(found))


def _up_to(element: Element, end: Element) -> Iterator[Element]:
    for ancestor in element.iterancestors():
        if ancestor is end:
            return
        yield ancestor


def _mentions(article: Element) -> dict[str, list[str]]:
    """Id of a figure -> the paragraphs that refer to it, each once, in order; those of captions are none."""
    found: dict[str, dict[str, None]] = {}
    texts: dict[Element, str] = {}
    for reference in article.iter("xref"):
        if reference.get("ref-type") != "fig":
            continue
        paragraph = None
        for ancestor in reference.iterancestors():
            if ancestor.tag in ("fig", "caption", "fig-group"):
                paragraph = None
                break
            if paragraph is None and ancestor.tag == "p":
                paragraph = ancestor
        if paragraph is None:
            continue
        if paragraph not in texts:
            texts[paragraph] = text_of(paragraph)
        for own in reference.get("rid", "").split():
            found.setdefault(own, {})[texts[paragraph]] = None
    return {own: list(several) for own, several in found.items()}


def _other_graphics(article: Element) -> Iterator[str]:
    """The element round each image that belongs to no figure, such as table-wrap or disp-formula."""
    for graphic in article.iter("graphic", "inline-graphic"):
        around = [a.tag for a in graphic.iterancestors()]
        if "fig" not in around:
            yield next((tag for tag in around if tag not in ("alternatives", "p")), "article")


# ---- text ------------------------------------------------------------------------------------------------------------


def text_of(element: Element | None) -> str:
    """The text of an element as one reads it: blocks apart, formulas and indices in line, one blank at a time."""
    if element is None:
        return ""
    parts: list[str] = []
    _collect(element, parts)
    return " ".join("".join(parts).translate(INVISIBLE).split())


def _collect(element: Element, parts: list[str]) -> None:
    tag = element.tag
    if tag is etree.Entity:  # never expanded; the names that HTML has are characters
        parts.append(html.unescape(element.text))
        return
    if not isinstance(tag, str):
        return
    name = tag.rpartition("}")[2]
    block = name in BLOCKS
    if block:
        parts.append(" ")
    if name == "sup" and "".join(parts[-2:])[-1:].isdigit() and POWER.match(element.text or ""):
        parts.append("^")  # 10 to the power of 5, not 105
    parts.append(element.text or "")
    for child in _readable(element, name):
        _collect(child, parts)
        parts.append(child.tail or "")
    if block:
        parts.append(" ")


def _readable(element: Element, name: str) -> Iterator[Element]:
    """The children that are read; of alternatives one, of a formula its symbols, not its source."""
    children = list(element)
    if name == "alternatives":
        chosen = next((c for c in children if str(c.tag).endswith("}math")), None)
        children = [c for c in children if c is chosen or (chosen is None and c.tag in ("tex-math", "textual-form"))][
            :1
        ]
    for child in children:
        if child.tag in LEFT_OUT or str(child.tag).endswith("}annotation"):
            yield _only_tail(child)
        else:
            yield child


def _only_tail(child: Element) -> Element:
    """In the place of a child that is left out: nothing but what follows it."""
    empty = etree.Element("left-out")
    empty.tail = child.tail
    return empty
