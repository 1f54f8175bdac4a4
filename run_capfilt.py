"""Bootstraps the captions of a noisy set: CapFilt (Li et al. 2022, section 3.3), from a pre-trained model to the next.

    python run_capfilt.py --config configs/capfilt.yaml --output_dir runs/capfilt
    torchrun --nproc_per_node=8 run_capfilt.py --config configs/capfilt.yaml --output_dir runs/capfilt --rounds 2

A round: captioner and filter are fine-tuned from one model on clean pairs, each on its own; the captioner writes texts
for the noisy images; the filter scores these and the texts that were there; what passes, with the clean pairs, is what
the next model is pre-trained on. The steps are in blip/capfilt.py; the same command goes on after a kill.
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import pretrain
import train_caption
import train_retrieval
from blip import capfilt, distributed
from blip.capfilt_merge import Rule, merge
from blip.capfilt_report import write_report
from blip.config import ConfigError, PretrainConfig, RunConfig, dump_config, load_config, with_options
from blip.data.candidates import read_candidates
from blip.data.shards import write_whole
from blip.errors import BlipError
from blip.finetune import BEST
from blip.restore import load
from blip.task_config import CapFiltConfig, CaptionConfig, FineTuneConfig, RetrievalConfig
from blip.train.checkpoint import complete_checkpoints
from blip.train.launch import errors_for_people
from blip.weights import TOKENIZER, fingerprint

DONE = "done.json"  # in the folder of a step: it ended, and with these settings

Train = Callable[[Any, Path, str, torch.device], bool]


class Stopped(BlipError):
    """A signal ended a training run; its checkpoint is there to go on from."""


class Rounds:
    """The steps of every round, each in a folder of its own and done once."""

    def __init__(self, config: CapFiltConfig, output: Path, device: torch.device):
        self.config, self.output, self.device = config, output, device

    def run(self) -> Path:
        """Every round; returns the last model, or the last round's annotations where none is to be pre-trained."""
        config = self.config
        model = (
            Path(config.start)
            if config.start
            else self.pretrain(self.output / "start", [*config.web_file, *config.human_file])
        )
        result = model
        for number in range(1, config.rounds + 1):
            bootstrapped = self.bootstrap(number, model)
            result = bootstrapped
            if config.pretrain:
                model = result = self.pretrain(self.output / f"round{number}" / "model", [str(bootstrapped)])
        return result

    def bootstrap(self, number: int, model: Path) -> Path:
        """One round from a pre-trained model -> the annotations of the next."""
        config, place = self.config, self.output / f"round{number}"
        if config.shared:  # as the paper's table 4: the filter then likes what it would have written itself
            whole = load_config(config.shared, PretrainConfig)
            captioner = filter_ = self.fine_tune(place / "shared", pretrain.run, whole, config.shared_set, model)
        else:
            writes, judges = load_config(config.captioner, CaptionConfig), load_config(config.filter, RetrievalConfig)
            captioner = self.fine_tune(place / "captioner", train_caption.run, writes, config.captioner_set, model)
            filter_ = self.fine_tune(place / "filter", train_retrieval.run, judges, config.filter_set, model)
        return self.texts(place, number, captioner, filter_)

    def texts(self, place: Path, number: int, captioner: Path, filter_: Path) -> Path:
        """Captions, scores, and what passes."""
        config = self.config
        how = capfilt.decoding(
            config.captions_per_image, config.beams, config.top_p, config.max_new_tokens, config.min_new_tokens
        )
        rule = Rule(config.threshold, config.itc_threshold, config.fraction)
        web = read_candidates(config.web_file, config.image_root)
        self.say(f"round {number}: captions for {len(web)} images")
        work = capfilt.Work(config.shard_size, config.batch_size, config.precision, config.num_workers)
        about = fingerprint(captioner), how, config.seed, number, config.prompt, work
        capfilt.caption(load(captioner, self.device), web, place / "synthetic", *about)
        distributed.barrier()
        candidates = read_candidates([*config.web_file, str(place / "synthetic")], config.image_root)
        self.say(f"round {number}: scores of {candidates.texts} texts")
        capfilt.score(load(filter_, self.device), candidates, place / "scored", fingerprint(filter_), work)
        distributed.barrier()
        out = place / "bootstrapped.jsonl"
        if distributed.is_main() and not out.exists():
            found = merge([place / "scored"], out, rule, config.human_file, config.image_root)
            for source in sorted({**found.kept, **found.dropped}):
                self.say(f"round {number}: {source}: {found.kept[source]} kept, {found.dropped[source]} dropped")
            write_report([place / "scored"], place / "report.html", rule)
        distributed.barrier()
        return out

    def pretrain(self, place: Path, files: list[str]) -> Path:
        """A model from nothing on these files."""
        if not self.config.pretrain:
            raise ConfigError("there is nothing to start from: set start, a checkpoint, or pretrain, a configuration")
        config = load_config(self.config.pretrain, PretrainConfig)
        return self.train(place, pretrain.run, config, {"train_file": files, **self.config.pretrain_set})

    def fine_tune(self, place: Path, run: Train, config: RunConfig, set_: dict[str, Any], model: Path) -> Path:
        """A model for one purpose, from `model` and the clean pairs."""
        given: dict[str, Any] = {"train_file": self.config.human_file, "init_from": str(model)}
        if (model / TOKENIZER).is_file():
            given["tokenizer"] = str(model / TOKENIZER)
        if isinstance(config, FineTuneConfig):  # whose files may be of another data set
            given |= {"dataset": "json", "val_file": [], "test_file": []}
        return self.train(place, run, config, {**given, **set_})

    def train(self, place: Path, run: Train, config: RunConfig, given: dict[str, Any]) -> Path:
        """Trains in the folder `place`, goes on there, or finds it done -> the best checkpoint, else the last."""
        done = place / DONE
        if not done.exists():
            shared = {"image_root": self.config.image_root, "seed": self.config.seed, "device": self.config.device}
            self.say(f"training {place}")
            changed = with_options(config, {**shared, **given}, f"options for {place}")
            if not run(changed, place, "auto", self.device):
                raise Stopped(f"stopped by a signal while training {place}; the same command goes on")
            gc.collect()  # the run's model, twin and optimizer, before the next is made
            if distributed.is_main():
                write_whole(done, "{}\n")
            distributed.barrier()
        best = place / BEST
        return best if best.is_dir() else complete_checkpoints(place)[-1]

    def say(self, text: str) -> None:
        if distributed.is_main():
            typer.echo(text)


