"""Draws phantoms, trains a tiny language model on their captions, then both stages of BLIP-2, and shows the scores.

python demo/demo_blip2.py --output_dir runs/demo_blip2
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
from language_model import train_language_model
from rich.console import Console
from rich.table import Table

import blip
from blip.data.phantoms import write_phantoms
from blip.evaluation.ranking import recall_at
from blip.tokenizer import Tokenizer
from demo import GALLERY, gallery_of

WORDS = 256  # tokens of the Q-Former's vocabulary
ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 1000  # images, of which those with distinct captions are scored


def main(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="where data, checkpoints and logs go")] = Path(
        "runs/demo_blip2"
    ),
    seed: Annotated[int, typer.Option(help="of data and training")] = 0,
    count: Annotated[int, typer.Option(help="training images")] = 20_000,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value for both stages")] = None,
) -> None:
    """Draws phantoms, trains a language model on their captions, then both stages, and shows what was learned."""
    console, started = Console(), time.perf_counter()
    console.print(f"drawing {count} phantoms to train on and others to test on")
    train = write_phantoms(output_dir / "data" / "train", count, seed=2 * seed, max_lesions=1)
    test = write_phantoms(output_dir / "data" / "test", HELD_OUT, seed=2 * seed + 1, max_lesions=1)
    captions = [record["caption"] for record in json.loads(train.read_text())]
    tokenizer, language = output_dir / "data" / "tokenizer.json", output_dir / "language_model"
    if not tokenizer.exists():
        Tokenizer.train(captions, WORDS).save(tokenizer)
    if not (language / "config.json").exists():
        console.print("training the language model on captions, without images")
        console.print(f"its loss: {train_language_model(captions, language, seed=seed):.3f} a token")
    files = [f"train_file=[{train.resolve()}]", f"val_file=[{test.resolve()}]", f"seed={seed}", *(set_ or [])]
    first, second = output_dir / "stage1", output_dir / "stage2"
    stage("configs/blip2_phantoms.yaml", first, [*files, f"tokenizer={tokenizer.resolve()}"])
    stage("configs/blip2_phantoms_stage2.yaml", second,
        [*files, f"language_model={language.resolve()}", f"init_from={first.resolve()}"])  # fmt: skip

    records = json.loads(test.read_text())
    scores = evaluate(first, second, test.parent, records)
    (output_dir / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    table = Table("", "score", title=f"{GALLERY} held-out images with distinct captions")
    for name, score in scores.items():
        table.add_row(name, f"{score:.1%}")
    console.print(table)
    console.print(f"{(time.perf_counter() - started) / 60:.1f} minutes", soft_wrap=True, markup=False)


def stage(config: str, output: Path, options: list[str]) -> None:
    """`python pretrain_blip2.py ...`, which goes on where it was interrupted."""
    command = [sys.executable, "pretrain_blip2.py", "--config", config, "--output_dir", str(output.resolve())]
    command += ["--resume", "auto", *(word for option in options for word in ("--set", option))]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit("training failed; its last lines above say why")


def evaluate(first: Path, second: Path, folder: Path, records: list[dict]) -> dict[str, float]:
    """Shares of exact captions, with the right and with other images, and R@1 before and after matching."""
    chosen = gallery_of(records, np.random.default_rng(0))
    images, texts = [folder / record["image"] for record in chosen], [record["caption"] for record in chosen]
    right = torch.eye(len(chosen), dtype=torch.bool)
    reader = blip.load(first / "checkpoints" / "latest", device="cpu")
    similarity = reader.itc_score(images, texts)
    matching = torch.stack([reader.match_logits(image, texts)[:, 1] for image in images])
    ranked = {"contrast": similarity, "matching": similarity + matching}
    scores = {
        f"{way} R@1 after {name}": recall_at(score if way == "image to text" else score.T, right)[1]
        for name, score in ranked.items()
        for way in ("image to text", "text to image")
    }
    writer = blip.load(second / "checkpoints" / "latest", device="cpu")
    for name, shown in (("exact captions", images), ("exact captions, images shuffled", images[1:] + images[:1])):
        written = writer.caption(shown)
        scores[name] = mean(a == b for a, b in zip(written, texts, strict=True))
    known = {record["caption"] for record in records}
    scores["captions that are sentences of the data, images shuffled"] = mean(text in known for text in written)
    return scores


if __name__ == "__main__":
    typer.run(main)
