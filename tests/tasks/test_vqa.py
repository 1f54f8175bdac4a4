"""Evaluation of answers: choices, spellings, samples, comparison with the training set; each image encoded once."""

import json
from pathlib import Path

import pytest
import torch
from helpers.fine_tuning import CPU, configure, score, train
from helpers.random_checkpoints import random_checkpoint
from helpers.running import run_verb

import blip
from blip.models.ranking import distinct_answers
from blip.tasks.answering import Answering
from blip.tokenizer import Tokenizer, load_tokenizer
from blip.train.log import read_metrics

pytestmark = pytest.mark.usefixtures("no_java_nor_peak")


def losses(output: Path) -> list[float]:
    return [line["lm"] for line in read_metrics(output) if "lm" in line]


def test_an_image_encoder_of_another_mlp_ratio_is_trained_resumed_and_scored(phantoms: Path, tmp_path: Path) -> None:
    start = random_checkpoint(tmp_path, "vqa", answers=["left", "right"])
    assert json.loads((start / "model.json").read_text())["image_encoder"]["mlp_ratio"] == 2
    config = configure("vqa", phantoms, tmp_path, "max_steps=1", "test_file=[]", init_from=start)
    train("vqa", config, tmp_path / "run")
    train("vqa", config.model_copy(update={"max_steps": 2}), tmp_path / "run", "auto")
    info = json.loads((tmp_path / "run/best/model.json").read_text())
    assert info["image_encoder"]["mlp_ratio"] == 2 and len(losses(tmp_path / "run")) == 2
    best = config.model_copy(update={"init_from": str(tmp_path / "run/best")})
    assert score("vqa", best, tmp_path / "run")["val_questions"] == 7


