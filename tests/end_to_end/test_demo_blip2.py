"""The demonstration of BLIP-2, a few steps long, in this process."""

import json
from functools import partial
from pathlib import Path

import demo_blip2
import pytest
import torch
from helpers.running import ROOT
from language_model import train_language_model

from blip.config import load_config
from blip.tasks import blip2
from blip.tasks.blip2_config import Blip2Config

pytestmark = pytest.mark.slow


def test_from_phantoms_to_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stage(config: str, output: Path, options: list[str]) -> None:
        given = [*options, "max_steps=2", "batch_size=4", "num_workers=0", "device=cpu"]
        assert blip2.run(load_config(ROOT / config, Blip2Config, given), output, "", device=torch.device("cpu"))

    monkeypatch.setattr("blip.train.run.measure_peak", lambda *_: 0.0)
    monkeypatch.setattr(demo_blip2, "stage", stage)
    monkeypatch.setattr(demo_blip2, "HELD_OUT", 8)
    monkeypatch.setattr(demo_blip2, "train_language_model", partial(train_language_model, steps=2))
    demo_blip2.main(tmp_path / "demo", seed=0, count=16, set_=None)
    scores = json.loads((tmp_path / "demo" / "scores.json").read_text())
    assert {"exact captions", "exact captions, images shuffled", "text to image R@1 after matching"} <= scores.keys()
    assert all(0 <= score <= 1 for score in scores.values())
