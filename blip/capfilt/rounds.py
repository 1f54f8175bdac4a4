"""Bootstraps the captions of a noisy set: CapFilt (Li et al. 2022, section 3.3), from a pre-trained model to the next.

    blip capfilt run --config configs/capfilt.yaml --output_dir runs/capfilt
    torchrun --nproc_per_node=8 -m blip capfilt run --config configs/capfilt.yaml --output_dir runs/capfilt --rounds 2

A round: captioner and filter are fine-tuned from one model on clean pairs, each on its own; the captioner writes texts
for the noisy images; the filter scores these and the texts that were there; what passes, with the clean pairs, is what
the next model is pre-trained on. The steps are in blip/capfilt/steps.py; the same command goes on after a kill.
"""

import gc
import json
from pathlib import Path
from typing import Any

import torch
import typer

from blip import distributed
from blip.capfilt import steps
from blip.capfilt.candidates import read_candidates
from blip.capfilt.config import CapFiltConfig
from blip.capfilt.merge import Rule, about_merged, merge
from blip.capfilt.report import write_report
from blip.checkpoints.format import TOKENIZER
from blip.config import Config, ConfigError, PretrainConfig, RunConfig, dump_config, load_config, with_options
from blip.errors import BlipError
from blip.files import write_whole
from blip.hashing import fingerprint
from blip.inference.load import load
from blip.tasks import caption, pretrain, retrieval
from blip.tasks.config import CaptionConfig, FineTuneConfig, RetrievalConfig
from blip.tasks.finetune import BEST
from blip.train.checkpoint import complete_checkpoints
from blip.train.launch import Run

DONE = "done.json"  # in the folder of a step: it ended, and with these settings


class Stopped(BlipError):
    """A signal ended a training run; its checkpoint is there to go on from."""


