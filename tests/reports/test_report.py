"""`blip report`: what it says of runs of every age and task, of damaged ones, and of several at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.running import code_and_text
from helpers.written_runs import write_answers, write_lines, write_run

from blip.config import dump_config
from blip.errors import InputError
from blip.evaluation.bootstrap import Interval
from blip.reports.charts import Chart, Line, charts_of, smoothed, thinned, values
from blip.reports.findings import findings
from blip.reports.run_files import names_of, read_run
from blip.reports.run_page import report
from blip.reports.samples import samples_of
from blip.reports.scores import scores_of
from blip.tasks.config import NlvrConfig, VqaConfig
from blip.train.history import History, read_history

pytest.importorskip("matplotlib", reason="curves need matplotlib: pip install -e '.[pictures]'")

from blip.reports.curves import figure_of, figures, overview


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "pre")


def texts(run: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"warning": [], "note": [], "good": []}
    for one in findings(read_run(run)):
        found[one.level].append(one.text)
    return found


# ---- curves ----------------------------------------------------------------------------------------------------------


def test_a_line_of_one_point_can_be_seen() -> None:
    (axes,) = figure_of(Chart("loss", "Loss", lines=[Line("training", np.array([40.0]), np.array([6.3]))])).axes
    (line,) = axes.get_lines()
    assert line.get_marker() == "o"


def test_thinned_lines_keep_ends_and_extremes() -> None:
    x, y = np.arange(100_000.0), np.zeros(100_000)
    y[[40_321, 77_777]] = 9.0, -9.0
    few_x, few_y = thinned(x, y, 1000)
    assert len(few_x) <= 1000 and (few_x[0], few_x[-1]) == (0, 99_999) and (np.diff(few_x) > 0).all()
    assert few_x[few_y == 9.0] == 40_321 and few_x[few_y == -9.0] == 77_777
    assert thinned(x[:5], y[:5], 5)[0] is not few_x and len(thinned(x[:5], y[:5], 5)[0]) == 5
    assert np.allclose(smoothed(np.full(500, 3.0)), 3.0), "the ends are means of fewer values, not lower"


def test_numbers_that_are_none_are_left_out() -> None:
    lines = [
        {"step": 1, "x": 2.0},
        {"step": 2, "x": float("nan")},
        {"step": 3},
        {"step": 4, "x": "5"},
        {"step": 5, "x": 6},
    ]
    found = values(lines, "x")
    assert found[0].tolist() == [1, 5] and found[1].tolist() == [2, 6]
    assert values([{"step": 1, "x": 10**400}, {"step": 2, "x": 0.5}], "x")[1].tolist() == [0.5]
    assert len(values([], "x")[0]) == 0


def test_charts_of_a_run(pretrained: Path) -> None:
    charts = {chart.name: chart for part in charts_of([read_history(pretrained)]).values() for chart in part}
    assert [line.label for line in charts["itc"].lines] == ["training", "validation"]
    assert charts["itm"].levels == [("without skill", pytest.approx(0.6365, abs=1e-4))]
    assert charts["itm_accuracy"].levels[0][1] == pytest.approx(2 / 3)
    assert [line.label for line in charts["_i2t"].lines] == ["R@1", "R@5", "R@10"]
    assert charts["_i2t"].levels == [("chance of R@1", 0.02)]
    assert {"loss", "lm", "lr", "grad_norm", "temperature", "alpha", "images_per_s", "memory_mb"} <= charts.keys()
    assert "mfu" not in charts, "nobody logged it"


def test_no_score_is_a_part_of_another_one() -> None:
    lines = [{"step": 1, "val_exact": 0.1, "val_exact_match": 0.2, "val_exact_match_open": 0.3, "val_bleu1": 0.4}]
    found = {
        chart.name: [line.label for line in chart.lines]
        for chart in charts_of([History(Path("x"), [], lines)])["scores"]
    }
    assert found == {"val_exact": ["all"], "val_exact_match": ["all", "open"], "val_bleu1": ["all"]}


def test_scales_have_ticks_that_can_be_read() -> None:
    x = np.arange(6.0)
    for norms, scale in (([4.0, 60, 10, 8, 7, 9], "linear"), ([0.1, 60, 10, 8, 7, 9], "log")):
        chart = Chart("grad_norm", "Norm", lines=[Line("training", x, np.array(norms))], logarithmic=True)
        assert figure_of(chart).axes[0].get_yscale() == scale


def test_figures_for_notebooks(pretrained: Path, tmp_path: Path) -> None:
    history = read_history(pretrained)
    assert {"itc", "lr"} <= figures([history]).keys()
    overview([history, history], ["_one $x$", "<two>\ud800\uffff"]).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


# ---- scores and sentences --------------------------------------------------------------------------------------------


def test_scores_have_intervals_and_levels(pretrained: Path, tmp_path: Path) -> None:
    exact = {score.kind: score for score in scores_of(read_run(write_answers(tmp_path / "vqa")), "val")}
    assert exact["closed"].interval == Interval(0.66, 0.6, 0.7, 3)
    assert exact["closed"].floor == 0.55 and exact["all"].floor == 0.55
    recall = next(score for score in scores_of(read_run(pretrained), "val") if score.name == "R@10, image to text")
    assert recall.floor == pytest.approx(0.2) and recall.interval.low < recall.interval.mean < recall.interval.high


def test_sentences_on_a_run_of_answers(tmp_path: Path) -> None:
    found = texts(write_answers(tmp_path / "vqa", "<q>"))
    assert any("2 of 5 images of validation also occur in training" in text for text in found["warning"])
    assert any("1 training images could not be read" in text and "<q> (broken)" in text for text in found["warning"])
    assert any("open of validation (0.500) is not clearly above 0.550" in text for text in found["warning"])
    assert not any("closed of validation" in text for text in found["warning"])


def test_leaks_of_captions_are_found_in_the_annotations(tmp_path: Path, pretrained: Path) -> None:
    run = write_run(tmp_path / "run")
    pairs = [{"image": f"{n}.png", "caption": f"text {n}", "patient": f"p{n // 2}"} for n in range(6)]
    for name, part in (("train", pairs[:3]), ("val", pairs[2:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    config = {"train_file": [str(tmp_path / "train.json")], "val_file": [str(tmp_path / "val.json")], "queue_size": 9}
    (run / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items()))
    found = texts(run)
    assert any("1 of 4 images of validation also occur in training" in text for text in found["warning"])
    (tmp_path / "val.json").write_text(json.dumps(pairs[3:]))
    found = texts(run)
    assert any("1 patients or articles of validation" in text for text in found["warning"])
    assert any("No image of validation occurs in training" in text for text in found["good"])
    assert not any("occur in training" in text for text in [*texts(pretrained)["note"], *texts(pretrained)["good"]])


def test_leaks_are_those_of_the_records_that_the_run_takes(tmp_path: Path) -> None:
    """Columns of its own, a part of a file, the split that records name; data of the hub are not fetched."""
    run, file = write_run(tmp_path / "run"), tmp_path / "all.json"
    rows = [{"img": f"{n}.png", "text": f"text {n}", "split": "test" if n > 6 else "train"} for n in range(9)]
    file.write_text(json.dumps(rows))

    def found(val: object, **more: object) -> dict[str, list[str]]:
        config = {"train_file": [{"path": str(file), "limit": 4}], "val_file": [val], "queue_size": 9, **more}
        (run / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items()))
        return texts(run)

    columns = {"columns": {"image": "img", "caption": "text"}}
    assert any("4 of 9 images of val" in text for text in found(str(file), **columns)["warning"])
    for entry in ({"path": str(file), "split": "test"}, {"path": str(file), "split": "test", "limit": 1}):
        assert any("No image of validation occurs" in text for text in found(entry, **columns)["good"])
    assert any("was not checked" in text and "image" in text for text in found(str(file))["note"])
    assert any("hub:lab/set is a data set of the hub" in text for text in found("hub:lab/set", **columns)["note"])
    assert any("its configuration cannot be read" in text for text in found(str(file), epochs="many")["note"])


def test_an_evaluation_by_itself_shows_some_of_its_results(tmp_path: Path) -> None:
    folder = write_answers(tmp_path / "vqa")
    rows = json.loads((folder / "answers_val.json").read_text())
    (folder / "answers_val.json").write_text(json.dumps(rows * 10))
    (folder / "metrics.jsonl").unlink()
    (folder / "evaluation.json").write_text('{"weights": "best"}')
    shown = samples_of([read_run(folder)])
    assert len(shown) == 16 and len({sample.outputs[0][1] for sample in shown}) > 1
    assert {bool(sample.pictures) for sample in shown} == {True, False}, "one image is gone, with its reason"
    page = report(folder)
    assert "Some records of the results" in page and "is there a lesion?" in page and "gone.png" in page
    assert "<h1>Evaluation vqa</h1>" in page and "<h2>Samples</h2>" in page


def test_overfitting_and_plateaus_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = [{"step": n, "lr": 0.1, "itm": 0.637, "itc": 1.0} for n in range(1, 40)]
    lines += [{"step": 40 + n, "epoch": n, "val_loss": value} for n, value in enumerate((3.0, 2.0, 2.5))]
    write_lines(run / "metrics.jsonl", lines)
    found = texts(run)["warning"]
    assert any("lowest at step 41 (2) and is now 2.5" in text for text in found)
    assert any("Matching (ITM) is at 0.637" in text for text in found)


# ---- the page --------------------------------------------------------------------------------------------------------


def test_a_page_has_every_part(pretrained: Path) -> None:
    page = report(pretrained)
    parts = [
        "<h1>Run pre</h1>",
        "<h2>Samples of validation</h2>",
        "Contrast (ITC)",
        "without skill: 0.637",
        "After epoch 10",
        "Learning rate",
        "epochs 1 to 10",
    ]
    parts += ["a lesion 200", "options are not at the defaults", "queue_size", "57600", "0.020 (chance)"]
    titles = ["Losses", "Scores", "Matching by class (ITM)", "Similarities (ITC)", "Optimisation", "Speed and memory"]
    parts += [f"<h2>{title}</h2>" for title in (*titles, "Settings", "In words")] + ["800 MB of memory at most"]
    for wanted in parts:
        assert wanted in page, wanted
    assert page.count("<svg") >= 14 and "gone" not in page and "no such file" in page


def test_missing_parts_are_sentences(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "former", former=True))
    for wanted in (
        "The log holds no losses of validation",
        "this run has none",
        "Histograms are written by evaluations",
    ):
        assert wanted in page, wanted
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("lr: 0.1\n")
    page = report(tmp_path / "empty")
    assert "Nothing is logged yet" in page and "<svg" not in page and "There is no evaluation yet" in page


def test_damaged_parts_do_not_end_it(tmp_path: Path) -> None:
    run = write_answers(tmp_path / "run")
    (run / "scores_val.json").write_text("{")
    (run / "config.yaml").write_text("a: [")
    (run / "skipped.jsonl").write_text("nothing\n")
    page = report(run)
    assert page.count("A part of the run could not be read") == 3
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lm"')
    assert "8 steps are logged" in report(run)
    with pytest.raises(InputError, match="is no run: it has neither"):
        report(tmp_path)


def test_runs_are_compared(pretrained: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "pre", 100, text="another lesion")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("99", "77"))
    assert names_of([pretrained, other])[0] == f"{pretrained.parent.name}/pre"
    page = report([pretrained, other])
    assert "Options that differ" in page and "<td>99</td><td>77</td>" in page
    assert "/pre, validation" in page and "Scores of validation with 95 % intervals" in page
    assert "another lesion 100" in page and "a lesion 200" in page


def test_a_long_run_gives_a_small_page(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "long", 20_000, per_epoch=500))
    assert len(page) < 1_500_000
    assert "the thick one their running mean" in page


def test_the_verb(pretrained: Path, tmp_path: Path) -> None:
    run = write_answers(tmp_path / "vqa")
    for _ in range(2):  # its own page is made again
        assert code_and_text("report", run)[0] == 0
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    (run / "report.html").write_text("mine")
    code, text = code_and_text("report", run)
    assert code == 1 and "--overwrite" in text and (run / "report.html").read_text() == "mine"
    assert code_and_text("report", run, pretrained, "--out", tmp_path / "both.html")[0] == 0
    code, text = code_and_text("report", tmp_path / "nothing")
    assert code == 1 and "is no run: there is no such folder" in text


def test_samples_of_statements_have_both_images(tmp_path: Path) -> None:
    """As do questions about several pictures, which are no statements."""
    for config, name in ((NlvrConfig(), "statement"), (VqaConfig(), "question")):
        run = write_answers(tmp_path / name)
        dump_config(config, run / "config.yaml")
        line = {"step": 1, "epoch": 1, "index": 0, "text": "both are grey", "truth": "true", "output": "false"}
        write_lines(run / "samples.jsonl", [{**line, "image": ["noise.png", "noise.png"]}])
        page = report(run)
        assert page.count('alt="image of this record"') == 2 and f"<dt>{name}</dt><dd>both are grey" in page


def test_samples_of_several_pictures(tmp_path: Path) -> None:
    run = write_answers(tmp_path / "run")
    line = {"step": 1, "epoch": 1, "index": 0, "text": "where", "truth": "left", "output": "right"}
    write_lines(run / "samples.jsonl", [{**line, "image": ["noise.png", "noise.png", "noise.png"]}])
    page = report(run)
    assert page.count('alt="image of this record"') == 2 and "<dt>question</dt><dd>where" in page


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [float("nan"), 1e300])
def test_a_run_that_went_astray_has_a_page(tmp_path: Path, value: float) -> None:
    run = write_run(tmp_path / "run", 40)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    astray = {"itc", "loss", "grad_norm", "val_loss", "val_i2t_r1", "val_itm_matched"}
    write_lines(run / "metrics.jsonl", [*lines[:20], *({k: value if k in astray else v for k, v in line.items()}
                                                       for line in lines[20:])])  # fmt: skip
    page = report(run)
    assert ("loss, itc is no finite number" in page) == (value != 1e300)
    assert "R@5, image to text" in page and "R@1, image to text</th>" not in page and len(page) < 1 << 20


# ---- evaluations without training ------------------------------------------------------------------------------------


def write_evaluation(run: Path, name: str, mean: float) -> Path:
    folder = run / "evaluation" / name
    folder.mkdir(parents=True)
    about = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "count": 5}
    (folder / "scores_test.json").write_text(json.dumps({"by_type": {"exact_match": {"all": about}}}))
    (folder / "evaluation.json").write_text(json.dumps({"weights": "best", "test_majority": 0.125}))
    (folder / "config.yaml").write_text((run / "config.yaml").read_text())
    return folder


def test_evaluations_in_the_folder_of_a_run_have_tables(tmp_path: Path) -> None:
    run = write_answers(tmp_path / "run")
    folder = write_evaluation(run, "<b>other", 0.4321)
    page = report(run)
    assert "evaluation &lt;b&gt;other: scores of test" in page and "0.432</td><td>0.332 to 0.532" in page
    assert "0.125 (most frequent training answer)" in page
    assert "run, evaluation &lt;b&gt;other" in report([run, write_answers(tmp_path / "b")])
    (folder / "scores_test.json").write_text("{")
    assert any("scores_test.json" in problem for problem in read_run(run).problems)


def test_the_folder_of_an_evaluation_is_no_run_that_has_not_begun(tmp_path: Path) -> None:
    folder = write_evaluation(write_answers(tmp_path / "run"), "best-test", 0.5)
    page = report(folder)
    assert "an evaluation without training, of best" in page and "Nothing is logged" not in page and "0.500" in page
