"""Samples that several tests of data sets use."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from blip.data.questions import Questions
from blip.data.sets.questions import Question


def write_images(folder: Path, count: int, size: int = 12) -> None:
    """0.png, 1.png, ... of different noise, and pairs.json with the captions "text 0", "text 1", ..."""
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    records = [{"image": f"{i}.png", "caption": f"text {i}"} for i in range(count)]
    (folder / "pairs.json").write_text(json.dumps(records))


def every(questions: Questions) -> list[Question]:
    return [questions[i] for i in range(len(questions))]
