"""What all processes find about an optimizer step, before which nothing may be updated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip import distributed
from blip.errors import BlipError
from blip.hardware.transfers import EarlyCopy, sent


class NonFiniteError(BlipError):
    """A loss or gradient became infinite or not a number; nothing was updated with it."""


@dataclass
class Found:
    """The numbers of a step, on the CPU. All but the losses and the norm are the same in every process."""

    bad_loss: bool  # a loss of any process is not finite
    bad_norm: bool  # so is the gradients' norm
    failed: bool  # a process has no more data
    stop: bool  # a process was asked to stop
    late: bool  # a checkpoint is due
    norm: float
    losses: Tensor  # (A,) of this process's batches

    def error(self, step: int, described: Sequence[Callable[[], str]]) -> NonFiniteError | None:
        """The error with which step `step`, from 1, ends the run; `described` names the samples of each batch."""
        if not (self.bad_loss or self.bad_norm):
            return None
        bad = [describe() for good, describe in zip(self.losses.isfinite(), described, strict=True) if not good]
        where = " ".join(bad) if self.bad_loss else " ".join(describe() for describe in described)
        what = f"loss {self.losses.tolist()}" if self.bad_loss else f"gradient norm {self.norm}"
        return NonFiniteError(
            f"step {step}: {what} is not finite; no weight was updated with it. "
            f"Process {distributed.rank()}, samples: {where or 'those of another process, see its message'}. "
            "Look at these samples; a lower lr, a longer warm-up, clip_norm: 1.0 or precision: fp32 usually help."
        )


class Verdict:
    """The numbers of a step, on the device until they are read. Making it is one small reduction over the processes.

    Args:
        losses: (A,) of this process's batches.
        norm: () of the gradients.
        failed, stop, late: of this process, see `Found`.
    """

    def __init__(self, losses: Tensor, norm: Tensor, *, failed: bool, stop: bool, late: bool):
        bad = torch.stack([~losses.isfinite().all(), ~norm.isfinite()]).float()
        own = sent(torch.tensor([failed, stop, late]).float(), norm.device)
        flags = distributed.all_reduce(torch.cat([bad, own]), "max")
        self.bad = flags[:3].amax()  # (), 1.0 where nothing may be updated, else 0.0
        self._numbers = EarlyCopy(torch.cat([flags, norm[None].float(), losses.float()]))

    def read(self) -> Found:
        """The numbers on the CPU, which waits for them: the only wait for the device in a step."""
        numbers = self._numbers.read()
        bad_loss, bad_norm, failed, stop, late = numbers[:5].bool().tolist()
        return Found(bad_loss, bad_norm, failed, stop, late, float(numbers[5]), numbers[6:])