class Rounds:
    """The steps of every round, each in a folder of its own and done once. What can be wrong is looked at first."""

    def __init__(self, config: CapFiltConfig, output: Path, device: torch.device):
        self.config, self.output, self.device = config, output, device
        self.how = steps.decoding(
            config.captions_per_image, config.beams, config.top_p, config.max_new_tokens, config.min_new_tokens
        )
        self.work = steps.Work(
            config.shard_size, config.batch_size, config.precision, config.num_workers, config.max_skipped_fraction
        )
        self.rule = Rule(config.threshold, config.itc_threshold, config.fraction)
        self.next_model = self.options(config.pretrain, PretrainConfig, config.pretrain_set)
        self.shared = self.options(config.shared, PretrainConfig, config.shared_set)
        self.captioner = self.options("" if config.shared else config.captioner, CaptionConfig, config.captioner_set)
        self.filter = self.options("" if config.shared else config.filter, RetrievalConfig, config.filter_set)
        self.web = read_candidates(config.web_file, config.image_root)
        read_candidates(config.human_file, config.image_root)  # for its errors alone

    def options(self, path: str, kind: type[Config], set_: dict[str, Any]) -> Config | None:
        """A configuration with what the round's says, or None where it names none."""
        own = self.config
        given: dict[str, Any] = {"image_root": own.image_root, "seed": own.seed, "device": own.device}
        if issubclass(kind, FineTuneConfig):  # whose files may be of another data set
            given |= {"dataset": "json", "val_file": [], "test_file": []}
        return with_options(load_config(path, kind), {**given, **set_}, f"options for {path}") if path else None

    def run(self) -> Path:
        """Every round; returns the last model, or the last round's annotations where none is to be pre-trained."""
        config = self.config
        model = Path(config.start)
        if not config.start:
            model = self.pretrain(self.output / "start", [*config.web_file, *config.human_file])
        result = model
        for number in range(1, config.rounds + 1):
            result = bootstrapped = self.bootstrap(number, model)
            if config.pretrain:
                model = result = self.pretrain(self.output / f"round{number}" / "model", [str(bootstrapped)])
        return result

    def bootstrap(self, number: int, model: Path) -> Path:
        """One round from a pre-trained model -> the annotations of the next."""
        place = self.output / f"round{number}"
        if self.shared:  # as the paper's table 4: the filter then likes what it would have written itself
            captioner = filter_ = self.fine_tune(place / "shared", pretrain.run, self.shared, model)
        else:
            captioner = self.fine_tune(place / "captioner", caption.run, self.captioner, model)
            filter_ = self.fine_tune(place / "filter", retrieval.run, self.filter, model)
        return self.texts(place, number, captioner, filter_)

    def texts(self, place: Path, number: int, captioner: Path, filter_: Path) -> Path:
        """Captions, scores, and what passes."""
        config, scored = self.config, place / "scored"
        self.say(f"round {number}: captions for {len(self.web)} images")
        about = fingerprint(captioner), self.how, config.seed, number, config.prompt, self.work
        steps.caption(load(captioner, self.device), self.web, place / "synthetic", *about)
        distributed.barrier()
        candidates = read_candidates([*config.web_file, str(place / "synthetic")], config.image_root)
        self.say(f"round {number}: scores of {candidates.texts} texts")
        steps.score(load(filter_, self.device), candidates, scored, fingerprint(filter_), self.work)
        distributed.barrier()
        out = place / "bootstrapped.jsonl"
        if distributed.is_main() and not about_merged(out).exists():
            found = merge([scored], out, self.rule, config.human_file, config.image_root)
            for source in sorted({**found.kept, **found.dropped}):
                self.say(f"round {number}: {source}: {found.kept[source]} kept, {found.dropped[source]} dropped")
        if distributed.is_main() and not (place / "report.html").exists():
            write_report([scored], place / "report.html", self.rule)
        distributed.barrier()
        return out

    def pretrain(self, place: Path, files: list[str]) -> Path:
        """A model from nothing on these files."""
        assert self.next_model is not None  # CapFiltConfig sees to it
        return self.train(place, pretrain.run, self.next_model, {"train_file": files})

    def fine_tune(self, place: Path, run: Run, config: RunConfig | None, model: Path) -> Path:
        """A model for one purpose, from `model` and the clean pairs."""
        assert config is not None
        given: dict[str, Any] = {"train_file": self.config.human_file, "init_from": str(model)}
        if (model / TOKENIZER).is_file():
            given["tokenizer"] = str(model / TOKENIZER)
        return self.train(place, run, config, given)

    def train(self, place: Path, run: Run, config: RunConfig, given: dict[str, Any]) -> Path:
        """Trains in the folder `place`, goes on there, or finds it done -> the best checkpoint, else the last."""
        config = with_options(config, given, f"options for {place}")
        done = place / DONE
        about = made_from(config)
        if done.exists() and (before := json.loads(done.read_text())) != about:
            other = sorted(key for key in {**before, **about} if before.get(key) != about.get(key))
            raise ConfigError(f"{place} was trained with another {', '.join(other)}; give another --output_dir, or "
                              "delete that folder and those of the steps after it")  # fmt: skip
        if not done.exists():
            self.say(f"training {place}")
            if not run(config, place, "auto", device=self.device):
                raise Stopped(f"stopped by a signal while training {place}; the same command goes on")
            gc.collect()  # the run's model, twin and optimizer, before the next is made
            distributed.barrier()
            if distributed.is_main():
                write_whole(done, json.dumps(about, indent=1) + "\n")
            distributed.barrier()
        best = place / BEST
        return best if best.is_dir() else complete_checkpoints(place)[-1]

    def say(self, text: str) -> None:
        if distributed.is_main():
            typer.echo(text)


def run(config: Path, output: Path, overrides: list[str]) -> None:
    """Every round of a configuration file; started again in the same folder, it continues."""
    settings = load_config(config, CapFiltConfig, overrides)
    device = distributed.start(settings.device, hours=24)  # one process may merge while the others wait
    remember(settings, output)
    result = Rounds(settings, output, device).run()
    if distributed.is_main():
        typer.echo(f"done: {result}")


def made_from(config: RunConfig) -> dict[str, Any]:
    """What a training depends on, as JSON: its options, the checkpoint that it starts from, its annotations."""
    about = config.model_dump(mode="json", exclude={"device", "num_workers"})
    files = [entry if isinstance(entry, str) else entry["path"] for entry in about["train_file"]]
    about["annotations"] = [fingerprint(file) for file in files if Path(file).is_file()]
    about["start"] = fingerprint(about["init_from"]) if about.get("init_from") else ""
    return about


def remember(config: CapFiltConfig, output: Path) -> None:
    """Keeps the configuration; ConfigError where the folder was begun with another. More rounds may follow."""
    saved = output / "config.yaml"
    if saved.is_file():
        before = load_config(saved, CapFiltConfig)
        free = ("rounds", "device", "num_workers", "max_skipped_fraction")
        changed = [f"{key} {getattr(before, key)} -> {value}" for key, value in config
                   if getattr(before, key) != value and key not in free]  # fmt: skip
        if changed:
            raise ConfigError(
                f"{output} was begun with other settings: {', '.join(changed)}; give another --output_dir"
            )
    distributed.barrier()
    if distributed.is_main():
        output.mkdir(parents=True, exist_ok=True)
        dump_config(config, saved)
    distributed.barrier()
