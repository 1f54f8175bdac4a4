"""Learning rate and optimizer."""

import math

import pytest
from torch import nn

from blip.train.optim import build_optimizer, lr_at, scaled_lr


def test_warm_up_counts_optimizer_steps_and_takes_at_most_half() -> None:
    rates = [lr_at(step, 100, 1.0, warmup_steps=10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[9] == max(rates) == 1.0
    short = [lr_at(step, 20, 1.0, warmup_steps=3000) for step in range(20)]
    assert short.index(max(short)) == 9  # ends within half of the run, though it asked for more
    assert lr_at(0, 1, 1.0, warmup_steps=3000) == 1.0


def test_cosine_falls_to_the_least_rate() -> None:
    rates = [lr_at(step, 110, 1.0, 0.1, 10) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.55)
    assert rates[25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[-1] == pytest.approx(0.1)


def test_epoch_decay() -> None:
    rate = {step: lr_at(step, 1000, 1.0, 0.5, 0, "epoch_decay", 0.9, 10.5) for step in (0, 10, 11, 21, 22, 999)}
    assert rate == pytest.approx({0: 1, 10: 1, 11: 0.9, 21: 0.81, 22: 0.81, 999: 0.5})


def test_learning_rate_scales_with_the_global_batch_when_asked() -> None:
    assert scaled_lr(3e-4, 1440, 2880) == pytest.approx(1.5e-4)
    assert scaled_lr(3e-4, 1440, None) == 3e-4


def test_optimizer_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2).requires_grad_(False))
    as_published = build_optimizer(model, 1e-3, 0.05)
    assert [(len(g["params"]), g["weight_decay"]) for g in as_published.param_groups] == [(4, 0.05)]
    split = build_optimizer(model, 1e-3, 0.05, decay_norms_and_biases=False)
    assert [(len(g["params"]), g["weight_decay"]) for g in split.param_groups] == [(1, 0.05), (3, 0.0)]
