"""The data card of a data set, and whom to credit."""

import csv
from pathlib import Path
from typing import Any

from blip.pubmed.fetch import short_license

LICENSES = {
    "CC0": ("no rights reserved", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "CC-BY": ("credit the authors", "https://creativecommons.org/licenses/by/4.0/"),
    "CC-BY-SA": ("credit the authors; what you make of it has the same licence", "https://creativecommons.org/licenses/by-sa/4.0/"),
    "CC-BY-NC": ("credit the authors; no commercial use", "https://creativecommons.org/licenses/by-nc/4.0/"),
    "CC-BY-ND": ("credit the authors; no changed versions, which cut-out panels may be", "https://creativecommons.org/licenses/by-nd/4.0/"),
    "CC-BY-NC-SA": ("credit the authors; no commercial use; same licence", "https://creativecommons.org/licenses/by-nc-sa/4.0/"),
    "CC-BY-NC-ND": ("credit the authors; no commercial use; no changed versions", "https://creativecommons.org/licenses/by-nc-nd/4.0/"),
}  # fmt: skip


def most_first(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: -one[1])


def data_card(built: dict[str, Any], parts: tuple[str, ...]) -> str:
    """What the data set is, in Markdown."""
    rows = [f"| {name} | {built['pairs'].get(name, 0)} | {built['articles'].get(name, 0)} |" for name in parts]
    out = [f"| {why} | {count} |" for why, count in most_first(built["out"])] or ["| nothing | 0 |"]
    licenses = []
    for name, count in most_first(built["licenses"]):
        terms, address = LICENSES.get(short_license(name), ("see the article", ""))
        licenses.append(f"| {name} | {count} | {terms} | {address} |")
    clean = ", ".join(built["decontaminated"])
    decontaminated = (f"Images of {clean} ({built['evaluation_images']} images) were removed from it."
                      if clean else "No evaluation set was given to be removed from it.")  # fmt: skip
    rules = "\n".join(f"- {name}: {value}" for name, value in built["rules"].items())
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


def write_credits(path: Path, articles: dict[str, dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["article", "authors", "title", "journal", "year", "doi", "license", "address"])
        for pmcid, about in sorted(articles.items()):
            address = f"https://pmc.ncbi.nlm.nih.gov/articles/{pmcid}/" if pmcid.startswith("PMC") else ""
            writer.writerow([pmcid, "; ".join(about["authors"] or []), about["title"], about["journal"], about["year"],
                             about["doi"], about["license"], address])  # fmt: skip
