"""Probes: they find what was put into states, and nothing where nothing is; labels belong to their records."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.running import code_and_text
from helpers.tiny import spread, tiny_blip2, tiny_qformer, tiny_vit

import blip
from blip.errors import BlipError
from blip.inference.blip2 import Blip2Predictor
from blip.inference.predictor import Predictor
from blip.interpret.activations import Capture, capture
from blip.interpret.explain_files import Wanted, find_pairs
from blip.interpret.features.labels import Labels, labels_of, read_rows, value_at
from blip.interpret.features.probes import Settings, probe, table
from blip.interpret.features.states import Cached
from blip.tokenizer import Tokenizer

pytest.importorskip("sklearn")

COUNT = 120


def labelled(values: list, groups: list[str] | None = None) -> Labels:
    return Labels("side", values, groups or [str(i) for i in range(len(values))], list(range(len(values))))


def states(width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, width))


def test_a_class_that_a_direction_holds_is_found_and_another_is_not() -> None:
    x = states()
    there = probe(x, labelled(["left" if row[2] > 0 else "right" for row in x]), point="text.0.out")
    assert there.measure == "accuracy" and there.score.mean > there.score.low > 0.9
    assert (
        there.shuffled.mean < 0.65 and 0.3 < there.floor < 0.7 and there.records == COUNT == sum(there.classes.values())
    )
    noise = np.random.default_rng(1).integers(2, size=COUNT)
    absent = probe(x, labelled([str(v) for v in noise]), point="text.0.out")
    assert absent.score.low < 0.5 < absent.score.high


def test_a_number_is_predicted_with_its_share_of_variance() -> None:
    x = states()
    y = x @ np.arange(6) + 100 + np.random.default_rng(2).normal(size=COUNT)
    found = probe(x, labelled(y.tolist()), point="text.0.out")
    assert found.measure == "R2" and 0.95 < found.score.mean < 1 and found.score.low > 0.9
    assert found.shuffled.mean < 0.1 and found.floor == 0
    as_classes = probe(x, labelled([int(v > 100) for v in y]), point="p", settings=Settings("logistic"))
    assert as_classes.measure == "accuracy" and set(as_classes.classes) == {"0", "1"}


def test_records_of_an_image_are_never_in_training_and_test() -> None:
    """The state tells the image and nothing else: by record a probe could learn labels by heart, by image it cannot."""
    images = np.repeat(np.arange(12), 10)
    x = np.eye(12)[images] + 0.01 * np.random.default_rng(0).normal(size=(COUNT, 12))
    values = ["left" if image % 2 else "right" for image in images]
    by_image = probe(x, labelled(values, [str(i) for i in images]), point="p", settings=Settings(folds=4))
    by_record = probe(x, labelled(values), point="p", settings=Settings(folds=4))
    assert by_record.score.mean == 1 and by_image.score.mean < 0.8
    assert by_image.images == 12


def test_without_scikit_learn_a_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BlipError, match=r"pip install 'blip\[probes\]'"):
        probe(states(), labelled(["left", "right"] * 60), point="p")


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (["left"] * COUNT, Settings(), "all 120 labels of side are 'left'"),
        (["left", "right"], Settings(), "known of 2 images, fewer than the 5 folds"),
        (["left", "right"] * 60, Settings(kind="linear"), "labels that are no numbers"),
        (["left", "right"] * 60, Settings(kind="tree"), "kind is 'tree'; it can be auto, logistic"),
        (["left"] + ["right"] * (COUNT - 1), Settings(), "has one class outside a fold"),
        ([float("inf")] + [1.0] * (COUNT - 1), Settings(), "labels that are no finite numbers"),
        (["left", "right"] * 60, Settings(strength=float("nan")), "strength .nan. is above 0"),
    ],
)
def test_what_cannot_be_probed(values: list, settings: Settings, message: str) -> None:
    with pytest.raises(BlipError, match=message):
        probe(states(), labelled(values), point="p", settings=settings)


def test_labels_are_places_in_records(tmp_path: Path) -> None:
    rows = [{"image": "a", "lesions": [{"side": "left"}]}, {"image": "b", "lesions": []}, {"image": "a", "n": 2}]
    assert value_at(rows[0], "lesions.0.side") == "left" and value_at(rows[1], "lesions.0.side") is None
    found = labels_of(rows, "side=lesions.0.side", records=[0, 1, 2], count=3)
    assert found == Labels("side", ["left"], ["a"], [0])
    numbered = [{"record": 2, "n": 5}, {"record": 0, "n": 7}]
    assert labels_of(numbered, "n", records=[0, 1, 2], count=3) == Labels("n", [7, 5], ["record 0", "record 2"], [0, 2])
    with pytest.raises(BlipError, match="3 rows and the activations are of 4 records"):
        labels_of(rows, "n", records=[0, 1, 2, 3], count=4)
    with pytest.raises(BlipError, match="no record of the activations has a label at 'organ'; records have image"):
        labels_of(rows, "organ", records=[0], count=3)
    with pytest.raises(BlipError, match=r"is a list: name a place inside it, such as lesions\.0"):
        labels_of(rows, "lesions", records=[0], count=3)
    with pytest.raises(BlipError, match="no record has 'patient', by which they are grouped"):
        labels_of(rows, "n", records=[0, 1, 2], count=3, group="patient")
    with pytest.raises(BlipError, match="the column record has '0': it holds numbers"):
        labels_of([{"record": "0", "n": 5}], "n", records=[0], count=1)
    with pytest.raises(BlipError, match="the column record has 2 twice"):
        labels_of([{"record": 2, "n": 5}, {"record": 2, "n": 6}], "n", records=[2], count=3)
    missing = [{"n": float("nan")}, {"n": 3.0}]
    assert labels_of(missing, "n", records=[0, 1], count=2).values == [3.0]
    (tmp_path / "labels.csv").write_text("side,size\nleft\nright,2\n")
    assert read_rows(tmp_path / "labels.csv")[0] == {"side": "left", "size": None}
    (tmp_path / "labels.csv").write_text("side,size\nleft,1,2\nright,2\n")
    with pytest.raises(BlipError, match=r"labels\.csv: row 1 has more cells than the header"):
        read_rows(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("record,side,size\n0,left,1.5\n1,,2\n")
    assert read_rows(tmp_path / "labels.csv") == [
        {"record": 0, "side": "left", "size": 1.5},
        {"record": 1, "side": "", "size": 2},
    ]
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(BlipError, match="holds no records"):
        read_rows(tmp_path / "empty.json")


@pytest.fixture(scope="module")
def shards(model: Predictor, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 48 phantoms, with every token."""
    folder = tmp_path_factory.mktemp("activations")
    what = Capture("w", "d", ["image.1.out", "text.0.out", "text.1.out", "text.0.cross.z"], "match", shard_size=20)
    capture(model, list(find_pairs(phantoms / "captions.json", [])), what, folder)
    return folder


