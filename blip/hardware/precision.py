"""In which number format a network computes: float32, TF32 or bf16. Weights are float32 in all three.

| precision | products and convolutions | everything else |
| --------- | ------------------------- | --------------- |
| fp32      | float32                   | float32         |
| tf32      | TF32 on a GPU that has it, with 10 bits behind the point instead of 23; else float32 | float32 |
| bf16      | bf16, 7 bits behind the point, by autocast | float32, and float32 products where autocast is off |
| auto      | as bf16 on a GPU that has it, else as fp32; for inference | |

torch computes convolutions in TF32 unless told otherwise, and products in float32. Here a precision sets both, for the
time of a `with` block: a notebook's own settings are restored.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch

from blip.errors import InputError

PRECISIONS = ("fp32", "tf32", "bf16")
AUTO = "auto"


def choose_precision(precision: str, device: torch.device) -> str:
    """One of `PRECISIONS`: what `auto` means on this device, or the precision itself.

    `auto` is bf16 on a GPU that has it, else fp32: on a CPU bf16 is computed only where it is asked for.

    Raises:
        InputError: there is no such precision, or the GPU has no bf16.
    """
    if precision == AUTO:
        return "bf16" if device.type == "cuda" and _has_bf16(device) else "fp32"
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; it can be {', '.join(PRECISIONS)} or {AUTO}")
    if precision == "bf16" and not _has_bf16(device):
        raise InputError(
            f"precision bf16 needs a GPU of compute capability 8.0 or above, and {torch.cuda.get_device_name(device)} "
            "would be slower with it than without: set precision to fp32"
        )
    return precision


def without_effect(precision: str, device: torch.device) -> str:
    """A line where a precision computes as fp32 does on this device, else "": TF32 on a CPU or an older GPU."""
    if precision != "tf32" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        return ""
    return f"precision tf32 computes as fp32 on {device}: TF32 needs a GPU of compute capability 8.0 or above"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bf16 autocast with `precision` bf16, else nothing. It is for forward passes."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """What is computed in this block without gradients, or forwards alone, has this precision; `auto` included.

    Training needs two blocks, since a backward pass lies outside of autocast: `products` round all of it, and
    `autocast` round the forward pass.

    Raises:
        InputError: as in `choose_precision`.
    """
    chosen = choose_precision(precision, device)
    with products(device, chosen), autocast(device, chosen):
        yield


@contextmanager
def products(device: torch.device, precision: str) -> Iterator[None]:
    """Whether products and convolutions of float32 are computed in TF32 in this block: with `tf32`, and with no other.

    On other devices than a GPU it changes nothing.

    Raises:
        InputError: as in `choose_precision`.
    """
    chosen = choose_precision(precision, device)
    if device.type != "cuda":
        yield
        return
    with tf32(chosen == "tf32"):
        yield


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Products and convolutions of float32 on GPUs, in this process: in TF32 or exact. Restored after the block."""
    # Since 2.9 torch has a setting for each kind of operation, `fp32_precision`. Where these alone are set, torch's
    # older functions raise, and its compiler calls them. So the older ones are set, which set the newer ones too.
    newer = _newer_settings()
    values = [setting.fp32_precision for setting in newer]
    products, convolutions = _older_settings()
    _set_older("high" if on else "highest", on)
    if newer:
        newer[0].fp32_precision = values[0]  # a CPU's products stay as they are
    try:
        yield
    finally:
        _set_older(products, convolutions)
        for setting, value in zip(newer, values, strict=True):
            setting.fp32_precision = value


def _newer_settings() -> list[Any]:
    """Products on a CPU, products, convolutions and recurrent networks on a GPU; none in versions before 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return []
    return [backends.mkldnn.matmul, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]


def _older_settings() -> tuple[str, bool]:
    """Of products, and of convolutions. Defaults where torch raises because newer settings alone were set."""
    products, convolutions = "highest", True
    with _no_advice():
        with suppress(RuntimeError):
            products = torch.get_float32_matmul_precision()
        with suppress(RuntimeError):
            convolutions = torch.backends.cudnn.allow_tf32
    return products, convolutions


def _set_older(products: str, convolutions: bool) -> None:
    with _no_advice():
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def _no_advice() -> Iterator[None]:
    """Without torch's warning, in versions from 2.9 on, that the newer settings should be used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings", UserWarning)
        yield


def _has_bf16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
