"""What a folder of real data holds, read from its files by the plainest code: tests expect that, whatever the folder.

A part that the folder lacks skips the test, with the reason.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blip.tokenizer import Tokenizer

VOCABULARY = "vocab/bert-base-uncased-vocab.txt"
RAD = "vqa_rad/VQA_RAD Dataset Public.json"
CATEGORIES = {"C1": "modality", "C2": "plane", "C3": "organ", "C4": "abnormality"}  # by the names of VQA-Med's files


def need(folder: Path, name: str) -> Path:
    """`folder/name`, or a skipped test where it is absent."""
    path = folder / name
    if not path.exists():
        pytest.skip(f"{folder} has no {name}")
    return path


def read(folder: Path, name: str) -> Any:
    """The content of a JSON file."""
    return json.loads(need(folder, name).read_text(encoding="utf-8"))


def lines(folder: Path, name: str) -> list[Any]:
    """The content of a file with a JSON object on each line."""
    text = need(folder, name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def tokenizer_of(folder: Path) -> Tokenizer:
    """BERT's vocabulary where the folder has it, else one learned from the folder's texts."""
    if (folder / VOCABULARY).is_file():
        return Tokenizer.from_vocab(folder / VOCABULARY)
    return Tokenizer.train(texts(folder), vocab_size=2000)


def texts(folder: Path) -> list[str]:
    """All captions, questions, answers and sentences of the folder."""
    found: list[str] = []
    for name, keys in {
        "vqa_rad/qa.json": ("question", "answer"),
        "vqa_med_2019/qa.json": ("question", "answer"),
        "vqa_med_2019/captions_composed.json": ("caption",),
        "coco_sample/captions.json": ("caption",),
        "nlvr_sample/nlvr.json": ("sentence",),
    }.items():
        if (folder / name).is_file():
            for record in read(folder, name):
                for key in keys:
                    found += record[key] if isinstance(record[key], list) else [str(record[key])]
    if not found:
        pytest.skip(f"{folder} has no texts")
    return found


def med_categories(folder: Path, split: str) -> Counter[str]:
    """Questions of a split of VQA-Med by category."""
    name = "vqa_med_2019/" + {"val": "validation", "train": "training"}[split] + "/QAPairsByCategory"
    counts: Counter[str] = Counter()
    for file in sorted(need(folder, name).glob("*.txt")):
        rows = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        counts[CATEGORIES[file.name[:2]]] += len(rows)
    return counts


def repeated_images(files: Iterator[Path]) -> int:
    """Files whose content another of these files has, too."""
    contents = Counter(hashlib.sha256(file.read_bytes()).digest() for file in files)
    return sum(count for count in contents.values() if count > 1)
