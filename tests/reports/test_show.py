"""`blip show`: what it reads as data and as results, which records it shows in which order, and its page."""

import json
from pathlib import Path

import pytest
from helpers.dicom import write_scans
from helpers.random_checkpoints import random_checkpoint
from helpers.running import code_and_text
from helpers.written_runs import write_answers, write_run
from PIL import Image

import blip
from blip.data.check import check_data
from blip.errors import InputError
from blip.files import ReadError
from blip.reports.grid import Grid, show
from blip.reports.items import Choice, Item
from blip.reports.results import results_in
from blip.reports.run_files import read_run
from blip.reports.samples import samples_of
from blip.reports.tiles import rows_of

pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install -e '.[pictures]'")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_answers(tmp_path / "run")


def names(grid: Grid) -> list[str]:
    return [tile.item.name for tile in grid.tiles]


def write(path: Path, records: object) -> Path:
    path.write_text(json.dumps(records))
    return path


# ---- results ---------------------------------------------------------------------------------------------------------


def test_a_run_in_every_order(run: Path) -> None:
    assert names(show(run)) == ["q0", "q1", "q2", "q3", "q4"]
    assert names(show(run, choice=Choice(sort="worst"))) == ["q1", "q3", "q2", "q4", "q0"], "sure and wrong comes first"
    assert names(show(run, choice=Choice(sort="best", limit=2))) == ["q0", "q4"]


def test_types_and_correctness(run: Path) -> None:
    assert names(show(run, choice=Choice(type="Open"))) == ["q2", "q3"]
    assert names(show(run, choice=Choice(type="closed", correct=False))) == ["q1"]
    assert names(show(run / "answers_val.json", choice=Choice(correct=True))) == ["q0", "q2", "q4"]
    with pytest.raises(InputError, match=r"nothing of --type chest: there are closed, open"):
        show(run, choice=Choice(type="chest"))


def test_the_runs_own_judgement_counts(run: Path) -> None:
    rows = json.loads((run / "answers_val.json").read_text())
    rows[1] |= {"right": True, "answer_type": "closed", "category": "organ"}
    write(run / "answers_val.json", rows)
    assert names(show(run, choice=Choice(type="organ", correct=True))) == ["q1"]


def test_own_names_of_columns(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "lab.csv").write_text("img,Frage,Antwort\na.png,where is it?,left\n")
    grid = show(tmp_path / "lab.csv", columns={"image": "img", "question": "Frage", "answer": "Antwort"})
    assert [(tile.item.text, tile.item.truth) for tile in grid.tiles] == [("where is it?", ["left"])]
    own = ["--columns", "image=img,question=Frage", "--columns", "answer=Antwort", "--out", tmp_path / "x.html"]
    assert code_and_text("show", tmp_path / "lab.csv", *own)[0] == 0
    assert "where is it?" in (tmp_path / "x.html").read_text()


