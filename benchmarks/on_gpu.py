"""What only a GPU can tell, in one command of at most ten minutes: `python benchmarks/on_gpu.py`.

| part | what it measures |
| ---- | ---------------- |
| card | products in each precision and a copy in memory, the references for everything else |
| steps | a step of pre-training at each batch, eager and compiled: time, model FLOPs utilisation, memory |
| precisions | the same step in float32, TF32 and bf16, and how far their losses differ |
| parity | losses of the same weights and batch in float32, here and on the CPU |
| estimate | memory and time of a step against those that `pretrain.py --dry_run --gpu NAME` gives without a GPU |
| waits | where a run of `pretrain.py` waits for the GPU within a step, by file and line |
| profile | the kernels that take most of a step, and how many are launched |
| raising | two processes of which one fails: the seconds until both have ended, and whether the message was printed |

A part that fails leaves its error in the result, and the others still run; a part for which no time is left is named.
The result is a file of JSON in `benchmarks/results`, written again after each part.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402

from benchmarks.train_step import Batch, Ours, gflop_per_sample, make_batch, sizes  # noqa: E402
from blip.hardware.precision import PRECISIONS, products  # noqa: E402
from blip.train.parallel import measure_peak, memory_mb  # noqa: E402

OF_CPU = ("--nproc_per_node=2", "--master_port=29561")
GIB = 2**30


class Card:
    """The device of a command, its size of model, and what it measured of the device."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        self.size = sizes(args.size)
        self.peaks: dict[str, float] = {}

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

    def fresh(self) -> Ours:
        """A model with its twin, queue and optimizer; what was there before is freed."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch.manual_seed(0)
        return Ours(self.size, self.args.device)


def card(it: Card) -> dict[str, Any]:
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


def steps(it: Card) -> list[dict[str, Any]]:
    rows = []
    for compiled in (False, True) if it.args.backend else (False,):
        for count in it.args.batches:
            rows.append(timed(it, count, "bf16", compiled=compiled))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def timed(it: Card, count: int, precision: str, *, compiled: bool = False) -> dict[str, Any]:
    """Steps one by one, each with a wait at its end, and steps in a row with one wait at the end of all."""
    run, batches, repeats = it.fresh(), it.batches(count), it.args.repeats
    begin = time.perf_counter()
    if compiled:
        run.compile(backend=it.args.backend)
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


def precisions(it: Card) -> dict[str, Any]:
    count = it.args.batches[0]
    losses = {}
    for precision in PRECISIONS:
        run, batch = it.fresh(), it.batches(count)[0]
        with products(it.device, precision):
            losses[precision] = [float(loss) for loss in run.step(batch, precision == "bf16")]
    return {"losses": losses, "steps": [timed(it, count, precision) for precision in PRECISIONS]}


def parity(it: Card) -> dict[str, Any]:
    """Float32 here and on the CPU, at batch 8: losses of two steps, so that the second shows the gradients."""
    batch = make_batch(8, it.size.vit.image_size, seed=0)
    found = []
    for device in (it.args.device, "cpu"):
        torch.manual_seed(0)
        run = Ours(it.size, "cpu")
        weights = run.model.state_dict(), run.queue.state_dict()
        run = Ours(it.size, device)
        run.model.load_state_dict(weights[0])
        run.twin.load_state_dict({name: weights[0][name] for name in run.twin.state_dict()})
        run.queue.load_state_dict(weights[1])
        with products(it.device, "fp32"):
            found.append([[float(loss) for loss in run.step(batch.to(device))] for _ in range(2)])
    pairs = zip(*([loss for step in one for loss in step] for one in found), strict=True)
    return {"here": found[0], "cpu": found[1], "largest_difference": max(abs(a - b) for a, b in pairs)}


# ---- the estimate ----------------------------------------------------------------------------------------------------


def estimate(it: Card) -> list[dict[str, Any]]:
    """Steps of `configs/pretrain.yaml` at each batch, as the dry run takes them, and the estimate of the same steps."""
    from blip.config import PretrainConfig, load_config
    from blip.tasks.dry_run import random_steps, trained_on_meta
    from blip.tasks.estimate import plan

    rows = []
    for count in it.args.batches:
        own = ["tokenizer=train", "accumulation=1", f"batch_size={count}", "vision_init=", "text_init="]
        config = load_config(
            ROOT / "configs" / "pretrain.yaml", PretrainConfig, own if it.args.size != "small" else TINY
        )
        planned = plan(trained_on_meta, config, it.args.gpu)
        it.fresh()
        model, step = random_steps(config, it.device)
        seconds = []
        with products(it.device, config.precision):
            for _ in range(it.args.repeats + 2):
                begin = time.perf_counter()
                step()  # waits at its end
                seconds.append(time.perf_counter() - begin)
        del model
        found = {"gib": memory_mb(it.device) / 1024, "seconds": sorted(seconds[2:])[it.args.repeats // 2]}
        thought = {"gib": planned.counted.peak / GIB, "seconds": planned.step_seconds()}
        ratios = {name: thought[name] / found[name] for name in found}
        rows.append(
            {"batch": config.batch_size, "measured": found, "estimated": thought, "estimated_over_measured": ratios}
        )
    return rows


# ---- waits -----------------------------------------------------------------------------------------------------------

TINY = (
    *("vit=custom", "vit_width=64", "vit_depth=2", "vit_heads=2", "vit_patch=16", "text_width=64", "text_layers=2"),
    *("text_heads=2", "text_hidden=64", "embed_dim=16", "image_size=64", "queue_size=64", "batch_size=8"),
    *(
        "num_workers=0",
        "epochs=50",
        "max_steps=6",
        "log_every_steps=100",
        "save_every_minutes=null",
        "randaugment=null",
    ),
    *("tokenizer=train", "vocab_size=200", "val_file=[]", "vision_init=", "text_init="),
)


def waits(it: Card) -> dict[str, Any]:
    """Waits of the optimizer steps of a run after its first two, each by the innermost line of the package."""
    from blip.config import PretrainConfig, load_config
    from blip.data.phantoms import write_phantoms
    from blip.tasks import pretrain
    from blip.train.loop import Loop

    found: Counter[str] = Counter()
    done = [0]
    one_step = Loop._one_step

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            frames = [f for f in traceback.extract_stack() if "/blip/" in f.filename]
            found[f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "elsewhere"] += 1

    def watched(loop: Loop, *args: Any) -> bool:
        done[0] += 1
        if done[0] <= 2 or it.device.type != "cuda":
            return one_step(loop, *args)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            return one_step(loop, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("always")
        data = write_phantoms(Path(name) / "phantoms", count=32, seed=0)
        options = [f"train_file=[{data}]", f"device={it.device.type}", *TINY]
        config = load_config(ROOT / "configs" / "pretrain_small_data_tiny.yaml", PretrainConfig, options)
        shown, warnings.showwarning, Loop._one_step = warnings.showwarning, note, watched  # type: ignore[method-assign]
        try:
            pretrain.run(config, Path(name) / "run", "", device=it.device)
        finally:
            warnings.showwarning, Loop._one_step = shown, one_step  # type: ignore[method-assign]
    watched_steps = max(1, done[0] - 2)
    return {"steps": watched_steps, "a_step": {line: count / watched_steps for line, count in found.most_common()}}


# ---- profile ---------------------------------------------------------------------------------------------------------


def profile(it: Card) -> list[dict[str, Any]]:
    """A step in bf16 at two batches, eager and compiled where there is a compiler: its kernels by time."""
    from torch.profiler import ProfilerActivity

    on_gpu = it.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    rows = []
    for count, compiled in ((c, k) for k in ((False, True) if it.args.backend else (False,)) for c in it.args.profiled):
        run, batches = it.fresh(), it.batches(count)
        if compiled:
            run.compile(backend=it.args.backend)
        for batch in batches:
            run.step(batch, bf16=True)
        it.wait()
        with torch.profiler.profile(activities=kinds) as recorded:
            run.step(batches[0], bf16=True)
            it.wait()
        events = recorded.key_averages()
        busy = [(e.key, _busy(e, on_gpu), e.count) for e in events if _busy(e, on_gpu) > 0]
        rows.append(
            {
                "batch": count,
                "compiled": compiled,
                "busy_ms": sum(us for _, us, _ in busy) / 1e3,
                "launches": sum(e.count for e in events if "LaunchKernel" in e.key),
                "waits": {e.key: e.count for e in events if "Synchronize" in e.key},
                "by_time": [
                    {"name": key[:120], "ms": us / 1e3, "count": number}
                    for key, us, number in sorted(busy, key=lambda each: -each[1])[:30]
                ],
            }
        )
    return rows


def _busy(event: Any, on_gpu: bool) -> float:
    """Microseconds of an event: of a kernel on a GPU, else of an operation on the CPU."""
    if not on_gpu:
        return float(event.self_cpu_time_total)
    return float(event.self_device_time_total) if event.device_type == torch.autograd.DeviceType.CUDA else 0.0


# ---- errors of one process -------------------------------------------------------------------------------------------


def raising(it: Card) -> dict[str, Any]:
    """A run of two processes in which one cannot read its images, and fails."""
    from blip.data.phantoms import write_phantoms

    several = it.device.type == "cuda" and torch.cuda.device_count() > 1
    with tempfile.TemporaryDirectory() as name:
        data = write_phantoms(Path(name) / "phantoms", count=32, seed=0)
        (sorted((data.parent / "images").iterdir())[0]).write_bytes(b"no image")
        options = [f"train_file=[{data}]", f"device={'cuda' if several else 'cpu'}", "max_skipped_fraction=0", *TINY]
        command = [sys.executable, "-m", "torch.distributed.run", *OF_CPU, str(ROOT / "pretrain.py")]
        command += ["--config", str(ROOT / "configs" / "pretrain_small_data_tiny.yaml")]
        command += ["--output_dir", str(Path(name) / "run"), *(f"--set={option}" for option in options)]
        begin = time.perf_counter()
        try:
            out = subprocess.run(
                command, capture_output=True, text=True, timeout=150, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        except subprocess.TimeoutExpired as error:
            return {"ended": False, "seconds": 150, "output": str(error.stderr or "")[-2000:]}
    said = [
        line for line in (out.stdout + out.stderr).splitlines() if "unreadable" in line or "could not be read" in line
    ]
    return {
        "on": "two GPUs" if several else "two processes on the CPU: there is one device",
        "ended": out.returncode != 0,
        "status": out.returncode,
        "seconds": time.perf_counter() - begin,
        "message": said[-1:],
        "output": "" if said else out.stderr[-2000:],
    }


# ---- the command -----------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Card], Any]] = {
    part.__name__: part for part in (card, steps, estimate, waits, raising, parity, profile, precisions)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--size", choices=["small", "base", "large"], default="base")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--profiled", type=int, nargs="+", default=[75, 256], help="batches of the profile")
    parser.add_argument("--gpu", default="h200", help="name of the card, as `--dry_run --gpu` has it")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--backend", default="inductor", help='of the compiler; "": nothing is compiled')
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins later than this")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "on_gpu.json")
    args = parser.parse_args()
    begin, it, result = time.perf_counter(), Card(args), about(args)
    for name in args.parts:
        if time.perf_counter() - begin > 60 * args.minutes:
            result[name] = {"left_out": f"{args.minutes} minutes had passed"}
            continue
        started = time.perf_counter()
        try:
            result[name] = PARTS[name](it)
        except Exception as error:  # the other parts are still worth their time
            traceback.print_exc()
            result[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
        result["seconds"][name] = time.perf_counter() - started
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result[name])[:3000], flush=True)


def about(args: argparse.Namespace) -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(0) if args.device == "cuda" else None
    return {
        "command": f"python benchmarks/on_gpu.py {' '.join(sys.argv[1:])}".strip(),
        "hardware": gpu.name if gpu else "CPU",
        "memory_gib": gpu.total_memory / GIB if gpu else None,
        "torch": torch.__version__,
        "size": args.size,
        "seconds": {},
    }


if __name__ == "__main__":
    main()