def main(
    config: Annotated[Path, typer.Option(help="a file of configs/, or your own")],
    output_dir: Annotated[Path, typer.Option("--output_dir", help="where every step leaves its files")] = Path(
        "runs/capfilt"
    ),
    rounds: Annotated[int | None, typer.Option(min=1, help="how often; overrides the file")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value, overrides the file")] = None,
) -> None:
    """Bootstraps the captions of a noisy set, round by round; started again, it goes on."""
    overrides = [*(set_ or []), *([f"rounds={rounds}"] if rounds else [])]
    settings = load_config(config, CapFiltConfig, overrides)
    device = distributed.start(settings.device)
    remember(settings, output_dir)
    result = Rounds(settings, output_dir, device).run()
    if distributed.is_main():
        typer.echo(f"done: {result}")


def remember(config: CapFiltConfig, output: Path) -> None:
    """Keeps the configuration; ConfigError where the folder was begun with another. More rounds may follow."""
    saved = output / "config.yaml"
    if saved.is_file():
        before = load_config(saved, CapFiltConfig)
        changed = [f"{key} {getattr(before, key)} -> {value}" for key, value in config
                   if getattr(before, key) != value and key not in ("rounds", "device")]  # fmt: skip
        if changed:
            raise ConfigError(
                f"{output} was begun with other settings: {', '.join(changed)}; give another --output_dir"
            )
    distributed.barrier()
    if distributed.is_main():
        output.mkdir(parents=True, exist_ok=True)
        dump_config(config, saved)
    distributed.barrier()


if __name__ == "__main__":
    with errors_for_people():
        typer.run(main)
