"""What `training.pt` holds is checked: names, types, shapes, finite numbers. No code in it runs."""

import os
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blip.checkpoints.format import CheckpointError
from blip.train.checkpoint import TRAINING, random_state
from blip.train.optim import build_optimizer
from blip.train.state import check_optimizer, read_training


def model_and_optimizer(steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = build_optimizer(model, 0.1, 0.05)
    for _ in range(steps):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return model, optimizer


def sound() -> dict[str, Any]:
    """As `Checkpointer.save` and the tasks write it."""
    return {
        "step": 2,
        "random": [random_state()],
        "optimizer": model_and_optimizer()[1].state_dict(),
        "loop": {"meters": [{"sums": {"loss": torch.tensor(0.5, dtype=torch.float64)}, "counts": {"loss": 2}}]},
        "twin": {"x.weight": torch.zeros(2)},
        "queue": {"images": torch.zeros(3, 5), "texts": torch.zeros(3, 5), "pointer": torch.tensor(4),
                  "image_ids": torch.zeros(5).long(), "caption_ids": torch.zeros(5).long()},
        "progress": {"itm_mean": torch.tensor(0.6), "seen": {"web": 3}, "best": torch.tensor(0.5, dtype=torch.float64)},
        "another": {"of": "a task"},
    }  # fmt: skip


def at(*place: Any, value: Any) -> Callable[[dict], None]:
    """Puts a value at a place; `...` leaves it out, a function gets what was there."""

    def change(state: dict) -> None:
        *way, last = place
        for key in way:
            state = state[key]
        if value is ...:
            del state[last]
        else:
            state[last] = value(state[last]) if callable(value) else value

    return change


NAN = float("nan")
STATES = {
    "no step": (at("step", value=...), "step: Field required"),
    "step is text": (at("step", value="2"), "step"),
    "step is true": (at("step", value=True), "step"),
    "more steps than any run has": (at("step", value=10**18), "step"),
    "negative step": (at("step", value=-1), "step"),
    "no random state": (at("random", value=...), "random: Field required"),
    "random state without numbers": (at("random", value=[{}]), "random numbers"),
    "random state is short": (at("random", 0, "cpu", value=lambda t: t[:9]), "random numbers"),
    "random state of floats": (at("random", 0, "cpu", value=lambda t: t.float()), "random numbers"),
    "random state of the GPU": (lambda state: state["random"][0].update(cuda=torch.zeros(3)), "GPU"),
    "optimizer is a list": (at("optimizer", value=[]), "optimizer"),
    "optimizer without groups": (at("optimizer", "param_groups", value=...), "param_groups"),
    "groups are text": (at("optimizer", "param_groups", value="all"), "param_groups"),
    "moments by name": (at("optimizer", "state", value={"a": {}}), "optimizer.state"),
    "moment is text": (at("optimizer", "state", 0, "exp_avg", value="0"), "exp_avg"),
    "meter without counts": (at("loop", "meters", 0, "counts", value={}), "means of its log"),
    "meter of vectors": (at("loop", "meters", 0, "sums", "loss", value=torch.zeros(2)), "loss"),
    "count of zero": (at("loop", "meters", 0, "counts", "loss", value=0), "counts"),
    "count that torch cannot hold": (at("loop", "meters", 0, "counts", "loss", value=10**30), "counts"),
    "fewer pairs than none": (at("progress", "seen", value={"web": -1}), "seen"),
    "twin of integers": (at("twin", "x.weight", value=torch.zeros(2).long()), "twin: x.weight is of type int64"),
    "twin is NaN": (at("twin", "x.weight", value=torch.full((2,), NAN)), "x.weight holds 2 numbers"),
    "queue of integers": (at("queue", "images", value=torch.zeros(3, 5).int()), "queue.images"),
    "pointer outside": (at("queue", "pointer", value=torch.tensor(5)), "pointer"),
    "pointer is a fraction": (at("queue", "pointer", value=torch.tensor(1.5)), "queue.pointer"),
    "no pointer": (at("queue", "pointer", value=...), "pointer"),
    "best is a vector": (at("progress", "best", value=torch.zeros(2)), "best"),
    "mean is whole": (at("progress", "itm_mean", value=torch.tensor(1)), "itm_mean"),
    "sources are a list": (at("progress", "seen", value=[1]), "seen"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATES)
def test_states_that_are_damaged(kind: str, tmp_path: Path) -> None:
    state = deepcopy(sound())
    change, message = STATES[kind]
    change(state)
    torch.save(state, tmp_path / TRAINING)
    with pytest.raises(CheckpointError, match=rf"training\.pt.*{re.escape(message)}"):
        read_training(tmp_path / TRAINING)


@pytest.mark.parametrize("step", [0, 1, 3, 10**7])
def test_the_step_is_that_of_the_folder(step: int, tmp_path: Path) -> None:
    """Another one would repeat steps, or end the run before its time; also where a link leads to the folder."""
    folder, latest, copied = (tmp_path / name for name in ("step-00000002", "latest", "copy"))
    folder.mkdir()
    latest.symlink_to(folder.name)
    torch.save(sound(), folder / TRAINING)
    assert read_training(latest / TRAINING)["step"] == 2
    torch.save({**sound(), "step": step}, folder / TRAINING)
    for place in (folder, latest):
        with pytest.raises(CheckpointError, match=rf"training\.pt is damaged, or of .* of step {step}, .* step 2"):
            read_training(place / TRAINING)
    folder.rename(copied)
    assert read_training(copied / TRAINING)["step"] == step


def test_a_sound_state_is_as_it_was_written(tmp_path: Path) -> None:
    torch.save(sound(), tmp_path / TRAINING)
    state = read_training(tmp_path / TRAINING)
    assert state.keys() == sound().keys() and state["step"] == 2 and state["another"] == {"of": "a task"}
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], sound()["optimizer"]["state"][0]["exp_avg"])
    torch.save({"step": 0, "random": [], "loop": {}}, tmp_path / TRAINING)
    state = read_training(tmp_path / TRAINING)
    for lookup in (lambda: state["optimizer"], lambda: state["loop"]["meters"]):
        with pytest.raises(CheckpointError, match=r"training\.pt is incomplete: it has no '(optimizer|meters)'"):
            lookup()


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("content", [Code(), {"step": Code()}, [1], "text", torch.zeros(2), {1: 2}])
def test_other_content(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / TRAINING)
    with pytest.raises(CheckpointError, match=r"training\.pt") as caught:
        read_training(tmp_path / TRAINING)
    assert "weights_only" not in str(caught.value) and not (tmp_path / "owned").exists()


