"""`blip pubmed extract`: a folder of articles with their figure files -> one JSON line a figure.

Each line has what `pretrain.py` reads, `image` and `caption`, and what later steps filter by: article, licence,
retraction, label, section, mentions. A figure without a file here has an empty `image`, and is counted.
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
from blip.pubmed.catalogue import NAME as CATALOGUE
from blip.pubmed.catalogue import Catalogue
from blip.pubmed.jats import Article, parse_article
from blip.pubmed.licenses import short_license
from blip.pubmed.workers import add, in_order

ARTICLES = (".xml", ".nxml")
SEVERAL = 0.4  # confidence in the first file of a figure that has several with the caption of all


class ExtractError(BlipError):
    """Nothing that could be extracted; the message says why."""


@dataclass
class Summary:
    """What was found, and what was not."""

    articles: int = 0
    figures: int = 0
    files: int = 0  # figures with at least one file here
    several_files: int = 0
    no_file: int = 0
    no_caption: int = 0
    unreadable: int = 0  # articles
    left_out: int = 0  # articles that the catalogue does not call done
    licenses: Counter[str] = field(default_factory=Counter)
    homes: Counter[str] = field(default_factory=Counter)  # where figures stand
    other_graphics: Counter[str] = field(default_factory=Counter)  # images that are no figures, by what is round them
    problems: list[str] = field(default_factory=list)  # the first hundred


def find_articles(folder: Path) -> Iterator[Path]:
    """The XML files of a folder and of those below it, by name."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in sorted(files) if name.lower().endswith(ARTICLES))


def extract(folder: Path, out: Path, workers: int = 1) -> Summary:
    """Writes a line a figure; `OUT.summary.json` beside it says what was found.

    Args:
        folder: articles, each with its figures in the same folder or below it.
        out: .jsonl; it has its name only when it is whole.
        workers: processes that parse.

    Raises:
        ExtractError: there are no articles.
    """
    if not folder.is_dir():
        raise ExtractError(f"{folder} is no folder")
    found = Summary()
    known = _known(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        for lines, part in in_order(read_one, _wanted(folder, known, found), workers):
            for line in lines:
                license, retracted = (known or {}).get(Path(line["xml"]).parent.name, ("", False))
                line["retracted"] = line["retracted"] or retracted
                line["license"] = _of_both(line["license"], license)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            add(found, part)
    if not found.articles + found.unreadable:
        partial.unlink()
        raise ExtractError(f"{folder}: there are no articles ({', '.join(ARTICLES)})")
    os.replace(partial, out)
    out.with_name(f"{out.name}.summary.json").write_text(json.dumps(vars(found), indent=1) + "\n")
    return found


def _of_both(said: str, code: str) -> str:
    """The archive's code decides; what the article says only adds the version of the same licence."""
    return said if not code or short_license(said) == short_license(code) else code


def _wanted(folder: Path, known: dict[str, tuple[str, bool]] | None, found: Summary) -> Iterator[Path]:
    """The articles of a folder; of a corpus those that are done."""
    for path in find_articles(folder):
        if known is None or path.parent.name in known:
            yield path
        else:
            found.left_out += 1


def _known(folder: Path) -> dict[str, tuple[str, bool]] | None:
    """Licence and retraction of the articles of a corpus that are done; None for other folders."""
    if not (folder / CATALOGUE).is_file():
        return None
    catalogue = Catalogue(folder)
    try:
        return catalogue.said()
    finally:
        catalogue.close()


def read_one(path: Path) -> tuple[list[dict[str, Any]], Summary]:
    """The lines of an article, and its counts."""
    part = Summary()
    try:
        article = parse_article(path)
    except Exception as error:  # one odd article must not end a run over a hundred thousand
        said = str(error) if isinstance(error, BlipError) else f"{path}: {type(error).__name__} {error}"
        part.unreadable, part.problems = 1, [said]
        return [], part
    if article.others:
        part.problems.append(f"{path}: holds {article.others + 1} articles, only the first is read")
    part.articles, part.figures = 1, len(article.figures)
    part.licenses[article.license or "none"] += 1
    part.other_graphics = article.other_graphics
    files = _files_below(path.parent)
    lines = []
    for figure in article.figures:
        found = {name: resolve(name, files) for name in figure.files}
        here = [file for file in found.values() if file]
        missing = [name for name, file in found.items() if not file]
        part.homes[figure.home] += 1
        part.files += bool(here)
        part.several_files += len(here) > 1
        part.no_file += not here
        part.no_caption += not figure.caption
        if missing or not figure.files:
            what = f"no file {', '.join(missing)}" if missing else "names no file"
            part.problems.append(f"{path}, {figure.label or figure.id}: {what}")
        lines.append(_line(article, path, vars(figure), here))
    return lines, part


def _line(article: Article, path: Path, figure: dict[str, Any], here: list[str]) -> dict[str, Any]:
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
    """Image files of a folder and of those below it without articles, by name and by name without ending."""
    found: dict[str, str] = {}
    for place, folders, names in os.walk(folder):
        if place != str(folder) and any(name.lower().endswith(ARTICLES) for name in names):
            folders.clear()  # of another article
            continue
        images = [name for name in names if name.lower().endswith(ENDINGS)]
        for name in sorted(images, key=lambda name: (ENDINGS.index(os.path.splitext(name)[1].lower()), name)):
            path = os.path.abspath(os.path.join(place, name))
            for key in (name.lower(), os.path.splitext(name)[0].lower()):
                found.setdefault(key, path)
    return found


def resolve(name: str, files: dict[str, str]) -> str:
    """The file that an article means: named with or without ending, by a path, or as info:doi/... in PLOS; or ""."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    stem = os.path.splitext(last)[0]  # a drawing as .eps, .svg or .pdf lies there as an image
    tries = [last, stem, last.removeprefix("journal.")]
    return next((files[key] for key in tries if key in files), "")
