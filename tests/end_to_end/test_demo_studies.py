"""The demonstration of studies, a few steps long, in this process."""

import json
from io import StringIO
from pathlib import Path

import pytest
import studies
import torch
from helpers.tiny import MODEL_SIZES
from rich.console import Console

from blip.config import load_config
from blip.tasks import caption
from blip.tasks.config import CaptionConfig

pytestmark = pytest.mark.slow
SHORT = {**MODEL_SIZES, "image_size": 32, "max_steps": 2, "num_workers": 0, "batch_size": 4, "device": "cpu"}


@pytest.mark.usefixtures("no_java_nor_peak")
def test_each_captioner_is_trained_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def train(output: Path, options: list[str]) -> None:
        short = [f"{key}={value}" for key, value in SHORT.items()]
        config = load_config(studies.ROOT / "configs/captions_studies.yaml", CaptionConfig, options + short)
        seen[output.name] = (config.max_pictures, config.picture_embeddings)
        caption.run(config, output, "auto", device=torch.device("cpu"))

    monkeypatch.setattr(studies, "caption", train)
    monkeypatch.setattr(studies, "HELD_OUT", 6)
    monkeypatch.setattr(studies, "COMPARISONS", studies.COMPARISONS | {"volume": studies.Comparison(3, 8, {}, {})})
    studies.main(tmp_path, seed=0, kind=["views", "volume", "video"], count=8, set_=None)
    assert seen == {
        "both_views": (16, "none"),
        "the_first_view": (1, "none"),
        "frames_with_times": (16, "time"),
        "frames_without_times": (16, "none"),
    }
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == {
        "views: both views", "views: the first view", "video: frames with times", "video: frames without times",
    }  # fmt: skip
    assert all(0 <= score["exact captions"] <= 1 and score["core minutes"] >= 0 for score in scores.values())


def test_scores_count_what_the_order_tells(tmp_path: Path) -> None:
    pairs = [("a that grows", "a that grows"), ("a that grows", "a that shrinks"), ("a that stays", "a that stays"),
             ("b that shrinks", "a that shrinks")]  # fmt: skip
    rows = [{"caption": written, "references": [true]} for written, true in pairs]
    (tmp_path / "captions_val.json").write_text(json.dumps(rows))
    found = studies.evaluate(tmp_path)
    assert found == {"exact captions": 0.5, "grows or shrinks": pytest.approx(2 / 3)}
    console = Console(width=100, record=True, file=StringIO())
    studies.show(console, {"video: a": {**found, "minutes": 1.0, "core minutes": 1.5}})
    assert "66.7%" in console.export_text()
