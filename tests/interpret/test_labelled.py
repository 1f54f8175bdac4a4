"""The labelled array: what is selected, added up, ranked, written and drawn; and the metrics by name."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import blip
from blip.errors import InputError
from blip.inference.predictor import Predictor
from blip.inference.scoring import caption_log_probs
from blip.interpret.causes.metrics import METRICS, metric_of

TEXTS = ["head with a small bright round lesion", "chest", "a dark square"]


def effects() -> blip.Labelled:
    values = np.array([[1.0, -4.0, np.nan], [0.5, 2.0, -3.0]])
    return blip.Labelled(values, ("layer", "head"), {"layer": ["a", "b"], "head": ["0", "1", "2"]}, "effect", "logit")


def test_select_drops_a_dimension_at_one_label_and_keeps_it_at_several() -> None:
    assert effects().select(layer="b").values.tolist() == [0.5, 2.0, -3.0]
    assert effects().select(layer="b").dims == ("head",)
    part = effects().select(layer=["b"], head=["2", "0"])
    assert part.values.tolist() == [[-3.0, 0.5]] and part.coords == {"layer": ["b"], "head": ["2", "0"]}
    assert float(effects().select(layer="a", head="1").values) == -4.0


def test_sum_and_top_skip_what_is_missing() -> None:
    assert effects().sum("head").values.tolist() == [-3.0, -0.5]
    assert effects().top(2) == [({"layer": "a", "head": "1"}, -4.0), ({"layer": "b", "head": "2"}, -3.0)]
    assert len(effects().top(100)) == 5
    assert "effect (logit): 2 layer, 3 head" in str(effects()) and "a 1 -4" in str(effects())


def test_csv_has_a_line_for_each_number(tmp_path: Path) -> None:
    effects().to_csv(tmp_path / "effects.csv")
    rows = list(csv.DictReader((tmp_path / "effects.csv").open()))
    assert len(rows) == 5 and rows[1] == {"layer": "a", "head": "1", "effect": "-4.0"}


def test_picture_of_one_and_two_dimensions(tmp_path: Path) -> None:
    effects().picture(tmp_path / "two.png")
    effects().select(head="1").picture(tmp_path / "one.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.width > one.width
        colours = np.asarray(two.convert("RGB")).astype(int)
    assert (colours[..., 2] > colours[..., 0] + 90).any(), "the largest number is negative: blue"


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer has no 'c'; it has a, b"):
        effects().select(layer="c")
    with pytest.raises(InputError, match="there is no dimension 'token'; there are layer, head"):
        effects().sum("token")
    with pytest.raises(InputError, match="occurs twice along head"):
        blip.Labelled(np.zeros(2), ("head",), {"head": ["0", "0"]})
    with pytest.raises(InputError, match=r"values of shape \(2,\) have labels for \(3,\)"):
        blip.Labelled(np.zeros(2), ("head",), {"head": ["0", "1", "2"]})
    three = blip.Labelled(np.zeros((1, 1, 1)), ("a", "b", "c"), {"a": ["0"], "b": ["0"], "c": ["0"]})
    with pytest.raises(InputError, match="one or two dimensions, not 3"):
        three.picture(tmp_path / "three.png")


# ---- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["match", "cosine", "caption"])
def test_metrics_are_what_the_model_gives_and_one_image_may_be_shared(
    model: Predictor, pictures: list[Path], name: str
) -> None:
    found = METRICS[name](model, pictures, TEXTS)
    logits = model.match_logits(pictures, TEXTS)
    expected = {
        "match": logits[:, 1] - logits[:, 0],
        "cosine": model.itc_score(pictures, TEXTS).diagonal(),
        "caption": caption_log_probs(model, pictures, TEXTS).sum(dim=1),
    }
    assert torch.allclose(found, expected[name], atol=1e-6)
    shared = METRICS[name](model, pictures[:1], TEXTS)
    assert torch.allclose(shared, METRICS[name](model, pictures[:1] * 3, TEXTS), atol=1e-5)
    assert not torch.allclose(found[1:], shared[1:], atol=1e-7)
    with model.gradients():
        assert METRICS[name](model, pictures, TEXTS).requires_grad


def test_metrics_by_name(model: Predictor, pictures: list[Path]) -> None:
    assert metric_of("match") is METRICS["match"] and metric_of(METRICS["match"]) is METRICS["match"]
    with pytest.raises(InputError, match=r"metric is 'mach'; it can be match.*did you mean match\?"):
        metric_of("mach")
    with pytest.raises(InputError, match="one string for the metric match"):
        METRICS["match"](model, pictures[:1], [("which side?", "left")])
    with pytest.raises(InputError, match=r"is \(question, answer\)"):
        METRICS["answer"](model, pictures[:1], ["which side?"])