def test_of_how_many_records_some_are_shown(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    image = str(tmp_path / "a.png")
    rows = [{"image": image, "question": "q", "answer": "a", "probability": 0.5, "references": ["a"], "right": n > 3}
            for n in range(9)]  # fmt: skip
    results = write(tmp_path / "answers.json", rows)
    data = write(tmp_path / "questions.json", [{"image": image, "question": "q", "answer": "a"}] * 9)
    told = "3 of 9 records, in the order of the file.", "3 of 5 records that are right, in the order of the file."
    assert [show(results, choice=Choice(3, correct=one)).sentences()[0] for one in (None, True)] == [*told]
    assert show(results).sentences()[0].startswith("9 records,")
    assert show(data, choice=Choice(3)).sentences()[0].startswith("The first 3 records,"), "the others are not read"
    assert show(data).sentences()[0].startswith("9 records,")
    for place, said in ((results, "3 of 9 shown"), (data, "the first 3 shown")):
        code, text = code_and_text("show", place, "--limit", "3", "--out", tmp_path / "x.html", "--overwrite")
        assert code == 0 and said in text, text


def test_orders_and_names_are_those_of_the_results(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    captions = [{"image": str(tmp_path / "a.png"), "caption": "a", "log_prob": -number} for number in (1, 2)]
    grid = show(write(tmp_path / "captions.json", captions), choice=Choice(sort="worst"))
    assert grid.sentences()[0] == "2 records, the worst first, by log-probability."
    answer = {"image": str(tmp_path / "a.png"), "question": "how many", "answer": "1", "probability": 0.5,
              "candidates": [["1", 0.5], ["2", 0.25]]}  # fmt: skip
    (tile,) = show(write(tmp_path / "answers.json", [answer])).tiles
    assert rows_of(tile.item)[0] == ("question", "how many")
    assert rows_of(tile.item)[-1] == ("candidates", "1 (0.500); 2 (0.250)")


def test_maps_of_statements_are_refused_with_the_reason(run: Path, tmp_path: Path) -> None:
    model = blip.load(random_checkpoint(tmp_path, "nlvr"))
    with pytest.raises(InputError, match="no maps of what a checkpoint of nlvr"):
        show(run, model=model)


def test_unreadable_images_keep_their_places(run: Path, tmp_path: Path) -> None:
    grid = show(run, tmp_path / "page.html")
    assert grid.unreadable == 1 and len(grid.tiles) == 5
    page = (tmp_path / "page.html").read_text()
    assert "1 of them cannot be read" in page and "gone.png: " in page
    assert page.count('src="data:image/jpeg') == 4


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([{"image": "a.png", "caption": "x", "log_prob": -1.0}],
         Item(["a.png"], "1", output="x", score=-1.0, score_name="log-probability")),
        ([{"image": "a.png", "text": "x", "match_probability": 0.75, "itc_score": 0.5}],
         Item(["a.png"], "1", "x", output="match", score=0.75, score_name="match probability",
              more=[("cosine (ITC)", "0.500")])),
        ([{"id": "s", "images": ["a.png", "b.png"], "sentence": "x", "label": True, "probability": 0.25}],
         Item(["a.png", "b.png"], "s", "x", ["true"], "false", 0.75, "probability", False,
              text_name="statement")),
    ],
)  # fmt: skip
def test_forms_of_results(tmp_path: Path, records: list, expected: Item) -> None:
    assert results_in(write(tmp_path / "rows.json", records)) == [expected]


def test_captions_are_scored_by_their_words(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "caption": text, "log_prob": -1.0, "references": ["a large lesion"]}
            for text in ("a large lesion", "no", "a lesion")]  # fmt: skip
    items = results_in(write(tmp_path / "captions_val.json", rows))
    assert items is not None and [round(item.score or 0, 2) for item in items] == [1.0, 0.0, 0.8]


def test_ranked_texts(tmp_path: Path) -> None:
    ranked = [{"candidates": [1, 0], "scores": [0.9, 0.1]}, {"candidates": [1, 0], "scores": [0.8, 0.3]}]
    content = {"metrics": {}, "images": ["a.png", "b.png"], "texts": ["x", "y"], "image_to_text": ranked}
    items = results_in(write(tmp_path / "r.json", content)) or []
    assert [(item.output, item.right, item.truth) for item in items] == [("y", None, []), ("y", None, [])]
    items = results_in(write(tmp_path / "r.json", {**content, "owners": [[0], [1]]})) or []
    assert [(item.right, item.truth) for item in items] == [(False, ["x"]), (True, ["y"])]
    assert ("rank of the right text", "2") in items[0].more


