"""What the benchmarks share: options, turns with the clock, the rate of a matrix product, hardware, results as JSON."""

import argparse
import contextlib
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
Clock = Callable[[], None]  # waits until a device has done all that it was asked


def options(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of both sides, by autocast")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=["tiny", "base"], default="base", help="tiny only shows that it runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<name>_<device>_<precision>.json")
    return parser


def start(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)


def precision(args: argparse.Namespace, name: str = "") -> contextlib.AbstractContextManager:
    """The precision of the options, or `name`."""
    return torch.autocast(args.device, torch.bfloat16, enabled=(name or args.precision) == "bf16")


def clock(device: str) -> Clock:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def alternate(
    runs: dict[str, Callable[[], object]], repeats: int, synchronize: Clock, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each run, taken in turns; the first turn of `warm_up` is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(0 if warm_up else 1, repeats + 1):
        for name, run in runs.items():
            synchronize()
            begin = time.perf_counter()
            run()
            synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in seconds.items()}


def spread(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Slowest over fastest: far above 1 means that something else ran on the machine, and a ratio means nothing."""
    return {name: max(times) / min(times) for name, times in seconds.items()}


def peak_memory_of(args: argparse.Namespace, script: Path, *options: str) -> float:
    """GiB that `script`, in a process of its own, prints as its last line by `print_peak_memory`."""
    command = [sys.executable, str(script), *options, "--size", args.size, "--device", args.device]
    command += ["--threads", str(args.threads), "--precision", args.precision]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def print_peak_memory(device: str) -> None:
    """The highest point of this process until now, in GiB."""
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
        return
    # not ru_maxrss: it begins with the peak of the process that started this one
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 2**20)


def matmul_peak(dtype: torch.dtype, device: str, synchronize: Clock) -> float:
    """GFLOP/s of the product (1576, 768) x (768, 3072), the first one of a ViT-B's MLP at batch 8: the median of 20."""
    a = torch.randn(1576, 768, device=device, dtype=dtype)
    b = torch.randn(3072, 768, device=device, dtype=dtype)
    seconds = alternate({"product": lambda: a @ b.T}, 20, synchronize)["product"]
    return 2 * 1576 * 768 * 3072 / statistics.median(seconds) / 1e9


def rates(args: argparse.Namespace, gflop: dict[str, float], seconds: dict[str, float]) -> dict:
    """Counted operations over measured seconds, and as a share of what a matrix product reaches in this precision."""
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    peak = matmul_peak(dtype, args.device, clock(args.device))
    rate = {name: gflop[name] / seconds[name] for name in gflop}
    return {
        "gflop": gflop,
        "gflop_per_second": rate,
        "matmul_gflop_per_second": peak,
        "share_of_matmul_peak": {name: value / peak for name, value in rate.items()},
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def describe(device: str, threads: int, command: str | None = None) -> dict:
    """Command, hardware and versions; `command` where it is not the one that started this process."""
    here = Path(sys.argv[0]).name
    return {
        "command": command or f"python benchmarks/{here} {shlex.join(sys.argv[1:])}".strip(),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, {threads} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def report(args: argparse.Namespace, name: str, result: dict) -> dict:
    """Adds name and circumstances, writes the file and prints it as the last line."""
    result = {**describe(args.device, args.threads), "name": name, "precision": args.precision, **result}
    size = "" if args.size == "base" else f"_{args.size}"
    write(result, args.out or ROOT / "benchmarks" / "results" / f"{name}_{args.device}_{args.precision}{size}.json")
    return result


def write(result: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
