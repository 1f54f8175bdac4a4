"""Time to a retrieval score on phantoms: training with fewer image tokens at first, against all of them throughout.

    python benchmarks/fewer_flops.py --precision fp32

Both sides train the demo's model from nothing with the same data, seed, number of steps and learning rates; the images
are larger than the demo's, so that the image encoder is most of a step, as in models of full size. The sides differ in
`image_sizes` and `patch_dropout` alone (`FEWER`). They take their steps in turns in one process, so that whatever else
runs on the machine slows both; a step's time includes reading its batch. Every few steps both are evaluated, with all
patches at full size, and the clock stops meanwhile: time to R@1 is the time of training until the mean of R@1 in both
directions, over galleries of 100 images with distinct captions, reaches 95 %. Final scores are those of `demo/demo.py`.

A seed's result is a file in `--folder`; seeds whose files are there are not trained again. The last line printed is one
JSON object, also in a file under `benchmarks/results/`.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import blip  # noqa: E402
from benchmarks.harness import options, report, start  # noqa: E402
from blip.checkpoints.format import save_weights  # noqa: E402
from blip.config import PretrainConfig, load_config  # noqa: E402
from blip.data.loader import EvalLoader, eval_loader  # noqa: E402
from blip.data.pairs import EvalPairs, read_pairs  # noqa: E402
from blip.data.phantoms import write_phantoms  # noqa: E402
from blip.data.transforms import eval_transform  # noqa: E402
from blip.evaluation.pretraining import evaluate_pretraining  # noqa: E402
from blip.hardware.precision import autocast  # noqa: E402
from blip.tasks.pretrain import Pretraining  # noqa: E402
from blip.train.optim import build_optimizer  # noqa: E402
from blip.train.schedule import lr_at  # noqa: E402
from demo import GALLERIES, choose_words, evaluate, gallery_of  # noqa: E402

FEWER = ["image_sizes={0: 48, 2: 96}"]
SIDES: dict[str, list[str]] = {"all": [], "fewer": FEWER}


@dataclass
class Size:
    """How much is trained; `base` gives the numbers, `tiny` only shows that the script runs."""

    count: int  # phantoms to train on
    held_out: int
    every: int  # steps between two evaluations
    goal: float  # R@1
    options: list[str]  # beside configs/pretrain_demo.yaml


SIZES = {
    "base": Size(20_000, 1000, 52, 0.95, ["image_size=96", "vit_patch=8", "epochs=5", "lr=1.5e-3"]),
    "tiny": Size(
        48, 16, 3, 0.0, ["image_size=96", "vit_patch=12", "batch_size=16", "epochs=6", "vit_depth=1", "warmup_steps=2"]
    ),
}


class Side:
    """A run that goes on step by step, with random numbers of its own."""

    def __init__(self, config: PretrainConfig, folder: Path, device: torch.device):
        self.config, self.folder, self.device = config, folder, device
        self.task = Pretraining(config, folder, None, device=device)
        self.optimizer = build_optimizer(
            self.task.model, config.lr, config.weight_decay, decay_norms_and_biases=config.decay_norms_and_biases
        )
        self.batches = self.task.batches(0)
        self.random = torch.get_rng_state()
        self.galleries = [self._gallery(file) for file in config.val_file]
        self.done, self.seconds, self.flops = 0, 0.0, 0.0
        self.curve: list[dict[str, float]] = []

    def step(self) -> None:
        """One step of training."""
        torch.set_rng_state(self.random)
        config, epochs = self.config, self.task.epochs
        begin = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(
                self.done, epochs.total_steps, config.lr, min_lr=config.min_lr, warmup_steps=config.warmup_steps
            )
        with autocast(self.device, config.precision):
            out = self.task.step(next(self.batches), self.done)
        out.loss.backward()
        nn.utils.clip_grad_norm_(self.task.model.parameters(), config.clip_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.task.after_update(self.done)
        float(out.loss.detach())  # waits for the device
        self.seconds += time.perf_counter() - begin
        self.flops += out.flops
        self.random = torch.get_rng_state()

    def _gallery(self, file: str) -> EvalLoader:
        pairs = read_pairs([file])
        data = EvalPairs(pairs, self.task.encoder(), eval_transform(self.config.image_size))
        return eval_loader(data, self.config.batch_size, pad_id=self.task.tokenizer.pad_id)

    def evaluate(self) -> None:
        """Adds a point to the curve."""
        found = [evaluate_pretraining(self.task.model, gallery, self.device, val_loss=False).metrics
                 for gallery in self.galleries]  # fmt: skip
        mean = statistics.mean((one["val_i2t_r1"] + one["val_t2i_r1"]) / 2 for one in found)
        self.curve.append({"step": self.done, "seconds": self.seconds, "tflop": self.flops / 1e12, "r1": mean})

    def scores(self, test: Path) -> dict[str, float]:
        """The demo's scores of the trained model."""
        save_weights(self.folder / "model", self.task.weights(), self.task.describe()[1])
        self.task.tokenizer.save(self.folder / "model" / "tokenizer.json")
        model = blip.load(self.folder / "model", device=str(self.device))
        return evaluate(model, test.parent, json.loads(test.read_text()))


