"""`blip pubmed extract`: a folder of articles with their figure files -> one JSON line for each figure.

A line has `image` and `caption`, which `pretrain.py` reads, and what later steps filter by: article, licence,
retraction, label, section, mentions. A figure whose file is missing has an empty `image`, and is counted.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from blip.data.images import ENDINGS
from blip.errors import BlipError
from blip.files import json_text, whole_file, write_whole
from blip.pubmed.catalogue import NAME as CATALOGUE
from blip.pubmed.catalogue import Catalogue
from blip.pubmed.claims import summary_of
from blip.pubmed.jats import Article, parse_article
from blip.pubmed.licenses import short_license
from blip.pubmed.workers import add, in_order

ARTICLES = (".xml", ".nxml")
SEVERAL = 0.4  # confidence of a figure of several files: its first file, with the caption of all


class ExtractError(BlipError):
    """There are no articles."""


@dataclass
class Summary:
    """Counts of what was extracted, and of what is missing."""

    articles: int = 0
    figures: int = 0
    files: int = 0  # figures with at least one file
    several_files: int = 0
    no_file: int = 0
    no_caption: int = 0
    unreadable: int = 0  # articles
    left_out: int = 0  # articles that are not `done` in the catalogue
    licenses: Counter[str] = field(default_factory=Counter)
    homes: Counter[str] = field(default_factory=Counter)  # figures by the part of the article
    other_graphics: Counter[str] = field(default_factory=Counter)  # images outside figures, by the enclosing element
    problems: list[str] = field(default_factory=list)  # the first hundred


def find_articles(folder: Path) -> Iterator[Path]:
    """The XML files of a folder and of those below it, sorted by name."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in sorted(files) if name.lower().endswith(ARTICLES))


def extract(folder: Path, out: Path, num_workers: int = 1) -> Summary:
    """Writes a line for each figure, and `OUT.summary.json`, the counts, beside it.

    Args:
        folder: articles, each with its figures in the same folder or below it.
        out: .jsonl; gets its name when it is complete.
        num_workers: processes that parse.

    Raises:
        ExtractError: there are no articles.
        WriteError: a file cannot be written.
    """
    if not folder.is_dir():
        raise ExtractError(f"{folder} is no folder")
    summary = Summary()
    catalogued = _catalogued(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as file:
        for lines, part in in_order(read_one, _articles(folder, catalogued, summary), num_workers):
            for line in lines:
                license, retracted = (catalogued or {}).get(Path(line["xml"]).parent.name, ("", False))
                line["retracted"] = line["retracted"] or retracted
                line["license"] = _license_of_both(line["license"], license)
                file.write(json_text(line, None).encode())
            add(summary, part)
        if not summary.articles + summary.unreadable:
            raise ExtractError(f"{folder}: there are no articles ({', '.join(ARTICLES)})")
    write_whole(summary_of(out), json.dumps(vars(summary), indent=1) + "\n")
    return summary


def _license_of_both(own: str, code: str) -> str:
    """The code of the archive takes precedence; the article's own name only adds the version of the same licence."""
    return own if not code or short_license(own) == short_license(code) else code


def _articles(folder: Path, catalogued: dict[str, tuple[str, bool]] | None, summary: Summary) -> Iterator[Path]:
    """The articles of a folder; of a corpus only those that are done, others are counted."""
    for path in find_articles(folder):
        if catalogued is None or path.parent.name in catalogued:
            yield path
        else:
            summary.left_out += 1


def _catalogued(folder: Path) -> dict[str, tuple[str, bool]] | None:
    """Licence and retraction of the articles of a corpus that are done; None for a folder without a catalogue."""
    if not (folder / CATALOGUE).is_file():
        return None
    catalogue = Catalogue(folder)
    try:
        return catalogue.license_and_retraction()
    finally:
        catalogue.close()


def read_one(path: Path) -> tuple[list[dict[str, Any]], Summary]:
    """The lines of an article, and its counts."""
    part = Summary()
    try:
        article = parse_article(path)
    except Exception as error:  # one malformed article must not end a run over a hundred thousand
        problem = str(error) if isinstance(error, BlipError) else f"{path}: {type(error).__name__} {error}"
        part.unreadable, part.problems = 1, [problem]
        return [], part
    if article.others:
        part.problems.append(f"{path}: holds {article.others + 1} articles, only the first is read")
    part.articles, part.figures = 1, len(article.figures)
    part.licenses[article.license or "none"] += 1
    part.other_graphics = article.other_graphics
    files = _files_below(path.parent)
    lines = []
    for figure in article.figures:
        paths = {name: resolve(name, files) for name in figure.files}
        here = [file for file in paths.values() if file]
        missing = [name for name, file in paths.items() if not file]
        part.homes[figure.home] += 1
        part.files += bool(here)
        part.several_files += len(here) > 1
        part.no_file += not here
        part.no_caption += not figure.caption
        if missing or not figure.files:
            what = f"no file {', '.join(missing)}" if missing else "names no file"
            part.problems.append(f"{path}, {figure.label or figure.id}: {what}")
        lines.append(_line(article, path, vars(figure), here=here))
    return lines, part


def _line(article: Article, path: Path, figure: dict[str, Any], *, here: list[str]) -> dict[str, Any]:
    about = {key: value for key, value in vars(article).items() if key not in ("figures", "other_graphics", "others")}
    about["article_title"] = about.pop("title")
    return {
        "image": here[0] if here else "",
        "caption": figure["caption"],
        "article": article.pmcid or article.doi or path.stem,
        "figure": figure["id"],
        "label": figure["label"],
        "title": figure["title"],
        "section": figure["section"],
        "home": figure["home"],
        "mentions": figure["mentions"],
        "files": here,
        "named_files": figure["files"],
        "source": "pubmed",
        **({"confidence": SEVERAL} if len(here) > 1 else {}),
        "xml": str(path),
        **about,
    }


@lru_cache(maxsize=8)
def _files_below(folder: Path) -> dict[str, str]:
    """Image files of a folder and of the folders below it that have no articles, by name with and without ending."""
    found: dict[str, str] = {}
    for place, folders, names in os.walk(folder):
        if place != str(folder) and any(name.lower().endswith(ARTICLES) for name in names):
            folders.clear()  # it belongs to another article
            continue
        images = [name for name in names if name.lower().endswith(ENDINGS)]
        for name in sorted(images, key=lambda name: (ENDINGS.index(os.path.splitext(name)[1].lower()), name)):
            path = os.path.abspath(os.path.join(place, name))
            for key in (name.lower(), os.path.splitext(name)[0].lower()):
                found.setdefault(key, path)
    return found


def resolve(name: str, files: dict[str, str]) -> str:
    """The file of a name in an article (with or without ending, a path, info:doi/... in PLOS); "" if it is missing."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    stem = os.path.splitext(last)[0]  # a drawing named as .eps, .svg or .pdf is there as an image
    tries = [last, stem, last.removeprefix("journal.")]
    return next((files[key] for key in tries if key in files), "")
