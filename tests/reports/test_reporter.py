"""`report: true`: the page of a run is made while it trains, whatever happens to the process that makes it; and what
evaluations write for pages."""

import json
import sys
from pathlib import Path

import pytest
from helpers.fine_tuning import configure, train

from blip.reports.grid import show
from blip.reports.items import Choice
from blip.train.report import Reporter

pytestmark = pytest.mark.slow  # processes that import torch
pytest.importorskip("matplotlib", reason="curves need matplotlib: pip install -e '.[pictures]'")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip.train.run.measure_peak", lambda *_: 0.0)


def test_a_run_has_its_page_and_what_pages_need(phantoms: Path, tiny_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train("vqa", configure("vqa", phantoms, tmp_path, "report=true", "max_steps=4"), run)
    page = (run / "report.html").read_text()
    assert "4 steps are logged" in page and "Scores of test" in page, "made again after the test"
    rows = json.loads((run / "answers_val.json").read_text())
    assert all(row["answer_type"] in ("closed", "open") and row["right"] in (True, False) for row in rows)
    floors = json.loads((run / "scores_val.json").read_text())["majority_by_type"]
    assert "all" in floors and set(floors) <= {"all", "closed", "open"}
    grid = show(run, choice=Choice(limit=3))
    assert len(grid.tiles) == 3 and all(tile.item.right is not None for tile in grid.tiles)


def test_statements_and_ranked_texts_can_be_shown(phantoms: Path, tiny_config: Path, tmp_path: Path) -> None:
    for task in ("nlvr", "retrieval"):
        train(task, configure(task, phantoms, tmp_path, "max_steps=1", "test_file=[]"), tmp_path / task)
        grid = show(tmp_path / task, tmp_path / f"{task}.html")
        assert grid.unreadable == 0 and grid.source.place.endswith("_val.json")
        assert all(tile.pictures and tile.item.truth and tile.item.right is not None for tile in grid.tiles)


def test_a_page_that_fails_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    reporter = Reporter(tmp_path / "nothing", told.append)
    reporter.begin()
    reporter.end()
    assert len(told) == 1 and "there is no such folder); the run is not affected" in told[0]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    told.clear()
    other = Reporter(tmp_path, told.append)
    other.begin()
    other.end()
    assert len(told) == 1 and "No such file" in told[0]


def test_a_page_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    told: list[str] = []
    reporter = Reporter(tmp_path, told.append)
    reporter.end(seconds=0.2)
    assert told == ["report.html could not be made (it took more than 0 seconds); the run is not affected"]
