"""In a real kernel of Jupyter: progress is shown and no warning; an interruption saves and returns; others follow."""

import os
import queue
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.running import ROOT
from helpers.tiny import MODEL_SIZES

from blip.data.phantoms import write_phantoms

pytestmark = pytest.mark.slow
manager = pytest.importorskip("jupyter_client.manager")
pytest.importorskip("ipykernel")
SECONDS = 120
TRAIN = f"""
import blip
options = {MODEL_SIZES!r} | dict(
    tokenizer="train", vocab_size=200, image_size=32, crop_scale=None, randaugment=None, precision="fp32", drop_path=0,
    lr=1e-3, warmup_steps=2, k_test=4, batch_size=16, max_text_tokens=32, num_workers=2, log_every_steps=2,
    device="cpu",
)
run = blip.finetune("vqa", "questions.json", val="questions.json", epochs=EPOCHS, **options)
run
"""


class Kernel:
    """A kernel of its own, and what its cells show."""

    def __init__(self, folder: Path, env: dict[str, str]):
        self.manager, self.client = manager.start_new_kernel(kernel_name="python3", cwd=str(folder), env=env)

    def run(self, source: str, *, until: str = "") -> list[dict[str, Any]]:
        """Runs a cell -> its outputs. `until`: interrupts when a line begins so, and again if the cell goes on."""
        asked = self.client.execute(source)
        outputs: list[dict[str, Any]] = []
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != asked:
                continue
            if kind == "status" and content["execution_state"] == "idle":
                return outputs
            if kind in ("display_data", "execute_result", "stream", "error", "update_display_data", "comm_msg"):
                outputs.append({"kind": kind, **content})
                if until and until in text_of(outputs):
                    until = ""
                    self.manager.interrupt_kernel()
        raise AssertionError(f"the cell did not end: {text_of(outputs)}")


def text_of(outputs: list[dict[str, Any]]) -> str:
    """What a reader of the notebook sees, but for bars."""
    parts = []
    for one in outputs:
        if one["kind"] == "error":
            parts.append("Traceback: " + "\n".join(one["traceback"]))
        elif one["kind"] == "stream":
            parts.append(one["text"])
        else:
            parts.append(one.get("data", {}).get("text/plain", ""))
    return "\n".join(parts)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    write_phantoms(tmp_path, 24)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "IPYTHONDIR": str(tmp_path / "ip"),
    }
    one = Kernel(tmp_path, environment)
    yield one
    one.manager.shutdown_kernel(now=True)


def test_progress_interruption_and_a_second_run(kernel: Kernel) -> None:
    outputs = kernel.run(f"EPOCHS = 1\n{TRAIN}")
    shown = text_of(outputs)
    assert "run: runs/vqa-1" in shown and "train_loss" in shown and "<Run runs/vqa-1 of vqa>" in shown
    assert "Traceback" not in shown and "arning" not in shown and "DataLoader" not in shown
    bars = set(re.findall(r"epoch \S+ of 1 .*?(\d+)/15.*? loss \S+", shown))
    assert len(bars) > 1, "a bar moves, with epoch and loss"

    shown = text_of(kernel.run(f"EPOCHS = 100\n{TRAIN}", until="step 4/"))
    assert "runs/vqa-2 is interrupted and saved (step-" in shown and "run.resume() continues it" in shown
    assert "Traceback" not in shown and "<Run runs/vqa-2 of vqa>" in shown

    shown = text_of(kernel.run('run.resume(epochs=1); print(run.history["step"].iloc[-1], list(run.history["epoch"]))'))
    assert "15 [1]" in shown and "Traceback" not in shown
    shown = text_of(kernel.run(f"EPOCHS = 1\n{TRAIN}"))
    assert "<Run runs/vqa-3 of vqa>" in shown and "Traceback" not in shown and "arning" not in shown
