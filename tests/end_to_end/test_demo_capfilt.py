"""The counts of the CapFilt study: which captions are true, and what a threshold removes."""

import runpy

import numpy as np
import pytest
from helpers.running import ROOT

RECORD = {
    "body": "chest",
    "lesions": [
        {"shape": "ring", "size": "small", "brightness": "dark", "position": "upper", "side": "left", "box": []}
    ],
}


@pytest.fixture(scope="module")
def study(request: pytest.FixtureRequest) -> dict:
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.syspath_prepend(str(ROOT / "demo"))
    return runpy.run_path(str(ROOT / "demo" / "capfilt.py"))


@pytest.mark.parametrize(
    ("caption", "true"),
    [
        ("chest with a small dark ring lesion in the upper left", True),
        ("chest with a dark ring lesion", True),
        ("chest with a small dark ring lesion in the upper right", False),
        ("head with a small dark ring lesion in the upper left", False),
        ("a lesion", False),
    ],
)
def test_a_caption_is_true_when_all_that_it_names_is(study: dict, caption: str, true: bool) -> None:
    assert study["holds"](caption, RECORD) == true


def test_precision_and_recall_of_a_threshold(study: dict) -> None:
    noise = np.array(["none", "none", "none", "other", "other", "attribute"])
    match = np.array([0.9, 0.8, 0.1, 0.05, 0.6, 0.2])
    right, own = np.array([True, True, False]), np.array([0.7, 0.3, 0.9])
    row = study["one_threshold"](0.5, noise, match, right, own)
    assert row["right originals kept"] == pytest.approx(2 / 3)
    assert (row["other: precision"], row["other: recall"]) == (0.5, 0.5)
    assert (row["attribute: precision"], row["attribute: recall"]) == (0.5, 1.0)
    assert row["wrong, before"] == 0.5 and row["wrong, after"] == pytest.approx(2 / 5)
    assert row["kept synthetic right"] == 0.5 and row["synthetic kept"] == pytest.approx(2 / 3)


def test_shuffled_captions_are_those_of_others() -> None:
    real = runpy.run_path(str(ROOT / "demo" / "capfilt_real.py"))
    records = [{"image": f"{n}.png", "caption": f"text {n // 2}"} for n in range(100)]
    mixed = real["shuffled"](records, 0.3, np.random.default_rng(0))
    wrong = [a["caption"] != b["caption"] for a, b in zip(mixed, records, strict=True)]
    assert wrong == [not record["right"] for record in mixed] and 25 <= sum(wrong) <= 30
    assert sorted(r["caption"] for r in mixed) == sorted(r["caption"] for r in records)
    scores, right = np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, True, False])
    assert real["area"](scores, right) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
