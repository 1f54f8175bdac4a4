"""How long counted kernels take on a card, by a roofline each: the slower of arithmetic and memory, and never less than
a launch. An estimate: nothing is measured.
"""

from collections.abc import Sequence

import torch

from blip.hardware.cards import Card
from blip.hardware.counting import ATTENTION, PRODUCT, Kernel

SHORTEST = 2e-6  # seconds of a kernel
# seconds of the CPU for a launch: 37 to 46 ms were logged for the 6,580 launches of a step, 2 microseconds of them the
# driver's
LAUNCH = 6.5e-6


def kernel_seconds(kernel: Kernel, card: Card, precision: str) -> float:
    """Of one kernel. `precision` is that of products in float32: `tf32` or another."""
    low = kernel.dtype in (torch.bfloat16, torch.float16)
    kind = "bf16" if low else precision if precision == "tf32" else "fp32"
    if kernel.kind == PRODUCT:
        rate = card.products(kind)
    elif kernel.kind == ATTENTION:
        rate = card.attention("bf16" if low else "fp32")
    else:
        rate = card.plain
    return max(SHORTEST * kernel.launches, kernel.flops / rate, kernel.bytes / card.bytes_per_second)


def busy_seconds(kernels: Sequence[Kernel], card: Card, precision: str) -> float:
    """Of the GPU, were there always a kernel to start."""
    return sum(kernel_seconds(kernel, card, precision) for kernel in kernels)


def host_seconds(kernels: Sequence[Kernel]) -> float:
    """Of the CPU, to launch them."""
    return LAUNCH * sum(kernel.launches for kernel in kernels)


def step_seconds(kernels: Sequence[Kernel], card: Card, precision: str) -> float:
    """From the first launch to the end of the last kernel: each waits for its launch and for the kernel before."""
    host = gpu = 0.0
    for kernel in kernels:
        host += LAUNCH * kernel.launches
        gpu = max(gpu, host) + kernel_seconds(kernel, card, precision)
    return max(gpu, host)
