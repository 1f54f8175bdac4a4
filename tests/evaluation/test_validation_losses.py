"""Losses over a whole set: in parts as at once, by hand, and without what does not count."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from blip.evaluation import losses
from blip.evaluation.losses import LossSums, contrast_of_set, match_losses, matching_loss, with_total
from blip.hardware.profile import PROFILES
from blip.models.losses import ITM_NO_SKILL


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_contrast_of_a_set(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image 3 has no text, text 1 no image, text 0 two images."""
    monkeypatch.setitem(PROFILES, "cpu", replace(PROFILES["cpu"], rows_at_once=rows))
    images, texts = F.normalize(torch.randn(4, 8), dim=1), F.normalize(torch.randn(5, 8), dim=1)
    right = torch.tensor([[1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    found = contrast_of_set(images, texts, right.__getitem__, 0.1)
    similarity = (images @ texts.T / 0.1).double()
    forward = [-similarity[i].log_softmax(0)[right[i]].mean() for i in range(3)]
    backward = [-similarity[:, t].log_softmax(0)[right[:, t]].mean() for t in (0, 2, 3, 4)]
    assert found.loss == pytest.approx(float(sum(forward) / 3 + sum(backward) / 4) / 2, rel=1e-6)
    assert sum(found.matched) == 5 and sum(found.unmatched) == 15
    cosines = (images @ texts.T)[right]
    place = int((float(cosines[0]) + 1) / 2 * losses.BINS)
    assert found.matched[place] >= 1
    edges = found.histogram["edges"]
    assert edges[place] <= float(cosines[0]) <= edges[place + 1]


def test_cosines_that_rounding_puts_outside_are_counted() -> None:
    ones = torch.full((1, 1), 1.0000002)
    assert contrast_of_set(ones, ones, lambda rows: torch.ones(1, 1, dtype=torch.bool), 1.0).matched[-1] == 1


def test_sums_of_losses_are_means_over_what_counts() -> None:
    sums = LossSums()
    sums.add("lm", torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
    sums.add("lm", torch.tensor([6.0]))
    sums.add("ce", torch.tensor(8.0), 4)
    sums.add("none", torch.tensor([5.0]), torch.tensor([False]))
    assert sums.means() == {"lm": 3.0, "ce": 2.0}
    assert with_total(sums.means(), "val") == {"val_loss": 5.0, "val_lm": 3.0, "val_ce": 2.0}
    assert with_total({}, "val") == {}


def test_matching_without_skill_is_where_it_is_in_training() -> None:
    logits = torch.tensor([[0.0, 0.0]]) + torch.tensor([2 / 3, 1 / 3]).log()
    means = [float(match_losses(logits, label).mean()) for label in (True, False)]
    assert matching_loss(*means) == pytest.approx(ITM_NO_SKILL)
    assert matching_loss(means[0], None) == means[0]