def test_rows_of_shards_are_those_of_the_model(model: Predictor, phantoms: Path, shards: Path, tmp_path: Path) -> None:
    wanted = list(find_pairs(phantoms / "captions.json", []))
    cached = Cached(shards)
    points = cached.matching(["text.0.out", "text.0.cross.z", "image.*"])
    assert points == ["image.1.out", "text.0.out", "text.0.cross.z"]
    mean, records = cached.pooled(points)
    tokens = cached.tokens(["text.0.out"])
    assert records == list(range(48)) and mean["text.0.cross.z"].shape == (48, 32)
    for pool in ("mean", "first"):
        capture(model, wanted, Capture("w", "d", points[:2], "match", pool=pool), tmp_path / pool)
        ready, _ = Cached(tmp_path / pool).pooled(points[:2])
        found, _ = cached.pooled(points[:2], pool)
        assert all(np.allclose(found[point], ready[point], atol=1e-5) for point in ready)
    lengths = model.ids([one.text for one in wanted])[1].tolist()
    assert len(tokens.records) == sum(lengths)
    last = tokens.states["text.0.out"][(tokens.records == 47) & (tokens.places == lengths[47] - 1)]
    assert last.shape == (1, 32) and last.abs().sum() > 0


def test_queries_before_a_text_are_no_padding(pictures: list[Path], tmp_path: Path) -> None:
    words = Tokenizer.train(iter(["a small lesion on the left", "chest"] * 9), 60)
    sizes = tiny_qformer(vocab_size=words.size, max_positions=48)
    info = {"task": "blip2", "image_encoder": asdict(tiny_vit()), "qformer": asdict(sizes), "embed_dim": 8}
    m = Blip2Predictor(spread(tiny_blip2(qformer=sizes), 0.2), words, info, precision="fp32")
    texts, point = ["a small lesion on the left", "chest"], "qformer.0.out"
    expected = []
    for picture, text in zip(pictures, texts, strict=False):
        with torch.no_grad(), blip.trace(m, point) as t:
            m.match_logits(picture, text)
        expected.append(t[point][0].mean(dim=0).numpy())
    wanted = [Wanted(picture, text) for picture, text in zip(pictures, texts, strict=False)]
    for pool in ("all", "mean"):
        capture(m, wanted, Capture("w", "d", [point], "match", pool), tmp_path / pool)
        found, _ = Cached(tmp_path / pool).pooled([point])
        assert np.allclose(found[point], expected, atol=1e-5), pool


def test_the_verb(phantoms: Path, shards: Path, tmp_path: Path) -> None:
    command = ["probe", str(shards), "--labels", str(phantoms / "captions.json"), "--label", "organ=body"]
    command += ["--label", "lesions.0.side", "--points", "*.out", "--folds", "3", "--out", str(tmp_path / "p.json")]
    code, text = code_and_text(*command, "--picture")
    assert code == 0 and "6 probes" in text and "head" in text
    found = json.loads((tmp_path / "p.json").read_text())
    assert [(one["point"], one["label"]) for one in found][:2] == [("image.1.out", "organ"), ("text.0.out", "organ")]
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 6 and float(rows[0]["score"]) == found[0]["score"]["mean"]
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert code_and_text(*command, "--picture")[0] == 0  # its own output is replaced


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "nowhere"}, "holds no activations"),
        ({"--points": "decoder.*"}, "has no states at 'decoder.*'; it has image.1.out"),
        ({"--label": "organ"}, "has a label at 'organ'"),
        ({"--pool": "max"}, "pool is 'max'"),
        ({"--out": "p.txt"}, "does not end in .json"),
        ({"--labels": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_bad_input(change: dict, message: str, phantoms: Path, shards: Path, tmp_path: Path) -> None:
    options = {"--labels": str(phantoms / "captions.json"), "--label": "body", "--out": str(tmp_path / "p.json")}
    options |= {key: value for key, value in change.items() if isinstance(key, str)}
    code, text = code_and_text(
        "probe", change.get(0, str(shards)), *(word for pair in options.items() for word in pair)
    )
    assert code == 1 and message in text and "Traceback" not in text and not list(tmp_path.glob("p.*"))


def test_tables_have_points_and_labels() -> None:
    x = states()
    made = [
        probe(x, labelled(["a" if v > 0 else "b" for v in x[:, column]]), point=point)
        for point, column in (("text.0.out", 0), ("text.1.out", 1))
    ]
    scores = table(made)
    assert scores.dims == ("point", "label") and scores.values.shape == (2, 1)
    assert table(made, "floor").values[0, 0] == made[0].floor
