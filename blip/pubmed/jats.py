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

from blip.files import ReadError, open_regular
from blip.pubmed.catalogue import is_pmcid
from blip.pubmed.jats_text import JatsError, Texts, text_of
from blip.pubmed.licenses import UNKNOWN, article_license
from blip.pubmed.retractions import names_retraction

Element = Any  # lxml has no type annotations
HREF = "{http://www.w3.org/1999/xlink}href"

LARGEST = 100_000_000  # bytes of an article; the largest in PubMed Central have some ten million
MOST_MENTIONS = 200  # paragraphs of a figure
MENTIONED = 8_000_000  # characters of the paragraphs of all figures of an article
MOST_CHARACTERS = 64_000_000  # of the lines of all figures, of which each repeats what belongs to its article
FIGURE_HOMES = ("fig-group", "floats-group", "boxed-text", "app", "sub-article", "response")


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
    license: str = ""  # such as CC-BY-4.0, CC0-1.0; "unknown" for any other wording or link
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
        if isinstance(source, Path):
            with open_regular(source, LARGEST) as file:
                source = file.read()
        return _article(etree.fromstring(source, parser))
    except ReadError as error:
        raise JatsError(str(error)) from None
    except RecursionError:  # libxml2 refuses more than 256 levels, later versions more than 2,048
        raise JatsError(f"{name}: its elements are nested too deeply") from None
    except JatsError as error:
        raise JatsError(f"{name}: {error}") from None
    except (etree.XMLSyntaxError, ValueError) as error:
        raise JatsError(f"{name}: not readable XML ({error})") from None
    except OSError as error:
        raise JatsError(f"{name}: {error.strerror or error}") from None


def _article(root: Element) -> Article:
    _without_namespace(root)
    articles = [root] if root.tag == "article" else root.findall(".//article")  # E-utilities wrap it in a set
    if not articles:
        raise JatsError(f"holds no <article>; its root is <{root.tag}>")
    first, texts = articles[0], Texts()
    article = _metadata(first, texts)
    article.others = len(articles) - 1
    mentions, graphics = _mentions(first, texts), _graphics(first)
    each = sum(map(len, (article.title, article.journal, article.license_text, *article.authors)))
    characters = 0
    for element in first.iter("fig"):
        figure = _figure(element, mentions, graphics, texts=texts)
        own = (figure.caption, figure.title, figure.label, figure.section, *figure.mentions, *figure.files)
        characters += each + sum(map(len, own))
        if characters > MOST_CHARACTERS:
            raise JatsError(f"its figures would become more than {MOST_CHARACTERS / 1e6:.0f} million characters")
        article.figures.append(figure)
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


def _metadata(root: Element, texts: Texts) -> Article:
    meta, journal = root.find("front/article-meta"), root.find("front/journal-meta")
    article = Article()
    if journal is not None:
        article.journal = text_of(next(journal.iter("journal-title"), None))
    if meta is None:
        return article
    for number in meta.findall("article-id"):
        kind, value = number.get("pub-id-type"), (number.text or "").strip()
        if kind in ("pmc", "pmcid") and not article.pmcid:
            value = value.upper() if value.upper().startswith("PMC") else f"PMC{value}"
            article.pmcid = value if is_pmcid(value) else ""
        elif kind == "pmid" and not article.pmid:
            article.pmid = value
        elif kind == "doi" and not article.doi:
            article.doi = value
    article.title = text_of(meta.find("title-group/article-title"))
    dates = [(date.findtext("year") or "").strip() for date in meta.findall("pub-date")]
    article.year = min((int(year) for year in dates if re.fullmatch("[0-9]{1,4}", year)), default=None)
    people = meta.iterfind("contrib-group/contrib[@contrib-type='author']")
    article.authors = [name for person in people if (name := _author(person))]
    article.license, article.license_text = _license(meta, texts)
    related = {item.get("related-article-type") or "" for item in meta.iter("related-article")}
    article.retracted = names_retraction(article.title, related | {root.get("article-type") or ""})
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


