"""How well captions are split that were labelled by hand before anything was tried on them.

`captions_composed.jsonl` are sentences of our own in the forms of the literature, `captions_real.json` offsets into
real captions. Rules and features were written looking at the half named `tune` alone; `held` tells how they do
elsewhere. The labels know no tail, and no own words of labels behind their text: a tail belongs to the last part there,
and such a label has its sentence. `as_labelled` puts splits into that form.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lxml")

from helpers.real_files import need

from blip.pubmed.jats import parse_article
from blip.pubmed.panels.caption_parts import Part, Split, Splitter
from blip.pubmed.panels.captions import SPLITTERS

HERE = Path(__file__).parents[2] / "fixtures"


def composed() -> list[dict[str, Any]]:
    lines = (HERE / "captions_composed.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def real(jats: Path) -> list[dict[str, Any]]:
    """The same form, its texts cut out of the articles; every other one is held back."""
    found, articles = [], {}
    for at, row in enumerate(json.loads((HERE / "captions_real.json").read_text())):
        if row["article"] not in articles:
            articles[row["article"]] = {f.id: f.caption for f in parse_article(jats / row["article"]).figures}
        caption = " ".join(articles[row["article"]][row["figure"]].split())
        starts, ends, parts = row["starts"], row["ends"], []
        for i, labels in enumerate(row["labels"]):
            end = starts[i + 1] if i + 1 < len(starts) else len(caption)
            text = caption[ends[i] : end].strip(" ;,").removesuffix(" and") if row["label_at"][i] == "before" else None
            parts.append({"labels": labels, "text": text})  # labels behind: which words they name was not labelled
        lead = caption if not parts else caption[: starts[0]] if row["label_at"][0] == "before" else ""
        found.append({"half": "held" if at % 2 else "tune", "caption": caption, "lead": lead, "parts": parts})
    return found


def bare(text: str) -> str:
    return re.sub(r"(?:\s(?:and|or))+$", "", " ".join(text.split()).strip(" .:;,"))


def as_labelled(split: Split) -> Split:
    """The lead, parts and texts of a split in the form of the labels."""
    text = split.whole
    bounds = [0, *(m.end() for m in re.finditer(r"(?<=[.;!?])\s+(?=[A-Z(])", text)), len(text)]
    parts = [part for part in split.parts if part.span[0] < part.span[1]]  # without words that some labels share
    made = []
    for part in parts:
        own = part.text
        if part.behind:
            start, end = (max(b for b in bounds if b <= part.span[0]), min(b for b in bounds if b > part.span[0]))
            own = text[start:end].strip()
        elif part is parts[-1]:
            own = f"{own} {split.tail}".strip()
        made.append(Part(part.labels, own))
    return Split("" if parts and parts[0].behind else split.lead, made or split.parts)


def exact(row: dict[str, Any], split: Split) -> bool:
    def same(wanted: dict[str, Any], got: Part) -> bool:
        text = wanted["text"]
        return bool(wanted["labels"] == got.labels and (text is None or bare(text) == bare(got.text)))

    return (
        bare(row["lead"]) == bare(split.lead)
        and len(row["parts"]) == len(split.parts)
        and all(map(same, row["parts"], split.parts))
    )


def scores(rows: list[dict[str, Any]], splitter: Splitter) -> tuple[float, float]:
    """(share of captions split exactly, F1 of labels)."""
    right, counts = 0, Counter[str]()
    for row in rows:
        split = splitter(row["caption"])
        split = as_labelled(split) if any(part.span[1] for part in split.parts) else split
        right += exact(row, split)
        wanted = Counter(name for part in row["parts"] for name in part["labels"])
        got = Counter(name for part in split.parts for name in part.labels)
        counts.update(both=2 * (wanted & got).total(), all=wanted.total() + got.total())
    return right / len(rows), counts["both"] / counts["all"]


def test_the_set_is_what_it_says() -> None:
    rows = composed()
    assert len(rows) >= 150 and len({row["caption"] for row in rows}) == len(rows)
    for row in rows:
        text = " ".join(row["caption"].split())
        assert row["lead"] in text and all(part["text"] in text for part in row["parts"])


@pytest.mark.parametrize("half", ["tune", "held"])
@pytest.mark.parametrize(("name", "exact", "labels"), [("learned", 0.93, 0.98), ("rules", 0.85, 0.95)])
def test_composed_captions(half: str, name: str, exact: float, labels: float) -> None:
    right, f1 = scores([row for row in composed() if row["half"] == half], SPLITTERS[name])
    assert right >= exact and f1 >= labels, f"{half}: {right:.3f} exact, F1 of labels {f1:.3f}"


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["learned", "rules"])
def test_real_captions(data_dir: Path, name: str) -> None:
    labelled = json.loads((HERE / "captions_real.json").read_text())
    for row in labelled:
        need(data_dir / "jats", row["article"])  # labels were set for these captions alone
    rows = real(data_dir / "jats")
    assert sum(bool(row["parts"]) for row in rows) == sum(bool(row["labels"]) for row in labelled)
    held = scores([row for row in rows if row["half"] == "held"], SPLITTERS[name])
    both = scores([row for row in rows + composed() if row["half"] == "held"], SPLITTERS[name])
    assert held[0] >= 0.85 and both[0] >= 0.85 and both[1] >= 0.95, f"real {held}, with composed ones {both}"
