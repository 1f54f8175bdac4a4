"""One round of CapFilt on real images: captions of VQA-Med 2019, of which 30 % are given to another image.

python demo/capfilt_real.py --data vqa_med_2019 --output_dir runs/capfilt_real

What is asked: does a filter that learned from 250 clean pairs, after pre-training on the noisy ones, find those that
were shuffled? `results.json` has the area under its curve, and precision and recall when as many texts are removed as
are wrong.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from blip.capfilt.candidates import SYNTHETIC, WEB
from blip.data.jsonl_shards import read_lines

ROOT = Path(__file__).resolve().parent.parent
CLEAN, WRONG = 250, 0.3
SMALL = {
    "image_size": 64, "vit": "custom", "vit_width": 128, "vit_depth": 4, "vit_heads": 4, "vit_patch": 16,
    "text_width": 128, "text_layers": 2, "text_heads": 4, "text_hidden": 512, "max_positions": 64, "embed_dim": 64,
    "crop_scale": [0.6, 1.0], "randaugment": None, "max_text_tokens": 40, "batch_size": 64, "dropout": 0.1,
    "tokenizer": "train", "vocab_size": 1500, "num_workers": 0,
}  # fmt: skip
TUNED = {"image_size": 64, "max_text_tokens": 40, "crop_scale": [0.6, 1.0], "num_workers": 0, "dropout": 0.1}


def shuffled(records: list[dict], share: float, rng: np.random.Generator) -> list[dict]:
    """The records with that share of captions moved to another record whose own caption differs; `right` marks them."""
    moved = rng.permutation(len(records))[: round(share * len(records))]
    captions = [records[i]["caption"] for i in moved]
    mixed = [{**record, "right": True} for record in records]
    for place, i in enumerate(moved):
        caption = captions[(place + 1) % len(moved)]
        mixed[i] = {**records[i], "caption": caption, "right": caption == records[i]["caption"]}
    return mixed


def area(scores: np.ndarray, right: np.ndarray) -> float:
    """Probability that a right text scores above a wrong one, ties counting half."""
    good, bad = scores[right], scores[~right]
    return float((good[:, None] > bad[None]).mean() + 0.5 * (good[:, None] == bad[None]).mean())


def main(
    data: Annotated[Path, typer.Option(help="folder with captions_composed.json and the images that it names")],
    output_dir: Annotated[Path, typer.Option("--output_dir")] = Path("runs/capfilt_real"),
    seed: Annotated[int, typer.Option(help="of the mixture and of training")] = 0,
    epochs: Annotated[int, typer.Option(help="of pre-training")] = 80,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value for configs/capfilt_phantoms.yaml")] = None,
) -> None:
    """Mixes captions, runs a round, and compares the filter's decisions with what was mixed."""
    rng = np.random.default_rng(seed)
    records = json.loads((data / "captions_composed.json").read_text())
    for record in records:
        record["image"] = str((data / record["image"]).resolve())
    rng.shuffle(records)
    human, web = records[:CLEAN], shuffled(records[CLEAN:], WRONG, rng)
    output_dir.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, content in (("human", human), ("web", web)):
        files[name] = (output_dir / f"{name}.json").resolve()
        files[name].write_text(json.dumps(content, indent=1))
    start = (output_dir / "start").resolve()
    both = f"[{files['web']},{files['human']}]"
    call(
        ["pretrain.py", "--config", "configs/pretrain_small_data_tiny.yaml", "--output_dir", str(start)],
        {**SMALL, "train_file": both, "epochs": epochs, "seed": seed},
        ["--resume", "auto"],
    )
    options = {
        "web_file": [str(files["web"])],
        "human_file": [str(files["human"])],
        "start": str(start / "checkpoints" / "latest"),
        "pretrain": "",
        "seed": seed,
        "fraction": 0.7,
        "captioner_set": {**TUNED, "epochs": 40, "max_steps": 150},
        "filter_set": {**TUNED, "epochs": 100, "batch_size": 32, "max_steps": 400, "lr": 3e-4, "queue_size": 128},
    }
    command = [
        "-m",
        "blip",
        "capfilt",
        "run",
        "--config",
        "configs/capfilt_phantoms.yaml",
        "--output_dir",
        str(output_dir.resolve()),
    ]
    call(command, options, [word for option in set_ or [] for word in ("--set", option)])
    results = compare(web, output_dir / "round1" / "scored", seed)
    (output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def call(command: list[str], options: dict, more: list[str]) -> None:
    """Runs a script of the project; ends where it fails."""
    words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
    given = [word for option in words for word in ("--set", option)]
    if subprocess.run([sys.executable, *command, *given, *more], cwd=ROOT).returncode:
        raise SystemExit(f"{command[0]} failed; its last lines above give the reason")


def compare(web: list[dict], scored: Path, seed: int) -> dict:
    """The filter's decisions on the originals, against what was mixed."""
    truth = {record["image"]: record["right"] for record in web}
    lines = [line for line in read_lines(scored) if "text" in line]
    own = [line for line in lines if line["source"] == WEB]
    right = np.array([truth[line["image"]] for line in own])
    results: dict = {"seed": seed, "texts": len(own), "wrong": int((~right).sum())}
    for name in ("match", "itc"):
        scores = np.array([line[name] for line in own])
        removed = scores.argsort(kind="stable")[: results["wrong"]]  # as many as are wrong: precision is recall
        results[name] = {"area": area(scores, right), "precision = recall": float((~right[removed]).mean())}
    written = [line for line in lines if line["source"] == SYNTHETIC]
    results["synthetic"] = {"texts": len(written), "mean match": float(np.mean([x["match"] for x in written]))}
    return results


if __name__ == "__main__":
    typer.run(main)
