"""Whole sets of questions: their answers, splits that keep an image in one part, shared images; and the real sets."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.real_files import RAD, med_categories, need, read, repeated_images, tokenizer_of
from helpers.samples import every
from helpers.set_files import png, put

from blip.data.question_splits import TrainedOn, answer_list, shared_images, split_by_image
from blip.data.questions import EvalQuestions, QuestionEncoder, Questions, read_questions
from blip.data.transforms import eval_transform


def _set(tmp_path: Path, name: str, rows: list[tuple[str, str, str]]) -> Questions:
    """(image, answer, group) of each."""
    listed = [{"image": image, "question": "q", "answer": answer, "group": group} for image, answer, group in rows]
    return read_questions([str(put(tmp_path / name, listed))])


def test_answer_list(tmp_path: Path) -> None:
    rows = [("a", text, "") for text in ("Yes", "yes", "no", "right  lung", "Right lung", "no", "yes", "cyst", "ant")]
    questions = _set(tmp_path, "q.json", rows)
    assert answer_list(questions) == ["yes", "no", "right lung", "ant", "cyst"]
    assert answer_list(questions, min_count=2) == ["yes", "no", "right lung"]
    assert answer_list(questions.view([7])) == ["cyst"]


def test_split_by_image(tmp_path: Path) -> None:
    rows = [(f"{i % 60}.png", "x", f"patient {i % 60 // 2}" if i % 60 < 30 else "") for i in range(300)]
    questions = _set(tmp_path, "q.json", rows)
    parts = split_by_image(questions, (0.7, 0.1, 0.2), seed=1)
    assert [len(part) for part in parts] == pytest.approx([210, 30, 60], abs=10)
    groups = [{part[i].group for i in range(len(part))} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 15 + 30
    assert sorted(part[i].question_id for part in parts for i in range(len(part))) == sorted(
        q.question_id for q in every(questions)
    )
    again, other = (split_by_image(questions, (0.7, 0.1, 0.2), seed=seed) for seed in (1, 2))
    assert [every(part) for part in again] == [every(part) for part in parts]
    assert [every(part) for part in other] != [every(part) for part in parts]
    # the order of the file plays no part
    shuffled = split_by_image(questions.view(np.random.default_rng(0).permutation(300)), (0.7, 0.1, 0.2), seed=1)
    assert [{q.group for q in every(part)} for part in shuffled] == groups
    for wrong in ((0.7, 0.2), (math.nan, 0.2), (math.nan,) * 3, (math.inf, -math.inf)):
        with pytest.raises(ValueError, match="sum to 1"):
            split_by_image(questions, wrong)


def test_comparisons_with_the_training_questions_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", "where", text) for text in ("left", "right", "right")] + [("b", "how", "x")] * 3 + [("c", "why", "y")]
    listed = [{"image": image, "question": question, "answer": answer} for image, question, answer in rows]
    train = read_questions([str(put(tmp_path / "train.json", listed))])
    asked = [{"image": "a", "question": "where", "answer": "z"}, {"image": "d", "question": "who", "answer": "z"}]
    test = read_questions([str(put(tmp_path / "test.json", asked))])
    compared, questions = TrainedOn(train), every(test)
    for _ in range(2):
        assert compared.majority_answers(questions) == ["right", "x"], "of the same question, else of all"
        assert (compared.shared_images("val", test), compared.shared_images("test", test.view([1]))) == (1, 0)
        monkeypatch.setattr(Questions, "__getitem__", None)  # neither set is read again
        monkeypatch.setattr("blip.data.question_splits.shared_images", None)


def test_shared_images(tmp_path: Path) -> None:
    for name, grey in (("a", 1), ("b", 2), ("copy of a", 1), ("c", 3)):
        put(tmp_path / f"{name}.png", png(grey))
    train = _set(tmp_path, "train.json", [("a.png", "x", ""), ("a.png", "y", ""), ("b.png", "x", "")])
    test = _set(tmp_path, "test.json", [("copy of a.png", "x", ""), ("./b.png", "x", ""), ("c.png", "x", "")])
    assert shared_images(train, test) == 1
    assert shared_images(train, test, by_content=True) == 2
    assert shared_images(train, test.view([2])) == 0


def test_equal_names_in_two_folders_are_two_images(tmp_path: Path) -> None:
    for folder, greys in (("train", (1, 2, 3)), ("test", (1, 7, 8))):
        (tmp_path / folder).mkdir()
        for number, grey in enumerate(greys):
            put(tmp_path / folder / f"{number}.png", png(grey))
    records = [(f"{number}.png", "x", "") for number in range(3)]
    train, test = (_set(tmp_path / folder, "set.json", records) for folder in ("train", "test"))
    assert shared_images(train, test) == 1  # the first one is a copy
    (tmp_path / "test" / "0.png").unlink()
    assert shared_images(train, test) == 0


@pytest.mark.real_data
def test_real_questions_of_vqa_rad(data_dir: Path) -> None:
    raw = read(data_dir, RAD)
    folder = str(data_dir / "vqa_rad")
    rad = read_questions([folder], dataset="vqa_rad", split="all")
    assert Counter(question.answer_type for question in every(rad)) == Counter(
        row["answer_type"].strip().lower() for row in raw
    )
    assert {str(row["answer"]) for row in raw if isinstance(row["answer"], int)} <= set(answer_list(rad))
    train, test = (read_questions([folder], dataset="vqa_rad", split=x) for x in ("train", "test"))
    is_test = [row["phrase_type"].startswith("test") for row in raw]
    names = [{row["image_name"] for row, own in zip(raw, is_test, strict=True) if own == part} for part in (0, 1)]
    assert (len(train), len(test)) == (is_test.count(False), is_test.count(True))
    assert shared_images(train, test) == len(names[0] & names[1])
    parts = split_by_image(rad, (0.8, 0.2))
    most = max(Counter(row["image_name"] for row in raw).values())  # an image's questions stay together
    assert [len(part) for part in parts] == pytest.approx([0.8 * len(raw), 0.2 * len(raw)], abs=most)
    assert shared_images(*parts) == 0
    repeated = repeated_images(path for path in (data_dir / "vqa_rad").rglob("*") if path.suffix in (".jpg", ".png"))
    assert shared_images(*parts, by_content=True) <= repeated
    plain = read_questions([str(need(data_dir, "vqa_rad/qa.json"))])
    words = [[(q.question, q.answers, q.answer_type) for q in every(x)] for x in (plain, rad)]
    assert words[0] == words[1]


@pytest.mark.real_data
def test_real_questions_of_vqa_med(data_dir: Path) -> None:
    counts = med_categories(data_dir, "val")
    med = read_questions([str(data_dir / "vqa_med_2019")], dataset="vqa_med_2019", split="validation")
    assert Counter(q.category for q in every(med)) == counts
    plain = read_questions([str(need(data_dir, "vqa_med_2019/qa.json"))], split="val")
    assert sorted((q.question, q.category, *q.answers) for q in every(plain)) == sorted(
        (q.question, q.category, *q.answers) for q in every(med)
    )
    sample = EvalQuestions(med, QuestionEncoder(tokenizer_of(data_dir)), eval_transform(32))[0]
    assert sample.image is not None and sample.image.shape == (3, 32, 32)


@pytest.mark.real_data
def test_real_questions_of_vqa_v2(data_dir: Path) -> None:
    folder = "format_fixtures/vision/vqav2"
    given = {row["question_id"]: row for row in read(data_dir, f"{folder}/annotations.json")["annotations"]}
    asked = read(data_dir, f"{folder}/questions.json")["questions"]
    coco = read_questions([str(data_dir / folder / "questions.json")], dataset="vqa_v2")
    ten = [[one["answer"] for one in given[row["question_id"]]["answers"]] for row in asked]
    assert [q.references for q in every(coco)] == ten
    for question, answers in zip(every(coco), ten, strict=True):
        shares = sorted(count / len(answers) for count in Counter(answers).values())
        assert sorted(question.weights) == pytest.approx(shares)
