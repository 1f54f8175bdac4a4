"""One pre-training step of ours against the published algorithm composed of transformers' modules (`peers.py`).

    python benchmarks/train_step.py --precision fp32
    python benchmarks/train_step.py --precision bf16
    python benchmarks/train_step.py --precision bf16 --device cuda --batch 256 --compile --alone

Same process, same weights, same inputs, same hard negatives (the most similar one), no dropout. The losses of two steps
in a row are compared first; a benchmark of different numbers means nothing. Then steps alternate between the two, and
medians are compared. Peak memory is that of a child process each. The last line printed is one JSON object, also in a
file under `benchmarks/results/`.

`bf16` is autocast on our side; the peer runs in float32, as published, and once more in bf16 autocast. `--alone` leaves
the peer out. `--compile` compiles all blocks, those of the twin too. The only wait for a device within the time that is
measured is the one at the end of a step.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402

from benchmarks.harness import alternate, clock, describe, matmul_peak, medians, spread, write  # noqa: E402
from benchmarks.step_sides import EMBED, LONGEST, Ours, Size, Theirs, compare, make_batch, sizes  # noqa: E402
from blip.hardware.precision import products  # noqa: E402
from blip.network import flops  # noqa: E402
from blip.train.parallel import measure_peak  # noqa: E402


def peak_memory(args: argparse.Namespace, who: str, bf16: bool) -> float:
    """GiB at the highest point of two steps, in a process that holds nothing else (child side: `memory_of`)."""
    command = [sys.executable, __file__, "--memory-of", who, "--batch", str(args.batch), "--size", args.size]
    command += ["--device", args.device, "--threads", str(args.threads), "--precision", "bf16" if bf16 else "fp32"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.splitlines()[-1])


def memory_of(args: argparse.Namespace) -> None:
    size = sizes(args.size)
    run = Ours(size, args.device) if args.memory_of == "ours" else Theirs(size, args.device)
    batch = make_batch(args.batch, size.vit.image_size, seed=0).to(args.device)
    for _ in range(2):
        run.step(batch, args.precision == "bf16")
    if args.device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        # not ru_maxrss: it begins with the peak of the process that started this one
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 2**20)


def command(args: argparse.Namespace) -> str:
    options = ("precision", "batch", "size", "device", "threads", "repeats")
    line = "".join(f" --{name} {getattr(args, name)}" for name in options)
    return f"python benchmarks/train_step.py{line}" + "".join(
        f" --{name}" for name in ("compile", "alone") if getattr(args, name)
    )


def measure(args: argparse.Namespace) -> dict:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    size = sizes(args.size)
    bf16 = args.precision == "bf16"
    kinds = {"ours": args.precision}
    if not args.alone:
        kinds = {"theirs": "fp32", **kinds} | ({"theirs_bf16": "bf16"} if bf16 else {})
    # first, while this process holds nothing: the three would not fit into memory together
    memory = {name: peak_memory(args, name.removesuffix("_bf16"), kind == "bf16") for name, kind in kinds.items()}
    print(json.dumps({"peak_memory_gib": memory}), flush=True)
    synchronize = clock(args.device)
    batch = make_batch(args.batch, size.vit.image_size, seed=0).to(args.device)
    ours = Ours(size, args.device)
    if args.compile:
        ours.compile()
    runs: dict[str, Any] = {"ours": lambda: ours.step(batch, bf16)}
    compared: dict[str, Any] = {}
    if not args.alone:
        theirs = Theirs(size, args.device)
        compared["agreement_fp32"] = compare(ours, theirs, batch)
        print(json.dumps(compared["agreement_fp32"], indent=1), flush=True)
        runs = {"theirs": lambda: theirs.step(batch), **runs}
        if bf16:
            runs["theirs_bf16"] = lambda: theirs.step(batch, bf16=True)
    seconds = alternate(runs, args.repeats, synchronize)
    print(json.dumps({"seconds": seconds}), flush=True)
    median = medians(seconds)
    if not args.alone:
        compared |= ratios(seconds, bf16)
    lengths = batch.lengths.tolist()
    cost = {name: gflop_per_sample(size, lengths, name) for name in median}
    peak = products_per_second(args, synchronize)
    rate = {name: cost[name] * args.batch / median[name] for name in median}
    return {
        **describe(args.device, args.threads, command(args)),
        "name": "train_step",
        "precision": args.precision,
        **compared,
        "spread": spread(seconds),
        "seconds": median,
        "seconds_all": seconds,
        "gflop_per_sample": cost,
        "gflop_per_second": rate,
        "matmul_gflop_per_second": peak,
        "share_of_matmul_peak": {name: rate[name] / peak[kinds[name]] for name in rate},
        "mfu": rate["ours"] * 1e9 / measure_peak(torch.device(args.device), args.precision),
        "peak_memory_gib": memory,
        "parameters": flops.pretrain_parameters(size.vit, size.text, embed_dim=EMBED).total,
        "batch": args.batch,
        "lengths": lengths,
    }


def ratios(seconds: dict[str, list[float]], bf16: bool) -> dict[str, Any]:
    """Theirs over ours: of medians, of medians of the same precision, of the fastest steps."""
    median = medians(seconds)
    return {
        "ratio": median["theirs"] / median["ours"],
        "ratio_same_precision": median["theirs_bf16" if bf16 else "theirs"] / median["ours"],
        "ratio_of_fastest": min(seconds["theirs"]) / min(seconds["ours"]),
        "attention_of_theirs": "written-out soft-max (transformers has no other for BLIP)",
    }


def products_per_second(args: argparse.Namespace, synchronize: Callable[[], None]) -> dict[str, float]:
    """GFLOP/s of a large matrix product by precision."""
    peak: dict[str, float] = {}
    for kind in dict.fromkeys((args.precision, "fp32", "bf16")):
        with products(torch.device(args.device), kind):
            dtype = torch.bfloat16 if kind == "bf16" else torch.float32
            peak[kind] = matmul_peak(dtype, args.device, synchronize)
    return peak


def gflop_per_sample(size: Size, lengths: list[int], name: str) -> float:
    """Counted operations of a step of ours, or of theirs, which are padded to `LONGEST`."""
    if name == "ours":
        return flops.pretrain_step(size.vit, size.text, lengths, queue=size.queue).total / len(lengths) / 1e9
    published = flops.Savings(shared_keys=False, packed=False, one_token=False)
    cost = flops.pretrain_step(size.vit, size.text, lengths, longest=LONGEST, queue=size.queue, savings=published)
    return cost.total / len(lengths) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", choices=["small", "base", "large"], default="base")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile our blocks; reported under another name")
    parser.add_argument("--alone", action="store_true", help="without the peer")
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results, by device and precision")
    parser.add_argument("--memory-of", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        torch.set_num_threads(args.threads)
        return memory_of(args)
    with products(torch.device(args.device), args.precision):
        result = measure(args)
    batch = f"_batch{args.batch}" if args.device == "cuda" else ""  # several are measured there
    variant = batch + ("_compiled" if args.compile else "") + ("" if args.size == "base" else f"_{args.size}")
    out = args.out or ROOT / "benchmarks" / "results" / f"train_step_{args.device}_{args.precision}{variant}.json"
    write(result, out)


if __name__ == "__main__":
    main()
