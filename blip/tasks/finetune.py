"""What the fine-tuning tasks share: the parts of a run, exact resuming, the best weights.

A task is a subclass of `FineTuning` and adds its data, `step` and `evaluate`.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from blip import distributed
from blip.checkpoints import adapter_files, adapters, initialize
from blip.checkpoints.format import (
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    load_strict,
    load_weights,
    save_weights,
    unique_state,
)
from blip.config import ConfigError, WeightedFile
from blip.console.bars import Bars
from blip.files import json_text, whole_folder, write_whole
from blip.hardware.precision import choose_precision, computing
from blip.tasks import start, tokenizers
from blip.tasks.config import FineTuneConfig
from blip.tasks.records import Records
from blip.train.checkpoint import written
from blip.train.folder import BEST, is_of_run, run_of
from blip.train.log import RunLog
from blip.train.loop import Step
from blip.train.parallel import not_compiled
from blip.train.record import own
from blip.train.sharding import gathered, in_parallel, is_sharded, whole, with_whole_model


class FineTuning(Records):
    """A run of one task: its parts, and the methods that the loop calls; see `blip.train.run.Task`."""

    task = ""
    pictures = 1  # of an item, in a dry run
    merges_adapters = True  # checkpoints hold weights with adapters merged into them
    starts: ClassVar[Any] = start  # reads the checkpoint that a run starts from, and gives the sizes of its model
    main_scores: tuple[str, ...] = ()  # of an evaluation, those that the terminal shows

    def __init__(
        self,
        config: FineTuneConfig,
        source: initialize.Source | None,
        output: Path,
        *,
        resume: Path | None,
        device: torch.device,
        training: bool = True,
    ):
        """Reads the data and builds the model from `source`; `load` later continues the checkpoint `resume`."""
        choose_precision(config.precision, device)  # an error before data are read
        self.config: Any = config
        self.output, self.device, self.bars = output, device, Bars(quiet=not distributed.is_main())
        self.logged: list[tuple[str, list[dict[str, Any]]]] = []  # by the last evaluation: a file, lines for it
        self.read_data()
        self.tokenizer = self.choose_tokenizer(source, resume, save=training)
        self._count_steps()
        torch.manual_seed(config.seed)  # equal starting weights on every process
        self.missing: list[str] = []  # tensors that `source` lacks
        self.warning = ""
        self.model = self.build(source)
        self.add_parts()
        torch.manual_seed(config.seed + 1 + distributed.rank())  # dropout differs between processes
        start.freeze_parts(self.model, config)
        self.parallel = in_parallel(self.model, config, device)
        self.best: float | None = None

    @classmethod
    def of(cls, config: Any, checkpoint: Path | None) -> "type[FineTuning]":
        """This class, whatever is trained; `blip2_kind.Kinds` chooses among several."""
        return cls

    def choose_tokenizer(self, source: initialize.Source | None, resume: Path | None, *, save: bool) -> Any:
        """The tokenizer of the run; `save` as in `tokenizers.choose_tokenizer`."""
        return tokenizers.choose_tokenizer(self.config, self.texts(), self.output, resume=resume, save=save)

    def build(self, source: initialize.Source | None) -> Any:
        """The model on its device, with its starting weights and adapters."""
        model, self.missing = start.start_model(self.task, self.config, source, tokenizer=self.tokenizer)
        self.warning = start.advice(self.task, source, self.missing) if source else ""
        if self.config.lora:
            adapters.add_lora(model, **self.config.lora.of_whole_model())
        return model.to("cpu" if is_sharded(self.config) else self.device)  # parts move one by one

    # ---- what a task adds --------------------------------------------------------------------------------------------

    def step(self, batch: Any, step: int) -> Step:
        """A batch to its losses."""
        raise NotImplementedError

    def evaluate(self, split: str) -> dict[str, Any]:
        """Scores of the files of `split` (val or test), on every process; names begin with the split."""
        raise NotImplementedError

    def add_parts(self) -> None:
        """Prepares what a task keeps beside its model, such as a momentum twin."""

    def after_update(self, step: int) -> None:
        """Follows each optimizer step."""

    def compare_with(self, train_file: list[str | WeightedFile]) -> None:
        """In an evaluation alone: reads the training files of the model, for scores that compare with them."""

    def facts(self) -> dict[str, Any]:
        """Content of `model.json` beside sizes, such as a prompt."""
        return {}

    # ---- model -------------------------------------------------------------------------------------------------------

    def describe(self) -> tuple[str, dict]:
        """A line about data and model for the log, and the content of `model.json`."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        share = "" if trained == parameters else f", {trained:.2f} M of them trained"
        line = f"{self.task}: {self.records()[0]} records, {parameters:.1f} M parameters{share} on {self.device} in "
        return line + self.config.precision, self.info()

    def info(self) -> dict:
        return start.describe(self.task, self.config, self.model, **self.facts())

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors, with adapters merged into them, so that any program can load them."""
        return adapters.merged_state(self.model) if self.config.lora else unique_state(self.model)

    def state(self) -> dict:
        """What a checkpoint holds beside weights and optimizer."""
        progress = {} if self.best is None else {"best": torch.tensor(self.best, dtype=torch.float64)}
        merged = self.merges_adapters and self.config.lora
        return {"progress": progress, **({"adapter": self._trained_state()} if merged else {})}

    def load(self, folder: Path, training: dict) -> None:
        """Continues from a checkpoint of this run."""
        saved, _ = distributed.tensors_from_main(lambda: load_weights(folder))
        if self.config.lora:  # the adapters are merged into the weights on disk, and kept apart in `training`
            load_strict(self.model, {**unique_state(self.model), **training["adapter"]}, f"{folder} (adapters)")
            if not all(torch.allclose(tensor.cpu(), saved[name], atol=1e-4) for name, tensor in self.weights().items()):
                raise CheckpointError(f"{folder}: its adapters do not belong to init_from {self.config.init_from!r}")
        else:
            with gathered(self.parallel, self.model, changed=True) as model:
                load_strict(model, saved, str(folder))
        self.load_best(folder, training)

    def load_best(self, folder: Path, training: dict) -> None:
        """The best score until now, if its weights are still there."""
        best = (self.output if is_of_run(folder, self.output) else run_of(folder)) / BEST
        if "best" in training["progress"] and best.is_dir():  # without its weights, a score is of no use
            stored = float(training["progress"]["best"])
            self.best = None if np.isnan(stored) else stored  # earlier versions kept a NaN, which nothing exceeds

    def take(self, folder: Path) -> None:
        """Replaces the model's weights by those of a checkpoint of this run; adapters are merged for good."""
        tensors, _ = distributed.tensors_from_main(lambda: load_weights(folder))
        if self.config.lora:
            adapters.merge(self.model)
        with gathered(self.parallel, self.model, changed=True) as model:
            load_strict(model, tensors, str(folder))

    def _trained_state(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def at_step_end(self, step: int, log: RunLog) -> dict | None:
        """An evaluation after each `eval_every_epochs` epochs and at the end; the best weights are saved."""
        done = self.epochs.evaluation_due(step, self.config.eval_every_epochs)
        if done is None or not self.files("val"):
            return None
        self.bars = log.bars
        metrics = self.scores("val")
        name = self.config.best_metric
        if name not in metrics:
            raise ConfigError(f"best_metric is {name!r}; the validation has {', '.join(metrics)}")
        better = self.best is None or (metrics[name] > self.best) == (self.config.best_is == "highest")
        if better and metrics[name] != self.best and not np.isnan(metrics[name]):
            self._keep_best(step, metrics)
            self.best = metrics[name]
        for file, lines in self.logged:
            log.add(file, lines)
        return {"epoch": done, **metrics, "best": self.best}

    def scores(self, split: str) -> dict[str, Any]:
        """`evaluate` in evaluation mode, without gradients, in the run's precision."""
        self.logged = []
        with torch.no_grad(), computing(self.device, self.config.precision), not_compiled(), with_whole_model(self):
            training = self.model.training
            self.model.eval()
            metrics = self.evaluate(split)
            self.model.train(training)
        return metrics

    def _keep_best(self, step: int, metrics: dict) -> None:
        weights = whole(self.weights())
        distributed.from_main(lambda: self._write_best(weights, step, metrics))

    def _write_best(self, weights: dict[str, Tensor], step: int, metrics: dict) -> None:
        best = own(self.output, BEST)
        with written(best), whole_folder(best) as folder:
            with written(best / WEIGHTS):
                save_weights(folder, weights, {**self.info(), "step": step}, flush=False)
            if self.merges_adapters and self.config.lora:
                about = {"base": self.config.init_from, "model": self.info()}
                adapter_files.save_adapter(folder, self.model, about, new=self.missing, flush=False)
            write_whole(folder / TOKENIZER, (self.output / TOKENIZER).read_bytes())
            write_whole(folder / "metrics.json", json_text({"step": step, **metrics}))
