"""The losses against plain loops over samples."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from blip.models import losses

B, C, V = 4, 9, 12


def batch_positives() -> Tensor:
    """Row 1 has two more positives, one of them in the queue; row 3 shares one with row 1."""
    positives = torch.eye(B, C, dtype=torch.bool)
    positives[1, 3] = positives[1, 7] = positives[3, 1] = True
    return positives


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_contrast(alpha: float) -> None:
    similarity, twin, positives = torch.randn(B, C) * 3, torch.randn(B, C) * 3, batch_positives()
    total = 0.0
    for i in range(B):
        denominator = sum(math.exp(s) for s in similarity[i].tolist())
        twin_denominator = sum(math.exp(s) for s in twin[i].tolist())
        shared = positives[i].sum().item()
        for j in range(C):
            soft = math.exp(twin[i, j].item()) / twin_denominator
            target = alpha * soft + (1 - alpha) * (1 / shared if positives[i, j] else 0.0)
            total -= target * math.log(math.exp(similarity[i, j].item()) / denominator)
    assert_close(losses.contrast(similarity, twin, positives, alpha=alpha).item(), total / B, rtol=1e-5, atol=1e-5)


def test_contrast_has_no_gradient_through_the_targets() -> None:
    similarity, twin = torch.randn(B, C, requires_grad=True), torch.randn(B, C, requires_grad=True)
    losses.contrast(similarity, twin, batch_positives(), alpha=0.4).backward()
    assert twin.grad is None
    targets = 0.4 * twin.softmax(dim=1) + 0.6 * batch_positives() / batch_positives().sum(dim=1, keepdim=True)
    assert_close(similarity.grad, (similarity.softmax(dim=1) - targets).detach() / B)


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_negative_weights(floor: float) -> None:
    similarity, positives = torch.randn(B, B, requires_grad=True), batch_positives()[:, :B]
    weights = losses.negative_weights(similarity, positives, floor)
    assert not weights.requires_grad
    for i in range(B):
        denominator = sum(math.exp(s) for s in similarity[i].tolist())
        for j in range(B):
            expected = 0.0 if positives[i, j] else math.exp(similarity[i, j].item()) / denominator + floor
            assert weights[i, j].item() == pytest.approx(expected, rel=1e-5)


def test_draws_follow_the_weights() -> None:
    weights = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    draws = torch.stack([losses.draw_negatives(weights)[0] for _ in range(2000)])  # (2000, 3)
    for row in range(3):
        share = torch.bincount(draws[:, row], minlength=3) / 2000
        assert_close(share, weights[row] / weights[row].sum(), rtol=0, atol=0.05)
    assert (draws[:, 0] != 0).all() and (draws[:, 1] == 0).all()


def test_a_row_without_negatives_does_not_crash() -> None:
    index, exists = losses.draw_negatives(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert exists.tolist() == [False, True]
    assert index[1] == 0
    weights = losses.negative_weights(torch.randn(1, 1), torch.ones(1, 1, dtype=torch.bool), floor=1e-4)
    assert losses.draw_negatives(weights)[1].tolist() == [False]


def test_match_ignores_rows_that_do_not_count() -> None:
    logits = torch.randn(6, 2)
    is_match = torch.tensor([True, True, False, False, False, False])
    counts = torch.tensor([True, True, True, False, True, False])
    total = [-logits[i].log_softmax(dim=0)[int(is_match[i])].item() for i in range(6)]
    assert losses.match(logits, is_match).item() == pytest.approx(sum(total) / 6, rel=1e-5)
    kept = [value for value, count in zip(total, counts.tolist(), strict=True) if count]
    assert losses.match(logits, is_match, counts).item() == pytest.approx(sum(kept) / 4, rel=1e-5)


def test_match_without_skill() -> None:
    no_skill = torch.tensor([2 / 3, 1 / 3]).log().expand(6, 2)
    labels = torch.tensor([True, True, False, False, False, False])
    assert pytest.approx(0.6365, abs=5e-5) == losses.ITM_NO_SKILL
    assert losses.match(no_skill, labels).item() == pytest.approx(losses.ITM_NO_SKILL, rel=1e-6)
    other = torch.tensor([0.6, 0.4]).log().expand(6, 2)
    assert losses.match(other, labels) > losses.ITM_NO_SKILL


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_language_model(smoothing: float) -> None:
    logits, targets = torch.randn(7, V), torch.tensor([3, -100, 0, 11, -100, 5, 5])
    total, count = 0.0, 0
    for p in range(7):
        if targets[p] == -100:
            continue
        log_probability = logits[p].log_softmax(dim=0)
        hard, even = -log_probability[targets[p]].item(), -log_probability.mean().item()
        total += (1 - smoothing) * hard + smoothing * even
        count += 1
    assert losses.language_model(logits, targets, smoothing).item() == pytest.approx(total / count, rel=1e-5)


def test_losses_are_float32_whatever_comes_in() -> None:
    logits = torch.randn(6, V).bfloat16()
    assert losses.language_model(logits, torch.arange(6)).dtype == torch.float32
    assert losses.match(logits[:, :2], torch.ones(6)).dtype == torch.float32
    contrast = losses.contrast(logits[:4, :C], logits[:4, :C], batch_positives(), alpha=0.4)
    assert contrast.dtype == torch.float32


def test_alpha_ramp() -> None:
    assert [losses.alpha_ramp(step, 4, 0.4) for step in (0, 1, 4, 9)] == pytest.approx([0.0, 0.1, 0.4, 0.4])
    assert losses.alpha_ramp(0, 0, 0.4) == 0.0
    assert losses.alpha_ramp(1, 0, 0.4) == 0.4
