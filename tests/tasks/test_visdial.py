"""Runs of `train_visdial.py` at tiny size: training, evaluation, the server's file, resuming, what users get wrong."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dialogues import OPTIONS, PARTS, configure, score, train, write_visdial
from helpers.fine_tuning import dialogues, evaluations, of_several_pictures
from helpers.running import message_of

import blip
from blip.checkpoints import convert
from blip.checkpoints.format import CheckpointError, load_weights
from blip.config import ConfigError, load_config
from blip.data.sets.visdial import VISDIAL_FILES
from blip.errors import BlipError, InputError
from blip.evaluation.dialogues import ranks_of
from blip.inference.predictor import Predictor
from blip.models.dialogue import DialogueModel
from blip.runs.scores import scores_of_run
from blip.tasks import dialogue
from blip.tasks.config import DialogueConfig
from blip.train.launch import launch
from blip.train.log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]


@pytest.fixture(scope="module")
def trained(phantoms: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A run of six steps, twelve samples an epoch and more: its configuration and its folder."""
    folder = tmp_path_factory.mktemp("visdial")
    config = configure(phantoms, folder, init_from=tiny_checkpoint)
    train(config, folder / "run")
    return config, folder / "run"


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_log_best_weights_and_ranks(trained: tuple[Any, Path]) -> None:
    _, output = trained
    lines = read_metrics(output)
    assert [line["step"] for line in lines if "lr" in line] == [1, 2, 3, 4, 5, 6]
    last = evaluations(output)[-1]
    names = ("val_mrr", "val_r1", "val_r5", "val_r10", "val_mean_rank", "val_ndcg", "val_loss", "val_itm", "best")
    assert all(name in last for name in names) and last["val_r5"] == last["val_r10"] == 1  # of four options
    assert (last["val_dialogues"], last["val_questions"]) == (5, 10)
    intervals = json.loads((output / "scores_val.json").read_text())["scores"]
    assert set(intervals) == {"mrr", "r1", "r5", "r10", "mean_rank", "ndcg"}
    assert intervals["mrr"]["low"] <= last["val_mrr"] <= intervals["mrr"]["high"]
    shown = dict(row[:2] for row in scores_of_run(output).rows)
    assert shown["test: NDCG"] and shown["test: R@1"] and shown["test: Mean rank"]
    info = json.loads((output / "best" / "model.json").read_text())
    assert info["task"] == "dialogue" and {name: info[name] for name in OPTIONS} == OPTIONS
    assert "test_mrr" in json.loads((output / "test.json").read_text())


def test_the_file_of_the_server_is_the_ranking(trained: tuple[Any, Path], phantoms: Path) -> None:
    """The ranks are those of the predictor, which ranks question by question."""
    config, output = trained
    found, folder = score(config.model_copy(update={"init_from": ""}), output)
    results = json.loads((folder / "ranks_val.json").read_text())
    rows = json.loads((folder / "answers_val.json").read_text())
    records = dialogues(phantoms, *PARTS["val"])
    assert [(one["image_id"], one["round_id"]) for one in results] == [(i, n) for i in range(5) for n in (1, 2)]
    m, ranks = blip.load(output / "best"), iter(results)
    reciprocal = []
    for record in records:
        for number, one in enumerate(record["dialog"]):
            before = [(x["question"], x["answer"]) for x in record["dialog"][:number]]
            answer = m.rank_answers(record["image"], record["caption"], history=before, question=one["question"],
                                    answers=one["answer_options"])  # fmt: skip
            order = [text for text, _ in answer.candidates]
            given = next(ranks)["ranks"]
            assert sorted(given) == [1, 2, 3, 4]
            assert [order[place - 1] for place in given] == one["answer_options"]
            reciprocal.append(1 / given[one["gt_index"]])
    assert found["val_mrr"] == pytest.approx(sum(reciprocal) / len(reciprocal), abs=1e-9)
    assert [row["rank"] for row in rows] == pytest.approx([1 / value for value in reciprocal])
    assert all(0 < row["probability"] < 1 and row["truth"] for row in rows)


