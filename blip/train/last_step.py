"""The last finished step of a run, which every way out of the training loop saves."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blip import distributed
from blip.command_line import tell_first
from blip.train.background import Background
from blip.train.log import RunLog
from blip.train.meter import Meter, on_cpu
from blip.train.random_numbers import random_state


class LastStep:
    """Its number, what it still lacks, and what a checkpoint of it holds beside the parts of the model.

    Weights, optimizer, twin and queue change in an update alone. Random numbers and the means of the log change before
    it too, so that their values are kept when a step is finished.

    Args:
        write: writes a checkpoint; gets the number of steps done and the state that `load` takes.
        meters: the running means of the log, by their names in the state.
        log: gets the messages.
        number: the number of steps done before, in a run that is resumed.
        background: where `write` writes, if not before it returns.
    """

    def __init__(
        self,
        write: Callable[[int, dict], None],
        meters: dict[str, Meter],
        log: RunLog,
        *,
        number: int = 0,
        background: Background | None = None,
    ):
        self.number = self.saved = number  # steps done, and steps done in the last checkpoint, which may be begun only
        self.on_disk = number  # steps done in the last checkpoint that is whole
        self.background = background or Background()
        self.changing = False  # within an update
        self.pending: tuple[str, ...] = ()  # what the step lacks, of `LINE` and `EVALUATION` of `history.py`
        self._write, self._meters, self._log = write, meters, log
        self._writing = False
        self.finished()
        self._saved_pending: tuple[str, ...] = self.pending

    @property
    def is_saved(self) -> bool:
        """Whether the last checkpoint is of this step, and of all that followed its update."""
        return (self.saved, self._saved_pending) == (self.number, self.pending)

    def finished(self, *pending: str) -> None:
        """The step is finished but for `pending`."""
        self.pending, self._random = pending, random_state()
        self._means = {name: meter.state() for name, meter in self._meters.items()}

    def save(self) -> None:
        """Writes a checkpoint of the step as it was at the last call of `finished`, or begins to; see `finish_saving`.

        Every process has to call this.
        """
        self.finish_saving()
        self._writing = True
        meters = {name: distributed.gather_objects(on_cpu(means)) for name, means in self._means.items()}
        self._write(self.number, {**meters, "pending": list(self.pending), "random": self._random})
        self.saved, self._saved_pending, self._writing = self.number, self.pending, False

    def finish_saving(self) -> None:
        """Waits until the checkpoint that was begun is on disk. Every process has to call this.

        Raises:
            CheckpointError: it could not be written; on the other processes OtherProcessError.
        """
        self._writing = True
        try:
            distributed.agree(self.background.join())
        except BaseException:
            self.saved = self.on_disk
            raise
        self.on_disk, self._writing = self.saved, False

    @property
    def error(self) -> Exception | None:
        """That of a checkpoint which could not be written in the background, in the process that writes."""
        return self.background.error

    @contextmanager
    def rescued(self) -> Iterator[None]:
        """Within this block an error, or whatever else ends it, first saves the last finished step."""
        try:
            yield
        except BaseException as error:
            tell_first(error)
            self.rescue(error)
            raise

    def rescue(self, error: BaseException) -> None:
        """Saves the step before an error ends the run, or tells why it cannot."""
        failed = self.error is not None  # without the checkpoint that was begun, there is nothing to try again
        reason = "see the error" if failed or self._writing else self._rescue(error)
        if lost := self.background.join():  # worth waiting for
            reason = "see the error" if lost is error else reason or str(lost)
            self.saved = self.on_disk
        self.on_disk = self.saved
        if reason is None:
            return
        if reason:
            last = f"the last checkpoint is of step {self.on_disk}" if self.on_disk else "there is no checkpoint yet"
            self._log.message(f"step {self.number} is not saved: {reason}; {last}", style="yellow")
        else:
            self._log.message(f"step {self.number} is saved; continue with --resume auto")

    def _rescue(self, error: BaseException) -> str | None:
        """Saves the step -> "" or why it cannot be saved; None where it was saved, or begun to be, before."""
        if self.saved == self.number:
            return None
        if self.changing:
            return f"step {self.number + 1} had begun to change the weights"
        if distributed.lost_peer(error) or not distributed.all_reach(f"rescue {self.number}"):
            return "that takes all processes, and one of them has ended or waits for another"
        traceback.clear_frames(error.__traceback__)  # frees what a step holds: memory may be what it lacked
        return self._save_or_reason()

    def _save_or_reason(self) -> str:
        try:
            self.save()
            self.finish_saving()
        except Exception as failure:
            return str(failure)
        return ""

    def load(self, state: dict) -> None:
        """Continues from the state that `write` got; the means are restored if as many processes wrote them."""
        for name, meter in self._meters.items():
            states = state.get(name, [])  # checkpoints of earlier versions lack those of the epoch
            if len(states) == distributed.world_size():
                meter.load(states[distributed.rank()])
        self.finished(*state.get("pending", ()))
        self._saved_pending = self.pending