def _license(meta: Element, texts: Texts) -> tuple[str, str]:
    """(short name, wording) of the licence in `permissions`, by its links; all of its words are read."""
    links: list[str] = []
    terms: list[str] = []
    holders: list[str] = []
    words: list[str] = []
    for permissions in meta.findall("permissions"):
        for part in permissions.iter():
            links += [part.get(HREF, "")]
            links += [part.text or ""] if isinstance(part.tag, str) and part.tag.endswith("license_ref") else []
        etree.strip_elements(permissions, "{*}license_ref", "license_ref", with_tail=False)
        terms.append(permissions.text or "")
        for part in permissions:
            text = texts.of(part)
            (holders if str(part.tag).startswith("copyright-") else terms).append(text)
            words += [text] if part.tag not in ("copyright-year", "copyright-holder") else []
            terms.append(part.tail or "")
    text = " ".join(filter(None, words))
    kinds = [kind for part in meta.iterfind("permissions//license") if (kind := part.get("license-type"))]
    name = article_license(links, " ".join(terms), ". ".join(filter(None, holders)), kinds=kinds)
    return name or (UNKNOWN if text else ""), text


# ---- figures ---------------------------------------------------------------------------------------------------------


def _figure(element: Element, mentions: dict[str, list[str]], graphics: dict[Element, list[str]], *,
            texts: Texts) -> Figure:  # fmt: skip
    group = next((a for a in element.iterancestors() if a.tag == "fig-group"), None)
    caption, label, shared = element.find("caption"), text_of(element.find("label")), ""
    if group is not None:  # its caption belongs to all of its figures
        label = label or texts.of(group.find("label"))
        shared = texts.of(group.find("caption"))
    section = next((a for a in element.iterancestors() if a.tag in ("sec", "boxed-text", "app")), None)
    home = next((a.tag for a in element.iterancestors() if a.tag in FIGURE_HOMES), "body")
    own = element.get("id", "")
    heading = "" if section is None else texts.of(section.find("title"))
    title = "" if caption is None else text_of(caption.find("title"))
    words = f"{shared} {text_of(caption)}".strip()
    return Figure(own, label, title, words, graphics.get(element, []), heading, home, mentions.get(own, []))


def _graphics(article: Element) -> dict[Element, list[str]]:
    """Figure -> names of its image files; of alternatives the first that is not a thumbnail."""
    found: dict[Element, dict[str, None]] = {}
    seen = set()
    for graphic in article.iter("graphic"):
        around: list[Element] = []
        figure = None
        for ancestor in graphic.iterancestors():
            if ancestor.tag == "fig":
                figure = ancestor
                break
            around.append(ancestor)
        if figure is None or any(a.tag in ("caption", "supplementary-material", "disp-formula") for a in around):
            continue
        choice = next((a for a in around if a.tag == "alternatives"), None)
        if choice is not None:
            if choice in seen:
                continue
            seen.add(choice)
            large = (g for g in choice.iter("graphic") if g.get("specific-use") != "thumbnail")
            graphic = next(large, graphic)
        if href := graphic.get(HREF, "").strip():
            found.setdefault(figure, {})[href] = None
    return {figure: list(names) for figure, names in found.items()}


def _mentions(article: Element, texts: Texts) -> dict[str, list[str]]:
    """Id of a figure -> the paragraphs that refer to it, each once, in order; captions do not count.

    Of a figure at most MOST_MENTIONS, of an article as many as have MENTIONED characters: one long paragraph may name
    every figure.
    """
    figures = {element.get("id", "") for element in article.iter("fig")}
    found: dict[str, dict[str, None]] = {}
    left = MENTIONED
    for reference in article.iter("xref"):
        if reference.get("ref-type") != "fig":
            continue
        named = [own for own in reference.get("rid", "").split() if own in figures]
        paragraph = _paragraph(reference) if named and left > 0 else None
        if paragraph is None:
            continue
        text = texts.of(paragraph)
        for own in named:
            mentions = found.setdefault(own, {})
            if text not in mentions and len(mentions) < MOST_MENTIONS and len(text) <= left:
                mentions[text] = None
                left -= len(text)
    return {own: list(several) for own, several in found.items()}


def _paragraph(reference: Element) -> Element | None:
    """The innermost paragraph around a reference, None inside of a figure or a caption."""
    paragraph = None
    for ancestor in reference.iterancestors():
        if ancestor.tag in ("fig", "caption", "fig-group"):
            return None
        if paragraph is None and ancestor.tag == "p":
            paragraph = ancestor
    return paragraph


def _other_graphics(article: Element) -> Iterator[str]:
    """Name of the element around each image that belongs to no figure, such as table-wrap or disp-formula."""
    for graphic in article.iter("graphic", "inline-graphic"):
        around = [a.tag for a in graphic.iterancestors()]
        if "fig" not in around:
            yield next((tag for tag in around if tag not in ("alternatives", "p")), "article")
