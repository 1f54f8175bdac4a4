"""What a training step of a configuration does on a GPU, counted without one: see `blip.hardware.counting`.

The model is built on torch's `meta` device and takes one step, forward and backward, on a batch without content. So
every option that changes the step is in the count: sizes, precision, recomputation, adapters, frozen parts, and
whatever else a model does. Compilation is not: see `Counted`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blip.config import RunConfig
from blip.hardware.as_on_gpu import META, as_on_gpu, backward
from blip.hardware.counting import OTHER, Counter, Kernel, many_tensors
from blip.hardware.precision import autocast


@dataclass
class Trained:
    """What takes a step, on `meta`.

    Args:
        model: what is trained.
        beside: modules that are kept beside it, such as a momentum twin and a queue.
        batch: tensors of a batch.
        loss: a batch's loss.
        after_update: what follows the optimizer.
    """

    model: nn.Module
    beside: Sequence[nn.Module]
    batch: Sequence[Tensor]
    loss: Callable[[], Tensor]
    after_update: Callable[[], None]


@dataclass
class Counted:
    """A step. Memory in bytes; kernels of one batch's forward and backward pass, and of an update.

    Kernels are those of a step that is not compiled. `rest`: weights, the optimizer's state, twin and queue;
    `gradients`: those that are there when a batch begins; `activations`: the most that a batch adds.
    """

    rest: int
    gradients: int
    activations: int
    trained: int  # bytes of the gradients
    forward: list[Kernel]
    backward: list[Kernel]
    update: list[Kernel]
    waits: list[str]

    @property
    def peak(self) -> int:
        """Bytes in use at most."""
        return self.rest + self.gradients + self.activations

    @property
    def flops(self) -> float:
        """Of products and attention in one batch; what is computed twice counts twice."""
        return sum(kernel.flops for kernel in (*self.forward, *self.backward))

    @property
    def launches(self) -> int:
        """Of one batch and an update."""
        return sum(kernel.launches for kernel in (*self.forward, *self.backward, *self.update))


def count(make: Callable[[Any], Trained], config: RunConfig, *, gradients_stay: bool) -> Counted:
    """Counts a step of what `make` builds of the configuration, on the device `meta`.

    `gradients_stay`: the memory of gradients is there all the time, as with several processes, which exchange them from
    there, or from the second of several accumulated batches on.
    """
    with META:
        trained = make(config)
    counter = Counter()
    parameters = [p for p in trained.model.parameters() if p.requires_grad]
    modules = (trained.model, *trained.beside)
    counter.hold(tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    adam = [torch.empty_like(p) for p in parameters for _ in range(2)]
    counter.hold(adam)
    rest = counter.live
    if gradients_stay:
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        counter.hold(p.grad for p in parameters if p.grad is not None)
    gradients = counter.live - rest
    counter.hold(trained.batch)
    with counter, as_on_gpu():
        with autocast(META, config.precision):
            loss = trained.loss()
        forward = len(counter.kernels)
        backward(loss)
        after = len(counter.kernels)
        del loss
        peak = counter.peak
        trained.after_update()
    kernels = counter.kernels
    return Counted(
        rest,
        gradients,
        peak - rest - gradients,
        sum(p.numel() * p.element_size() for p in parameters),
        kernels[:forward],
        kernels[forward:after],
        [*_optimizer(parameters, config.clip_norm), *kernels[after:]],
        counter.waits,
    )


def _optimizer(parameters: Sequence[nn.Parameter], clip_norm: float | None) -> list[Kernel]:
    """The norm of the gradient, and AdamW in its fused form: four numbers are read for each weight, three written."""
    size = sum(p.numel() * p.element_size() for p in parameters)
    launches = many_tensors(parameters)
    norm = Kernel("norm", OTHER, torch.float32, bytes=size, launches=launches + 3)
    clip = Kernel("clip", OTHER, torch.float32, bytes=2 * size, launches=launches)
    adam = Kernel("adamw", OTHER, torch.float32, bytes=7 * size, launches=launches)
    return [norm, *([clip] if clip_norm is not None else []), adam]


def full_lengths(count: int, longest: int) -> Tensor:
    """Lengths (B,) of the texts of a counted batch: of as many tokens as a text may have, but for one, so that packing
    is part of the count."""
    lengths = torch.full((count,), longest, device="cpu")
    lengths[-1] = max(2, longest - 1)
    return lengths
