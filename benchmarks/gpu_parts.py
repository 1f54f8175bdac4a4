"""What `on_gpu.py` measures of single steps: one function for each of its parts; `gpu_runs.py` has those of runs.

Each gets a `Session`, takes some ten seconds on a large GPU (`compiled` some minutes) and returns what it found. Rows
that were measured stay in the result although a later one fails.
"""

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.step_sides import Batch, Ours, make_batch, sizes
from benchmarks.train_step import gflop_per_sample
from blip.hardware.precision import PRECISIONS, products
from blip.train.parallel import measure_peak, memory_mb

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
SIZES = {  # of models that train in seconds
    "vit": "custom", "vit_width": 64, "vit_depth": 2, "vit_heads": 2, "vit_patch": 16, "image_size": 64,
    "text_width": 64, "text_layers": 2, "text_heads": 2, "text_hidden": 64, "embed_dim": 16, "queue_size": 64,
    "vocab_size": 200,
}  # fmt: skip


class Session:
    """The device of a command, its size of model, the time that is left, and what it measured of the device.

    `keep` takes the rows of a part that goes on.
    """

    def __init__(self, args: argparse.Namespace, keep: Callable[[Any], None] = lambda rows: None):
        self.args, self.keep = args, keep
        self.device = torch.device(args.device)
        self.size = sizes(args.size)
        self.peaks: dict[str, float] = {}
        self.end = time.perf_counter() + 60 * args.minutes

    @property
    def seconds_left(self) -> float:
        return self.end - time.perf_counter()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, precision: str) -> float:
        """FLOP/s of a large product, measured once."""
        if precision not in self.peaks:
            with products(self.device, precision):
                self.peaks[precision] = measure_peak(self.device, precision)
        return self.peaks[precision]

    def batches(self, count: int) -> list[Batch]:
        """Batches of other lengths each."""
        return [make_batch(count, self.size.vit.image_size, seed).to(self.args.device) for seed in range(4)]

    def clear(self) -> None:
        """Gives memory back; the most in use is counted from here on."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def fresh(self) -> Ours:
        """A model with its twin, queue and optimizer, made on the device: on the CPU that takes ten seconds."""
        self.clear()
        torch.manual_seed(0)
        with self.device:
            return Ours(self.size, self.args.device)

    def rows(self, calls: list[Callable[[], Any]], each: float = 0.0) -> list[Any]:
        """The result of each call, or its error; none begins with less than `each` seconds left."""
        rows: list[Any] = []
        for call in calls:
            if self.seconds_left < each:
                rows.append({"left_out": "there was no time left"})
                continue
            rows.append(tried(call))
            print(json.dumps(rows[-1])[:1000], flush=True)
            self.keep(rows)
        return rows


def tried(call: Callable[[], Any]) -> Any:
    """What a call returns, or its error: what follows is still worth its time."""
    try:
        return call()
    except Exception as error:
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)  # frees what they hold, after an error for lack of memory
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def card(it: Session) -> dict[str, Any]:
    x = torch.empty((1 << 30) if it.device.type == "cuda" else 1 << 24, dtype=torch.uint8, device=it.device)
    y = torch.empty_like(x)
    seconds = []
    for _ in range(5):
        it.wait()
        begin = time.perf_counter()
        y.copy_(x)
        it.wait()
        seconds.append(time.perf_counter() - begin)
    return {
        "tflop_per_second": {precision: it.peak(precision) / 1e12 for precision in PRECISIONS},
        "copy_tb_per_second": 2 * x.numel() / min(seconds) / 1e12,
    }


# ---- steps -----------------------------------------------------------------------------------------------------------


def steps(it: Session) -> list[dict[str, Any]]:
    """Not compiled, at each batch."""
    run = it.fresh()
    return it.rows([partial(timed, it, run, count, "bf16") for count in it.args.batches])


def compiled(it: Session) -> dict[str, Any]:
    """Steps at each batch by one model, which is compiled for each size of images anew as a run would be, and the
    kernels of the last one."""
    if not it.args.backend:
        return {"left_out": "no backend was given"}
    run = it.fresh()
    run.compile(backend=it.args.backend)
    settings: Any = torch._dynamo.config  # type: ignore[attr-defined]
    with settings.patch(automatic_dynamic_shapes=False):
        rows = it.rows(
            [partial(timed, it, run, count, "bf16", compiled=True) for count in it.args.batches], each=it.args.compiling
        )
        measured = [row["batch"] for row in rows if "batch" in row]
        kernels = tried(partial(kernels_of, it, run, measured[-1])) if measured else None
    return {"steps": rows, "profile": kernels}


def timed(it: Session, run: Ours, count: int, precision: str, *, compiled: bool = False) -> dict[str, Any]:
    """Steps one by one, each with a wait at its end, and steps in a row with one wait at the end of all."""
    it.clear()
    batches, repeats = it.batches(count), it.args.repeats
    begin = time.perf_counter()
    with products(it.device, precision):
        for batch in batches:  # warms up, and compiles
            run.step(batch, precision == "bf16")
        it.wait()
        first = time.perf_counter() - begin
        alone = []
        for number in range(repeats):
            begin = time.perf_counter()
            run.step(batches[number % 4], precision == "bf16")
            it.wait()
            alone.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        for number in range(repeats):
            run.step(batches[number % 4], precision == "bf16")
        it.wait()
        row = (time.perf_counter() - begin) / repeats
    flop = sum(gflop_per_sample(it.size, b.lengths.tolist(), "ours") for b in batches) / 4 * count * 1e9
    return {
        "batch": count,
        "precision": precision,
        "compiled": compiled,
        "step_ms": 1e3 * sorted(alone)[repeats // 2],
        "step_in_a_row_ms": 1e3 * row,
        "tflop": flop / 1e12,
        "mfu": flop / row / it.peak(precision),
        "images_per_second": count / row,
        "first_steps_seconds": first,
        "allocated_gib": memory_mb(it.device) / 1024,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB if it.device.type == "cuda" else None,
    }


def precisions(it: Session) -> dict[str, Any]:
    """Losses of the same weights and batch, and steps."""
    count = it.args.batches[0]
    losses, rows = {}, []
    for precision in PRECISIONS:
        run, batch = it.fresh(), it.batches(count)[0]
        with products(it.device, precision):
            losses[precision] = [float(loss) for loss in run.step(batch, precision == "bf16")]
        rows += it.rows([partial(timed, it, run, count, precision)])
    return {"losses": losses, "steps": rows}


def parity(it: Session) -> dict[str, Any]:
    """Float32 here and on the CPU, at batch 8: losses of two steps, so that the second shows the gradients."""
    batch, here = make_batch(8, it.size.vit.image_size, seed=0), it.fresh()
    there = Ours(it.size, "cpu")
    for name in ("model", "twin", "queue"):
        getattr(there, name).load_state_dict(getattr(here, name).state_dict())
    found = []
    for run, device in ((here, it.args.device), (there, "cpu")):
        with products(it.device, "fp32"):
            found.append([[float(loss) for loss in run.step(batch.to(device))] for _ in range(2)])
    pairs = zip(*([loss for step in one for loss in step] for one in found), strict=True)
    return {"here": found[0], "cpu": found[1], "largest_difference": max(abs(a - b) for a, b in pairs)}


# ---- the estimate ----------------------------------------------------------------------------------------------------


def estimate(it: Session) -> list[dict[str, Any]]:
    """Steps of `configs/pretrain.yaml` at each batch, as the dry run takes them, and the estimate of the same steps."""
    return it.rows([partial(estimated, it, count) for count in it.args.batches])


def estimated(it: Session, count: int) -> dict[str, Any]:
    from blip.config import PretrainConfig, load_config
    from blip.tasks.dry_run import random_steps, trained_on_meta
    from blip.tasks.estimate import plan

    own = ["tokenizer=train", "accumulation=1", f"batch_size={count}", "vision_init=", "text_init="]
    tiny = [f"{key}={value}" for key, value in SIZES.items()] if it.args.size == "small" else []
    config = load_config(ROOT / "configs" / "pretrain.yaml", PretrainConfig, [*own, *tiny])
    planned = plan(trained_on_meta, config, it.args.gpu)
    it.clear()
    _, step = random_steps(config, it.device)
    seconds = []
    with products(it.device, config.precision):
        for _ in range(it.args.repeats + 2):
            begin = time.perf_counter()
            step()  # waits at its end
            seconds.append(time.perf_counter() - begin)
    found = {"gib": memory_mb(it.device) / 1024, "seconds": sorted(seconds[2:])[it.args.repeats // 2]}
    thought = {"gib": planned.counted.peak / GIB, "seconds": planned.step_seconds()}
    ratios = {name: thought[name] / found[name] for name in found}
    return {"batch": count, "measured": found, "estimated": thought, "estimated_over_measured": ratios}


# ---- profile ---------------------------------------------------------------------------------------------------------


def profile(it: Session) -> list[dict[str, Any]]:
    """A step in bf16 at two batches: its kernels by time."""
    run = it.fresh()
    return it.rows([partial(kernels_of, it, run, count) for count in it.args.profiled])


def kernels_of(it: Session, run: Ours, count: int) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity

    on_gpu = it.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    batches = it.batches(count)
    for batch in batches:
        run.step(batch, bf16=True)
    it.wait()
    with torch.profiler.profile(activities=kinds) as recorded:
        run.step(batches[0], bf16=True)
        it.wait()
    events = recorded.key_averages()
    busy = [(e.key, _busy(e, on_gpu), e.count) for e in events if _busy(e, on_gpu) > 0]
    return {
        "batch": count,
        "busy_ms": sum(us for _, us, _ in busy) / 1e3,
        "launches": sum(e.count for e in events if "LaunchKernel" in e.key),
        "waits": {e.key: e.count for e in events if "Synchronize" in e.key},
        "by_time": [
            {"name": key[:120], "ms": us / 1e3, "count": number}
            for key, us, number in sorted(busy, key=lambda each: -each[1])[:30]
        ],
    }


def _busy(event: Any, on_gpu: bool) -> float:
    """Microseconds of an event: of a kernel on a GPU, else of an operation on the CPU."""
    if not on_gpu:
        return float(event.self_cpu_time_total)
    return float(event.self_device_time_total) if event.device_type == torch.autograd.DeviceType.CUDA else 0.0
