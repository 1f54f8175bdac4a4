"""The training loop: the order of a step, what stops it, what it saves and logs, learning rates, checkpoints."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.silent_log import SilentLog
from torch import nn

from blip.config import PretrainConfig, load_config
from blip.errors import BlipError
from blip.models import losses, momentum
from blip.tasks import pretrain
from blip.train import loop, meter, signals
from blip.train.history import METRICS
from blip.train.log import RunLog, read_metrics
from blip.train.loop import Loop, LoopOptions, Step
from blip.train.meter import Meter
from blip.train.schedule import Epochs
from blip.train.verdict import NonFiniteError


class Rig:
    """A loop over a linear model; every batch is a tensor (4, 3)."""

    def __init__(self, **options: object):
        self.model = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.log, self.saved, self.events = SilentLog(), [], []
        self.optimizer.register_step_pre_hook(lambda *_: self.events.append("optimizer"))
        self.loop = Loop(
            self.model, self.optimizer, lambda step: 0.1 / (step + 1), options=LoopOptions(**options),  # type: ignore
            log=self.log, save=lambda step, state: self.saved.append((step, state)),  # type: ignore[arg-type]
        )  # fmt: skip

    def step(self, batch: torch.Tensor, number: int) -> Step:
        self.events.append(f"losses {number}")
        loss = self.model(batch).square().mean()
        loss.register_hook(lambda _: self.events.append("backward"))
        logs = {"loss": loss.detach(), "number": float(number)}
        return Step(loss, logs, len(batch), flops=10.0, describe=lambda: f"{batch[0, 0]:g}.png")

    def run(self, batches: list[torch.Tensor], evaluation: dict | None = None) -> bool:
        def at_step_end(step: int) -> dict | None:
            self.events.append(f"end {step}")
            return evaluation

        return self.loop.run(
            iter(batches), self.step, lambda n: self.events.append(f"after {n}"), at_step_end=at_step_end
        )


def batches(count: int) -> list[torch.Tensor]:
    return [torch.full((4, 3), float(i + 1)) for i in range(count)]


def test_order_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(total_steps=2, accumulation=2, clip_norm=1.0)
    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *a: (rig.events.append(f"clip {a[1]}"), clip(*a))[1])
    assert rig.run(batches(4)) is True
    one = "losses {0}|backward|losses {0}|backward|clip 1.0|optimizer|after {1}|end {1}"
    assert rig.events == [*one.format(0, 1).split("|"), *one.format(1, 2).split("|")]


def test_gradients_of_an_accumulated_step_are_means_and_the_learning_rate_is_set() -> None:
    rig, data = Rig(total_steps=1, accumulation=2), batches(2)
    plain = torch.stack([rig.model(batch).square().mean() for batch in data]).mean()
    gradient = torch.autograd.grad(plain, rig.model.weight)[0]
    before = rig.model.weight.detach().clone()
    rig.run(data)
    torch.testing.assert_close(rig.model.weight.detach(), before - 0.1 * gradient)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_loss_not_finite_stops_before_the_update(accumulation: int) -> None:
    rig, data = Rig(total_steps=5, accumulation=accumulation), batches(5 * accumulation)
    data[2 * accumulation][1] = float("inf")  # the first batch of step 3
    with pytest.raises(NonFiniteError, match=r"^step 3: loss \[nan.*samples: \d+\.png\. Look.*lower lr") as caught:
        rig.run(data)
    assert f"samples: {2 * accumulation + 1}.png." in str(caught.value)  # the bad batch alone
    assert rig.events.count("optimizer") == 2
    assert rig.events[-1] == "backward"
    assert all(parameter.isfinite().all() for parameter in rig.model.parameters())
    assert [step for step, _ in rig.saved] == [2]


def test_gradient_not_finite_stops_before_the_update() -> None:
    rig = Rig(total_steps=5)
    before = [parameter.detach().clone() for parameter in rig.model.parameters()]

    def step(batch: torch.Tensor, number: int) -> Step:
        return Step((rig.model(batch) * 0).sum().sqrt(), {}, 4, describe=lambda: "a.png, b.png")  # 0, of infinite slope

    with pytest.raises(NonFiniteError, match=r"step 1: gradient norm nan is not finite.*a\.png, b\.png"):
        rig.loop.run(iter(batches(1)), step, lambda _: None, at_step_end=lambda _: None)
    assert all(torch.equal(p, old) for p, old in zip(rig.model.parameters(), before, strict=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_step_saves_and_stops(number: signal.Signals) -> None:
    rig = Rig(total_steps=9, accumulation=2)
    handler = signal.getsignal(number)
    plain_step = rig.step

    def step(batch: torch.Tensor, done: int) -> Step:
        if batch[0, 0] == 3:  # the first half of step 2
            os.kill(os.getpid(), number)
        return plain_step(batch, done)

    rig.step = step  # type: ignore[method-assign]
    assert rig.run(batches(18)) is False
    assert rig.events[-3:] == ["optimizer", "after 2", "end 2"]
    assert [step for step, _ in rig.saved] == [2]
    assert rig.log.said == ["stopped by a signal after step 2; continue with --resume auto"]
    assert signal.getsignal(number) is handler


def test_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    with signals.Signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received.seen and not ended
        os.kill(os.getpid(), signal.SIGINT)
    assert ended == [128 + signal.SIGINT]


def test_the_same_signal_within_a_second_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    clock = [100.0]
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    with signals.Signals():
        os.kill(os.getpid(), signal.SIGTERM)
        clock[0] += 0.5
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes on what the whole job got
        assert not ended
        clock[0] += 1
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [128 + signal.SIGTERM]


def test_an_evaluation_that_fails_costs_no_step() -> None:
    rig = Rig(total_steps=4)

    def fail(step: int) -> dict | None:
        if step == 3:
            raise RuntimeError("out of memory")
        return None

    with pytest.raises(RuntimeError):
        rig.loop.run(iter(batches(4)), rig.step, lambda _: None, at_step_end=fail)
    assert [step for step, _ in rig.saved] == [3]


def test_saves_every_n_steps_and_at_the_end_once() -> None:
    rig = Rig(total_steps=6, save_every=2)
    rig.run(batches(6))
    assert [step for step, _ in rig.saved] == [2, 4, 6]
    assert Rig(total_steps=3).run(batches(3))


def test_saves_every_m_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))
    rig = Rig(total_steps=9, save_every_minutes=2)
    plain_step = rig.step

    def step(batch: torch.Tensor, done: int) -> Step:
        clock.now += 50  # seconds
        return plain_step(batch, done)

    rig.step = step  # type: ignore[method-assign]
    rig.run(batches(9))
    assert [step for step, _ in rig.saved] == [3, 6, 9]


# ---- log -------------------------------------------------------------------------------------------------------------


def test_lines_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    rig = Rig(total_steps=3, accumulation=2, log_every=2, peak_flops=80.0)
    plain_step = rig.step

    def step(batch: torch.Tensor, done: int) -> Step:
        clock.now += 0.25
        return plain_step(batch, done)

    rig.step = step  # type: ignore[method-assign]
    rig.run(batches(6))
    assert [number for number, _ in rig.log.lines] == [2, 3]  # every second one, and the last
    line = rig.log.lines[0][1]
    assert line["number"] == 0.5  # the mean over two steps
    assert line["lr"] == 0.1 / 2
    assert line["images_per_s"] == 16  # 4 batches of 4 in a second
    assert line["mfu"] == 0.5  # 40 of 80
    assert line["grad_norm"] > 0 and line["memory_mb"] > 0
    assert rig.log.lines[1][1]["images_per_s"] == 16  # the window began anew


def test_lines_of_epochs_hold_the_means_of_training() -> None:
    """Three batches an epoch, two in a step: epochs end with steps 2 and 3 (cut short: 4); a line every 3 steps."""
    epochs = Epochs(3, 2, 9, max_steps=4)
    rig = Rig(total_steps=4, accumulation=2, log_every=3, epochs=epochs)
    seen: list[float] = []
    plain_step = rig.step

    def step(batch: torch.Tensor, done: int) -> Step:
        out = plain_step(batch, done)
        seen.append(out.loss.item())
        return out

    rig.step = step  # type: ignore[method-assign]
    rig.run(batches(8))
    steps = [line for _, line in rig.log.lines if "lr" in line]
    lines = [(number, line) for number, line in rig.log.lines if "lr" not in line]
    assert [line["epoch"] for line in steps] == [2.0, round(8 / 3, 6)]
    assert [(number, line["epoch"]) for number, line in lines] == [(2, 1), (3, 2), (4, 2)]
    parts = [seen[:4], seen[4:6], seen[6:]]
    assert [line["train_loss"] for _, line in lines] == pytest.approx([sum(part) / len(part) for part in parts])
    assert [line["train_number"] for _, line in lines] == [0.5, 2, 3]
    assert all(type(line["epoch"]) is int for _, line in lines)


def test_the_state_of_a_loop_holds_the_means_of_an_epoch() -> None:
    epochs = Epochs(4, 1, 2)
    whole, halves = Rig(total_steps=8, epochs=epochs), Rig(total_steps=2, epochs=epochs)
    data = batches(8)
    start = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    halves.model.load_state_dict(start)
    whole.run(data)
    halves.run(data[:2])
    rest = Rig(total_steps=8, epochs=epochs)
    rest.model.load_state_dict(halves.model.state_dict())
    rest.loop.last.number = 2
    rest.loop.load({**halves.saved[-1][1]})
    rest.run(data[2:])
    found, expected = (
        [{k: v for k, v in line.items() if k != "images_per_s"} for _, line in rig.log.lines if "train_loss" in line]
        for rig in (rest, whole)
    )
    assert found == expected and len(found) == 2


def test_evaluation_becomes_a_line() -> None:
    rig = Rig(total_steps=1)
    rig.run(batches(1), evaluation={"val_t2i_r1": 0.5})
    assert rig.log.lines[-1] == (1, {"val_t2i_r1": 0.5})


def test_meter_continues_from_its_state() -> None:
    whole, first, second = Meter(), Meter(), Meter()
    for one in (whole, first):
        one.add({"itc": torch.tensor(1.0), "alpha": 0.1})
    second.load(first.state())
    for one in (whole, second):
        one.add({"itc": torch.tensor(4.0), "alpha": 0.2})
    assert whole.take() == second.take() == pytest.approx({"itc": 2.5, "alpha": 0.15})
    assert whole.take() == {}


def test_metrics_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = RunLog(tmp_path, 0, 10)
    for step in (1, 2, 3):
        log.metrics(step, {"itc": 1 / 3, "epoch": step})
    log.message("a [bracket] stays")
    log.close()
    assert read_metrics(tmp_path)[0] == {"step": 1, "itc": 0.33333333, "epoch": 1}
    shown = capsys.readouterr().err
    assert "step 3/10  epoch 3  itc 0.3333\n" in shown
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 2, "it')  # a kill in the middle of a line
    RunLog(tmp_path, 2, 10).close()  # resumed after step 2
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    RunLog(tmp_path, 0, 10).close()  # killed before the first checkpoint: from the start
    assert (tmp_path / METRICS).read_text() == ""


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BlipError, match=r"pip install -e '.\[tensorboard\]'"):
        RunLog(tmp_path, 0, 10, tensorboard=True)


def plateau(itm: float, step: int, warned: bool = False, total: int = 2000) -> list[str]:
    """What `warn_of_plateau` says when the mean ITM loss is `itm`."""
    log, config = SilentLog(), SimpleNamespace(warmup_steps=100)
    epochs = SimpleNamespace(total_steps=total)
    task = SimpleNamespace(config=config, epochs=epochs, warned=warned, itm_mean=torch.tensor(itm))
    pretrain.Pretraining.warn_of_plateau(task, step, log)  # type: ignore[arg-type]
    return log.said


def test_warns_when_matching_learns_nothing() -> None:
    late = 100 + pretrain.STEPS_TO_LEARN
    said = plateau(0.637, late)
    assert len(said) == 1
    assert "ITM is at 0.637" in said[0] and "0.6365" in said[0] and "init_from" in said[0]
    assert plateau(0.637, late - 1) == plateau(0.5, late) == plateau(0.637, late, warned=True) == []
    assert plateau(0.637, 200, total=300) and not plateau(0.637, 199, total=300), "short runs are warned half-way"
    assert pytest.approx(0.6365, abs=1e-4) == losses.ITM_NO_SKILL


def test_order_of_what_follows_the_update(tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temperature, twin, queue; the queue gets the pairs of every micro-batch."""
    config = load_config(tiny_config, PretrainConfig, ["val_file=[]"])
    task = pretrain.Pretraining(config, tmp_path, None, device=torch.device("cpu"))
    contrast = task.contrast
    events: list[str] = []
    update = momentum.update_twin

    def update_twin(*arguments: object) -> None:
        events.append(f"twin at temperature {task.model.temperature.item():.1f}, pointer {int(contrast.queue.pointer)}")
        update(*arguments)

    monkeypatch.setattr(momentum, "update_twin", update_twin)
    stream = task.batches(0)
    for _ in range(2):
        task.step(next(stream), 0)
    with torch.no_grad():
        task.model.temperature.fill_(0.9)
        task.model.image_proj.bias += 1
    before = contrast.twin.image_proj.bias.clone()
    task.after_update(1)
    assert events == ["twin at temperature 0.5, pointer 0"]
    assert int(contrast.queue.pointer) == 16 and contrast.pending == []
    torch.testing.assert_close(
        contrast.twin.image_proj.bias, before.lerp(task.model.image_proj.bias, 1 - config.momentum)
    )
    assert contrast.queue.caption_ids[:16].ne(momentum.NO_ID).all()
    assert contrast.queue.caption_ids[16:].eq(momentum.NO_ID).all()
