"""Fine-tunes NLVR2: is a statement true of two images?

    python train_nlvr.py --config configs/nlvr2.yaml --output_dir runs/nlvr2 --init_from model_base.pth
    python train_nlvr.py --config configs/nlvr2.yaml --output_dir runs/nlvr2 --evaluate

The network is in blip/models/nlvr.py, what the tasks share in blip/tasks/finetune.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip.data.pairs import CaptionEncoder
from blip.data.statements import EvalStatements, NlvrBatch, NlvrDataset, Statements, collate_nlvr, read_statements
from blip.data.training_images import TrainingImages
from blip.evaluation.bootstrap import as_json, bootstrap
from blip.evaluation.losses import LossSums, with_total
from blip.models.nlvr import NlvrModel, statement_loss
from blip.tasks.config import NlvrConfig
from blip.tasks.data_options import entries, limits_of, read_as
from blip.tasks.finetune import FineTuning
from blip.tasks.rehearsal import rehearsals
from blip.tasks.run import evaluate, train
from blip.tasks.samples import chosen, of_statement
from blip.train.history import SAMPLES
from blip.train.launch import launch
from blip.train.loop import Step


class Judging(FineTuning):
    """Classification of statements about two images."""

    task = "nlvr"
    main_scores = ("val_accuracy", "val_majority", "best")
    collate_fn = staticmethod(collate_nlvr)
    config: NlvrConfig
    model: NlvrModel

    def read_data(self) -> None:
        self.statements: Statements | None = None
        if self.config.train_file:
            self.statements = self._read("train")
        self.held_out = {split: self._read(split) for split in ("val", "test") if self.files(split)}

    def _read(self, split: str) -> Statements:
        return read_statements(entries(self.entries(split)), **read_as(self.config, split))

    def texts(self) -> Iterator[str]:
        assert self.statements is not None
        for i in range(len(self.statements)):
            yield self.statements[i].sentence

    def records(self) -> tuple[int, np.ndarray | None]:
        return (len(self.statements) if self.statements is not None else 0), None

    def encoder(self) -> CaptionEncoder:
        """Statements to ids."""
        return CaptionEncoder(self.tokenizer, self.config.max_text_tokens)

    def dataset(self, images: TrainingImages) -> NlvrDataset:
        assert self.statements is not None
        return NlvrDataset(self.statements, self.order, self.encoder(), **self.reading(images))

    def step(self, batch: NlvrBatch, step: int) -> Step:
        """A batch to its loss."""
        batch = self.prepared(batch, step)
        logits = self.parallel(batch.images, batch.ids, batch.lengths)
        loss = statement_loss(logits, batch.labels)
        right = (logits.argmax(dim=1) == batch.labels).float().mean()
        return Step(loss, {"ce": loss, "accuracy": right}, 2 * len(batch), describe=lambda: self._name(batch))

    def _name(self, batch: NlvrBatch) -> str:
        assert self.statements is not None
        return ", ".join(self.statements[i].id for i in batch.indices[:16])

    def evaluate(self, split: str) -> dict[str, Any]:
        """Judges the statements of the split; each judgement goes into `judgements_SPLIT.json`."""
        statements = self.held_out[split]
        config = self.config
        limits = limits_of(config)
        batches = self.eval_batches(EvalStatements(statements, self.encoder(), self.eval_transform(), limits=limits))
        own: list[tuple] = []  # index, probability
        losses = LossSums()
        for batch in self.bars.over(batches, "judging"):
            batch = batch.to(self.device, non_blocking=True)
            logits = self.model(batch.images, batch.ids, batch.lengths)
            if config.val_loss:
                losses.add("ce", statement_loss(logits, batch.labels) * len(batch), len(batch))
            true = logits.float().softmax(dim=1)[:, 1]
            own += zip(batch.indices, true.tolist(), strict=True)
        judged = self.gathered(split, own, batches)
        right = [(probability > 0.5) == statements[i].label for i, probability in judged]
        labels = [statements[i].label for i, _ in judged]
        rows = [
            {
                "id": one.id,
                "images": [one.images] if isinstance(one.images, str) else list(one.images),
                "sentence": one.sentence,
                "label": one.label,
                "probability": p,
            }
            for one, p in ((statements[i], p) for i, p in judged)
        ]
        self.write(f"judgements_{split}.json", rows)
        shown = chosen(len(statements))
        self.logged.append((SAMPLES, [of_statement(i, statements[i], p) for i, p in judged if i in shown]))
        images = [str(statements[i].images) for i, _ in judged]
        interval = bootstrap([float(x) for x in right], images, seed=config.seed)
        self.write(f"scores_{split}.json", {"accuracy": as_json(interval)})
        majority = max(float(np.mean(labels)), 1 - float(np.mean(labels)))
        scores = {f"{split}_accuracy": interval.mean, f"{split}_statements": len(judged), f"{split}_majority": majority}
        return with_total(losses.means(), split) | scores


def run(config: NlvrConfig, output: Path, resume: str, *, device: torch.device, **options: bool) -> bool:
    """Trains and writes the result to `output`; `options` as in `open_run`. False when a signal ended it."""
    return train(Judging, config, output, resume=resume, device=device, **options)


def score(config: NlvrConfig, output: Path, device: torch.device, **options: Any) -> Path:
    """Evaluates without training -> the folder of the results; `options` as in `blip.tasks.run.evaluate`."""
    return evaluate(Judging, config, output, device=device, **options)


def main(help: str | None = None) -> None:
    """The command line of the task; `help` is shown with `--help`."""
    offered = rehearsals(Judging)
    launch(run, NlvrConfig, default_output="runs/nlvr", evaluate=score, help=help or __doc__, **offered)


if __name__ == "__main__":
    main()
