"""What is applied to a model from outside: distributed data parallelism, compilation, recomputation of activations."""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from blip.config import RunConfig
from blip.distributed import world_size
from blip.errors import BlipError


class OptionError(BlipError):
    """Options that exclude each other; the message names them and what to choose."""


def data_parallel(model: nn.Module, device: torch.device, compression: str = "none") -> nn.Module:
    """The model itself in one process, wrapped for gradient averaging in several.

    Buffers are not broadcast: they are equal by construction, and the queue is as large as many gradients. DDP
    gets no devices, with which it would move every tensor among a model's arguments to the GPU: the lengths of texts
    stay on the CPU, which lays them out. With `compression` bf16, gradients are rounded before they are averaged and
    travel in half the bytes; optimizer and weights stay in float32.
    """
    if world_size() == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.15 has a new name for this option; this one also works with the lowest supported version
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        wrapped = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    if compression == "bf16":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def checkpoint_activations(blocks: Sequence[nn.Module], kind: str, device: torch.device, *, precision: str) -> None:
    """Recomputes the activations of `blocks` in the backward pass instead of keeping them.

    `torch` is correct everywhere. `fairscale` (an extra) is refused where measurements showed wrong gradients or
    failures. Names in state dicts do not change. Copies of a model have to be made before.

    Raises:
        OptionError: `fairscale` in a combination that it does not support, or where it is not installed.
    """
    if kind == "none":
        return
    if kind == "torch":
        for block in blocks:
            block.forward = _recomputed(block)  # type: ignore[method-assign]
        return
    advice = "use activation_checkpointing: torch"
    if device.type == "cpu" and precision == "bf16":
        raise OptionError(f"fairscale recomputes outside of CPU autocast: its gradients are off by 0.5 %; {advice}")
    if world_size() > 1:
        raise OptionError(f"fairscale fails in several processes when a block runs twice in a step, as here; {advice}")
    try:
        from fairscale.nn.checkpoint import checkpoint_wrapper
    except ImportError as error:
        raise OptionError(f"fairscale is not installed: pip install -e '.[fairscale]', or {advice}") from error
    for block in blocks:
        checkpoint_wrapper(block)


def recompute_and_compile(
    model: nn.Module, config: RunConfig, device: torch.device, *, twin: nn.Module | None = None
) -> None:
    """Applies `activation_checkpointing` and `compile` of a configuration to the model's blocks, in place.

    `twin`: a momentum twin, which is compiled too; it keeps no activations.
    """
    kind = config.activation_checkpointing
    if config.compile and kind == "fairscale":
        raise OptionError("fairscale's checkpointing breaks compiled graphs; use activation_checkpointing: torch")
    checkpoint_activations(recomputable(model, kind), kind, device, precision=config.precision)
    if config.compile:
        compile_model(model)
        if twin is not None:
            compile_model(twin)


def _recomputed(block: nn.Module) -> Callable:
    forward = block.forward

    # a plain function, because the compiler does not compile what is inside a functools.partial of torch's function
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    # the compiler keeps its graphs by code: image and text blocks have their own, and share no limit
    run.__code__ = _copy_for(type(block).__name__, run.__code__)
    return run


@cache
def _copy_for(kind: str, code: CodeType) -> CodeType:
    return code.replace(co_name=f"recomputed_{kind}")


# Graphs of one piece of code, here of the blocks of images or of texts; above that the compiler gives up and says
# little. Texts have about 10: alone or with an image, with gradients or not, all tokens or one, a last smaller batch.
GRAPHS = 64


def compile_model(model: nn.Module, **options: Any) -> None:
    """Compiles each block on its own, in place: equal blocks share one compilation, and names do not change.

    Texts are compiled without any size in it, since each batch has another number of tokens; of images, sizes that
    change are compiled once more. Every batch of texts needs some padding (`padded_lengths`): one without it has no
    mask, which would be compiled once more.

    The compiler's limit of graphs is raised for the process. `options` are torch's, such as `backend`.
    """
    settings: Any = torch._dynamo.config  # type: ignore[attr-defined]
    settings.recompile_limit = max(settings.recompile_limit, GRAPHS)
    for block in blocks(model, IMAGES):
        block.compile(**options)
    for block in blocks(model, TEXTS):
        block.compile(dynamic=True, **options)


def not_compiled() -> AbstractContextManager:
    """In this block compiled models run as they are. Evaluations do: shapes differ in each call, as do their modes."""
    return torch.compiler.set_stance("force_eager")


def measure_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product on this device, the reference for model FLOPs utilisation."""
    side = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)  # the run's own random numbers stay as they are
    a, b = (torch.randn(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def memory_mb(device: torch.device) -> float:
    """The most memory in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def padded_lengths(longest: int) -> tuple[int, ...]:
    """Lengths, in tokens, to which texts of up to `longest` tokens are padded for compiled code.

    Multiples of 8, as attention with a mask needs on a GPU. Texts are shorter than the length that is chosen for them.
    """
    return tuple(range(8, longest + 9, 8))


IMAGES, TEXTS = ("image_encoder.blocks",), ("text_encoder.layers", "text_decoder.layers")


def blocks(model: nn.Module, parts: Sequence[str] = (*IMAGES, *TEXTS)) -> list[nn.Module]:
    """The modules that are compiled, or whose activations are recomputed, one by one."""
    found: list[nn.Module] = []
    for part in parts:
        if hasattr(model, part.split(".")[0]):
            found += model.get_submodule(part).children()
    return found


def recomputable(model: nn.Module, kind: str) -> list[nn.Module]:
    """The blocks whose activations `kind` of checkpointing can recompute.

    fairscale tracks only tensors that are arguments themselves. Text layers get an image's keys inside an object, so
    that the backward pass would run through the image encoder once for each layer, which fails.
    """
    return list(model.get_submodule("image_encoder.blocks").children()) if kind == "fairscale" else blocks(model)


def about_workers(num_workers: int) -> str:
    """A line where the processes of this computer start more loaders than it has CPUs, else ""."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers * processes <= max(1, cpus):
        return ""
    each = f" in each of {processes} processes" if processes > 1 else ""
    return (
        f"num_workers is {num_workers}{each}, and there are {cpus} CPUs: more workers than CPUs help only where "
        "reading waits for a disk or a network"
    )
