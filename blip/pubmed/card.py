"""The data card of a data set, and the list of its articles with their authors."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from blip.files import write_whole
from blip.html_page import csv_cell, markdown
from blip.pubmed.licenses import FAMILIES, short_license


def most_first(counts: dict[str, int]) -> list[tuple[str, int]]:
    """Names and counts, the largest count first."""
    return sorted(counts.items(), key=lambda one: -one[1])


def data_card(built: dict[str, Any], parts: tuple[str, ...]) -> str:
    """A description of the data set in Markdown.

    Args:
        built: content of `build.json`.
        parts: names of the parts.
    """
    rows = [f"| {name} | {built['pairs'].get(name, 0)} | {built['articles'].get(name, 0)} |" for name in parts]
    out = [f"| {markdown(why)} | {count} |" for why, count in most_first(built["out"])] or ["| nothing | 0 |"]
    licenses = []
    for name, count in most_first(built["licenses"]):
        terms, address = FAMILIES.get(short_license(name), ("see the article", ""))
        licenses.append(f"| {markdown(name)} | {count} | {terms} | {address} |")
    clean = ", ".join(map(markdown, built["decontaminated"]))
    decontaminated = (f"Images of {clean} ({built['evaluation_images']} images) were removed from it."
                      if clean else "No evaluation set was given to be removed from it.")  # fmt: skip
    rules = "\n".join(f"- {name}: {_rule(value)}" for name, value in built["rules"].items())
    return "\n".join([
        "# Figures and captions of open-access articles", "",
        "Pairs of an image and its caption out of articles in PubMed Central, made by `blip pubmed`. Parts are divided",
        f"by article. {decontaminated}", "",
        "| part | pairs | articles |", "| --- | --- | --- |", *rows, "",
        "## Licences", "",
        "Each pair keeps the licence of its article (`license`). `credits.csv` names every article with its authors",
        "and address: pass it on with the data, and cite the articles whose figures you show.", "",
        "| licence | pairs | terms, in short | text |", "| --- | --- | --- | --- |", *licenses, "",
        "Source: NIH NLM NCBI PubMed Central Article Datasets, https://registry.opendata.aws/ncbi-pmc. The data may",
        "not be the newest that NLM has; NLM endorses nothing here.", "",
        "## What stayed out", "", "| why | pairs |", "| --- | --- |", *out, "",
        "## Rules", "", rules, "",
    ])  # fmt: skip


def _rule(value: Any) -> str:
    """The value of a rule, whose lists keep their brackets."""
    return f"[{', '.join(markdown(repr(one)) for one in value)}]" if isinstance(value, list) else markdown(value)


def write_credits(path: Path, articles: dict[str, dict[str, Any]]) -> None:
    """Writes a CSV with authors, title, journal, year, DOI, licence and address of each article.

    Cells that a spreadsheet could take for a formula begin with an apostrophe.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["article", "authors", "title", "journal", "year", "doi", "license", "address"])
    for pmcid, about in sorted(articles.items()):
        address = f"https://pmc.ncbi.nlm.nih.gov/articles/{pmcid}/" if re.fullmatch(r"PMC\d+", pmcid) else ""
        cells = (pmcid, "; ".join(about["authors"] or []), about["title"], about["journal"], about["year"],
                 about["doi"], about["license"], address)  # fmt: skip
        writer.writerow(map(csv_cell, cells))
    write_whole(path, file.getvalue())
