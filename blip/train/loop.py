"""The only training loop of the package: steps, checkpoints, signals, logs. It depends on no model and no data."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from blip import distributed
from blip.errors import BlipError
from blip.hardware.precision import autocast
from blip.train.background import Background
from blip.train.history import EVALUATION, LINE
from blip.train.last_step import LastStep
from blip.train.log import RunLog
from blip.train.meter import Meter, Window
from blip.train.parallel import memory_mb
from blip.train.schedule import Epochs
from blip.train.signals import Signals


class NonFiniteError(BlipError):
    """A loss or gradient became infinite or not a number; nothing was updated with it."""


@dataclass
class Step:
    """The result of a forward pass."""

    loss: Tensor
    logs: dict[str, Tensor | float]
    images: int  # in this forward pass
    _: KW_ONLY
    flops: float = 0.0  # of its forward and backward pass
    describe: Callable[[], str] = field(default=lambda: "")  # names the samples, for an error message


@dataclass
class LoopOptions:
    """Options of a run. Intervals are numbers of optimizer steps unless their name ends in `_minutes`."""

    total_steps: int
    accumulation: int = 1
    clip_norm: float | None = None
    _: KW_ONLY
    precision: str = "fp32"
    log_every: int = 50
    save_every: int | None = None
    save_every_minutes: float | None = None
    peak_flops: float = 0.0  # of this device, for model FLOPs utilisation; 0: not reported
    epochs: Epochs | None = None  # for the lines of epochs


class Loop:
    """Runs optimizer steps from `start_step` to the end, or to a signal or an error, and saves the last finished step.

    The order within a step is: losses, backward (for each of `accumulation` batches), clip, optimizer, `after_update`.
    Then come the line of the log and the evaluation, where they are due. A checkpoint that is written between these
    names what is still to come, which the resumed run does first.

    Args:
        model: the module with the parameters, wrapped for several processes or not.
        optimizer: over its parameters.
        lr: the learning rate of each optimizer step, counted from 0.
        log: gets the lines of the log.
        save: writes a checkpoint; gets the number of steps done and the loop's own state, in which `random` is this
            process's random state.
        background: where `save` writes, if not before it returns; its errors end the run.
        start_step: the number of steps done before, in a run that is resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr: Callable[[int], float],
        *,
        options: LoopOptions,
        log: RunLog,
        save: Callable[[int, dict], None],
        background: Background | None = None,
        start_step: int = 0,
    ):
        self.model, self.optimizer, self.lr = model, optimizer, lr
        self.options, self.log = options, log
        self.meter, self.epoch_meter = Meter(), Meter()  # since the last line, and since the last epoch
        meters = {"meters": self.meter, "epoch_meters": self.epoch_meter}
        self.last = LastStep(save, meters, log, number=start_step, background=background)
        self.device = next(model.parameters()).device
        self.signals = Signals()
        self._window = Window()
        self._last_save = time.monotonic()
        self._failure: Exception | None = None  # of this process, which the others learn of at the end of the step
        self._batch: Any = None  # the last one, where there are several processes
        self._loss = 0.0  # of the last step, in this process

    @property
    def step(self) -> int:
        """The number of steps done."""
        return self.last.number

    def run(
        self,
        batches: Iterator[Any],
        step: Callable[[Any, int], Step],
        after_update: Callable[[int], None],
        *,
        at_step_end: Callable[[int], dict | None],
    ) -> bool:
        """Trains to the end. False when a signal ended it before; a checkpoint is written either way.

        Args:
            batches: an iterator without end.
            step: a batch and the number of optimizer steps done -> losses.
            after_update: changes of state that the model must not make in `forward`; called after each optimizer step
                with the number of steps done.
            at_step_end: called after that with the same number; a dictionary that it returns, of an evaluation that
                was due, becomes a line of the log.

        Raises:
            NonFiniteError: a loss or gradient is not finite.
            OtherProcessError: another process failed.
        """
        with self.signals, self.last.rescued():
            if self.last.pending:
                self._end_step(at_step_end, stop=False)
            stop = False
            while not stop and self.step < self.options.total_steps:
                stop = self._one_step(batches, step, after_update)
                self._end_step(at_step_end, stop)
            if not stop and not self.last.is_saved:
                self.save()
            self.last.finish_saving()
            if stop:
                self.log.message(f"stopped by a signal after step {self.step}; continue with --resume auto")
            return not stop

    def _end_step(self, at_step_end: Callable[[int], dict | None], stop: bool) -> None:
        """What follows an update: the line of the log, an evaluation, a checkpoint."""
        if LINE in self.last.pending:
            if self.step % self.options.log_every == 0 or self.step == self.options.total_steps:
                self._log(self._line())
            self.last.finished(EVALUATION)
        if stop:  # its sender may kill the process during an evaluation
            self.save()
            self.last.finish_saving()
        evaluation = at_step_end(self.step)
        summary = self._epoch_line(evaluation)
        if summary is not None:
            self._log(summary)
        if evaluation is not None:
            self._window = Window()
        self.last.finished()
        self.log.advance(self.step, loss=self._loss)
        # after a signal it is saved already, unless an evaluation came after that
        if evaluation is not None if stop else self._save_is_due():
            self.save()

    def _log(self, values: dict[str, Any]) -> None:
        """A line of the log; if the main process cannot write it, all processes end."""
        error = None
        try:
            self.log.metrics(self.step, values)
        except Exception as caught:
            error = caught
        distributed.agree(error)

    def save(self) -> None:
        """Writes a checkpoint of the last finished step, or begins to."""
        self.last.save()
        self._last_save = time.monotonic()

    def load(self, state: dict) -> None:
        """Continues from the state that `save` gave."""
        self.last.load(state)
        self._set_lr(self.step - 1)  # that of the last step, which is part of the optimizer's state

    # ---- a step ------------------------------------------------------------------------------------------------------

    def _one_step(
        self, batches: Iterator[Any], step: Callable[[Any, int], Step], after_update: Callable[[int], None]
    ) -> bool:
        """One optimizer step; True when any process was asked to stop."""
        self._set_lr(self.step)
        count = self.options.accumulation
        described: list[Callable[[], str]] = []
        losses: list[Tensor] = []
        for i in range(count):
            batch = self._next(batches)
            last = i == count - 1
            with self._gradients_wait(not last):
                with autocast(self.device, self.options.precision):
                    out = step(batch, self.step)
                (out.loss / count).backward()
            described.append(out.describe)
            losses.append(out.loss.detach())
            logs = {"loss": out.loss, **out.logs}
            self.meter.add(logs)
            self.epoch_meter.add(logs)
            self._window.add(out.images, out.flops)
        limit = self.options.clip_norm if self.options.clip_norm is not None else float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        stop = self._check(torch.stack(losses), norm, described)
        self.meter.add({"grad_norm": norm})
        self.last.changing = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        after_update(self.step + 1)
        self.last.number += 1
        self.last.finished(LINE, EVALUATION)
        self.last.changing = False
        return stop

    def _set_lr(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step) * group.get("lr_scale", 1.0)

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch. Where it cannot be read and other processes wait within the step, this one takes part in it
        with the batch before; `_check` then ends all of them before the update."""
        if self._failure is None:
            try:
                batch = next(batches)
                self._batch = batch if distributed.world_size() > 1 else None
                return batch
            except Exception as error:
                if self._batch is None:
                    raise
                self._failure = error
        return self._batch

    def _gradients_wait(self, wait: bool) -> AbstractContextManager:
        """Within an accumulated step, processes exchange gradients only after the last batch."""
        return self.model.no_sync() if wait and isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _check(self, losses: Tensor, norm: Tensor, described: list[Callable[[], str]]) -> bool:
        """Stops the run before the update when a loss or gradient is not finite or a process has no more data; True
        when a signal was received.

        Each step waits once for the device and makes one small reduction over the processes.
        """
        self._failure = self._failure or self.last.error
        own_flags = torch.tensor([self.signals.seen, self._failure is not None], device=norm.device)
        bad = torch.cat([torch.stack([~losses.isfinite().all(), ~norm.isfinite()]), own_flags])
        flags = distributed.all_reduce(bad.float(), "max")
        *answers, self._loss = torch.cat([flags, losses.float().mean()[None]]).tolist()
        bad_loss, bad_norm, stop, failed = map(bool, answers)
        if failed:
            raise self._failure or distributed.OtherProcessError
        if bad_loss or bad_norm:
            own = [d() for loss, d in zip(losses.tolist(), described, strict=True) if not _finite(loss)]
            where = " ".join(own) if bad_loss else " ".join(d() for d in described)
            what = f"loss {losses.tolist()}" if bad_loss else f"gradient norm {float(norm)}"
            raise NonFiniteError(
                f"step {self.step + 1}: {what} is not finite; no weight was updated with it. "
                f"Process {distributed.rank()}, samples: {where or 'those of another process, see its message'}. "
                "Look at these samples; a lower lr, a longer warm-up, clip_norm: 1.0 or precision: fp32 usually help."
            )
        return stop

    def _line(self) -> dict[str, Any]:
        epochs = self.options.epochs
        line = {"epoch": epochs.fraction(self.step)} if epochs else {}
        line |= {**self.meter.take(), "lr": self.lr(self.step - 1)}
        images, flops, seconds = self._window.images, self._window.flops, self._window.seconds
        line["images_per_s"] = images * distributed.world_size() / seconds
        line["memory_mb"] = memory_mb(self.device)
        if self.options.peak_flops and flops:
            line["mfu"] = flops / seconds / self.options.peak_flops
        self._window = Window()
        return line

    def _epoch_line(self, evaluation: dict | None) -> dict[str, Any] | None:
        """An evaluation and, where an epoch ends, the means of training since the end of the one before."""
        epochs = self.options.epochs
        if epochs is None or not epochs.ends(self.step):
            return evaluation
        means = {f"train_{name}": mean for name, mean in self.epoch_meter.take().items()}
        return {"epoch": epochs.done(self.step), **means, **(evaluation or {})}

    def _save_is_due(self) -> bool:
        every, minutes = self.options.save_every, self.options.save_every_minutes
        if self.step == self.options.total_steps:
            return False  # `run` saves at its end
        if every and self.step % every == 0:
            return True
        if not minutes:
            return False
        # the main process's clock decides for all
        late = torch.tensor(float(distributed.is_main() and time.monotonic() - self._last_save > 60 * minutes))
        return bool(distributed.all_reduce(late.to(self.device), "max"))


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
