"""Does CapFilt help? Phantoms of which 30 % have a wrong caption, the truth on record, and what models learn from them.

python demo/capfilt.py --output_dir runs/capfilt_study --seed 0

One round of `blip capfilt run`, the same with beams instead of nucleus sampling, and with one model that writes and
judges; then models pre-trained with the same number of steps on the noisy pairs, on what is left after filtering, on
the captioner's texts beside them, and on both. Started again, it goes on. `results.json` has every number.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

import blip
from blip.capfilt.candidates import SYNTHETIC, WEB
from blip.data.jsonl_shards import read_lines
from blip.data.phantoms import BODIES, BRIGHTNESSES, POSITIONS, SHAPES, SIDES, SIZES, write_phantoms
from demo import choose_words, evaluate

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/capfilt_phantoms.yaml"
THRESHOLDS = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98]


@dataclass
class Study:
    """One seed: its data, and the commands that it runs."""

    output: Path
    seed: int
    images: int
    clean: int
    first_steps: int  # of pre-training, of the model that captioner and filter start from
    steps: int  # of pre-training, of every model that is compared
    threshold: float
    options: list[str]  # of `blip capfilt run`

    def __post_init__(self) -> None:
        place = self.output / "data"
        one = {"max_lesions": 1}
        self.web = write_phantoms(place / "web", self.images, 100 + 3 * self.seed, noise=0.3, **one).resolve()
        self.human = write_phantoms(place / "human", self.clean, 101 + 3 * self.seed, **one).resolve()
        self.test = write_phantoms(place / "test", 1000, 102 + 3 * self.seed, **one).resolve()
        self.words = choose_words(self.human, place / "tokenizer.json").resolve()

    def run(self) -> dict:
        """Everything -> its numbers."""
        web_and_human = f"[{self.web},{self.human}]"
        model = self.pretrained("start", web_and_human, self.first_steps) / "checkpoints" / "latest"
        start = f"start={json.dumps(str(model.resolve()))}"
        main = self.round("nucleus", start)
        beams = self.round("beams", start, "beams=3", "pretrain=")
        shared = self.round("shared", start, "shared=configs/pretrain_demo.yaml", "pretrain=")
        scored = main / "round1" / "scored"
        models = {
            "noisy": self.pretrained("noisy", web_and_human, self.steps),
            "filter alone": self.pretrained("filter", self.merged(scored, "filter", "--source", WEB)),
            "captioner alone": self.pretrained("captioner", self.merged(scored, "captioner", "--threshold", "0")),
            "both (CapFilt), nucleus": main / "round1" / "model",
            "both, 3 beams": self.pretrained("beams", beams / "round1" / "bootstrapped.jsonl"),
            "both, shared": self.pretrained("shared", shared / "round1" / "bootstrapped.jsonl"),
        }
        records = json.loads(self.test.read_text())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        scores = {
            name: evaluate(blip.load(run / "checkpoints" / "latest", device=device), self.test.parent, records)
            for name, run in models.items()
        }
        rounds = {"nucleus": main, "beams": beams, "shared": shared}
        return {
            "seed": self.seed,
            "images": self.images,
            "clean": self.clean,
            "first_steps": self.first_steps,
            "steps": self.steps,
            "threshold": self.threshold,
            "models": scores,
            "filters": {name: self.filtered(folder / "round1" / "scored") for name, folder in rounds.items()},
        }

    def round(self, name: str, *changes: str) -> Path:
        """One round of CapFilt in a folder of its own, which is returned."""
        folder = self.output / name
        given = [f"web_file=[{self.web}]", f"human_file=[{self.human}]", f"seed={self.seed}"]
        given += [f"pretrain_set={{val_file: [], tokenizer: {self.words}, epochs: 100, max_steps: {self.steps}}}"]
        given += [f"threshold={self.threshold}", *self.options, *changes]
        self.call("-m", "blip", "capfilt", "run", "--config", CONFIG, "--output_dir", folder, *sets(given))
        return folder

    def merged(self, scored: Path, name: str, *options: str) -> Path:
        """What passes another rule."""
        out = self.output / f"{name}.jsonl"
        options = options if "--threshold" in options else (*options, "--threshold", str(self.threshold))
        self.call("-m", "blip", "capfilt", "merge", "--scored", scored, "--out", out, "--keep", self.human, *options)
        return out

    def pretrained(self, name: str, data: Path | str, steps: int = 0) -> Path:
        """A model pre-trained as those of the rounds are, on a file or a list of files; the folder of its run."""
        folder = self.output / f"model_{name}"
        files = data if isinstance(data, str) else f"[{data.resolve()}]"
        given = [f"train_file={files}", "val_file=[]", f"tokenizer={self.words}", f"seed={self.seed}"]
        command = ["pretrain.py", "--config", "configs/pretrain_demo.yaml", "--output_dir", folder, "--resume", "auto"]
        self.call(*command, *sets([*given, f"max_steps={steps or self.steps}", "epochs=100"]))
        return folder

    def call(self, *command: object) -> None:
        words = [str(word) for word in command]
        words = [str(Path(word).resolve()) if Path(word).is_absolute() or word.startswith(str(self.output)) else word
                 for word in words]  # fmt: skip
        if subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
            raise SystemExit(f"failed: {' '.join(words)}")

    def filtered(self, scored: Path) -> list[dict[str, float]]:
        """At each threshold, what a filter removes and keeps, held against the truth."""
        truth = {str(self.web.parent / r["image"]): r for r in json.loads(self.web.read_text())}
        lines = [line for line in read_lines(scored) if "text" in line]
        web = [line for line in lines if line["source"] == WEB]
        own = [line for line in lines if line["source"] == SYNTHETIC]
        noise = np.array([truth[line["image"]]["noise"] for line in web])
        right = np.array([holds(line["text"], truth[line["image"]]) for line in own], bool)
        match, own_match = (np.array([line["match"] for line in some]) for some in (web, own))
        return [one_threshold(t, noise, match, right, own_match) for t in THRESHOLDS]


def one_threshold(
    threshold: float, noise: np.ndarray, match: np.ndarray, right: np.ndarray, own_match: np.ndarray
) -> dict[str, float]:
    """Precision and recall of removing wrong originals, each kind beside the right ones, and what is kept.

    Args:
        noise: (n,) kind of each original, match: (n,) its score.
        right: (m,) whether a synthetic text is true of its image, own_match: (m,) its score.
    """
    kept, own_kept, true = match >= threshold, own_match >= threshold, noise == "none"
    row = {"threshold": threshold, "right originals kept": share(kept[true])}
    for kind in ("other", "attribute"):
        removed = int((~kept & (noise == kind)).sum())
        row[f"{kind}: precision"] = removed / max(removed + int((~kept & true).sum()), 1)
        row[f"{kind}: recall"] = removed / max(int((noise == kind).sum()), 1)
    wrong = int((kept & ~true).sum() + (own_kept & ~right).sum())
    row |= {"synthetic": len(right), "synthetic right": share(right), "synthetic kept": share(own_kept)}
    row |= {"kept synthetic right": share(right[own_kept]), "wrong, before": share(~true)}
    row["wrong, after"] = wrong / max(int(kept.sum() + own_kept.sum()), 1)
    return row


def share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def holds(caption: str, record: dict) -> bool:
    """Whether every attribute that a caption names is true of the phantom."""
    words = caption.split()
    lesion = record["lesions"][0]
    true = {record["body"], *(str(value) for value in lesion.values())}
    named = {word for word in words if word in (*BODIES, *SHAPES, *SIZES, *BRIGHTNESSES, *POSITIONS, *SIDES)}
    return bool(named) and named <= true


def sets(options: Iterable[str]) -> list[str]:
    return [word for option in options for word in ("--set", option)]


def main(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="where everything goes")] = Path(
        "runs/capfilt_study"
    ),
    seed: Annotated[int, typer.Option(help="of data and training")] = 0,
    images: Annotated[int, typer.Option(help="phantoms with noisy captions")] = 16_000,
    clean: Annotated[int, typer.Option(help="phantoms with right ones, which captioner and filter learn from")] = 4000,
    first_steps: Annotated[
        int, typer.Option("--first_steps", help="of pre-training, for the model that captioner and filter start from")
    ] = 2000,
    steps: Annotated[int, typer.Option(help="of pre-training, for each model that is compared")] = 700,
    threshold: Annotated[float, typer.Option(help="least match probability")] = 0.1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value for configs/capfilt_phantoms.yaml")] = None,
) -> None:
    """Compares what models learn from noisy and from bootstrapped captions."""
    folder = output_dir / f"seed{seed}"
    results = Study(folder, seed, images, clean, first_steps, steps, threshold, set_ or []).run()
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    table = Table("trained on", *(name for name in results["models"]["noisy"] if "chance" not in name))
    for name, scores in results["models"].items():
        table.add_row(name, *(f"{value:.1%}" for key, value in scores.items() if "chance" not in key))
    Console().print(table)
    print(folder / "results.json")


if __name__ == "__main__":
    typer.run(main)