def train(seed: int, size: Size, args: argparse.Namespace) -> dict:
    """Both sides of a seed, in turns -> their curves and final scores."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        side = next(int(option.partition("=")[2]) for option in size.options if option.startswith("image_size="))
        train_file = write_phantoms(folder / "train", size.count, seed=2 * seed, image_size=side, max_lesions=1)
        test = write_phantoms(folder / "test", size.held_out, seed=2 * seed + 1, image_size=side, max_lesions=1)
        val_files = galleries_of(json.loads(test.read_text()), test.parent)
        given = [f"train_file=[{train_file}]", f"val_file={json.dumps(val_files)}", f"seed={seed}", "num_workers=0"]
        given += [f"tokenizer={choose_words(train_file, folder / 'tokenizer.json')}", f"precision={args.precision}"]
        sides: dict[str, Side] = {}
        for name, more in SIDES.items():
            config = load_config("pretrain_demo", PretrainConfig, [*given, *size.options, *more])
            (folder / name).mkdir()
            sides[name] = Side(config, folder / name, torch.device(args.device))
        total = next(iter(sides.values())).task.epochs.total_steps
        for step in range(1, total + 1):
            for one in sides.values():
                one.step()
                if step % size.every == 0 or step == total:
                    one.evaluate()
            if step % size.every == 0:
                tell(seed, total, sides)
        curves = {name: one.curve for name, one in sides.items()}
        return {"seed": seed, "curves": curves, "scores": {name: one.scores(test) for name, one in sides.items()}}


def galleries_of(records: list[dict], folder: Path) -> list[str]:
    """Annotation files of galleries, each of images with distinct captions, so that each has one right answer."""
    files = []
    for number in range(GALLERIES):
        file = folder / f"gallery{number}.json"
        file.write_text(json.dumps(gallery_of(records, np.random.default_rng(number))))
        files.append(str(file))
    return files


def tell(seed: int, total: int, sides: dict[str, Side]) -> None:
    """A line about how far a seed is."""
    parts = [f"{name} {one.seconds:.0f} s R@1 {one.curve[-1]['r1']:.1%}" for name, one in sides.items()]
    print(f"seed {seed}, step {next(iter(sides.values())).done}/{total}: " + ", ".join(parts), flush=True)


def reached(curve: list[dict[str, float]], goal: float) -> dict[str, float] | None:
    """The first point at which R@1 has reached the goal."""
    return next((point for point in curve if point["r1"] >= goal), None)


def summary(runs: list[dict], goal: float) -> dict:
    """Ratios of all tokens to fewer, each seed's and their means, and the means of the final scores.

    Where training on all tokens never reaches the goal, its whole run counts, and the ratio is `at_least` that.
    """
    points = [{name: reached(run["curves"][name], goal) for name in SIDES} for run in runs]
    at_least = [point["all"] is None for point in points]
    compared = [
        (point["all"] or run["curves"]["all"][-1], point["fewer"])
        for run, point in zip(runs, points, strict=True) if point["fewer"]
    ]  # fmt: skip
    ratios = {key: [one[key] / fewer[key] for one, fewer in compared] for key in ("seconds", "tflop", "step")}
    whole = [{name: run["curves"][name][-1] for name in SIDES} for run in runs]
    scores = {
        name: {key: statistics.mean(run["scores"][name][key] for run in runs) for key in runs[0]["scores"][name]}
        for name in SIDES
    }
    return {
        "ratio": statistics.mean(ratios["seconds"]) if compared else None,
        "ratios": ratios,
        "reached": points,
        "at_least": at_least,
        "not_reached": len(points) - len(compared),
        "whole_run_seconds_ratio": statistics.mean(one["all"]["seconds"] / one["fewer"]["seconds"] for one in whole),
        "whole_run_tflop_ratio": statistics.mean(one["all"]["tflop"] / one["fewer"]["tflop"] for one in whole),
        "final_scores": scores,
    }


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "fewer_flops", help="results of seeds")
    parser.add_argument("--only", type=int, help="train this seed alone, and stop")
    args = parser.parse_args()
    start(args)
    size = SIZES[args.size]
    folder = args.folder / f"{args.size}_{args.device}_{args.precision}"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(args.repeats) if args.only is None else [args.only]:
        file = folder / f"seed{seed}.json"
        if not file.exists():
            file.write_text(json.dumps(train(seed, size, args), indent=1) + "\n")
    if args.only is None:
        runs = [json.loads((folder / f"seed{seed}.json").read_text()) for seed in range(args.repeats)]
        report(args, "fewer_flops", {"fewer": FEWER, "size": asdict(size), **summary(runs, size.goal), "runs": runs})


if __name__ == "__main__":
    main()