def test_sampled_validation_leaves_training_alone(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ["inference=generate", "sample=true", "max_new_tokens=4", "dropout=0.1", "test_file=[]"]
    config = configure("vqa", phantoms, tmp_path, *options, init_from=tiny_checkpoint)
    train("vqa", config, tmp_path / "with")
    train("vqa", config.model_copy(update={"val_file": []}), tmp_path / "without")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    answers = [row["answer"] for row in json.loads((tmp_path / "with" / "answers_val.json").read_text())]
    again = score(
        "vqa", config.model_copy(update={"init_from": str(tmp_path / "with/checkpoints/latest")}), tmp_path / "e"
    )
    (written,) = (tmp_path / "e" / "evaluation").glob("*/answers_val.json")
    assert [row["answer"] for row in json.loads(written.read_text())] == answers
    assert again["val_questions"] == 7


def test_token_perfect_answers_score_1(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever blanks the tokenizer's spelling has that the references have not."""
    texts = ["crohn's disease", "0.5 mm", "10%", "l4/l5", "it isn't", "1,000"]
    words = Tokenizer.train(texts * 3, vocab_size=150)  # the checkpoint's has no punctuation
    config = configure(
        "vqa", phantoms, tmp_path, "inference=generate", "max_steps=1", "test_file=[]", init_from=tiny_checkpoint
    )
    file = Path(str(config.val_file[0]))
    records = json.loads(file.read_text())
    for number, record in enumerate(records):
        record["answer"] = texts[number % len(texts)]
    file.write_text(json.dumps(records))

    def perfect(self: Answering, keys: object, indices: list[int], choices: object) -> list[tuple[str, float]]:
        references = [self.held_out["val"][i].answers[0] for i in indices]
        return [(words.decode(ids), 1.0) for ids in words.encode(references, 60)]

    monkeypatch.setattr(Answering, "_answer", perfect)
    monkeypatch.setattr(Tokenizer, "written", lambda self, text, by=Tokenizer.written: by(words, text))
    train("vqa", config, tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores_val.json").read_text())["by_type"]
    assert {name: kinds["all"]["mean"] for name, kinds in scores.items()} == dict.fromkeys(scores, 1.0)


def test_spellings_of_one_answer_are_one(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_checkpoint / "tokenizer.json"))
    texts, tokens = distinct_answers(tokenizer, ["left", "Left", "left ", "\u200b", "right"], 8)
    assert texts == ["left", "right"] and len(tokens) == 2 and all(tokens)
    assert distinct_answers(tokenizer, [], 8) == ([], [])


def test_spellings_share_no_probability(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = configure(
        "vqa", phantoms, tmp_path, "max_steps=1", "val_file=[]", "test_file=[]", init_from=tiny_checkpoint
    )
    train("vqa", config, tmp_path / "run")
    model = blip.load(tmp_path / "run" / "checkpoints" / "latest")
    picture = phantoms / "images" / "000000.png"
    plain = model.answer(picture, "where?", ["left", "right"])[0]
    spelled = model.answer(picture, "where?", ["left", "Left", "LEFT ", "right"])[0]
    assert [p for _, p in spelled.candidates] == pytest.approx([p for _, p in plain.candidates])


def test_a_question_chooses_among_its_own(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = configure("vqa", phantoms, tmp_path, "inference=choices", "max_steps=1", init_from=tiny_checkpoint)
    file = Path(str(config.val_file[0]))
    records = json.loads(file.read_text())
    for number, record in enumerate(records):
        record["choices"] = [f"{word} lesion" for word in ("round", "square", "ring")[: number % 3 + 1]]
        record["answer"] = "round lesion"
    records[0]["choices"] = []
    file.write_text(json.dumps(records))
    train("vqa", config, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "answers_val.json").read_text())
    assert rows[0]["answer"] == "" and rows[0]["probability"] == 0
    assert all(row["answer"] in record["choices"] for row, record in zip(rows[1:], records[1:], strict=True))
    assert rows[3]["probability"] == 1  # one choice


def test_evaluation_alone_says_what_training_says(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = configure("vqa", phantoms, tmp_path, "max_steps=3", init_from=tiny_checkpoint)
    train("vqa", config, tmp_path / "run")
    trained = json.loads((tmp_path / "run" / "test.json").read_text())
    alone = score("vqa", config.model_copy(update={"init_from": ""}), tmp_path / "run")
    for name in ("test_images_in_training", "test_images", "test_majority", "test_exact_match"):
        assert alone[name] == trained[name], name
    gone = config.model_copy(update={"init_from": "", "train_file": [str(tmp_path / "gone.json")]})
    assert "test_majority" not in score("vqa", gone, tmp_path / "run")


def test_other_settings_than_the_checkpoints_are_said(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = configure("caption", phantoms, tmp_path, "prompt=''", "max_steps=3", init_from=tiny_checkpoint)
    train("caption", config, tmp_path / "run")
    capsys.readouterr()
    score("caption", config.model_copy(update={"init_from": ""}), tmp_path / "run")
    assert "was made with" not in capsys.readouterr().err
    score(
        "caption",
        config.model_copy(update={"init_from": "", "prompt": "a picture of ", "image_size": 64}),
        tmp_path / "run",
    )
    said = " ".join(capsys.readouterr().err.split())
    assert "image_size 32, here it is 64" in said and "prompt '', here it is 'a picture of '" in said


@pytest.mark.parametrize(("verb", "texts"), [("match", ["a", "b", "c"]), ("answer", ["where?", "what?", "left?"])])
def test_images_are_encoded_once(
    verb: str, texts: list[str], phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, folder = tiny_checkpoint, tmp_path / "images"
    if verb == "answer":
        options = ["max_steps=1", "val_file=[]", "test_file=[]"]
        train("vqa", configure("vqa", phantoms, tmp_path, *options, init_from=tiny_checkpoint), tmp_path / "run")
        checkpoint = tmp_path / "run" / "checkpoints" / "latest"
    folder.mkdir()
    for picture in sorted((phantoms / "images").glob("*.png"))[:4]:
        (folder / picture.name).symlink_to(picture)
    seen = []
    forward = blip.network.vit.ViT.forward
    monkeypatch.setattr(
        "blip.network.vit.ViT.forward", lambda self, x, *a, **k: seen.append(len(x)) or forward(self, x, *a, **k)
    )
    arguments = [verb, folder, *texts, "--checkpoint", checkpoint, "--batch_size", 12, "--device", CPU.type]
    done = run_verb(*arguments, "--out", tmp_path / "rows.json")
    assert done.exit_code == 0, done.output
    assert sum(seen) == 4 and len(json.loads((tmp_path / "rows.json").read_text())) == 12
    assert torch.get_default_dtype() == torch.float32
