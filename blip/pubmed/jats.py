"""One article of JATS XML: authors, licence, its figures with captions, and the paragraphs that refer to each figure.

In the order of the document: the file (`parse_article`), its metadata, its figures. `jats_text.py` has the text of an
element. Nothing is fetched and no entity is expanded (NISO Z39.96; figures as PubMed Central, PLOS and eLife mark them
up).
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lxml import etree

from blip.errors import BlipError
from blip.pubmed.jats_text import text_of
from blip.pubmed.licenses import license_name

Element = Any  # lxml has no type annotations
HREF = "{http://www.w3.org/1999/xlink}href"

FIGURE_HOMES = ("fig-group", "floats-group", "boxed-text", "app", "sub-article", "response")


class JatsError(BlipError):
    """An article that cannot be read."""


@dataclass
class Figure:
    """One figure as its article describes it."""

    id: str
    label: str  # such as "Figure 1."
    title: str  # heading of the caption; `caption` begins with it
    caption: str
    files: list[str]  # names as in the article
    section: str  # heading of its section
    home: str  # one of FIGURE_HOMES, or "body"
    mentions: list[str] = field(default_factory=list)  # paragraphs that refer to it


@dataclass
class Article:
    """Metadata and figures; what the article does not give is empty."""

    pmcid: str = ""
    pmid: str = ""
    doi: str = ""
    title: str = ""
    journal: str = ""
    year: int | None = None
    authors: list[str] = field(default_factory=list)
    license: str = ""  # such as CC-BY-4.0, CC0-1.0; "other" for any other wording or link
    license_text: str = ""
    retracted: bool = False
    figures: list[Figure] = field(default_factory=list)
    other_graphics: Counter[str] = field(default_factory=Counter)  # images outside figures, by the enclosing element
    others: int = 0  # further articles in the same file, which are not read


def parse_article(source: Path | bytes) -> Article:
    """Reads one article from a file or from its bytes.

    Raises:
        JatsError: the file is missing, is not XML, or has no `<article>`.
    """
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
    first = articles[0]
    article = _metadata(first)
    article.others = len(articles) - 1
    mentions = _mentions(first)
    article.figures = [_figure(element, mentions) for element in first.iter("fig")]
    article.other_graphics.update(_other_graphics(first))
    return article


def _without_namespace(root: Element) -> None:
    """Removes the namespace that some servers put all of JATS into; MathML keeps its own."""
    if root.tag == "article":
        return
    space = next((str(e.tag).removesuffix("article") for e in root.iter() if str(e.tag).endswith("}article")), "")
    for element in root.iter() if space else ():
        if isinstance(element.tag, str) and element.tag.startswith(space):
            element.tag = element.tag.rpartition("}")[2]


# ---- metadata --------------------------------------------------------------------------------------------------------


def _metadata(root: Element) -> Article:
    meta, journal = root.find("front/article-meta"), root.find("front/journal-meta")
    article = Article(retracted=root.get("article-type") == "retraction")
    if journal is not None:
        article.journal = text_of(next(journal.iter("journal-title"), None))
    if meta is None:
        return article
    for number in meta.findall("article-id"):
        kind, value = number.get("pub-id-type"), (number.text or "").strip()
        if kind in ("pmc", "pmcid") and not article.pmcid:
            article.pmcid = value if value.upper().startswith("PMC") else f"PMC{value}"
        elif kind == "pmid" and not article.pmid:
            article.pmid = value
        elif kind == "doi" and not article.doi:
            article.doi = value
    article.title = text_of(meta.find("title-group/article-title"))
    years = [int(y) for date in meta.findall("pub-date") if (y := (date.findtext("year") or "").strip()).isdecimal()]
    article.year = min(years, default=None)
    people = meta.iterfind("contrib-group/contrib[@contrib-type='author']")
    article.authors = [name for person in people if (name := _author(person))]
    article.license, article.license_text = _license(meta)
    related = {item.get("related-article-type") for item in meta.iter("related-article")}
    retracted = re.match(r"RETRACTED\b|RETRACTION( NOTICE| NOTE)?( OF\b|\s*:|$)", article.title.upper()) is not None
    article.retracted = article.retracted or retracted or bool(related & {"retraction-forward", "retracted-article"})
    return article


def _author(person: Element) -> str:
    """Surname and given names of a person, or the name of a group; "" where both are missing."""
    name = person.find("name") if person.find("name") is not None else person.find("name-alternatives/name")
    if name is not None:
        return f"{name.findtext('surname') or ''} {name.findtext('given-names') or ''}".strip()
    other = next(person.iter("string-name", "collab"), None)
    if other is None:
        return ""
    for contributors in other.findall("contrib-group"):  # members of a group
        other.remove(contributors)
    return text_of(other)


def _license(meta: Element) -> tuple[str, str]:
    """(short name, wording) of the licence in `permissions`; the name follows from a link, else from the wording."""
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
    if group is not None:  # its caption belongs to all of its figures
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
    """Names of the image files of a figure; of alternatives the first that is not a thumbnail."""
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
    """Id of a figure -> the paragraphs that refer to it, each once, in order; captions do not count."""
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
    """Name of the element around each image that belongs to no figure, such as table-wrap or disp-formula."""
    for graphic in article.iter("graphic", "inline-graphic"):
        around = [a.tag for a in graphic.iterancestors()]
        if "fig" not in around:
            yield next((tag for tag in around if tag not in ("alternatives", "p")), "article")
