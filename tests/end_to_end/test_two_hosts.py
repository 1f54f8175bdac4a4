"""Training on two hosts with one rendezvous, where this machine can make two network namespaces."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import network_namespaces
from helpers.running import ROOT


@pytest.mark.slow
def test_two_hosts_train_together(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "network_namespaces.py"), str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    shown, errors = process.communicate(timeout=180)
    if process.returncode == network_namespaces.SKIPPED:
        pytest.skip(errors.strip())
    assert process.returncode == 0, errors
    assert "two hosts trained 3 steps" in shown
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert f"blip{process.pid}h" not in left


def test_without_privileges_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert network_namespaces.main(tmp_path) == network_namespaces.SKIPPED
    assert "skipped: there is no `ip` command" in capsys.readouterr().err
    (tmp_path / "ip").write_text("#!/bin/sh\necho 'Operation not permitted' >&2; exit 1\n")
    (tmp_path / "ip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert network_namespaces.main(tmp_path) == network_namespaces.SKIPPED
    assert "may not make network namespaces" in capsys.readouterr().err
