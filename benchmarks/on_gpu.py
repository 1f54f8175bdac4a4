"""What only a GPU can tell, in one command of at most ten minutes: `python benchmarks/on_gpu.py`.

| part | what it measures |
| ---- | ---------------- |
| card | products in each precision and a copy in memory, the references for everything else |
| steps | a step of pre-training at each batch: time, model FLOPs utilisation, memory |
| estimate | memory and time of a step against those that `pretrain.py --dry_run --gpu NAME` gives without a GPU |
| runs | whether each task trains, is validated and resumed, and where its steps wait for the GPU, by file and line |
| profile | the kernels that take most of a step, and how many are launched |
| precisions | the same step in float32, TF32 and bf16, and how far their losses differ |
| parity | losses of the same weights and batch in float32, here and on the CPU |
| raising | two processes of which one fails: the seconds until both have ended, and whether the message was printed |
| compiled | steps and profile of compiled blocks; last, since compilation takes minutes |

A part that fails leaves its error in the result, and the others still run; a part for which no time is left is named.
The result is a file of JSON in `benchmarks/results`, written again after each row of a part. Its `bars` say what was
to be reached, and are printed at the end. `gpu_parts.py` and `gpu_runs.py` have the parts.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402

from benchmarks import gpu_parts, gpu_runs  # noqa: E402
from benchmarks.gpu_parts import GIB, Session, tried  # noqa: E402

PARTS: dict[str, Callable[[Session], Any]] = {
    "card": gpu_parts.card,
    "steps": gpu_parts.steps,
    "estimate": gpu_parts.estimate,
    "runs": gpu_runs.runs,
    "profile": gpu_parts.profile,
    "precisions": gpu_parts.precisions,
    "parity": gpu_parts.parity,
    "raising": gpu_runs.raising,
    "compiled": gpu_parts.compiled,
}
UTILISATION = 0.45  # of a step, at least
MEMORY, TIME = 0.10, 0.25  # by which an estimate may be off


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
    parser.add_argument("--compiling", type=float, default=60.0, help="seconds that a compiled step needs to begin")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "on_gpu.json")
    args = parser.parse_args()
    result = about(args)

    def keep(name: str, found: Any) -> None:
        result[name] = found
        result["bars"] = tried(lambda: bars(result))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")

    it = Session(args)
    for name in args.parts:
        if it.seconds_left < 0:
            keep(name, {"left_out": f"{args.minutes} minutes had passed"})
            continue
        started = time.perf_counter()
        it.keep = lambda rows, name=name: keep(name, rows)  # type: ignore[misc]
        found = tried(lambda name=name: PARTS[name](it))  # type: ignore[misc]
        result["seconds"][name] = time.perf_counter() - started
        keep(name, found)
        print(f"{name}, {result['seconds'][name]:.0f} s: {json.dumps(found)[:1500]}", flush=True)
    for name, bar in result["bars"].items():
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[bar["reached"]]
        print(f"{verdict}: {name}: {bar['found']}, {bar['bar']}")


def bars(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was to be reached, what was found, and whether that is enough; None where nothing was measured."""
    compiled = result.get("compiled")
    later = compiled.get("steps", []) if isinstance(compiled, dict) else compiled or []
    measured = [row for row in (*_rows(result.get("steps")), *_rows(later)) if "mfu" in row]
    utilisation = {f"{row['batch']}{' compiled' if row['compiled'] else ''}": round(row["mfu"], 3) for row in measured}
    found: dict[str, dict[str, Any]] = {
        "utilisation": {
            "found": utilisation,
            "bar": f"at least {UTILISATION} at one batch",
            "reached": max(utilisation.values()) >= UTILISATION if utilisation else None,
        }
    }
    rows = [row for row in _rows(result.get("estimate")) if "estimated_over_measured" in row]
    for name, key, most in (("memory of the estimate", "gib", MEMORY), ("time of the estimate", "seconds", TIME)):
        ratios = {row["batch"]: round(row["estimated_over_measured"][key], 3) for row in rows}
        found[name] = {
            "found": ratios,
            "bar": f"within {most:.0%} of what was measured",
            "reached": all(abs(ratio - 1) <= most for ratio in ratios.values()) if ratios else None,
        }
    runs = result.get("runs") or {}
    waits = {task: one.get("waits_a_step", one) if isinstance(one, dict) else one for task, one in runs.items()}
    found["waits"] = {
        "found": waits,
        "bar": "none in a step of any task, but for the one event that its verdict is read by, which is not counted",
        "reached": not any(waits.values()) if waits and result["device"] == "cuda" else None,
    }
    return found


def _rows(found: Any) -> list[dict[str, Any]]:
    return found if isinstance(found, list) else []


def about(args: argparse.Namespace) -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(0) if args.device == "cuda" else None
    return {
        "command": f"python benchmarks/on_gpu.py {' '.join(sys.argv[1:])}".strip(),
        "hardware": gpu.name if gpu else "CPU",
        "memory_gib": gpu.total_memory / GIB if gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": args.device,
        "size": args.size,
        "seconds": {},
    }


if __name__ == "__main__":
    main()
