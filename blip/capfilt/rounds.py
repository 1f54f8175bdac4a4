"""Bootstraps the captions of a noisy set: CapFilt (Li et al. 2022, section 3.3), from a pre-trained model to the next.

    blip capfilt run --config configs/capfilt.yaml --output_dir runs/capfilt
    torchrun --nproc_per_node=8 -m blip capfilt run --config configs/capfilt.yaml --output_dir runs/capfilt --rounds 2

A round: captioner and filter are fine-tuned separately from one model on clean pairs; the captioner writes texts for
the noisy images; the filter scores these and the texts from the web; the next model is pre-trained on the texts that
pass and the clean pairs. The steps are in blip/capfilt/steps.py; the same command continues after an interruption.
"""

import gc
import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blip import distributed
from blip.capfilt import steps
from blip.capfilt.candidates import read_candidates
from blip.capfilt.config import CapFiltConfig
from blip.capfilt.merge import Rule, about_merged, merge
from blip.capfilt.report import write_report
from blip.checkpoints.format import TOKENIZER
from blip.checkpoints.places import is_remote, local, pinned
from blip.command_line import lasting_streams, say
from blip.config import (
    Config,
    ConfigError,
    ModelConfig,
    PretrainConfig,
    RunConfig,
    dump_config,
    load_config,
    with_options,
)
from blip.data.image_bytes import ImageLimits
from blip.errors import BlipError
from blip.files import read_json, write_whole
from blip.hashing import fingerprint
from blip.hub.names import unpinned
from blip.inference.load import load
from blip.inference.load_blip2 import only_blip
from blip.inference.predictor import Predictor
from blip.outputs import claim_output, locked
from blip.tasks import caption, pretrain, retrieval
from blip.tasks.config import CaptionConfig, FineTuneConfig, RetrievalConfig
from blip.tasks.finetune import BEST
from blip.train.checkpoint import newest_checkpoint
from blip.train.launch import Run

CONFIG = "config.yaml"
DONE = "done.json"  # in the folder of a finished step: its settings


class Stopped(BlipError):
    """A signal ended a training run, which continues from its checkpoint."""


