"""Sets of questions as distributed, what they become in memory, training samples, batches and splits."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.samples import every
from helpers.set_files import hub_rows, png, put, put_arrow, put_parquet, shade
from PIL import Image

from blip.data.images import open_image
from blip.data.loader import LoaderOptions, eval_loader, make_loader
from blip.data.order import EpochOrder
from blip.data.question_batches import VqaBatch, collate_vqa
from blip.data.question_splits import shared_images, split_by_image
from blip.data.questions import (
    EvalQuestions,
    QuestionEncoder,
    Questions,
    VqaDataset,
    read_questions,
)
from blip.data.sets.questions import Question
from blip.data.sets.vqa_med import alternatives
from blip.data.skipped import TooManySkipped
from blip.data.transforms import eval_transform, train_transform
from blip.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def encode() -> QuestionEncoder:
    tokenizer = Tokenizer.train(["is it left or right ? 0 1 2 3 4 5 6 7 8 9", "yes no cyst"] * 2, vocab_size=120)
    return QuestionEncoder(tokenizer, max_tokens=16, max_answer_tokens=8)


def short(questions: Questions) -> list[tuple]:
    """(name of the image, question, answers, answer type, category) of each."""
    return [(Path(q.image).name, q.question, q.answers, q.answer_type, q.category) for q in every(questions)]


# ---- sets as distributed ---------------------------------------------------------------------------------------------


def test_vqa_rad(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"qid": 3, "image_name": "s1.jpg", "question": "Is \tit? ", "answer": "Yes", "answer_type": "CLOSED ",
         "question_type": "PRES", "phrase_type": "freeform", "image_organ": "CHEST"},
        {"qid": "4b", "image_name": "s1.jpg", "question": "How many?", "answer": 4, "answer_type": "OPEN",
         "question_type": "COUNT", "phrase_type": "test_para", "image_organ": "CHEST"},
    ]  # fmt: skip
    put(tmp_path / "VQA_RAD Dataset Public.json", rows)
    (tmp_path / "VQA_RAD Image Folder").mkdir()
    train, test = (read_questions([str(tmp_path)], dataset="vqa_rad", split=split) for split in ("train", "test"))
    assert short(train) == [("s1.jpg", "Is it?", ["Yes"], "closed", "pres")]
    assert short(test) == [("s1.jpg", "How many?", ["4"], "open", "count")]
    assert (test[0].question_id, test[0].image_id, test[0].group) == ("4b", "s1.jpg", "s1.jpg")
    assert Path(test[0].image).parent == tmp_path / "VQA_RAD Image Folder"
    assert shared_images(train, test) == 1
    everything = read_questions([str(tmp_path / "VQA_RAD Dataset Public.json")], str(tmp_path), "vqa_rad")
    assert len(everything) == 2 and Path(everything[0].image) == tmp_path / "s1.jpg"


def test_hub_parquet_of_path_vqa_and_vqa_rad(tmp_path: Path) -> None:
    rows = [
        {**row, "answer": answer}
        for row, answer in zip(hub_rows(4, question="q"), ["yes", "No", "cyst", "yes"], strict=True)
    ]
    put_parquet(tmp_path / "data/train-00000-of-00002.parquet", rows[:3])
    put_parquet(tmp_path / "data/train-00001-of-00002.parquet", rows[3:])
    put_parquet(tmp_path / "data/test-00000-of-00001.parquet", hub_rows(2, first=2, question="t", answer="no"))
    for kind in ("path_vqa", "vqa_rad"):
        train, test = (read_questions([str(tmp_path)], dataset=kind, split=split) for split in ("train", "test"))
        assert [question.answer_type for question in every(train)] == ["closed", "closed", "open", "closed"]
        assert [shade(open_image(question.image)) for question in every(train)] == [0, 1, 2, 3]
        assert shared_images(train, test) == 2  # they have no names: by their bytes
    parts = split_by_image(read_questions([str(tmp_path)], dataset="path_vqa", split="all"), (0.5, 0.5))
    assert sum(map(len, parts)) == 6 and shared_images(*parts) == 0


def test_slake(tmp_path: Path) -> None:
    row = {"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "Which part?", "answer": "Abdomen",
           "q_lang": "en", "answer_type": "OPEN", "qid": 12, "content_type": "Organ", "triple": []}  # fmt: skip
    put(tmp_path / "validate.json", [{**row, "q_lang": "zh", "question": "哪个部位?"}, row])
    put(tmp_path / "train.json", [row, {**row, "answer_type": "CLOSED", "answer": "Yes"}])
    (tmp_path / "imgs").mkdir()
    found = read_questions([str(tmp_path)], dataset="slake", split="validation")
    assert short(found) == [("source.jpg", "Which part?", ["Abdomen"], "open", "organ")]
    assert Path(found[0].image) == tmp_path / "imgs/xmlab1/source.jpg"
    assert len(read_questions([str(tmp_path)], dataset="slake", split="all")) == 3


def test_questions_about_videos(tmp_path: Path) -> None:
    row = {"question": "who sings?", "answer": "man"}
    put(tmp_path / "msvd_qa_test.json", [{**row, "video": "a_1_2", "question_id": 5}])
    put(tmp_path / "msrvtt_qa_test.json", [{**row, "video_id": 7010, "id": 6}, {**row, "video": "video1.mp4"}])
    for name, images, numbers in (
        ("msvd_qa", ["a_1_2.avi"], ["5"]),
        ("msrvtt_qa", ["video7010.mp4", "video1.mp4"], ["6", ""]),
    ):
        found = read_questions([str(tmp_path)], dataset=name, split="test")
        assert [Path(question.image).name for question in found] == images
        assert [(question.question, question.answers) for question in found] == len(images) * [("who sings?", ["man"])]
        assert [question.question_id for question in found][:1] == numbers[:1]


def test_vqa_med_2019(tmp_path: Path) -> None:
    train, test = tmp_path / "Training", tmp_path / "Test"
    put(train / "All_QA_Pairs_train.txt", "s1|what plane?|axial\ns1|is it abnormal (at all)?|yes\n")
    put(train / "QAPairsByCategory/C2_Plane_train.txt", "s1|what plane?|axial\n")
    put(train / "Train_images/s1.jpg", png(0))
    text = "s2|modality|what method?|us-d - doppler ultrasound#ultrasound\ns2|abnormality|what?|(left) cyst (large)\n"
    put(test / "VQAMed2019_Test_Questions_w_Ref_Answers.txt", text)
    found = read_questions([str(tmp_path)], dataset="vqa_med_2019", split="train")
    assert short(found) == [
        ("s1.jpg", "what plane?", ["axial"], "open", "plane"),
        ("s1.jpg", "is it abnormal (at all)?", ["yes"], "closed", ""),
    ]
    assert Path(found[0].image) == train / "Train_images/s1.jpg"
    found = read_questions([str(tmp_path)], dataset="vqa_med_2019", split="test")
    assert short(found)[0] == (
        "s2.jpg", "what method?", ["us-d - doppler ultrasound", "ultrasound"], "open", "modality",
    )  # fmt: skip
    assert found[0].weights == [0.5, 0.5]
    assert found[1].answers == ["left cyst large", "left cyst", "cyst large", "cyst"]
    assert [found[i].question_id[-2:] for i in range(2)] == [":1", ":2"]
    own = read_questions([str(train / "QAPairsByCategory/C2_Plane_train.txt")], dataset="vqa_med_2019")
    assert own[0].category == "plane" and Path(own[0].image) == train / "Train_images/s1.jpg"
    assert alternatives("mr - t1 (w/gadolinium)") == ["mr - t1 w/gadolinium", "mr - t1"]


def test_retina_vqa(tmp_path: Path) -> None:
    put(tmp_path / "dataset_dict.json", {"splits": ["train", "test"]})
    put_arrow(tmp_path / "train", hub_rows(5, question="what", answer="drusen"))
    put_arrow(tmp_path / "test", hub_rows(1, first=8, question="what", answer="no"), parts=1)
    found = read_questions([str(tmp_path)], dataset="retina_vqa", split="train")
    assert [(q.answers[0], shade(open_image(q.image))) for q in every(found)] == [
        ("drusen 0", 0), ("drusen 2", 2), ("drusen 4", 4), ("drusen 1", 1), ("drusen 3", 3),
    ]  # fmt: skip
    assert len(read_questions([str(tmp_path / "test")], dataset="retina_vqa")) == 1  # one split saved by itself


@pytest.mark.parametrize("answer", ["Answer", "Anwser"])
def test_pmc_vqa(tmp_path: Path, answer: str) -> None:
    heads = f"Figure_path,Question,{answer},Choice A,Choice B,Choice C,Choice D,Answer_label"
    choices = "A:Diffuse,B:Focal , C: None,D:A: other"
    lines = [f"PMC1064097_F1.jpg,Pattern?,Focal,{choices},B", f"PMC2_F1.jpg,Pattern?,A,{choices},"]
    put(tmp_path / "train.csv", "\n".join([heads, *lines]) + "\n")
    (tmp_path / "figures").mkdir()
    found = read_questions([str(tmp_path)], dataset="pmc_vqa", split="train")
    assert [question.answers for question in every(found)] == [["Focal"], ["Diffuse"]]
    assert found[0].choices == ["Diffuse", "Focal", "None", "A: other"]
    assert (found[0].group, found[0].answer_type) == ("PMC1064097", "closed")
    assert Path(found[0].image) == tmp_path / "figures/PMC1064097_F1.jpg"


def test_vqa_v2_and_the_json_of_blip(tmp_path: Path) -> None:
    asked = {"image_id": 42, "question": "Is it?", "question_id": 42001}
    ten = [{"answer": text, "answer_id": i} for i, text in enumerate(["yes"] * 7 + ["no"] * 3)]
    annotation = {"question_id": 42001, "image_id": 42, "answers": ten, "answer_type": "yes/no",
                  "question_type": "is it", "multiple_choice_answer": "yes"}  # fmt: skip
    put(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"info": {}, "questions": [asked]})
    put(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [annotation], "info": {}})
    put(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [{**asked, "image_id": 43}]})
    put(tmp_path / "images/val2014/COCO_val2014_000000000042.jpg", png(0))
    question = read_questions([str(tmp_path)], dataset="vqa_v2", split="validation")[0]
    assert (question.answers, question.weights) == (["yes", "no"], [0.7, 0.3])
    assert question.references == ["yes"] * 7 + ["no"] * 3
    assert (question.answer_type, question.category) == ("closed", "is it")
    assert Path(question.image) == tmp_path / "images/val2014/COCO_val2014_000000000042.jpg"
    test = read_questions([str(tmp_path)], dataset="vqa_v2", split="test")
    assert test[0].answers == [] and Path(test[0].image).name == "COCO_test2015_000000000043.jpg"
    blip = [{"question": "Is it?", "question_id": 7, "image": "val2014/a.jpg", "answer": ["a", "a", "b", "a"],
             "dataset": "vqa"}, {"question": "What?", "image": "g.jpg", "answer": "c", "dataset": "vg"}]  # fmt: skip
    found = read_questions([str(put(tmp_path / "vqa_train.json", blip))], dataset="vqa_v2")
    assert [(q.answers, q.weights) for q in every(found)] == [(["a", "b"], [0.75, 0.25]), (["c"], [0.2])]


# ---- in memory -------------------------------------------------------------------------------------------------------


def test_memory_is_flat_and_views_share_it() -> None:
    questions, images, count = Questions(), dict[str, int](), 50_000
    for i in range(count):
        image = f"images/{i // 10:07}.jpg"
        item = Question(image, f"where is lesion {i}?", ["left", "right"], [0.75, 0.25], "open", f"q{i}", image,
                        "position", ["left", "right"], image, ["left", "right", "left", "left"])  # fmt: skip
        questions.append(item, images)
    assert questions.nbytes / count < 190
    held = [x for x in vars(questions).values() if x is not None]
    for _ in range(2):
        held += [y for x in held if hasattr(x, "__dict__") for y in vars(x).values()]
    held = list({id(x): x for x in held}.values())
    kinds = {type(x).__name__ for x in held}
    assert kinds <= {"Texts", "TextLists", "Labels", "array", "bytearray", "list", "dict"}
    assert all(len(x) <= 1 for x in held if isinstance(x, (list, dict)))  # no object per question hides in it
    assert sum(map(sys.getsizeof, held)) < 1.3 * questions.nbytes
    assert questions[count - 1] == item
    view = questions.view([7, 49_999, 3]).view([1, 0])
    assert [view[i].question_id for i in range(2)] == ["q49999", "q7"]
    assert view._questions is questions._questions
    for index in (2, -1):
        with pytest.raises(IndexError):
            view[index]


def test_weights_of_files(tmp_path: Path) -> None:
    put(tmp_path / "a.json", [{"image": "a", "question": "q", "answer": "x"}] * 2)
    files = [str(tmp_path / "a.json"), {"path": str(tmp_path / "a.json"), "weight": 3}]
    assert read_questions(files).record_weights().tolist() == [1, 1, 3, 3]
    assert read_questions(files).view([3, 0]).record_weights().tolist() == [3, 1]
    assert read_questions(files[:1]).record_weights() is None


# ---- samples and batches ---------------------------------------------------------------------------------------------


@pytest.fixture
def eleven(tmp_path: Path) -> Questions:
    """Eleven questions on as many images, of which 3.png is broken; question i has 1 + i % 3 answers."""
    rows = []
    for i in range(11):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        answers = ["yes", "no", "cyst left"][: 1 + i % 3]
        rows.append({"image": f"{i}.png", "question": f"is it {i}" * (1 + i % 2), "answer": [*answers, "yes"]})
    put(tmp_path / "3.png", b"broken")
    return read_questions([str(put(tmp_path / "q.json", rows))])


def batches(
    questions: Questions, encode: QuestionEncoder, count: int, start: tuple[int, int] = (0, 0), workers: int = 0
) -> list[VqaBatch]:
    order = EpochOrder(len(questions), seed=5)
    data = VqaDataset(questions, order, encode, transform=train_transform(8), seed=5)
    loader = make_loader(data, order, 3, start=start, options=LoaderOptions(workers, collate_fn=collate_vqa))
    return [next(loader) for _ in range(count)]


def same(ours: VqaBatch, theirs: VqaBatch) -> bool:
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in vars(ours)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_batches_do_not_depend_on_workers_or_start(eleven: Questions, encode: QuestionEncoder) -> None:
    state = torch.get_rng_state()
    ours = batches(eleven, encode, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(same, ours, batches(eleven, encode, 7, workers=1)))
    assert all(map(same, ours[4:], batches(eleven, encode, 3, start=(1, 1))))
    assert not torch.equal(ours[0].images, ours[3].images)
    assert 3 not in [index for batch in ours for index in batch.indices]
    assert {index for batch in ours for index, _, _ in batch.skipped} == {3}


def test_a_batch_holds_every_answer_with_its_owner(eleven: Questions, encode: QuestionEncoder) -> None:
    data = EvalQuestions(eleven, encode, eval_transform(8))
    batch = collate_vqa([data[i] for i in (2, 3, 0, 1)], pad_id=0, pad_to=(5, 32))
    assert batch.indices == [2, 0, 1] and [note[0] for note in batch.skipped] == [3]
    assert batch.images.shape == (3, 3, 8, 8)
    assert batch.owner.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.weights.tolist() == pytest.approx([0.5, 0.25, 0.25, 1, 2 / 3, 1 / 3])
    assert batch.ids.shape == (3, 32) and batch.answer_ids.shape == (6, 5)
    tokenizer = encode.tokenizer
    for row, index in enumerate(batch.indices):
        length = int(batch.lengths[row])
        assert batch.ids[row, :length].tolist() == tokenizer.encode([eleven[index].question], 16)[0]
        assert (batch.ids[row, length:] == 0).all()
    texts = [answer for index in batch.indices for answer in eleven[index].answers]
    rows = [ids[:length].tolist() for ids, length in zip(batch.answer_ids, batch.answer_lengths, strict=True)]
    assert rows == tokenizer.encode(texts, 8)
    moved = batch.to("meta")
    assert {moved.images.device.type, moved.answer_ids.device.type, moved.owner.device.type} == {"meta"}
    assert moved.lengths.device.type == moved.answer_lengths.device.type == "cpu"
    assert moved.weights.device.type == "meta" and len(moved) == 3
    assert len(collate_vqa([data[3]])) == 0
    loader = eval_loader(data, 4, num_workers=0, collate_fn=collate_vqa)
    assert [index for batch in loader for index in batch.indices] == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_questions_without_answers_are_for_evaluation_alone(tmp_path: Path, encode: QuestionEncoder) -> None:
    put(tmp_path / "a.png", png(0))
    rows = [{"image": "a.png", "question": "is it", "dataset": "vqa", "question_id": 5}]
    questions = read_questions([str(put(tmp_path / "vqa_test.json", rows))], dataset="vqa_v2")
    batch = collate_vqa([EvalQuestions(questions, encode, eval_transform(8))[0]])
    assert len(batch) == 1 and batch.owner.shape == (0,) and batch.answer_ids.shape == (0, 0)
    with pytest.raises(ValueError, match="1 questions have no answer to learn from, the first being 5"):
        VqaDataset(questions, EpochOrder(1, 0), encode, transform=eval_transform(8), seed=0)
    with pytest.raises(ValueError, match="max_answer_tokens is 2"):
        QuestionEncoder(encode.tokenizer, 8, 2)


def test_nothing_readable(eleven: Questions, encode: QuestionEncoder) -> None:
    for i in range(11):
        Path(eleven.image_path(i)).unlink()
    with pytest.raises(TooManySkipped, match="11 images in a row"):
        batches(eleven, encode, 1)