# ---- the optimizer ---------------------------------------------------------------------------------------------------

MOMENTS = {
    "another shape": (at("state", 0, "exp_avg", value=torch.zeros(3)), r"exp_avg of parameter 0 is of shape \(3,\)"),
    "a transposed shape": (at("state", 0, "exp_avg_sq", value=lambda t: t.T.contiguous()), "exp_avg_sq of parameter 0"),
    "empty": (at("state", 1, "exp_avg", value=torch.zeros(0)), "exp_avg of parameter 1"),
    "integers": (at("state", 0, "exp_avg", value=lambda t: t.long()), "of type int64"),
    "NaN": (at("state", 3, "exp_avg", value=lambda t: t * NAN), "infinite or not a number"),
    "negative squares": (at("state", 3, "exp_avg_sq", value=lambda t: t - 1), "negative"),
    "negative steps": (at("state", 3, "step", value=torch.tensor(-1.0)), "negative"),
    "steps of a vector": (at("state", 3, "step", value=torch.zeros(2)), "step of parameter 3"),
    "no first moment": (at("state", 2, "exp_avg", value=...), "exp_avg of parameter 2 is missing"),
    "none": (at("state", value={}), "moments are missing"),
    "of other parameters": (lambda state: state["state"].update({9: state["state"].pop(0)}), "of other parameters"),
    "other numbers": (at("param_groups", 0, "params", value=[0, 1, 2, 2]), "groups of parameters"),
    "no numbers": (at("param_groups", 0, "params", value=...), "groups of parameters"),
}


@pytest.mark.parametrize("kind", MOMENTS)
def test_moments_that_are_damaged(kind: str) -> None:
    _, optimizer = model_and_optimizer(0)
    state = deepcopy(model_and_optimizer()[1].state_dict())
    change, message = MOMENTS[kind]
    change(state)
    with pytest.raises(CheckpointError, match=f"x.pt.*{message}"):
        check_optimizer(state, optimizer, "x.pt")


def test_moments_are_the_files_and_options_the_optimizers() -> None:
    (one, before), (two, after) = model_and_optimizer(2), model_and_optimizer(0)
    two.load_state_dict(one.state_dict())
    state = deepcopy(before.state_dict())
    state["param_groups"][0].update(betas=("a", None), fused="perhaps", weight_decay=NAN)
    after.load_state_dict(check_optimizer(state, after, "x.pt"))
    for model, optimizer in ((one, before), (two, after)):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_parameters_without_a_gradient_have_no_moments() -> None:
    model, optimizer = model_and_optimizer(0)
    model[0](torch.ones(2, 3)).sum().backward()
    optimizer.step()
    checked = check_optimizer(optimizer.state_dict(), model_and_optimizer(0)[1], "x.pt")
    assert sorted(checked["state"]) == [0, 1]