class Rounds:
    """The steps of every round, each in a folder of its own and done once. Options and data are checked first."""

    def __init__(self, config: CapFiltConfig, output: Path, device: torch.device, *, overwrite: bool = False):
        """`overwrite`: captions, scores and merged texts of other settings are replaced; trainings never are."""
        self.config, self.output, self.device, self.overwrite = config, output, device, overwrite
        self.decoding = steps.caption_decoding(
            config.captions_per_image,
            config.beams,
            config.top_p,
            max_new_tokens=config.max_new_tokens,
            min_new_tokens=config.min_new_tokens,
        )
        self.shards = steps.ShardOptions(
            config.shard_size,
            config.batch_size,
            config.precision,
            config.num_workers,
            config.max_skipped_fraction,
        )
        self.rule = Rule(config.threshold, config.itc_threshold, config.fraction)
        self.next_model = self.options(config.pretrain, PretrainConfig, config.pretrain_set)
        self.shared = self.options(config.shared, PretrainConfig, config.shared_set)
        self.captioner = self.options("" if config.shared else config.captioner, CaptionConfig, config.captioner_set)
        self.filter = self.options("" if config.shared else config.filter, RetrievalConfig, config.filter_set)
        self.web = read_candidates(config.web_file, config.image_root)
        read_candidates(config.human_file, config.image_root)  # for its errors alone

    def options(self, path: str, kind: type[Config], set_: dict[str, Any]) -> Config | None:
        """A training's configuration with the options that the rounds set, or None where `path` is empty."""
        given: dict[str, Any] = {
            name: getattr(self.config, name) for name in ("image_root", "max_image_mb", "seed", "device")
        }
        if issubclass(kind, ModelConfig):  # its own files may be of another data set
            given |= {"dataset": "json", "columns": {}}
        if issubclass(kind, FineTuneConfig):
            given |= {"val_file": [], "test_file": []}
        return with_options(load_config(path, kind), {**given, **set_}, f"options for {path}") if path else None

    def run(self) -> Path:
        """Every round; returns the last model or, without pre-training, the last round's annotations."""
        config = self.config
        model = local(config.start)
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
        if self.shared:  # table 4 of the paper: the filter is then biased towards its own captions
            captioner = filter_ = self.fine_tune(place / "shared", pretrain.run, self.shared, model=model)
        else:
            captioner = self.fine_tune(place / "captioner", caption.run, self.captioner, model=model)
            filter_ = self.fine_tune(place / "filter", retrieval.run, self.filter, model=model)
        return self.texts(place, number, captioner=captioner, filter_=filter_)

    def texts(self, place: Path, number: int, *, captioner: Path, filter_: Path) -> Path:
        """Captions, scores, and the texts that pass -> the annotations of the next model."""
        config, scored = self.config, place / "scored"
        self.show(f"round {number}: captions for {len(self.web)} images")
        steps.caption(
            self.loaded(captioner),
            self.web,
            place / "synthetic",
            model_fingerprint=fingerprint(captioner),
            options=steps.CaptionOptions(self.decoding, config.seed, number, config.prompt),
            shards=self.shards,
            overwrite=self.overwrite,
        )
        distributed.barrier()
        candidates = read_candidates([*config.web_file, str(place / "synthetic")], config.image_root)
        self.show(f"round {number}: scores of {candidates.texts} texts")
        filter_model = self.loaded(filter_)
        steps.score(
            filter_model,
            candidates,
            scored,
            model_fingerprint=fingerprint(filter_),
            shards=self.shards,
            overwrite=self.overwrite,
        )
        distributed.barrier()
        out = place / "bootstrapped.jsonl"
        if distributed.is_main() and (self.overwrite or not (about_merged(out).exists() and out.exists())):
            merged = merge([scored], out, self.rule, keep=config.human_file, image_root=config.image_root)
            for source in sorted({**merged.kept, **merged.dropped}):
                self.show(f"round {number}: {source}: {merged.kept[source]} kept, {merged.dropped[source]} dropped")
        if distributed.is_main() and (self.overwrite or not (place / "report.html").exists()):
            write_report([scored], place / "report.html", self.rule, limits=filter_model.limits)
        distributed.barrier()
        return out

    def loaded(self, checkpoint: Path) -> Predictor:
        """A model of a round; scans are shown to it as in its training."""
        model = only_blip(load(checkpoint, self.device), "blip capfilt")
        model.limits = replace(model.limits, max_bytes=ImageLimits.of_mb(self.config.max_image_mb).max_bytes)
        return model

    def pretrain(self, place: Path, files: list[str]) -> Path:
        """A model pre-trained on these files, from random weights unless the configuration names others."""
        assert self.next_model is not None  # CapFiltConfig ensures it
        return self.train(place, pretrain.run, self.next_model, given={"train_file": files})

    def fine_tune(self, place: Path, run: Run, config: RunConfig | None, *, model: Path) -> Path:
        """Captioner, filter or both in one, fine-tuned from `model` on the clean pairs."""
        assert config is not None
        given: dict[str, Any] = {"train_file": self.config.human_file, "init_from": str(model)}
        if (model / TOKENIZER).is_file():
            given["tokenizer"] = str(model / TOKENIZER)
        return self.train(place, run, config, given=given)

    def train(self, place: Path, run: Run, config: RunConfig, *, given: dict[str, Any]) -> Path:
        """Trains in the folder `place`, continues there, or finds it done -> the best checkpoint, else the last."""
        config = with_options(config, given, f"options for {place}")
        done = place / DONE
        about = made_from(config)
        if done.exists() and (before := read_json(done, dict[str, Any])) != about:
            other = sorted(key for key in {**before, **about} if before.get(key) != about.get(key))
            raise ConfigError(f"{place} was trained with another {', '.join(other)}; give another --output_dir, or "
                              "delete that folder and those of the steps after it")  # fmt: skip
        if not done.exists():
            self.show(f"training {place}")
            if not run(config, place, "auto", device=self.device):
                raise Stopped(f"stopped by a signal while training {place}; the same command continues")
            gc.collect()  # frees the run's model and optimizer before the next is made
            distributed.barrier()
            if distributed.is_main():
                write_whole(done, json.dumps(about, indent=1) + "\n")
            distributed.barrier()
        weights = place / BEST if (place / BEST).is_dir() else newest_checkpoint(place)
        if weights is None:
            raise ConfigError(f"{place} was trained and has lost its checkpoints: delete {done} to train it again")
        return weights

    def show(self, text: str) -> None:
        if distributed.is_main():
            say(text)


