"""Copies between the CPU and a device for which neither waits longer than it has to."""

import torch
from torch import Tensor


class EarlyCopy:
    """A tensor's copy on the CPU, begun when it is made and waited for when it is read.

    A GPU does its work in the order in which it is given. What is given between `EarlyCopy(x)` and `read()` keeps it
    busy while the CPU waits for x, which takes until x is computed and no longer. A plain `x.cpu()` takes until all
    given work is done, after which the GPU has none.
    """

    def __init__(self, x: Tensor):
        x = x.detach()
        self._event = torch.cuda.Event() if x.is_cuda else None
        self._copy = x.to("cpu", non_blocking=True)  # to page-locked memory
        if self._event is not None:
            self._event.record()

    def read(self) -> Tensor:
        """The copy."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._copy


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x of the CPU on `device`, copied from page-locked memory, so that the CPU goes on at once."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
