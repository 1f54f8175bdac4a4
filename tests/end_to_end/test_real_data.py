"""Pre-training on real images and captions with the small-data configuration, shortened: the losses fall."""

import json
from pathlib import Path
from statistics import mean

import pytest
from helpers.real_files import VOCABULARY, need
from helpers.running import run_script

from blip.train.log import read_metrics

SHORT = {
    "image_size": 64,
    "vit": "custom",
    "vit_width": 64,
    "vit_depth": 2,
    "vit_heads": 2,
    "vit_patch": 16,
    "text_width": 64,
    "text_layers": 2,
    "text_heads": 2,
    "text_hidden": 128,
    "embed_dim": 32,
    "batch_size": 16,
    "queue_size": 64,
    "lr": 1e-3,
    "warmup_steps": 10,
    "max_steps": 100,
    "log_every_steps": 5,
    "num_workers": 0,
}


def losses(data: Path, vocabulary: Path | str, output: Path, **more: object) -> list[dict]:
    """The log of a shortened run on one annotation file."""
    settings = {**SHORT, "train_file": f"[{data}]", "tokenizer": vocabulary, **more}
    overrides = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
    done = run_script("--config", "configs/pretrain_small_data_tiny.yaml", "--output_dir", output, *overrides)
    assert done.returncode == 0, done.stderr
    assert not (output / "skipped.jsonl").exists()
    return [line for line in read_metrics(output) if "itc" in line]


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("file", ["vqa_med_2019/captions_composed.json", "coco_sample/captions.json"])
def test_losses_fall(file: str, data_dir: Path, tmp_path: Path) -> None:
    """Contrast and language modelling; matching begins to be learned after more steps than these."""
    need(data_dir, file)
    vocabulary = data_dir / VOCABULARY if (data_dir / VOCABULARY).is_file() else "train"
    # without queue and soft targets, whose growth raises the contrastive loss at first
    lines = losses(data_dir / file, vocabulary, tmp_path / "run", queue_size=0, alpha=0, max_steps=60)
    for name in ("itc", "lm"):
        early, late = mean(x[name] for x in lines[:4]), mean(x[name] for x in lines[-4:])
        assert late < early - 0.05, f"{name} went from {early:.3f} to {late:.3f}"


@pytest.mark.real_data
@pytest.mark.slow
def test_matching_is_learned(data_dir: Path, tmp_path: Path) -> None:
    """Of 16 images, matching leaves behind what it costs without skill, 0.6365, and tells both kinds of rows."""
    source = need(data_dir, "vqa_med_2019/captions_composed.json")
    records = json.loads(source.read_text())
    few = [{**r, "image": str((source.parent / r["image"]).resolve())}
           for r in records[:: max(1, len(records) // 16)][:16]]  # fmt: skip
    (tmp_path / "few.json").write_text(json.dumps(few))
    # with few words of their own, since BERT's 30,522 take most of the time of so small a model
    short = {"queue_size": 0, "alpha": 0, "max_text_tokens": 20, "epochs": 1000, "max_steps": 150, "vocab_size": 400}
    last = losses(tmp_path / "few.json", "train", tmp_path / "run", **short, text_layers=3, lr=2e-3)[-1]
    assert last["itm"] < 0.4
    assert last["itm_matched"] > 0.7 and last["itm_unmatched"] > 0.7
