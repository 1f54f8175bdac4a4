"""Means of what a run measures, over steps and processes."""

import time

import torch
from torch import Tensor

from blip import distributed


class Meter:
    """Running means of named numbers, such as between two lines of the log; part of a checkpoint, so that resuming
    changes none."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor | float]) -> None:
        for name, value in values.items():
            value = (
                value.detach().double()
                if isinstance(value, Tensor)
                else torch.tensor(float(value), dtype=torch.float64)
            )
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means over steps and processes; the next call of `add` begins new ones."""
        names = sorted(self.sums)
        device = next((t.device for t in self.sums.values() if t.device.type != "cpu"), torch.device("cpu"))
        means = torch.stack([self.sums[n].to(device) / self.counts[n] for n in names]) if names else torch.zeros(0)
        self.sums, self.counts = {}, {}
        return dict(zip(names, distributed.all_reduce(means).tolist(), strict=True))

    def state(self) -> dict:
        """A copy, whose tensors are on their devices."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load(self, state: dict) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


def on_cpu(state: dict) -> dict:
    """The state of a meter, to be written to a file."""
    return {**state, "sums": {name: value.cpu() for name, value in state["sums"].items()}}


class Window:
    """Images and FLOPs of this process since the last line of the log."""

    def __init__(self) -> None:
        self.images, self.flops, self.start = 0, 0.0, time.perf_counter()

    def add(self, images: int, flops: float) -> None:
        self.images += images
        self.flops += flops

    @property
    def seconds(self) -> float:
        """The time since it began."""
        return time.perf_counter() - self.start
