"""Fine-tunes dialogues about images (VisDial): which of many answers is the right one?

    python train_visdial.py --config configs/visdial.yaml --output_dir runs/visdial --init_from model_base.pth
    python train_visdial.py --config configs/visdial.yaml --output_dir runs/visdial --evaluate

The network is in blip/models/dialogue.py, what the tasks share in blip/tasks/finetune.py; see docs/dialogues.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip.config import ConfigError
from blip.data.dialogue_samples import DialogueBatch, DialogueDataset, EvalDialogues, collate_dialogues
from blip.data.dialogue_texts import DialogueEncoder, Lengths
from blip.data.dialogues import Dialogues, read_dialogues
from blip.data.sets.dialogues import Dialogue
from blip.data.training_images import TrainingImages
from blip.evaluation.bootstrap import as_json
from blip.evaluation.dialogues import RankedRound, ranks_of, score_rounds
from blip.evaluation.losses import LossSums, match_losses, with_total
from blip.models.dialogue import DialogueModel, Round, answer_logits
from blip.models.losses import match
from blip.network.pictures import encode
from blip.tasks.config import DialogueConfig
from blip.tasks.data_options import entries, limits_of, read_as
from blip.tasks.finetune import FineTuning
from blip.tasks.item_pictures import tell_left_out
from blip.tasks.rehearsal import rehearsals
from blip.tasks.run import evaluate, train
from blip.tasks.samples import chosen, of_item, sample
from blip.train.history import SAMPLES
from blip.train.launch import launch
from blip.train.loop import Step

Scored = list[tuple[int, list[float]]]  # rounds of a dialogue: the number, from 0, and the score of each option


class DialogueRanking(FineTuning):
    """Matching of right and wrong answers to questions in dialogues."""

    task = "dialogue"
    main_scores = ("val_mrr", "val_r1", "val_mean_rank", "val_ndcg", "best")
    collate_fn = staticmethod(collate_dialogues)
    config: DialogueConfig
    model: DialogueModel

    def read_data(self) -> None:
        self.dialogues: Dialogues | None = None
        if self.config.train_file:
            self.dialogues = self._read("train")
            tell_left_out(self.dialogues, self.config)
            self.questions = self.dialogues.trainable()
            if not len(self.questions):
                raise ConfigError(f"{', '.join(self.files('train'))}: no question has a right answer among wrong ones")
        self.held_out = {split: self._read(split) for split in ("val", "test") if self.files(split)}
        for split, dialogues in self.held_out.items():
            if not dialogues.count("options"):
                raise ConfigError(f"{', '.join(self.files(split))}: no question has answers to choose from")
        self._check_metric()

    def _read(self, split: str) -> Dialogues:
        return read_dialogues(entries(self.entries(split)), **read_as(self.config, split))

    def _check_metric(self) -> None:
        """ConfigError, before training, where the validation dialogues cannot have the score `best_metric`."""
        dialogues, metric = self.held_out.get("val"), self.config.best_metric
        if dialogues is None or self.dialogues is None:
            return
        kind, missing = ("relevant", "options with a relevance") if metric == "val_ndcg" else ("right", "right answers")
        if not dialogues.count(kind):
            raise ConfigError(f"best_metric is {metric!r}, but {', '.join(self.files('val'))} gives no {missing}")

    def texts(self) -> Iterator[str]:
        assert self.dialogues is not None
        yield from self.dialogues.texts()

    def records(self) -> tuple[int, np.ndarray | None]:
        return (len(self.questions) if self.dialogues is not None else 0), None

    def encoder(self) -> DialogueEncoder:
        """Texts to ids, with the lengths of the configuration."""
        config = self.config
        lengths = Lengths(
            config.max_text_tokens, config.max_caption_tokens, config.max_turn_tokens, config.max_answer_tokens
        )
        return DialogueEncoder(self.tokenizer, lengths)

    def dataset(self, images: TrainingImages) -> DialogueDataset:
        assert self.dialogues is not None
        return DialogueDataset(self.dialogues, self.questions, self.order, self.encoder(), **self.reading(images))

    def add_parts(self) -> None:
        """ConfigError or InputError for lengths that the model cannot read, or into which no question fits."""
        self.needs_positions(self.config.max_text_tokens, "max_text_tokens")
        self.needs_positions(self.config.max_caption_tokens, "max_caption_tokens")
        self.encoder()

    def step(self, batch: DialogueBatch, step: int) -> Step:
        """A batch to its loss: a right and a wrong answer to each question."""
        batch = self.prepared(batch, step)
        logits = self.parallel(
            batch.images, batch.caption_ids, batch.caption_lengths, ids=batch.ids, lengths=batch.lengths
        )
        is_right = torch.arange(len(logits), device=logits.device) % 2 == 0
        loss = match(logits, is_right)
        judged = (logits.argmax(dim=1) == 1) == is_right
        shares = {"itm_matched": judged[::2].float().mean(), "itm_unmatched": judged[1::2].float().mean()}
        return Step(loss, {"itm": loss, **shares}, len(batch), describe=lambda: self._name(batch))

    def _name(self, batch: DialogueBatch) -> str:
        assert self.dialogues is not None
        places = [self.questions[i].tolist() for i in batch.indices[:16]]
        return ", ".join(f"{self.dialogues.image_paths(place)[0]}, round {number + 1}" for place, number in places)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self, split: str) -> dict[str, Any]:
        """Ranks the options of every question of the split: `ranks_SPLIT.json` is what the challenge's server takes."""
        dialogues, config = self.held_out[split], self.config
        limits = limits_of(config)
        batches = self.eval_batches(EvalDialogues(dialogues, self.encoder(), self.eval_transform(), limits=limits))
        own: list[tuple] = []  # index, `Scored`
        losses = LossSums()
        for batch in self.bars.over(batches, "ranking"):
            logits = self._logits(batch.to(self.device, non_blocking=True))
            margins = torch.cat([(one[:, 1] - one[:, 0]).float() for each in logits for one in each]).tolist()
            for index, rounds, each in zip(batch.indices, batch.rounds, logits, strict=True):
                scored: Scored = []
                for one, values in zip(rounds, each, strict=True):
                    scored.append((one.number, margins[: len(values)]))
                    del margins[: len(values)]
                own.append((index, scored))
                if config.val_loss:
                    self._add_losses(dialogues[index], [one.number for one in rounds], each, losses=losses)
        ranked = self.gathered(split, own, batches)
        self._write(split, dialogues, ranked)
        return with_total(losses.means(), split) | self._score(split, dialogues, ranked)

    def _logits(self, batch: DialogueBatch) -> list[list[Tensor]]:
        """Logits (A, 2) of the options of each round of each dialogue; an image and its caption are encoded once."""
        states = encode(self.model.image_encoder, batch.images)
        captions = self.model.caption_states(batch.caption_ids, batch.caption_lengths)
        logits = []
        for i, rounds in enumerate(batch.rounds):
            length = batch.caption_lengths[i : i + 1]  # without padding, no key has to be masked
            keys = self.model.keys(states[i : i + 1], captions[i : i + 1, : int(length)], length)
            logits.append(answer_logits(self.model, keys, [Round(one.before, one.answers) for one in rounds]))
        return logits

    def _add_losses(self, item: Dialogue, numbers: list[int], logits: list[Tensor], *, losses: LossSums) -> None:
        """The loss of each question as in training, with all wrong options in place of one."""
        for number, each in zip(numbers, logits, strict=True):
            right = item.exchanges[number].right
            if right >= 0:
                wrong = torch.cat([each[:right], each[right + 1 :]])
                matched = match_losses(each[right : right + 1], True).mean()
                losses.add("itm", (matched + match_losses(wrong, False).mean()) / 2)

    def _write(self, split: str, dialogues: Dialogues, ranked: list[tuple[int, Scored]]) -> None:
        results, rows, lines = [], [], []
        shown = chosen(len(dialogues))
        for index, rounds in ranked:
            item = dialogues[index]
            image_id = int(item.image_id) if item.image_id.isdecimal() else item.image_id
            for number, scores in rounds:
                one, ranks = item.exchanges[number], ranks_of(scores)
                best = ranks.index(1)
                row: dict[str, Any] = {
                    "question": one.question,
                    "answer": one.options[best],
                    "probability": float(torch.tensor(scores[best], dtype=torch.float64).sigmoid()),
                    **({"truth": one.options[one.right], "rank": ranks[one.right]} if one.right >= 0 else {}),
                }
                results.append({"image_id": image_id, "round_id": number + 1, "ranks": ranks})
                rows.append({"image_id": image_id, **of_item(item.image_paths), "round_id": number + 1, **row})
            if index in shown and rounds:  # the last question of the dialogue
                more = {name: row[name] for name in ("probability", "rank") if name in row}
                truth, output = row.get("truth", ""), row["answer"]
                lines.append(sample(index, item.image_paths, text=row["question"], truth=truth, output=output, **more))
        self.write(f"ranks_{split}.json", results)
        self.write(f"answers_{split}.json", rows)
        self.logged.append((SAMPLES, lines))

    def _score(self, split: str, dialogues: Dialogues, ranked: list[tuple[int, Scored]]) -> dict[str, Any]:
        """Metrics for the log; scores with intervals go into `scores_SPLIT.json`."""
        rounds = []
        for index, scored in ranked:
            item = dialogues[index]
            group = "|".join(item.image_paths)
            for number, scores in scored:
                one = item.exchanges[number]
                rounds.append(RankedRound(group, ranks_of(scores), one.right, one.relevance))
        intervals = score_rounds(rounds, seed=self.config.seed)
        self.write(f"scores_{split}.json", {"scores": as_json(intervals)})
        counts = {f"{split}_dialogues": len(ranked), f"{split}_questions": len(rounds)}
        return {f"{split}_{name}": interval.mean for name, interval in intervals.items()} | counts

    def facts(self) -> dict[str, Any]:
        names = ("max_caption_tokens", "max_turn_tokens", "max_answer_tokens")
        return {name: getattr(self.config, name) for name in names}


def run(config: DialogueConfig, output: Path, resume: str, *, device: torch.device, **options: bool) -> bool:
    """Trains and writes the result to `output`; `options` as in `open_run`. False when a signal ended it."""
    return train(DialogueRanking, config, output, resume=resume, device=device, **options)


def score(config: DialogueConfig, output: Path, device: torch.device, **options: Any) -> Path:
    """Evaluates without training -> the folder of the results; `options` as in `blip.tasks.run.evaluate`."""
    return evaluate(DialogueRanking, config, output, device=device, **options)


def main(help: str | None = None) -> None:
    """The command line of the task; `help` is shown with `--help`."""
    offered = rehearsals(DialogueRanking)
    launch(run, DialogueConfig, default_output="runs/visdial", evaluate=score, help=help or __doc__, **offered)


if __name__ == "__main__":
    main()
