"""Scores of captioning and retrieval: samples, groups, seeds, names of images, what is left out; NLVR2's interval."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fine_tuning import CPU, TASKS, configure, evaluations, train

from blip.data.formats import AnnotationError
from blip.data.pairs import read_pairs
from blip.evaluation.bootstrap import bootstrap
from blip.evaluation.retrieval import Ranking, Retrieval, Texts
from blip.tasks import captioning, nlvr, retrieving, start
from blip.tasks.finetune import FineTuning
from blip.tokenizer import Tokenizer

NO_WORD = "\u200b."


pytestmark = pytest.mark.usefixtures("no_java_nor_peak")


@pytest.fixture
def make(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., FineTuning]:
    """(task, what becomes of each validation record, options) -> a run that is ready to score."""

    def made(task: str, change: Callable[[int, dict], dict] = lambda i, record: record, *given: str) -> FineTuning:
        config = configure(task, phantoms, tmp_path, *given, init_from=tiny_checkpoint)
        file = Path(config.val_file[0])
        records = json.loads(file.read_text())
        file.write_text(json.dumps([change(i, record) for i, record in enumerate(records)]))
        source = start.read_source(config)
        return TASKS[task][2](start.with_sizes_of(config, source), source, tmp_path / "run", resume=None, device=CPU)

    return made


def written(task: FineTuning, name: str) -> Any:
    return json.loads((task.output / name).read_text())


# ---- captions --------------------------------------------------------------------------------------------------------


def test_batches_draw_different_samples_that_repeat(make: Callable, phantoms: Path) -> None:
    def one_image(i: int, record: dict) -> dict:
        return record | {"image": str(phantoms / "images" / "000000.png"), "image_id": i}

    sampling = ("sample=true", "beams=1", "batch_size=3", "max_new_tokens=8", "sampling_temperature=3.0")

    def captions(*given: str) -> list[str]:
        task = make("caption", one_image, *sampling, *given)
        task.scores("val")
        return [row["caption"] for row in written(task, "captions_val.json")]

    first = captions()
    assert len(first) == 7 and first[:3] != first[3:6]
    assert first == captions()
    assert first != captions("seed=5")


def test_captions_of_an_article_are_drawn_together(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    score_captions = captioning.score_captions

    def noting(generated: Any, references: Any, groups: Any, **more: Any) -> Any:
        given.update(more, groups=groups)
        return score_captions(generated, references, groups, **more)

    monkeypatch.setattr(captioning, "score_captions", noting)
    article = {0: "PMC1", 2: "PMC1", 5: "PMC2"}

    def change(i: int, record: dict) -> dict:
        return record | {"pmcid": article.get(i, ""), "caption": "Text" if i in article else "other"}

    task = make("caption", change, "seed=5")
    monkeypatch.setattr(task.tokenizer, "decode", lambda ids: "text")
    found = task.scores("val")
    groups, pairs = given["groups"], task.held_out["val"]
    assert groups[0] == groups[2] and len(set(groups)) == 6 and given["seed"] == 5
    assert groups[1] == pairs.image_id(1)
    same = [1, 0, 1, 0, 0, 1, 0]
    exact = written(task, "scores_val.json")["scores"]["exact"]
    assert exact == vars(bootstrap(same, groups, seed=5)) != vars(bootstrap(same, seed=5))
    assert found["val_exact"] == pytest.approx(3 / 7)


def test_a_token_perfect_caption_is_exact(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the tokenizer's spelling has other blanks than the reference."""
    texts = ["Crohn's disease", "a lesion of 0.5 mm", "it isn't 10%", "t2-weighted (l4/l5)"]
    task = make("caption", lambda i, record: record | {"caption": texts[i % 4]})
    words = Tokenizer.train(texts * 3, vocab_size=150)
    spelt = iter([words.decode(words.encode([texts[i % 4]], 60)[0]) for i in range(7)])
    monkeypatch.setattr(task.tokenizer, "decode", lambda ids: next(spelt))
    monkeypatch.setattr(task.tokenizer, "written", words.written)
    assert task.scores("val")["val_exact"] == 1


def test_numbers_that_name_an_image_and_numbers_that_do_not(tmp_path: Path) -> None:
    expected: dict[str, int | str] = {
        "COCO_val2014_000000391895.jpg": 391895,
        "v/000000000009.jpg": 9,
        "p0/slice-001.png": "p0/slice-001.png",
        "p1/slice-001.png": "p1/slice-001.png",
        "PMC4083729_AMHSR-4-14-g002.jpg": "PMC4083729_AMHSR-4-14-g002",
        "PMC212319_g002.jpg": "PMC212319_g002",
        "a/07.png": "a/07.png",
        "b/7.png": "b/7.png",
    }
    records: list[dict] = [{"image": name, "caption": "x"} for name in expected]
    records += [{"image": "v/9.png", "caption": "x", "image_id": "coco_10"}]
    records += [{"image": "roco_3.jpg", "caption": "x", "image_id": "roco_3.jpg"}]
    records += [{"image": "case.png", "caption": text, "image_id": "case 12"} for text in "xy"]
    (tmp_path / "set.json").write_text(json.dumps(records))
    pairs = read_pairs([str(tmp_path / "set.json")])
    found = captioning.result_ids(pairs, range(len(pairs)))
    assert found == [*expected.values(), 10, "roco_3", "case 12", "case 12"]
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "set.json").write_text(json.dumps(records[2:3]))
    pairs = read_pairs([str(tmp_path / folder / "set.json") for folder in ("x", "y")])
    assert captioning.result_ids(pairs, [0, 1]) == [str(tmp_path / f / "p0/slice-001.png") for f in ("x", "y")]


