"""Dialogues: VisDial as published, the generic form, what is wrong with files, texts as ids, samples and batches."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dialogues import write_visdial
from helpers.fine_tuning import dialogues

from blip.data.check import check_data
from blip.data.dialogue_samples import DialogueDataset, EvalDialogues, collate_dialogues
from blip.data.dialogue_texts import DialogueEncoder, Lengths
from blip.data.dialogues import Dialogues, read_dialogues
from blip.data.formats import AnnotationError, iter_json_object
from blip.data.loader import LoaderOptions, make_loader
from blip.data.order import EpochOrder
from blip.data.places import find_records
from blip.data.transforms import eval_transform, train_transform
from blip.errors import BlipError, InputError
from blip.tokenizer import Tokenizer

WORDS = "is it sunny how many dogs are there what color yes no two brown i think so a dog runs"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS] * 3, vocab_size=200)


@pytest.fixture(scope="module")
def records(phantoms: Path) -> list[dict[str, Any]]:
    return dialogues(phantoms, 0, 4)


def plain(found: Dialogues) -> list:
    several = [found[i] for i in range(len(found))]
    return [(one.caption, [(x.question, x.answer, x.options, x.right) for x in one.exchanges]) for one in several]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_visdial_as_published_is_the_generic_form(records: list[dict], tmp_path: Path) -> None:
    write_visdial(tmp_path, records)
    (tmp_path / "generic.json").write_text(json.dumps(records))
    found = read_dialogues([str(tmp_path)], dataset="visdial", split="val")
    generic = read_dialogues([str(tmp_path / "generic.json")])
    assert plain(found) == plain(generic) and len(found) == 4
    assert found[2].image == str(tmp_path / "images/VisualDialog_val2018/VisualDialog_val2018_000000001002.jpg")
    assert found[2].image_id == "1002" and generic[2].image == records[2]["image"]
    assert [one.relevance for one in found[2].exchanges] == [[], records[2]["dialog"][1]["relevance"]]
    assert found.trainable().tolist() == [[i, n] for i in range(4) for n in range(2)]
    assert (found.count("options"), found.count("right"), found.count("relevant")) == (8, 8, 4)
    assert set(found.texts()) >= {records[0]["caption"], records[0]["dialog"][0]["question"]}
    assert 0 < found.nbytes < 10_000


def test_dialogues_may_stand_before_the_texts(records: list[dict], tmp_path: Path) -> None:
    def turn_round(content: dict) -> None:
        content["data"] = dict(reversed(content["data"].items()))

    write_visdial(tmp_path / "a", records)
    write_visdial(tmp_path / "b", records, change=turn_round)
    one, other = (read_dialogues([str(tmp_path / x)], dataset="visdial", split="val") for x in "ab")
    assert plain(one) == plain(other)


def test_training_and_test_sets_of_visdial(records: list[dict], tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_visdial(tmp_path, records, part)
    trained = read_dialogues([str(tmp_path)], dataset="visdial", split="train")
    assert trained[0].image.endswith("images/train2014/COCO_train2014_000000001000.jpg")
    tested = read_dialogues([str(tmp_path)], dataset="visdial", split="test")
    assert [[bool(one.options) for one in tested[i].exchanges] for i in range(4)] == 4 * [[False, True]]
    assert [(one.answer is None, one.right) for one in tested[0].exchanges] == [(False, -1), (True, -1)]
    assert len(tested.trainable()) == 0


def test_the_right_answer_is_found_by_its_text(tmp_path: Path) -> None:
    record = {
        "image": "a.png",
        "caption": "x",
        "dialog": [{"question": "q", "answer": "b", "answer_options": ["a", "b"]}],
    }
    (tmp_path / "a.json").write_text(json.dumps([record]))
    assert read_dialogues([str(tmp_path / "a.json")])[0].exchanges[0].right == 1


def test_objects_inside_objects_are_read_item_by_item(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1, "data": {"x": [1, 2], "": {}, "y": "b"}, "c": [3]}')
    assert list(iter_json_object(path, inside="data")) == [("a", 1), ("x", 1), ("x", 2), ("", {}), ("y", "b"), ("c", 3)]
    assert list(iter_json_object(path))[1] == ("data", {"x": [1, 2], "": {}, "y": "b"})


def test_check_data_counts_turns_and_opens_images(records: list[dict], tmp_path: Path) -> None:
    write_visdial(tmp_path, records)
    (tmp_path / "images/VisualDialog_val2018/VisualDialog_val2018_000000001001.jpg").write_bytes(b"no image")
    (tmp_path / "generic.json").write_text(json.dumps(records))
    report = check_data([str(tmp_path)], dataset="visdial", split="val", num_workers=0)
    assert (report.kind, report.images, len(report.broken_images), report.errors) == ("turns", 4, 1, [])
    assert report.files[0].records == 4 and report.files[0].texts == 8
    generic = check_data([str(tmp_path / "generic.json")], num_workers=0)
    assert (generic.kind, generic.files[0].texts, generic.length_percentiles) == ("turns", 8, report.length_percentiles)
    found = list(find_records(str(tmp_path / "generic.json")))
    assert [(one.image, one.captions) for one in found] == [(one["image"], [one["caption"]]) for one in records]


# ---- what is wrong with a file ---------------------------------------------------------------------------------------


def exchange(**changes: Any) -> Callable[[list[dict]], None]:
    """Changes the second exchange of the second dialogue; None removes a key."""

    def change(dialogs: list[dict]) -> None:
        for name, value in changes.items():
            dialogs[1]["dialog"][1][name] = value
            if value is None:
                del dialogs[1]["dialog"][1][name]

    return change


def whole(**changes: Any) -> Callable[[list[dict]], None]:
    return lambda dialogs: dialogs[1].update(changes)


def unanswered(dialogs: list[dict]) -> None:
    for name in ("answer", "answer_options", "gt_index", "relevance"):
        dialogs[1]["dialog"][0].pop(name, None)


GENERIC = [  # the problem, after the file and the record
    ("no dialog", lambda dialogs: dialogs[1].pop("dialog"), "record 2: its dialog is null, not a list of exchanges"),
    ("empty dialog", whole(dialog=[]), "record 2: its dialog is empty"),
    ("no caption", lambda dialogs: dialogs[1].pop("caption"), "record 2: has no 'caption'"),
    ("no image", lambda dialogs: dialogs[1].pop("image"), "record 2: has no 'image'"),
    ("question", exchange(question=" "), "record 2: exchange 2: its question is empty"),
    ("right one", exchange(gt_index=4), "record 2: exchange 2: its gt_index is 4, and it has 4 answer_options"),
    ("no number", exchange(gt_index="1"), "exchange 2: its gt_index is '1'"),
    ("options", exchange(answer_options="yes"), "exchange 2: its answer_options are text, not a list"),
    ("one option", exchange(answer_options=["yes"], gt_index=0), "it has 1 answer_options; to choose takes 2"),
    ("relevance", exchange(relevance=[1.0]), "exchange 2: its relevance is of 1 options, and it has 4"),
    ("no relevance", exchange(relevance=[0, 0, -1, 0]), "exchange 2: its relevance holds -1, not a number of 0"),
    ("history", unanswered, "record 2: exchange 1 has no answer: only that of the last"),
    ("not an object", lambda dialogs: dialogs[1]["dialog"].insert(1, "yes"), "2: a record is an object, not text"),
]  # fmt: skip
PUBLISHED = [
    ("lost", lambda c: c["data"].pop("answers"), "has no data.answers: not VisDial's form"),
    ("no dialogs", lambda c: c["data"].pop("dialogs"), "has no data.dialogs: not VisDial's form"),
    ("unknown answer", lambda c: c["data"]["dialogs"][1]["dialog"][0].update(answer=999),
     "dialog 2, exchange 1: its answer is 999, and the file has"),
    ("unknown option", lambda c: c["data"]["dialogs"][1]["dialog"][0].update(answer_options=[0, -1]),
     "dialog 2, exchange 1: its answer_options is -1"),
    ("no text", lambda c: c["data"]["questions"].insert(0, 7), "questions 1: is a number (7), not text"),
    ("no image id", lambda c: c["data"]["dialogs"][1].pop("image_id"), "dialog 2: needs image_id, caption and dialog"),
    ("odd image id", lambda c: c["data"]["dialogs"][1].update(image_id=[1]), "dialog 2: its image_id is a list"),
    ("odd dialog", lambda c: c["data"]["dialogs"][1].update(dialog="x"), "dialog 2: its dialog is text, not a list"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in GENERIC], ids=[c[0] for c in GENERIC])
def test_broken_records(change: Callable, message: str, phantoms: Path, tmp_path: Path) -> None:
    broken = dialogues(phantoms, 0, 3)
    change(broken)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(AnnotationError) as error:
        read_dialogues([str(path)])
    assert str(error.value).startswith(f"{path}, ") and message in str(error.value), error.value


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in PUBLISHED], ids=[c[0] for c in PUBLISHED])
def test_broken_files_of_visdial(change: Callable, message: str, records: list[dict], tmp_path: Path) -> None:
    path = write_visdial(tmp_path, records, change=change)
    with pytest.raises(AnnotationError) as error:
        read_dialogues([str(tmp_path)], dataset="visdial", split="val")
    assert str(path) in str(error.value) and message in str(error.value), error.value


def test_other_broken_files_of_visdial(records: list[dict], tmp_path: Path) -> None:
    path = write_visdial(tmp_path, records)
    judged = tmp_path / "visdial_1.0_val_dense_annotations.json"
    cases = {
        "holds relevances alone: give visdial_1.0_val.json": lambda: [str(judged)],
        "record 1: needs image_id, round_id and gt_relevance": lambda: judged.write_text("[{}]") and [str(path)],
        "not valid JSON": lambda: path.write_text(path.read_text()[:-300]) and [str(path)],
        "is not VisDial's form": lambda: path.write_text("[]") and [str(path)],
        "weight is 2; files of dialogues take none": lambda: [{"path": write_visdial(tmp_path, records), "weight": 2}],
    }
    for message, make in cases.items():
        if message == "not valid JSON":
            judged.unlink()
        with pytest.raises(BlipError, match=re.escape(message)):
            read_dialogues(make(), dataset="visdial", split="val")
            pytest.fail(message)


# ---- texts -----------------------------------------------------------------------------------------------------------


def shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    return " ".join(tokenizer.token(one) for one in ids)


def test_texts_of_a_dialogue(tokenizer: Tokenizer) -> None:
    encode = DialogueEncoder(tokenizer, Lengths(40, 16, 6, 2))
    before = encode.before([("is it sunny", "yes"), ("how many dogs are there", "i think so")], "what color is it")
    assert shown(tokenizer, before) == (
        "[ENC] is it sunny [SEP] yes [SEP] how many dogs are [SEP] i think [SEP] what color is it [SEP]"
    )
    assert shown(tokenizer, encode.answer("no i think so")) == "no i [SEP]"
    assert shown(tokenizer, encode.caption("a dog runs")) == "[CLS] a dog runs [SEP]"


def test_the_oldest_turns_are_left_out_first(tokenizer: Tokenizer) -> None:
    """[ENC], a question of 2 and an answer of at most 2 take 7 with their [SEP]; a turn here takes 5."""
    turns = [("is it", "yes"), ("how many", "no"), ("what color", "two")]
    expected = {12: "two", 16: "two", 17: "no two", 22: "yes no two"}
    for longest, kept in expected.items():
        ids = DialogueEncoder(tokenizer, Lengths(longest, 16, 4, 2)).before(turns, "are there")
        answers = [word for word in shown(tokenizer, ids).split() if word in ("yes", "no", "two")]
        assert " ".join(answers) == kept and len(ids) + 3 <= longest
    with pytest.raises(InputError, match=r"max_text_tokens is 8; .* take 9"):
        DialogueEncoder(tokenizer, Lengths(8, 16, 4, 2))
    with pytest.raises(InputError, match="raise max_turn_tokens"):
        DialogueEncoder(tokenizer, Lengths(40, 16, 2, 2))


# ---- samples ---------------------------------------------------------------------------------------------------------


def dataset_of(found: Dialogues, tokenizer: Tokenizer, seed: int = 0) -> DialogueDataset:
    questions = found.trainable()
    order = EpochOrder(len(questions), seed)
    encode = DialogueEncoder(tokenizer, Lengths(40, 16, 8, 2))
    return DialogueDataset(found, questions, order, encode, transform=train_transform(32), seed=seed)


def test_a_sample_has_the_right_answer_and_another_one(phantoms: Path, tiny_config: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(phantoms / "tokenizer.json")
    (tmp_path / "x.json").write_text(json.dumps(dialogues(phantoms, 0, 4, options=6)))
    found = read_dialogues([str(tmp_path / "x.json")])
    data, encode = dataset_of(found, tokenizer), DialogueEncoder(tokenizer, Lengths(40, 16, 8, 2))
    drawn: dict[int, set] = {}
    for epoch in range(30):
        for position in range(len(data)):
            sample = data[epoch, position]
            place, number = data.questions[sample.index].tolist()
            one = found[place].exchanges[number]
            right, wrong = sample.texts
            before = encode.before([(x.question, x.answer) for x in found[place].exchanges[:number]], one.question)
            assert right == before + encode.answer(one.answer)
            choices = {tuple(encode.answer(text)) for text in one.options if text != one.answer}
            assert tuple(wrong[len(before) :]) in choices and wrong[: len(before)] == before
            drawn.setdefault(sample.index, set()).add(tuple(wrong))
    assert all(len(several) > 2 for several in drawn.values())  # another one each epoch
    again = dataset_of(found, tokenizer)[3, 2]
    assert again.texts == data[3, 2].texts and torch.equal(again.image, data[3, 2].image)


def test_batches(phantoms: Path, tiny_config: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(phantoms / "tokenizer.json")
    records = dialogues(phantoms, 0, 4)
    records[1]["image"] = "gone.png"
    (tmp_path / "x.json").write_text(json.dumps(records))
    found = read_dialogues([str(tmp_path / "x.json")])
    data = dataset_of(found, tokenizer)
    options = LoaderOptions(0, 0, pad_id=tokenizer.pad_id, collate_fn=collate_dialogues)
    batch = next(make_loader(data, data.order, 4, start=(0, 0), options=options))
    assert batch.images.shape == (4, 3, 32, 32) and len(batch.ids) == len(batch.lengths) == 8
    assert [len(batch.caption_ids), len(batch), batch.rounds] == [4, 4, [[], [], [], []]]
    assert (batch.ids[:, 0] == tokenizer.enc_id).all() and (batch.caption_ids[:, 0] == tokenizer.cls_id).all()
    evaluated = EvalDialogues(found, data.encode, eval_transform(32))
    batch = collate_dialogues([evaluated[i] for i in range(4)], tokenizer.pad_id)
    assert batch.indices == [0, 2, 3] and [note[1] for note in batch.skipped] == [str(tmp_path / "gone.png")]
    assert [[one.number for one in rounds] for rounds in batch.rounds] == 3 * [[0, 1]]
    assert all(len(one.answers) == 4 for rounds in batch.rounds for one in rounds) and batch.ids.numel() == 0
