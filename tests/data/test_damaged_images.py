"""Hundreds of damaged files of every format, by seeds: each is an RGB image or an unreadable one, and nothing else."""

import os
import re
import subprocess
import sys

import pytest
from helpers.running import ROOT

pytestmark = pytest.mark.slow  # all of them together

PROGRAM = ROOT / "tests" / "helpers" / "damaged_images.py"


@pytest.mark.parametrize("first", [0, 20])
def test_damaged_files_are_opened_or_refused(first: int) -> None:
    # a process of its own: decoders are written in C, and one that writes past its memory ends the process
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, str(PROGRAM), str(first), str(first + 20)], capture_output=True, text=True,
                            timeout=300, env=environment)  # fmt: skip
    lines = result.stdout.splitlines()
    assert result.returncode == 0, f"{lines[-1:]}: status {result.returncode}\n{result.stderr[-3000:]}"
    opened, refused = (int(re.search(rf"'{name}': (\d+)", lines[-1])[1]) for name in ("opened", "refused"))
    assert opened + refused == 20 * int(lines[-1].split()[-1]) >= 400
    assert min(opened, refused) > 20
