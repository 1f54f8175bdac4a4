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
from blip.pubmed.licenses import license_name

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
TEX = re.compile(r"\$+([^$]+)\$+")  # a formula in a document of its own
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
    others: int = 0  # articles in the same file, which are not read


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
    _without_namespace(root)
    articles = [root] if root.tag == "article" else root.findall(".//article")  # E-utilities wrap it in a set
    if not articles:
        raise JatsError(f"{name}: holds no <article>; its root is <{root.tag}>")
    article = articles[0]
    found = _metadata(article)
    found.others = len(articles) - 1
    mentions = _mentions(article)
    for element in article.iter("fig"):
        found.figures.append(_figure(element, mentions))
    found.other_graphics.update(_other_graphics(article))
    return found


def _without_namespace(root: Element) -> None:
    """Some servers put all of JATS into a namespace of its own: its elements lose that, MathML keeps its."""
    if root.tag == "article":
        return
    space = next((str(e.tag).removesuffix("article") for e in root.iter() if str(e.tag).endswith("}article")), "")
    for element in root.iter() if space else ():
        if isinstance(element.tag, str) and element.tag.startswith(space):
            element.tag = element.tag.rpartition("}")[2]


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
    years = [int(y) for date in meta.findall("pub-date") if (y := (date.findtext("year") or "").strip()).isdecimal()]
    found.year = min(years, default=None)
    for person in meta.iterfind("contrib-group/contrib[@contrib-type='author']"):
        found.authors += [name] if (name := _author(person)) else []
    found.license, found.license_text = _license(meta)
    related = {item.get("related-article-type") for item in meta.iter("related-article")}
    retracted = re.match(r"RETRACTED\b|RETRACTION( NOTICE| NOTE)?( OF\b|\s*:|$)", found.title.upper()) is not None
    found.retracted = found.retracted or retracted or bool(related & {"retraction-forward", "retracted-article"})
    return found


def _author(person: Element) -> str:
    """A person's surname and given names, or a group's name; "" where neither is there."""
    name = person.find("name") if person.find("name") is not None else person.find("name-alternatives/name")
    if name is not None:
        return f"{name.findtext('surname') or ''} {name.findtext('given-names') or ''}".strip()
    other = next(person.iter("string-name", "collab"), None)
    if other is None:
        return ""
    for contributors in other.findall("contrib-group"):  # a group's members
        other.remove(contributors)
    return text_of(other)


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


# ---- figures ---------------------------------------------------------------------------------------------------------


def _figure(element: Element, mentions: dict[str, list[str]]) -> Figure:
    group = next((a for a in element.iterancestors() if a.tag == "fig-group"), None)
    caption, label, shared = element.find("caption"), text_of(element.find("label")), ""
    if group is not None:  # what several figures share
        label = label or text_of(group.find("label"))
        shared = text_of(group.find("caption"))
    section = next((a for a in element.iterancestors() if a.tag in ("sec", "boxed-text", "app")), None)
    home = next((a.tag for a in element.iterancestors() if a.tag in FIGURE_HOMES), "body")
    own = element.get("id", "")
    heading = "" if section is None else text_of(section.find("title"))
    title = "" if caption is None else text_of(caption.find("title"))
    words = f"{shared} {text_of(caption)}".strip()
    return Figure(own, label, title, words, _files(element), heading, home, mentions.get(own, []))


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
    if name == "sup" and element.find("xref[@ref-type='bibr']") is not None:
        return  # the number of a reference
    if name == "tex-math":
        parts.append(" ".join(TEX.findall("".join(element.itertext()))) or "".join(element.itertext()))
        return
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