def test_dialogues_about_several_pictures(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """They are trained, scored in batches as one by one, and told when pictures are left out."""
    given = ("max_steps=2", "max_pictures=2", "picture_embeddings=place")
    config = configure(phantoms, tmp_path, *given, init_from=tiny_checkpoint)
    for file in (*config.train_file, *config.val_file, *config.test_file):
        of_several_pictures(str(file))
    train(config, tmp_path / "run")
    assert "items have more than 2 pictures, of which 2 are read" in capsys.readouterr().err
    rows = json.loads((tmp_path / "run" / "answers_val.json").read_text())
    assert [len(row.get("images", [""])) for row in rows[::2]] == [2, 1, 3, 1, 2]
    records = json.loads(Path(str(config.val_file[0])).read_text())
    m = blip.load(tmp_path / "run" / "best")
    for row, record in zip(rows[::2], records, strict=True):
        images = blip.Study(record["images"]) if "images" in record else record["image"]
        one = record["dialog"][0]
        found = m.rank_answers(images, record["caption"], question=one["question"], answers=one["answer_options"])
        assert (found.text, found.probability) == (row["answer"], pytest.approx(row["probability"], abs=1e-5))
    (tmp_path / "dialogue-val.json").write_text(json.dumps([{**records[0], "image": "a.png"}]))
    with pytest.raises(BlipError, match="has both image and images"):
        train(config, tmp_path / "other")


def test_it_learns_what_it_is_shown(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ("max_steps=40", "batch_size=12", "lr=0.003", "val_file=[]", "test_file=[]", "save_every_steps=40")
    train(configure(phantoms, tmp_path, *options, "crop_scale=null", init_from=tiny_checkpoint), tmp_path / "run")
    losses = [line["itm"] for line in read_metrics(tmp_path / "run") if "lr" in line]
    assert sum(losses[:5]) / 5 > 0.6 and sum(losses[-8:]) / 8 < 0.55, losses


def test_visdial_as_published(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Training, validation and a test set, whose answers are not published: ranks alone come out."""
    for part, (start, end) in PARTS.items():
        write_visdial(tmp_path / "visdial", dialogues(phantoms, start, end), part)
    place = f"[{tmp_path / 'visdial'}]"
    options = [f"{part}_file={place}" for part in PARTS] + ["dataset=visdial", "max_steps=1", "test_split=test"]
    train(configure(phantoms, tmp_path, *options, init_from=tiny_checkpoint), tmp_path / "run")
    assert evaluations(tmp_path / "run")[-1]["val_ndcg"] > 0
    tested = json.loads((tmp_path / "run" / "test.json").read_text())
    assert tested["test_dialogues"] == tested["test_questions"] == 4 and "test_mrr" not in tested
    results = json.loads((tmp_path / "run" / "ranks_test.json").read_text())
    assert [(one["image_id"], one["round_id"]) for one in results] == [(1000 + i, 2) for i in range(4)]
    assert list(VISDIAL_FILES) == ["train", "validation", "test"]


# ---- what it starts from ---------------------------------------------------------------------------------------------


def test_it_starts_from_pretraining_and_is_scored_without_training(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = configure(phantoms, tmp_path, init_from=tiny_checkpoint)
    found, folder = score(config, tmp_path / "run")
    assert found["weights"] == str(tiny_checkpoint) and 0 < found["val_mrr"] < 1
    assert (folder / "ranks_test.json").is_file()


def test_released_files_and_back(trained: tuple[Any, Path], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A `.pth` of pre-training starts a run; a model of dialogues goes into a `.pth` and comes back."""
    _, output = trained
    tensors, info = load_weights(output / "best")
    assert convert.write(tmp_path / "dialogue.pth", tensors, info, to="salesforce")[0].startswith("model.json")
    found, about = convert.read(tmp_path / "dialogue.pth", 2, 2)
    assert about["task"] == "dialogue" and all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(CheckpointError, match="no Hugging Face class holds a checkpoint of dialogue"):
        convert.write(tmp_path / "folder", tensors, info, to="huggingface")
    convert.write(tmp_path / "base.pth", *convert.read(tiny_checkpoint), to="salesforce")
    loaded = convert.read(tmp_path / "base.pth", 2, 2)[1]
    assert loaded["task"] == "pretrain"


# ---- use -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranker(trained: tuple[Any, Path]) -> Predictor:
    return blip.load(trained[1] / "best")


def test_answers_are_ranked(ranker: Predictor, pictures: list[Path]) -> None:
    asked: dict[str, Any] = {
        "history": [("is there a lesion", "yes")],
        "question": "where",
        "answers": ["a", "left lung"],
    }
    answer = ranker.rank_answers(pictures[0], "a scan", **asked)
    assert sorted(text for text, _ in answer.candidates) == ["a", "left lung"]
    values = [p for _, p in answer.candidates]
    assert values == sorted(values, reverse=True) and answer.probability == values[0]
    assert isinstance(ranker.model, DialogueModel)
    assert ranks_of(values) == [1, 2]
    for changes, message in (
        ({"answers": []}, "give a list of texts"),
        ({"answers": "yes"}, "give a list of texts"),
        ({"history": ["is there a lesion"]}, "no pair of a question and its answer"),
    ):
        with pytest.raises(InputError, match=message):
            ranker.rank_answers(pictures[0], "a scan", **{**asked, **changes})


def test_other_checkpoints_do_not_rank(tiny_checkpoint: Path, pictures: list[Path]) -> None:
    with pytest.raises(CheckpointError, match="a checkpoint of pretrain cannot rank answers in a dialogue"):
        blip.load(tiny_checkpoint).rank_answers(pictures[0], "a scan", question="where", answers=["a", "b"])


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def without(part: str, *names: str) -> Callable[[Path], None]:
    """Leaves keys out of all exchanges of a part; without the number of the right answer, none is right."""

    def change(folder: Path) -> None:
        path = folder / f"dialogue-{part}.json"
        records = json.loads(path.read_text())
        for record in records:
            for one in record["dialog"]:
                for name in names:
                    one.pop(name, None)
                if "gt_index" in names:
                    one["answer"] = "none of them"
        path.write_text(json.dumps(records))

    return change


def nothing(_: Path) -> None:
    """The files are right."""


BAD = [
    (
        "no options",
        without("val", "answer_options", "gt_index", "relevance"),
        (),
        "no question has answers to choose from",
    ),
    ("nothing to learn", without("train", "gt_index"), (), "no question has a right answer among wrong ones"),
    (
        "no relevance",
        without("val", "relevance"),
        ("best_metric=val_ndcg",),
        "best_metric is 'val_ndcg', but .* gives no",
    ),
    ("no right answer", without("val", "gt_index"), (), "best_metric is 'val_mrr', but .* gives no right answers"),
    ("metric", nothing, ("best_metric=val_accuracy",), "best_metric 'val_accuracy' is unknown"),
    ("long text", nothing, ("max_text_tokens=60",), "max_text_tokens 60 is above the 48 positions"),
    ("long caption", nothing, ("max_caption_tokens=60",), "max_caption_tokens: 60 tokens, and the model has 48"),
    ("short text", nothing, ("max_text_tokens=10",), "max_text_tokens is 10; .* take 18"),
    ("short turn", nothing, ("max_turn_tokens=3",), "raise max_turn_tokens"),
    ("no file", nothing, ("train_file=[gone.json]",), "gone.json"),
    ("no set", nothing, ("dataset=visdail",), "dataset is 'visdail'; .*visdial"),
    ("a folder", nothing, ("dataset=visdial", "train_file=[.]"), "is a folder without files of 'visdial'"),
    ("unknown option", nothing, ("max_turn_token=3",), "max_turn_tokens"),
]


@pytest.mark.parametrize(("change", "options", "pattern"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_what_users_get_wrong(
    change: Callable, options: tuple, pattern: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    configure(phantoms, tmp_path, init_from=tiny_checkpoint)
    change(tmp_path)
    with pytest.raises(BlipError, match=pattern):
        train(load_config(tmp_path / "dialogue.yaml", DialogueConfig, list(options)), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_wider_image_encoder_is_refused(phantoms: Path, tmp_path: Path) -> None:
    config = configure(phantoms, tmp_path, "vit_width=64", "max_steps=1")
    with pytest.raises(InputError, match="their states are 64 and 32 wide: take an image encoder as wide"):
        train(config, tmp_path / "run")
    assert issubclass(ConfigError, BlipError)


def test_the_script(
    phantoms: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A wrong option on the command line ends in one message."""
    configure(phantoms, tmp_path, init_from=tiny_checkpoint)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    words = ["--config", str(tmp_path / "dialogue.yaml"), "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_visdial.py", *words, "--set", "max_turn_tokens=3"])
    run = lambda: launch(dialogue.run, DialogueConfig, default_output="runs/x", evaluate=dialogue.score)  # noqa: E731
    assert "raise max_turn_tokens" in message_of(run, capsys)