# ---- retrieval -------------------------------------------------------------------------------------------------------


def test_texts_of_an_image_and_images_of_an_article_are_drawn_together() -> None:
    texts = Texts(torch.ones(6, 3), torch.full((6,), 3), [[0], [0], [1], [1], [2], [2, 0]])
    own = torch.tensor([[0, 1], [0, 2], [0, 1], [2, 0], [2, 1], [1, 0]])  # right, right, wrong, wrong, right, right
    images = torch.tensor([[0, 1], [4, 0], [4, 5]])  # right, wrong, right
    rankings = Ranking(images, torch.zeros(3, 2)), Ranking(own, torch.zeros(6, 2))
    found = Retrieval({}, *rankings, torch.zeros(3), {})
    alone = retrieving.intervals(found, texts, ["a", "b", "c"], seed=3)
    assert alone["itm_t2i_r1"] == bootstrap([1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 2, 2], seed=3)
    assert alone["itm_t2i_r1"] != bootstrap([1, 1, 0, 0, 1, 0], seed=3)
    assert alone["itm_i2t_r1"] == bootstrap([1, 0, 1], seed=3)
    articles = retrieving.intervals(found, texts, ["a", "a", "c"], seed=3)
    assert articles["itm_i2t_r1"] == bootstrap([1, 0, 1], ["a", "a", "c"], seed=3) != alone["itm_i2t_r1"]
    assert articles["itm_t2i_r5"] == bootstrap([1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 1], seed=3)
    assert set(articles) == {f"itm_{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}


def test_the_article_reaches_the_intervals(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(retrieving, "intervals", lambda found, texts, groups, seed: seen.append(groups) or {})
    make("retrieval", lambda i, record: record | {"patient": i // 3}).scores("val")
    assert len(seen[0]) == 7 and len(set(seen[0])) == 3, "patient 0 is one too"


def test_an_unreadable_image_and_its_texts_are_left_out(make: Callable, phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    task = make("retrieval", lambda i, record: record | {"image": str(tmp_path / "broken.png")} if i == 2 else record)
    found = task.scores("val")
    assert found == task.scores("val"), "also when it is known"
    lists = written(task, "retrieval_val.json")
    assert len(lists["images"]) == len(lists["texts"]) == len(lists["image_to_text"]) == 6
    assert not any("broken" in path for path in lists["images"])
    assert written(task, "unreadable_val.json") == [str(tmp_path / "broken.png")]

    file = Path(task.config.val_file[0])
    records = json.loads(file.read_text())
    file.write_text(json.dumps(records[:2] + records[3:]))
    source = start.read_source(task.config)
    without = TASKS["retrieval"][2](
        start.with_sizes_of(task.config, source), source, tmp_path / "other", resume=None, device=CPU
    )
    assert found.pop("val_unreadable") == 1
    expected = without.scores("val")
    assert expected.pop("val_unreadable") == 0
    assert found == pytest.approx(expected, abs=1e-6)
    assert isinstance(found["val_i2t_candidates"], int) and found["val_i2t_candidates"] == 6


def test_an_image_that_is_lost_after_it_was_opened_is_counted(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieving, "unreadable", lambda *_, **__: [])
    task = make("retrieval", lambda i, record: record | {"image": "no.png"} if i == 2 else record)
    assert task.scores("val")["val_unreadable"] == 1


def test_a_text_of_a_readable_image_stays(make: Callable, tmp_path: Path) -> None:
    def change(i: int, record: dict) -> dict:
        broken = {"image": str(tmp_path / "no.png")} if i == 0 else {}
        return record | {"caption": "two images share it" if i < 2 else f"text {i}"} | broken

    task = make("retrieval", change)
    task.scores("val")
    assert written(task, "retrieval_val.json")["texts"] == ["two images share it", *(f"text {i}" for i in range(2, 7))]


# ---- NLVR2 -----------------------------------------------------------------------------------------------------------


def test_nlvr_draws_with_the_seed_of_the_run(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def noting(values: Any, groups: Any, seed: int = 0) -> Any:
        seeds.append(seed)
        return bootstrap(values, groups, seed=seed)

    monkeypatch.setattr(nlvr, "bootstrap", noting)
    make("nlvr", lambda i, record: record, "seed=5").scores("val")
    assert seeds == [5]


# ---- captions without words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["retrieval", "caption"])
def test_captions_without_words_are_counted_once_and_refused_if_there_are_no_others(
    task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(
        task, phantoms, tmp_path, "max_steps=1", "val_file=[]", "test_file=[]", init_from=tiny_checkpoint
    )
    file = Path(config.train_file[0])
    records = json.loads(file.read_text())
    file.write_text(
        json.dumps([record | {"caption": NO_WORD} if i < 4 else record for i, record in enumerate(records)])
    )
    train(task, config, tmp_path / "run")
    assert capsys.readouterr().err.count("4 of 12 training captions have no letter and no digit") == 1
    file.write_text(json.dumps([record | {"caption": NO_WORD} for record in records]))
    with pytest.raises(AnnotationError, match=r"none of 12 captions has a letter or a digit, the first being"):
        train(task, config, tmp_path / "other")


def test_the_absence_of_meteor_is_told_once_in_a_run(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("pycocoevalcap")
    options = ("max_steps=2", "max_new_tokens=2", "beams=1", "eval_every_epochs=1", "batch_size=12")
    config = configure("caption", phantoms, tmp_path, *options, init_from=tiny_checkpoint)
    train("caption", config, tmp_path / "run")
    shown = capsys.readouterr().err
    assert len(evaluations(tmp_path / "run")) == 2
    assert shown.count("METEOR is left out (java is not on the PATH)") == 1
