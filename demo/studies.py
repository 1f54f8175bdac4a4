"""Draws studies of several pictures, trains captioners that see all of them and others that do not, and compares them.

python demo/studies.py --output_dir runs/studies

Two views of a body, 16 slices and 4 frames in time, see `blip/data/phantom_studies.py`. A captioner that sees all
pictures is compared with one that sees the first alone; one that is told the time of each frame with one that is not.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from blip.data.phantom_studies import write_studies

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 500  # studies
ORDERED = ("grows", "shrinks")  # what the order of the frames alone tells apart
COLUMNS = ("", "exact captions", "grows or shrinks", "minutes", "core minutes")
EXPECTED = (
    "All pictures should be at least 30 points above the first one. Frames with times should tell growing from "
    "shrinking in at least 85 % of videos, those without in about 50 %, as a coin does."
)


@dataclass
class Comparison:
    """Captioners of one kind of study, which differ in some options."""

    pictures: int
    count: int  # studies to train on
    options: dict[str, Any]  # of all captioners
    captioners: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> its own options


COMPARISONS = {
    "views": Comparison(2, 6000, {}, {"both views": {}, "the first view": {"max_pictures": 1}}),
    "volume": Comparison(
        16,
        3000,
        # patches of a quarter of a slice: with those of 8 px the side of the lesion is learned late
        {
            "image_size": 32,
            "vit_patch": 16,
            "vit_depth": 2,
            "picture_embeddings": "place",
            "label_smoothing": 0.0,
            "batch_size": 32,
            "max_steps": 1500,
            "num_workers": 2,  # a batch is 512 pictures
        },
        {"all slices": {}, "the first slice": {"max_pictures": 1}},
    ),
    "video": Comparison(
        4,
        5000,
        {"vit_depth": 2, "batch_size": 32, "max_steps": 1000, "lr": 2e-3},
        {"frames with times": {"picture_embeddings": "time"}, "frames without times": {}},
    ),
}


def main(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="where data, checkpoints and logs go")] = Path(
        "runs/studies"
    ),
    seed: Annotated[int, typer.Option(help="of data and training")] = 0,
    kind: Annotated[list[str] | None, typer.Option(help="views, volume, video; all unless given")] = None,
    count: Annotated[int, typer.Option(help="studies of each kind to train on; 0: as many as each needs")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value for configs/captions_studies.yaml")] = None,
) -> None:
    """Draws studies, trains captioners on them, and shows what each has learned."""
    console, scores = Console(), {}
    for name in kind or COMPARISONS:
        compared = COMPARISONS[name]
        number = count or compared.count
        console.print(f"drawing {number} studies to train on and others to test on: {name}")
        drawn: dict[str, Any] = {"pictures": compared.pictures, "image_size": compared.options.get("image_size", 48)}
        folder = output_dir / name
        train = write_studies(folder / "train", name, number, seed=2 * seed, **drawn)
        test = write_studies(folder / "test", name, HELD_OUT, seed=2 * seed + 1, **drawn)
        files = {"train_file": f"[{train.resolve()}]", "val_file": f"[{test.resolve()}]", "seed": seed}
        for captioner, own in compared.captioners.items():
            started, of_cores = time.perf_counter(), core_seconds()
            run = folder / captioner.replace(" ", "_")
            options = [f"{key}={value}" for key, value in (files | compared.options | own).items()]
            caption(run, options + (set_ or []))
            spent = {"minutes": time.perf_counter() - started, "core minutes": core_seconds() - of_cores}
            scores[f"{name}: {captioner}"] = evaluate(run) | {key: value / 60 for key, value in spent.items()}
            (output_dir / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    show(console, scores)


def caption(output: Path, options: list[str]) -> None:
    """`python train_caption.py ...`, which goes on where it was interrupted."""
    command = [sys.executable, "train_caption.py", "--config", "configs/captions_studies.yaml"]
    command += ["--output_dir", str(output.resolve()), "--resume", "auto"]
    command += [word for option in options for word in ("--set", option)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit("training failed; its last lines above say why")


def core_seconds() -> float:
    """The time of all cores that the trainings and their loaders have used so far."""
    times = os.times()
    return times.children_user + times.children_system


def evaluate(run: Path) -> dict[str, float]:
    """The share of held-out captions that are exact and, of those with a word of ORDERED, that have the right one."""
    rows = json.loads((run / "captions_val.json").read_text())
    texts = [(row["caption"], row["references"][0]) for row in rows]
    scores = {"exact captions": mean(written == true for written, true in texts)}
    ordered = [(written.split()[-1:], true.split()[-1:]) for written, true in texts if true.endswith(ORDERED)]
    return scores | ({"grows or shrinks": mean(a == b for a, b in ordered)} if ordered else {})


def show(console: Console, scores: dict[str, dict[str, float]]) -> None:
    """A line a captioner."""
    table = Table(*COLUMNS, title=f"{HELD_OUT} held-out studies of each kind", caption=EXPECTED)
    for name, found in scores.items():
        shares = [f"{found[key]:.1%}" if key in found else "" for key in COLUMNS[1:3]]
        table.add_row(name, *shares, *(f"{found[key]:.1f}" for key in COLUMNS[3:]))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
