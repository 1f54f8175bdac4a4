"""Folders as runs leave them, written line by line, for pages on runs that nobody has to train."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

PRETRAINED = {"train_file": [], "val_file": ["val.json"], "epochs": 10, "lr": 0.001, "batch_size": 64, "queue_size": 99}
ANSWERED = {"best_metric": "val_exact_match", "epochs": 10, "k_test": 7, "inference": "rank", "answer_file": "a.txt"}


def write_lines(path: Path, lines: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(
    folder: Path, steps: int = 200, *, per_epoch: int = 20, former: bool = False, text: str = "a lesion"
) -> Path:
    """A run of pre-training with every file that one has; `former`: of a version that logged less."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in PRETRAINED.items()))
    noise = random.Random(0)
    lines = []
    for step in range(1, steps + 1):
        fall = math.exp(-5 * step / steps)
        losses = {"itc": 3 + 4 * fall + noise.gauss(0, 0.1), "itm": 0.3 + 0.34 * fall, "lm": 1 + 5 * fall}
        line = {"step": step, **losses, "itm_matched": 0.9 - fall, "itm_unmatched": 1 - fall / 2, "temperature": 0.07,
                "alpha": 0.4, "grad_norm": 1 + noise.random(), "lr": 0.001 * fall, "images_per_s": 100.0,
                "memory_mb": 800.0}  # fmt: skip
        lines.append(line | ({} if former else {"epoch": step / per_epoch, "loss": sum(losses.values())}))
        if step % per_epoch == 0:
            recall = {f"val_{way}_r{k}": min(1.0, k * (1 - fall) / 12) for way in ("i2t", "t2i") for k in (1, 5, 10)}
            line = {"step": step, "epoch": step // per_epoch, "val_pairs": 50.0, "val_chance": 0.02, **recall,
                    "val_itm_matched": 0.7, "val_itm_unmatched": 0.8, "val_unreadable": 0}  # fmt: skip
            lines.append(
                line | ({} if former else {"train_loss": 5 + 9 * fall, "val_loss": 5 + 9 * fall, "val_itc": 4.0})
            )
    write_lines(folder / "metrics.jsonl", lines)
    if not former:
        evaluations = range(per_epoch, steps + 1, per_epoch)
        edges = [i / 10 for i in range(-10, 11)]
        write_lines(folder / "similarities.jsonl", [{"step": step, "epoch": step // per_epoch, "edges": edges,
                    "matched": [*range(20)], "unmatched": [*range(20, 0, -1)]} for step in evaluations])  # fmt: skip
        write_samples(folder, evaluations, per_epoch, text)
    return folder


def write_samples(folder: Path, evaluations: Sequence[int], per_epoch: int, text: str) -> None:
    """Sixteen records with what was written for them, of which the first one has no image."""
    images = [folder / "images" / f"{number}.png" for number in range(16)]
    images[0].parent.mkdir(exist_ok=True)
    for image in images[1:]:
        Image.effect_noise((40, 30), 60).save(image)
    write_lines(folder / "samples.jsonl", [
        {"step": step, "epoch": step // per_epoch, "index": number, "image": str(image), "text": "", "truth": text,
         "output": f"{text} {step * (number % 2)}"}
        for step in evaluations for number, image in enumerate(images)
    ])  # fmt: skip


def write_answers(folder: Path, text: str = "is there a lesion?") -> Path:
    """A run of visual question answering with its answers and scores: a wrong one that is sure, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in ANSWERED.items()))
    Image.effect_noise((40, 30), 60).save(folder / "noise.png")
    given = [("yes", 0.9, "yes"), ("no", 0.8, "yes"), ("left", 0.3, "left"), ("right", 0.2, "left"), ("no", 0.6, "no")]
    rows = [{"question_id": f"q{number}", "image": "noise.png" if number else "gone.png", "question": text,
             "answer": answer, "probability": p, "references": [true]}
            for number, (answer, p, true) in enumerate(given)]  # fmt: skip
    (folder / "answers_val.json").write_text(json.dumps(rows))
    scores = {"closed": (0.66, 0.6, 0.7, 3), "open": (0.5, 0.3, 0.7, 2), "all": (0.6, 0.5, 0.7, 5)}
    by_type = {kind: dict(zip(("mean", "low", "high", "count"), x, strict=True)) for kind, x in scores.items()}
    floors = {kind: {"mean": 0.55, "low": 0.5, "high": 0.6, "count": 5} for kind in scores}
    about = {"inference": "rank", "by_type": {"exact_match": by_type}, "majority_by_type": floors}
    (folder / "scores_val.json").write_text(json.dumps(about))
    lines = [{"step": step, "lm": 9 / step, "lr": 0.1, "images_per_s": 5.0, "memory_mb": 9.0} for step in range(1, 9)]
    last = {"step": 8, "epoch": 1, "val_exact_match": 0.6, "val_exact_match_open": 0.5, "val_majority": 0.55,
            "val_images": 5, "val_images_in_training": 2, "best": 0.6}  # fmt: skip
    write_lines(folder / "metrics.jsonl", [*lines, last])
    write_lines(folder / "skipped.jsonl", [{"index": 1, "path": text, "reason": "broken"}])
    return folder
