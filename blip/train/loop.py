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
from blip.hardware.precision import autocast
from blip.train.background import Background
from blip.train.history import EVALUATION, LINE
from blip.train.last_step import LastStep
from blip.train.log import RunLog
from blip.train.meter import Meter, Window
from blip.train.optim import can_skip, skip_where
from blip.train.parallel import memory_mb
from blip.train.schedule import Epochs
from blip.train.sharding import clip
from blip.train.signals import Signals
from blip.train.verdict import Found, Verdict


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

    The order within a step is: losses, backward (for each of `accumulation` batches), clip, the verdict whether the
    step is good, optimizer, `after_update`. On a GPU the optimizer is called before the verdict is read, and does
    nothing where it is bad.
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
        self._last_save, self._save_is_late = time.monotonic(), False
        self._failure: Exception | None = None  # of this process, which the others learn of at the end of the step
        self._batch: Any = None  # the last one, where there are several processes
        self._loss = 0.0  # of the last step, in this process
        # a GPU has the update to do while the CPU waits for the verdict on the step
        self.updates_first = self.device.type == "cuda" and can_skip(optimizer)

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
        self._last_save, self._save_is_late = time.monotonic(), False

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
        norm = self._clip()
        verdict = self._verdict(losses, norm)
        if self.updates_first:
            self.last.changing = True
            skip_where(verdict.bad, self.optimizer)
            self.optimizer.step()
        found = verdict.read()  # the only wait for the device
        self._check(found, described)
        self.meter.add({"grad_norm": norm})
        self.last.changing = True
        if not self.updates_first:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        after_update(self.step + 1)
        self.last.number += 1
        self.last.finished(LINE, EVALUATION)
        self.last.changing = False
        return found.stop

    def _set_lr(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step) * group.get("lr_scale", 1.0)

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch. Where it cannot be read and other processes wait within the step, this one takes part in it
        with the batch before; `_check` then ends all of them, with nothing updated."""
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

    def _clip(self) -> Tensor:
        """The norm of all gradients, which are scaled down where it is above `clip_norm`."""
        return clip(self.model, self.options.clip_norm)

    def _verdict(self, losses: list[Tensor], norm: Tensor) -> Verdict:
        self._failure = self._failure or self.last.error
        minutes = self.options.save_every_minutes
        late = bool(minutes) and time.monotonic() - self._last_save > 60 * (minutes or 0)
        return Verdict(
            torch.stack(losses),
            norm,
            failed=self._failure is not None,
            stop=self.signals.seen,
            late=late and distributed.is_main(),  # its clock decides for all
        )

    def _check(self, found: Found, described: list[Callable[[], str]]) -> None:
        """Ends the run where a loss or gradient is not finite or a process has no more data: nothing was updated."""
        failed = self._failure or distributed.OtherProcessError()
        error = failed if found.failed else found.error(self.step + 1, described)
        if error is not None:
            self.last.changing = False  # the optimizer, if it was called, did nothing
            raise error
        self._loss, self._save_is_late = float(found.losses.mean()), found.late

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
        if self.step == self.options.total_steps:
            return False  # `run` saves at its end
        every = self.options.save_every
        return self._save_is_late or bool(every and self.step % every == 0)