def test_results_that_cannot_be_shown(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without paths of images"):
        results_in(write(tmp_path / "results_val.json", [{"image_id": 1, "caption": "x"}]))
    with pytest.raises(ReadError, match=r"record 2: is not like the first one"):
        results_in(write(tmp_path / "rows.json", [{"image": "a", "caption": "x", "log_prob": 0}, {"image": "b"}]))
    with pytest.raises(InputError, match="no scores to sort by"):
        show(write(tmp_path / "data.json", [{"image": "a.png", "caption": "x"}]), choice=Choice(sort="worst"))
    (run / "answers_val.json").unlink()
    with pytest.raises(InputError, match="a run without results"):
        show(run)


def test_samples_of_the_validation_are_not_taken_for_the_test(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert len(show(run, split="validation").tiles) == 16
    with pytest.raises(InputError, match="a run without results of test"):
        show(run, split="test")


def test_samples_of_a_run_are_those_of_its_last_evaluation(tmp_path: Path) -> None:
    grid = show(write_run(tmp_path / "pre"))
    assert len(grid.tiles) == 16 and grid.unreadable == 1
    assert {tile.item.output for tile in grid.tiles} == {"a lesion 0", "a lesion 200"}


# ---- data ------------------------------------------------------------------------------------------------------------


def test_data_of_every_kind(phantoms: Path) -> None:
    captions = show(phantoms / "captions.json", choice=Choice(limit=3))
    assert [len(tile.pictures) for tile in captions.tiles] == [1, 1, 1] and captions.tiles[0].item.truth
    questions = show(phantoms / "questions.json", choice=Choice(limit=3, type="open"))
    assert questions.tiles[0].item.text and questions.tiles[0].item.answer_type == "open"
    statements = show(phantoms / "statements.json", choice=Choice(limit=2))
    assert [len(tile.pictures) for tile in statements.tiles] == [2, 2]
    images = show(phantoms / "images", choice=Choice(limit=2))
    assert names(images) == ["000000.png", "000001.png"]


def test_data_of_volumes_and_videos(tmp_path: Path) -> None:
    for extra in ("pydicom", "av"):
        pytest.importorskip(extra, reason=f"{extra} is not installed")
    from helpers.videos import write_video

    write_scans(tmp_path)
    write_video(tmp_path / "a.mp4", 9)
    images = ("ct/#slices=4", "ct/", "a.mp4#frames=3", "ct.dcm")
    data = write(tmp_path / "data.json", [{"image": image, "caption": "x"} for image in images])
    grid = show(data, tmp_path / "page.html")
    assert [len(tile.pictures) for tile in grid.tiles] == [4, 5, 3, 1] and not grid.unreadable
    items = blip.data(data)
    assert items[0].image.size == (64, 32) and [len(item.images) for item in items] == [4, 5, 3, 1]
    assert check_data([str(data)], num_workers=0).of_several == 3
    run = write_answers(tmp_path / "run")
    line = {"step": 1, "epoch": 1, "index": 0, "image": f"{tmp_path}/ct/#slices=4", "text": "", "output": "x"}
    (run / "samples.jsonl").write_text(json.dumps(line))
    assert [len(sample.pictures) for sample in samples_of([read_run(run)])] == [2]


def test_a_broken_record_is_shown_as_such(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    data = write(
        tmp_path / "data.json",
        [{"image": "a.png", "caption": "x"}, {"image": "a.png"}, {"image": "a.png", "caption": "y"}],
    )
    grid = show(data, tmp_path / "page.html")
    assert grid.unreadable == 1 and "has no &#39;caption&#39;" in (tmp_path / "page.html").read_text()


def test_no_more_is_read_than_is_shown(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"image": "a.png", "caption": "x"}\n' * 3 + "{ broken")
    assert len(show(data, choice=Choice(limit=2)).tiles) == 2


# ---- the verb --------------------------------------------------------------------------------------------------------


def test_the_verb_writes_pages_and_pictures(run: Path, tmp_path: Path) -> None:
    assert code_and_text("show", run, "--out", tmp_path / "a.html", "--sort", "worst", "--limit", 3)[0] == 0
    page = (tmp_path / "a.html").read_text()
    assert page.index(">q1<") < page.index(">q3<") < page.index(">q2<") and "only-wrong" in page
    assert code_and_text("show", run, "--out", tmp_path / "a.png", "--correct", "no")[0] == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.width > 500
    code, text = code_and_text("show", run, "--out", tmp_path / "a.jpg")
    assert code == 1 and "--out has to end in .html or .png" in text
    code, text = code_and_text("show", run, "--out", run / "noise.png", "--overwrite")
    assert code == 1 and "input of this command" in text


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_maps(run: Path, tmp_path: Path, task: str) -> None:
    about = {"answers": ["yes", "no", "left"]} if task == "vqa" else {"prompt": "a"}
    checkpoint = random_checkpoint(tmp_path, task, **about)
    options = ("--map", "--checkpoint", checkpoint, "--device", "cpu", "--limit", 3)
    code, text = code_and_text("show", run, "--out", tmp_path / "maps.html", *options)
    page = (tmp_path / "maps.html").read_text()
    assert code == 0, text
    assert page.count('alt="map over the image above"') == 2 and "It is not a diagnosis" in page
    code, text = code_and_text("show", run, "--out", tmp_path / "b.html", "--map")
    assert code == 1 and "name it with --checkpoint" in text
