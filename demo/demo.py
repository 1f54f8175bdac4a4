"""Draws phantoms, pre-trains a tiny model on them, and shows what it has learned.

python demo/demo.py --output_dir runs/demo
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import blip
from blip.data.phantoms import write_phantoms
from blip.evaluation.ranking import recall_at
from blip.inference.predictor import Predictor
from blip.tokenizer import Tokenizer
from blip.train.log import read_metrics

WORDS = 256  # tokens of the vocabulary
ROOT = Path(__file__).resolve().parent.parent
GALLERIES, GALLERY = 5, 100  # each of this many images with distinct captions


def main(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="where data, checkpoints and logs go")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="of data and training")] = 0,
    count: Annotated[int, typer.Option(help="training images")] = 20_000,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value for configs/pretrain_demo.yaml")] = None,
) -> None:
    """Draws phantoms, pre-trains a tiny model on them, and shows what it has learned."""
    console, started = Console(), time.perf_counter()
    console.print(f"drawing {count} phantoms to train on and others to test on")
    train = write_phantoms(output_dir / "data" / "train", count, seed=2 * seed, max_lesions=1)
    test = write_phantoms(output_dir / "data" / "test", 1000, seed=2 * seed + 1, max_lesions=1)
    words = choose_words(train, output_dir / "data" / "tokenizer.json")
    run = output_dir / "run"
    options = [f"train_file=[{train.resolve()}]", f"val_file=[{test.resolve()}]"]
    options += [f"tokenizer={words.resolve()}", f"seed={seed}", *(set_ or [])]
    command = [sys.executable, "pretrain.py", "--config", "configs/pretrain_demo.yaml"]
    command += ["--output_dir", str(run.resolve()), "--resume", "auto", *(x for o in options for x in ("--set", o))]
    console.print("training: " + " ".join(command[1:]), soft_wrap=True, markup=False, highlight=False)
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit("training failed; its last lines above say why")

    model = blip.load(run / "checkpoints" / "latest", device="cuda" if torch.cuda.is_available() else "cpu")
    records = json.loads(test.read_text())
    scores = evaluate(model, test.parent, records)
    (output_dir / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    show(console, run, scores)
    examples(console, model, test.parent, records[:6])
    console.print(f"{(time.perf_counter() - started) / 60:.1f} minutes. The run: {run}", soft_wrap=True, markup=False)


def choose_words(train: Path, file: Path) -> Path:
    """A tokenizer of captions, questions and statements, so that fine-tuning on them meets no unknown word."""
    if not file.exists():  # training one is not reproducible: a run that goes on keeps its own
        texts = []
        for name, keys in (
            ("captions", ["caption"]),
            ("questions", ["question", "answer"]),
            ("statements", ["sentence"]),
        ):
            records = json.loads((train.parent / f"{name}.json").read_text())
            texts += [record[key] for record in records for key in keys]
        Tokenizer.train(texts, WORDS).save(file)
    return file


def evaluate(model: Predictor, folder: Path, records: list[dict]) -> dict[str, float]:
    """Means over the galleries of: retrieval by ITC both ways, exact captions, balanced match accuracy."""
    galleries = [evaluate_gallery(model, folder, records, number) for number in range(GALLERIES)]
    return {name: mean(gallery[name] for gallery in galleries) for name in galleries[0]}


def evaluate_gallery(model: Predictor, folder: Path, records: list[dict], number: int) -> dict[str, float]:
    """The scores on one random gallery of images with distinct captions, so that each has one right answer."""
    rng = np.random.default_rng(number)
    chosen = gallery_of(records, rng)
    images = [folder / record["image"] for record in chosen]
    texts = [record["caption"] for record in chosen]
    similarity = model.itc_score(images, texts)
    right = torch.eye(len(chosen), dtype=torch.bool, device=similarity.device)
    shift = 1 + int(rng.integers(len(chosen) - 1))  # the galleries are shuffled: a shift is a random wrong pair
    matched = model.match_probability(images, texts) > 0.5
    unmatched = model.match_probability(images, texts[shift:] + texts[:shift]) > 0.5
    return {
        "image to text R@1": recall_at(similarity, right)[1],
        "text to image R@1": recall_at(similarity.T, right)[1],
        "exact captions": mean(a == b for a, b in zip(model.caption(images), texts, strict=True)),
        "match accuracy": (matched.float().mean().item() + 1 - unmatched.float().mean().item()) / 2,
        "chance of R@1": 1 / len(chosen),
    }


def gallery_of(records: list[dict], rng: np.random.Generator) -> list[dict]:
    """Random records with distinct captions, `GALLERY` of them at most."""
    distinct = {records[i]["caption"]: records[i] for i in rng.permutation(len(records))}
    return list(distinct.values())[:GALLERY]


def show(console: Console, run: Path, scores: dict[str, float]) -> None:
    """The last losses and the scores, each beside what a model without skill gets."""
    lines = read_metrics(run)
    losses = [line for line in lines if "itc" in line]
    table = Table("", "first", "last", title="training")
    for name in ("itc", "itm", "lm", "itm_matched", "itm_unmatched"):
        table.add_row(name, f"{losses[0][name]:.3f}", f"{losses[-1][name]:.3f}")
    console.print(table)
    chance = f"{scores['chance of R@1']:.0%}"
    without = {
        "image to text R@1": chance,
        "text to image R@1": chance,
        "exact captions": "0%",
        "match accuracy": "50%",
    }
    table = Table(
        "", "score", "without skill", title=f"{GALLERIES} galleries of {1 / scores['chance of R@1']:.0f} images"
    )
    for name, none in without.items():
        table.add_row(name, f"{scores[name]:.1%}", none)
    console.print(table)


def examples(console: Console, model: Predictor, folder: Path, records: list[dict]) -> None:
    """A few generated captions beside the true ones."""
    generated = model.caption([folder / record["image"] for record in records])
    table = Table("image", "generated", "true", title="captions")
    for record, text in zip(records, generated, strict=True):
        same = text == record["caption"]
        table.add_row(record["image"], text, "the same" if same else record["caption"])
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