@lasting_streams()
def run(config: Path, output: Path, overrides: list[str], *, overwrite: bool = False) -> None:
    """Every round of a configuration, given by its file or its name; continues in a folder of its own earlier run.

    Args:
        overwrite: write to a folder that is not this command's, or was begun with other settings; see `Rounds`.

    Raises:
        OutputError: the folder is not this command's. ConfigError: it was begun with other settings.
        LockedError: another process writes to it.
    """
    settings = load_config(config, CapFiltConfig, overrides)
    device = distributed.start(settings.device)
    if distributed.is_main():
        inputs = [*settings.web_file, *settings.human_file, *filter(None, [settings.start])]
        known = os.path.isfile(output / CONFIG)  # `remember` compares it
        claim_output(output, "capfilt run", inputs=inputs, folder=True, overwrite=overwrite, known=known)
    with locked(output) if distributed.is_main() else nullcontext():
        settings = pin_start(settings, output)
        remember(settings, output, overwrite=overwrite)
        result = Rounds(settings, output, device, overwrite=overwrite).run()
        distributed.barrier()
    if distributed.is_main():
        say(f"done: {result}")


def pin_start(config: CapFiltConfig, output: Path) -> CapFiltConfig:
    """The configuration with the name of its first checkpoint pinned, as the folder's earlier run has it."""
    if not config.start or not is_remote(config.start):
        return config
    saved = output / CONFIG
    before = load_config(saved, CapFiltConfig).start if saved.is_file() else ""
    same = before and unpinned(before) == unpinned(config.start)
    name = before if same else distributed.from_main(lambda: pinned(config.start))
    return config.model_copy(update={"start": name})


def made_from(config: RunConfig) -> dict[str, Any]:
    """What a training depends on, as JSON: its options, fingerprints of its first checkpoint and of its annotations."""
    about = config.model_dump(mode="json", exclude={"device", "num_workers", "max_image_mb"})
    files = [entry if isinstance(entry, str) else entry["path"] for entry in about["train_file"]]
    about["annotations"] = [fingerprint(file) for file in files if Path(file).is_file()]
    about["start"] = fingerprint(local(about["init_from"])) if about.get("init_from") else ""
    return about


def remember(config: CapFiltConfig, output: Path, *, overwrite: bool = False) -> None:
    """Saves the configuration in the folder; ConfigError where that was begun with another. More rounds may follow."""
    saved = output / CONFIG
    if saved.is_file() and not overwrite:
        before = load_config(saved, CapFiltConfig)
        free = ("rounds", "device", "num_workers", "max_skipped_fraction", "max_image_mb")
        changed = [f"{key} {getattr(before, key)} -> {value}" for key, value in config
                   if getattr(before, key) != value and key not in free]  # fmt: skip
        if changed:
            raise ConfigError(
                f"{output} was begun with other settings: {', '.join(changed)}; give another --output_dir, "
                "or replace what follows from them with --overwrite"
            )
    distributed.barrier()
    if distributed.is_main():
        output.mkdir(parents=True, exist_ok=True)
        dump_config(config, saved)
    distributed.barrier()
