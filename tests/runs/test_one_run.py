"""What is left of a run: history, curves, pictures, scores, weights, a page."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fine_tuning import configure
from PIL import Image

import blip
from blip.errors import InputError
from blip.runs.run import Run
from blip.runs.scores import Scores
from blip.runs.tables import Rows, epochs_of, table
from blip.tasks import vqa
from blip.train.history import History

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory, no_java_nor_peak: None) -> Run:
    """A run of the script: two epochs of three steps, validation and test."""
    phantoms = tiny_config.parent
    folder = tmp_path_factory.mktemp("run")
    vqa.run(configure("vqa", phantoms, folder), folder / "vqa", "", device=torch.device("cpu"))
    return blip.runs.open(folder / "vqa")


def png(figure: Any) -> Image.Image:
    import io

    return Image.open(io.BytesIO(figure._repr_png_()))


def test_history_has_a_row_for_each_epoch(run: Run) -> None:
    history = run.history
    assert list(history.columns[:5]) == ["step", "epoch", "train_loss", "val_loss", "lr"]
    assert list(history["step"]) == [3, 6] and "val_exact_match" in history.columns
    assert history["lr"].notna().all() and list(run.steps["step"]) == [1, 2, 3, 4, 5, 6]


def test_history_without_pandas_is_a_list_that_is_shown_as_a_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip.runs.tables.find_spec", lambda name: None)
    history = run.history
    assert isinstance(history, list) and [row["step"] for row in history] == [3, 6]
    assert "<th>train_loss</th>" in history._repr_html_() and str(history).startswith("step  epoch  train_loss")


def test_a_run_within_an_epoch_has_a_row_for_the_steps_since() -> None:
    steps = [{"step": n, "epoch": n / 4, "loss": 9.0 - n, "lr": 0.1 * n} for n in (2, 4, 6)]
    rows = epochs_of(History(Path(), steps, [{"step": 4, "epoch": 1, "train_loss": 6.0}]))
    assert rows == [
        {"step": 4, "epoch": 1, "train_loss": 6.0, "lr": 0.4},
        {"step": 6, "epoch": 1.5, "train_loss": 3.0, "lr": pytest.approx(0.6)},
    ]
    assert epochs_of(History(Path())) == [] and list(table([], ("step",)).columns) == ["step"]


def test_long_tables_show_their_ends_and_escape_texts() -> None:
    rows = Rows({"step": n, "<b>": n / 3} for n in range(50))
    assert len(str(rows).splitlines()) == 12 and "..." in str(rows)
    assert "&lt;b&gt;" in rows._repr_html_() and rows._repr_html_().count("<tr>") == 12


def test_curves_and_pictures(run: Run) -> None:
    assert png(run.plot()).width > 400 and png(run.plot(run, run.folder)).width > 400
    nine, worst = png(run.show(3)), png(run.show(1, sort="worst", split="validation"))
    assert nine.width > worst.width
    with pytest.raises(InputError, match="sort"):
        run.show(sort="ugly")


def test_scores_are_those_of_the_best_weights_and_the_test(run: Run) -> None:
    scores = run.scores
    best = json.loads((run.folder / "best/metrics.json").read_text())
    assert scores["val_exact_match"] == best["val_exact_match"] and "test_exact_match" in scores
    assert any("test" in row[0] and " to " in row[2] for row in scores.rows)
    assert "95 % interval" in str(scores) and "<td>" in scores._repr_html_()
    assert "no scores" in repr(Scores({}, [], Path("x")))


def test_the_best_model_answers(run: Run) -> None:
    answer = run.best("cpu").answer(Image.new("L", (40, 40)), "how many lesions are there?")[0]
    assert run.weights().name == "best" and run.task == "vqa" and 0 <= answer.probability <= 1


def test_the_page(run: Run, tmp_path: Path) -> None:
    page = run.report(tmp_path / "page.html")
    assert page.read_text().startswith("<!doctype html>") and run.report(page) == page
    with pytest.raises(InputError, match="html"):
        run.report(tmp_path / "page.txt")


def test_how_it_is_shown(run: Run) -> None:
    assert repr(run) == f"<Run {run.folder} of vqa>"
    assert run._repr_html_().count("<tr>") == 3 and "&lt;Run" in run._repr_html_()


def test_a_run_without_a_checkpoint_and_no_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "lr": 0.1}\n')
    run = Run(tmp_path)
    assert run.task == "" and len(run.history) == 1 and run._repr_html_()
    for ask in (run.best, run.resume):
        with pytest.raises(blip.checkpoints.format.CheckpointError, match="no checkpoint"):
            ask()
    with pytest.raises(InputError, match="no run"):
        Run(tmp_path / "absent")
