"""What is found about a step before its update, and an optimizer that changes nothing where that is bad."""

from typing import Any

import pytest
import torch
from helpers.silent_log import SilentLog
from torch import Tensor, nn

from blip.hardware.transfers import EarlyCopy, sent
from blip.train.loop import Loop, LoopOptions, Step
from blip.train.optim import build_optimizer
from blip.train.verdict import NonFiniteError, Verdict

INF, NAN = float("inf"), float("nan")


def make(start: dict[str, Tensor] | None = None, *, updates_first: bool) -> tuple[Loop, list[int]]:
    """A loop over a linear model with the optimizer of every run, and the steps after which something followed."""
    model, saved = nn.Linear(3, 1), []
    if start:
        model.load_state_dict(start)
    optimizer = build_optimizer(model, 0.1, 0.05)
    loop = Loop(
        model, optimizer, lambda step: 0.1 / (step + 1), options=LoopOptions(4, accumulation=2, clip_norm=1.0),
        log=SilentLog(), save=lambda step, state: saved.append(step),  # type: ignore[arg-type]
    )  # fmt: skip
    assert not loop.updates_first, "on a CPU"
    loop.updates_first = updates_first
    return loop, saved


def run(loop: Loop, batches: list[Tensor]) -> list[int]:
    """The steps after which the model's other parts were updated."""
    followed: list[int] = []

    def step(batch: Tensor, number: int) -> Step:
        return Step(loop.model(batch).square().mean(), {}, len(batch), describe=lambda: f"{batch[0, 0]:g}.png")

    loop.run(iter(batches), step, followed.append, at_step_end=lambda _: None)
    return followed


def state_of(loop: Loop) -> list[Any]:
    moments = loop.optimizer.state_dict()["state"].values()
    return [*loop.model.parameters(), *(one[name] for one in moments for name in ("exp_avg", "exp_avg_sq", "step"))]


def batches() -> list[Tensor]:
    return [torch.full((4, 3), float(i + 1)) for i in range(8)]


def test_an_update_before_the_verdict_is_the_same_update() -> None:
    """As a GPU makes it: the optimizer is called before anybody knows whether the step is good."""
    after, _ = make(updates_first=False)
    first, _ = make({name: x.clone() for name, x in after.model.state_dict().items()}, updates_first=True)
    assert run(first, batches()) == run(after, batches()) == [1, 2, 3, 4]
    for one, other in zip(state_of(first), state_of(after), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [1, 3])
@pytest.mark.parametrize("value", [NAN, INF])
def test_an_update_before_a_bad_verdict_changes_nothing(bad: int, value: float) -> None:
    whole, _ = make(updates_first=False)
    loop, saved = make({name: x.clone() for name, x in whole.model.state_dict().items()}, updates_first=True)
    whole.options.total_steps = bad - 1
    run(whole, batches())
    data = batches()
    data[2 * bad - 1][1] = value  # the second batch of the step
    with pytest.raises(NonFiniteError, match=rf"^step {bad}: loss \[.*samples: {2 * bad}\.png\."):
        run(loop, data)
    assert saved == ([bad - 1] if bad > 1 else []), "the step before is saved: nothing has begun to change"
    assert not loop.last.changing
    kept, expected = state_of(loop), state_of(whole)
    for one, other in zip(kept, expected, strict=False):  # before the first step there are no moments
        assert torch.equal(one, other)
    assert all(not x.any() for x in kept[len(expected) :])


def test_a_process_without_data_updates_nothing() -> None:
    good, norm = torch.tensor([1.0, 2.0]), torch.tensor(3.0)
    for failed, expected in ((False, 0.0), (True, 1.0)):
        verdict = Verdict(good, norm, failed=failed, stop=True, late=True)
        assert verdict.bad.item() == expected
        found = verdict.read()
        assert (found.failed, found.stop, found.late, found.norm) == (failed, True, True, 3.0)
        assert torch.equal(found.losses, good) and found.error(1, []) is None


@pytest.mark.parametrize(
    ("losses", "norm", "named"),
    [([1.0, NAN], 1.0, "b.png."), ([INF, 1.0], 1.0, "a.png."), ([1.0, 1.0], INF, "a.png b.png.")],
)
def test_what_is_not_finite_is_bad(losses: list[float], norm: float, named: str) -> None:
    verdict = Verdict(torch.tensor(losses), torch.tensor(norm), failed=False, stop=False, late=False)
    assert verdict.bad.item() == 1
    error = verdict.read().error(7, [lambda: "a.png", lambda: "b.png"])
    assert str(error).startswith("step 7: ") and f"samples: {named}" in str(error)


def test_without_a_limit_gradients_are_only_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, _ = make(updates_first=False)
    loop.options.clip_norm = None
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", None)
    loop.model.weight.grad, loop.model.bias.grad = torch.full((1, 3), 2.0), torch.full((1,), 2.0)
    assert loop._clip().item() == 4


def test_copies_on_a_cpu_are_the_tensors_themselves() -> None:
    x = torch.ones(3, requires_grad=True)
    early = EarlyCopy(x)
    assert early.read().data_ptr() == early.read().data_ptr() == x.data_ptr() and not early.read().requires_grad
    assert sent(x, torch.device("cpu")) is x
