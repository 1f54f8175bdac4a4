"""Profiles a pre-training step of a configuration on random data: where its time goes, and where it waits.

    python benchmarks/profile_step.py --config configs/pretrain.yaml --trace trace.json

Prints the operations that take longest and, on a GPU, the lines that wait for it, of which a step should have one. The
trace opens in https://ui.perfetto.dev or chrome://tracing.
"""

import argparse
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import blip  # noqa: E402
from blip import distributed  # noqa: E402
from blip.config import PretrainConfig, load_config  # noqa: E402
from blip.hardware.precision import products  # noqa: E402
from blip.tasks.dry_run import random_steps  # noqa: E402

PACKAGE = Path(blip.__file__).resolve().parent
SHOWN = 25  # operations
WAIT = "called a synchronizing CUDA operation"  # not torch's warning that it may overlook some


def waits_of(step: Callable[[], object]) -> Counter[str]:
    """Lines of this package that wait for the GPU during a step, such as `blip/models/vqa.py:86`, and how often."""
    found: Counter[str] = Counter()

    def note(message: object, *_: object, **__: object) -> None:
        if WAIT in str(message):
            frames = [(Path(frame.filename).resolve(), frame.lineno) for frame in traceback.extract_stack()]
            lines = [
                f"{path.relative_to(PACKAGE.parent)}:{line}" for path, line in frames if path.is_relative_to(PACKAGE)
            ]
            found[lines[-1] if lines else "torch"] += 1

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="of pre-training")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value for an option")
    parser.add_argument("--steps", type=int, default=3, help="that are profiled, after two others")
    parser.add_argument("--trace", type=Path, help="a file for the trace")
    args = parser.parse_args()
    config = load_config(args.config, PretrainConfig, args.set)
    device = distributed.start(config.device)
    _, step = random_steps(config, device)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with products(device, config.precision):
        for _ in range(2):
            step()
        with profile(activities=activities, record_shapes=False) as found:
            for _ in range(args.steps):
                step()
        waits = waits_of(step) if on_gpu else Counter()
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=SHOWN, max_name_column_width=60))
    for line, count in waits.most_common():
        print(f"waits for the GPU {count} times a step: {line}")
    if args.trace:
        found.export_chrome_trace(str(args.trace))
        print(f"trace: {args.trace}")


if __name__ == "__main__":
    sys.exit(main())
