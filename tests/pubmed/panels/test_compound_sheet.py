"""The pictures of docs/pubmed.md: kinds of failures, and the table that is written into the page."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from helpers.running import ROOT
from PIL import Image

from blip.pubmed.panels.match import Pair


@pytest.fixture(scope="module")
def sheet() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_compound_sheet", ROOT / "docs" / "make_compound_sheet.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRUE = [(0, 0, 100, 100), (110, 0, 210, 100)]


@pytest.mark.parametrize(
    ("found", "letters", "kind"),
    [
        (TRUE, "AB", "right"),
        (TRUE, "BA", "order"),
        (TRUE, "", "order"),  # letters contradicted the order: the figure stayed whole
        ([(0, 0, 210, 100)], "", "joined"),
        ([TRUE[0], (110, 0, 210, 45), (110, 55, 210, 100)], "", "cut"),
        ([TRUE[0], (0, 110, 100, 210)], "AB", "missed"),
        ([TRUE[0], (110, 0, 155, 100)], "AB", "inexact"),
    ],
)
def test_kinds(sheet: ModuleType, found: list[tuple[int, int, int, int]], letters: str, kind: str) -> None:
    pairs = [Pair([name], box, "", "order", 0.9) for name, box in zip(letters, found, strict=False)]
    assert sheet.kind_of(TRUE, found, pairs or [Pair([], None, "", "whole", 1.0)]) == kind


def test_pictures_and_the_table_of_the_page(sheet: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "pubmed.md"
    page.write_text((ROOT / "docs" / "pubmed.md").read_text(encoding="utf-8"), encoding="utf-8")
    sheet.main(figures=5, weights="", out=tmp_path, page=page)
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.split("|")[1:2] and
            line.split("|")[1].strip() in sheet.KINDS.values()]  # fmt: skip
    assert len(rows) == len(sheet.KINDS) and sum(int(row.split("|")[2]) for row in rows) == 5
    assert "Successes, and the first failures" in page.read_text(encoding="utf-8"), "what follows the table stays"
    for name in ("compound_split", "compound_failures"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 600
