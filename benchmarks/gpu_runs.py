"""The parts of `on_gpu.py` that are whole runs: of each task on phantoms, and of two processes of which one fails."""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import ROOT, SIZES, Session, tried
from benchmarks.profile_step import waits_of

OF_CPU = ("--nproc_per_node=2", "--master_port=29561")
TINY = {
    **SIZES, "batch_size": 8, "num_workers": 0, "epochs": 50, "max_steps": 6, "max_val_records": 8,
    "max_text_tokens": 30, "max_new_tokens": 4, "k_test": 4, "tokenizer": "train", "warmup_steps": 2,
    "save_every_minutes": 1, "best_metric": "val_loss", "best_is": "lowest",
}  # fmt: skip
ANNOTATIONS = {
    "pretrain": "captions.json",
    "retrieval": "captions.json",
    "caption": "captions.json",
    "vqa": "questions.json",
    "nlvr": "statements.json",
}


def runs(it: Session) -> dict[str, Any]:
    """Each task trains for some steps on phantoms, is validated and resumed; and where the optimizer steps after its
    first two wait for the GPU, each wait by the innermost line of the package."""
    from blip.data.phantoms import write_phantoms

    with tempfile.TemporaryDirectory() as name:
        write_phantoms(Path(name) / "phantoms", count=32, seed=0)
        return {task: tried(partial(run_of, it, task, Path(name))) for task in ANNOTATIONS}


def run_of(it: Session, task: str, folder: Path) -> dict[str, Any]:
    from blip.config import PretrainConfig, load_config
    from blip.tasks import config as configs

    kinds = {"caption": configs.CaptionConfig, "vqa": configs.VqaConfig, "nlvr": configs.NlvrConfig}
    kind: Any = {"pretrain": PretrainConfig, "retrieval": configs.RetrievalConfig, **kinds}[task]
    data, file = folder / "phantoms" / ANNOTATIONS[task], folder / f"{task}.yaml"
    values = {key: value for key, value in TINY.items() if key in kind.model_fields}
    values |= {"train_file": f"[{data}]", "val_file": f"[{data}]", "device": it.device.type}
    file.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    run = import_module(f"blip.tasks.{task}").run
    with watched_steps(it) as found:
        run(load_config(file, kind), folder / task, "", device=it.device)
    run(load_config(file, kind, ["max_steps=8"]), folder / task, "auto", device=it.device)
    steps = max(1, found.pop("steps") - 2)
    return {"steps": steps, "waits_a_step": {line: count / steps for line, count in found.most_common()}}


@contextmanager
def watched_steps(it: Session) -> Iterator[Counter[str]]:
    """Within this block the waits of optimizer steps, but for the first two, are counted by line; `steps`: how many
    there were with these."""
    from blip.train.loop import Loop

    found: Counter[str] = Counter()
    one_step = Loop._one_step

    def watched(loop: Loop, *args: Any) -> bool:
        found["steps"] += 1
        if found["steps"] <= 2 or it.device.type != "cuda":
            return one_step(loop, *args)
        stop = []
        found.update(waits_of(lambda: stop.append(one_step(loop, *args))))
        return stop[0]

    Loop._one_step = watched  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Loop._one_step = one_step  # type: ignore[method-assign]


# ---- errors of one process -------------------------------------------------------------------------------------------


def raising(it: Session) -> dict[str, Any]:
    """A run of two processes in which one cannot read its images, and fails."""
    from blip.data.phantoms import write_phantoms

    if it.device.type == "cuda" and torch.cuda.device_count() == 1:
        return {"left_out": "it takes two GPUs; tests do it by two processes on a CPU"}
    with tempfile.TemporaryDirectory() as name:
        data = write_phantoms(Path(name) / "phantoms", count=32, seed=0)
        (sorted((data.parent / "images").iterdir())[0]).write_bytes(b"no image")
        config = Path(name) / "config.yaml"
        tiny = {**SIZES, "tokenizer": "train", "batch_size": 8, "num_workers": 0, "epochs": 50, "max_steps": 6}
        values = {**tiny, "train_file": f"[{data}]", "device": it.device.type, "max_skipped_fraction": 0}
        config.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
        command = [sys.executable, "-m", "torch.distributed.run", *OF_CPU, str(ROOT / "pretrain.py")]
        command += ["--config", str(config), "--output_dir", str(Path(name) / "run")]
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
        "ended": out.returncode != 0,
        "status": out.returncode,
        "seconds": time.perf_counter() - begin,
        "message": said[-1:],
        "output": "" if said else out.stderr[-2000:],
    }
