"""Answering of questions by BLIP in a run: a step, and an evaluation that answers and scores."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from blip.checkpoints.places import answers_of
from blip.config import ConfigError, WeightedFile
from blip.data.question_batches import VqaBatch, collate_vqa
from blip.data.question_splits import TrainedOn, answer_list, read_answers, split_by_image
from blip.data.questions import (
    EvalQuestions,
    QuestionEncoder,
    Questions,
    VqaDataset,
    read_questions,
)
from blip.data.sets.questions import Question
from blip.data.training_images import TrainingImages
from blip.evaluation.answers import exact_match, score_answers, vqa_accuracy
from blip.evaluation.bootstrap import as_json, bootstrap
from blip.evaluation.losses import LossSums, with_total
from blip.models.answer_tree import AnswerTree
from blip.models.ranking import distinct_answers, rank_answers
from blip.network.cross_attention import ProjectedKeys
from blip.tasks.config import VqaConfig
from blip.tasks.data_options import entries, is_there, limits_of, read_as
from blip.tasks.finetune import FineTuning
from blip.tasks.item_pictures import tell_left_out
from blip.tasks.samples import about_answer, of_item, of_questions
from blip.train.history import SAMPLES
from blip.train.loop import Step


class Answering(FineTuning):
    """Language modelling of weighted answers to questions about images."""

    task = "vqa"
    main_scores = ("val_exact_match", "val_exact_match_closed", "val_exact_match_open", "best")
    collate_fn = staticmethod(collate_vqa)
    config: VqaConfig
    model: Any  # a VqaModel, or of BLIP-2

    def read_data(self) -> None:
        self.questions: Questions | None = None
        self.held_out: dict[str, Questions] = {}
        if self.config.train_file:
            self.questions = self._read("train", self.config.train_file)
        if self.config.split_shares and self.questions is not None:
            self._split(self.questions, self.config.split_shares)
        else:
            self.held_out = {part: self._read(part, files) for part in ("val", "test") if (files := self.entries(part))}
        self.trained_on = TrainedOn(self.questions) if self.questions is not None else None
        self.answers = self._answers()

    def _read(self, split: str, files: Sequence[str | WeightedFile]) -> Questions:
        questions = read_questions(entries(files), **read_as(self.config, split))
        tell_left_out(questions, self.config)
        return questions

    def compare_with(self, train_file: list[str | WeightedFile]) -> None:
        """In an evaluation alone: reads the training questions, if their files exist, for the scores of `_score`."""
        if self.questions is None and train_file and all(map(is_there, train_file)):
            self.trained_on = TrainedOn(self._read("train", train_file))

    def _split(self, questions: Questions, shares: tuple[float, float, float]) -> None:
        self.questions, *held_out = split_by_image(questions, shares, self.config.seed)
        self.held_out = {split: part for split, part in zip(("val", "test"), held_out, strict=True) if len(part)}

    def files(self, split: str) -> list[str]:
        if self.config.split_shares:
            return [f"the {split} part of train_file"] if split in self.held_out else []
        return super().files(split)

    def _answers(self) -> list[str]:
        """The answers that ranking chooses from: those of a file, of the training set, or of a checkpoint."""
        if self.config.answer_file:
            answers = read_answers(self.config.answer_file)
        elif self.questions is not None:
            answers = answer_list(self.questions)
        else:
            answers = answers_of(self.config.init_from)
        if not answers and self.config.inference == "rank":
            raise ConfigError("there is no answer to rank: set answer_file or train_file, or inference: generate")
        return answers

    def texts(self) -> Iterator[str]:
        assert self.questions is not None
        for i in range(len(self.questions)):
            question = self.questions[i]
            yield from (question.question, *question.answers)

    def records(self) -> tuple[int, np.ndarray | None]:
        return (len(self.questions), self.questions.record_weights()) if self.questions is not None else (0, None)

    def encoder(self) -> QuestionEncoder:
        return QuestionEncoder(self.tokenizer, self.config.max_text_tokens, self.config.max_answer_tokens)

    def dataset(self, images: TrainingImages) -> VqaDataset:
        assert self.questions is not None
        return VqaDataset(self.questions, self.order, self.encoder(), **self.reading(images))

    def step(self, batch: VqaBatch, step: int) -> Step:
        """A batch to its loss."""
        batch = self.prepared(batch, step)
        loss = self.parallel(
            batch.images,
            batch.ids,
            batch.lengths,
            answer_ids=batch.answer_ids,
            answer_lengths=batch.answer_lengths,
            owner=batch.owner,
            weights=batch.weights,
        )
        return Step(loss, {"lm": loss}, len(batch), describe=lambda: self._name(batch))

    def _name(self, batch: VqaBatch) -> str:
        assert self.questions is not None
        return ", ".join(self.questions[i].question_id for i in batch.indices[:16])

    def add_parts(self) -> None:
        """The list of answers as a tree of tokens.

        Raises:
            ConfigError: no answer has a token, a length is above the model's positions, or `best_metric` is a score
                that the validation questions cannot have.
        """
        given = self.answers
        self.answers, tokens = distinct_answers(self.tokenizer, given, self.config.max_answer_tokens)
        if given and not tokens and self.config.inference == "rank":
            raise ConfigError(f"no answer has a token, such as {given[0]!r}: set answer_file")
        self._check_metric()
        self.needs_positions(self.config.max_answer_tokens, "max_answer_tokens")
        if self.config.inference == "generate":
            self.needs_positions(1 + self.config.max_new_tokens, "max_new_tokens and the token before them")
        self.tree = AnswerTree(tokens, self.tokenizer.dec_id, self.tokenizer.sep_id) if tokens else None

    def _check_metric(self) -> None:
        """ConfigError, before training, where the validation questions cannot have the score `best_metric`."""
        metric, questions = self.config.best_metric, self.held_out.get("val")
        if questions is None:
            return
        kinds, ten = set[str](), True
        for i in range(len(questions)):
            question = questions[i]
            kinds |= {question.answer_type, *question.category.split("+")}
            ten = ten and len(question.references) == 10
        if metric == "val_vqa_accuracy" and not ten:
            raise ConfigError("best_metric is 'val_vqa_accuracy', which needs ten answers to every validation question")
        score = next((name for name in self.config.scores if metric.startswith(f"val_{name}_")), None)
        kind = metric.removeprefix(f"val_{score}_")
        if score is not None and kind not in kinds:
            raise ConfigError(f"best_metric is {metric!r}, but of the validation questions none is {kind}; there are "
                              f"{', '.join(sorted(kinds - {''}))}")  # fmt: skip

    def evaluate(self, split: str) -> dict[str, Any]:
        """Answers the questions of the split and scores them; each answer goes into `answers_SPLIT.json`."""
        questions = self.held_out[split]
        limits = limits_of(self.config)
        batches = self.eval_batches(EvalQuestions(questions, self.encoder(), self.eval_transform(), limits=limits))
        own: list[tuple] = []  # index, answer, probability
        losses = LossSums()
        for batch in self.bars.over(batches, "answering"):
            batch = batch.to(self.device, non_blocking=True)
            answers = self.answer_batch(batch, [questions[i] for i in batch.indices], losses)
            own += [(i, *answer) for i, answer in zip(batch.indices, answers, strict=True)]
        given = self.gathered(split, own, batches)
        asked = [questions[i] for i, _, _ in given]
        self._write(split, asked, given)
        self.logged.append((SAMPLES, of_questions(len(questions), asked, given)))
        return with_total(losses.means(), split) | self._score(split, asked, [text for _, text, _ in given])

    def answer_batch(self, batch: VqaBatch, asked: list[Question], losses: LossSums) -> list[tuple[str, float]]:
        """(answer, its probability) for each question; with `val_loss` the losses of its answers go into `losses`."""
        keys = self.model.question_keys(batch.images, batch.ids, batch.lengths)
        if self.config.val_loss and len(batch.owner):  # answers of some test sets are not published
            each = self.model.answer_losses(keys, batch.answer_ids, batch.answer_lengths, owner=batch.owner)
            losses.add("lm", batch.weights * each, len(batch.owner.unique()))
        return self._answer(keys, batch.indices, [question.choices for question in asked])

    def _answer(self, keys: ProjectedKeys, indices: list[int], choices: list[list[str]]) -> list[tuple[str, float]]:
        """(answer, its probability) for each question of a batch."""
        if self.config.inference == "choices":
            return [self._choose(keys, row, texts) for row, texts in enumerate(choices)]
        if self.config.inference == "rank":
            assert self.tree is not None
            ranked = rank_answers(self.model.text_decoder, keys, self.tree, k=self.config.k_test)
            best, sure = ranked.answers[:, 0].tolist(), ranked.probabilities[:, 0].tolist()
            return [(self.answers[i], p) for i, p in zip(best, sure, strict=True)]
        decoding, uniforms = self.config.decoding(), self.config.uniforms(indices)
        out = self.model.answer(keys, decoding, self.tokenizer.sep_id, uniforms=uniforms)
        sure = out.log_probs.sum(dim=1).exp().tolist()
        return [(self.tokenizer.decode(ids), p) for ids, p in zip(out.ids.tolist(), sure, strict=True)]

    def _choose(self, keys: ProjectedKeys, row: int, choices: list[str]) -> tuple[str, float]:
        """The most probable of a question's own choices; without choices an empty answer, which counts as wrong."""
        texts, tokens = distinct_answers(self.tokenizer, choices, self.config.max_answer_tokens)
        if not texts:
            return "", 0.0
        tree = AnswerTree(tokens, self.tokenizer.dec_id, self.tokenizer.sep_id)
        one = keys.select(torch.tensor([row], device=keys.device))
        ranked = rank_answers(self.model.text_decoder, one, tree, k=len(texts))
        return texts[int(ranked.answers[0, 0])], float(ranked.probabilities[0, 0])

    def _write(self, split: str, asked: list[Question], given: list[tuple]) -> None:
        rows = [
            {"question_id": q.question_id, **of_item(q.image_paths), "question": q.question, "answer": text,
             "probability": p, "references": q.references or q.answers, **about_answer(q, text, self.tokenizer.written)}
            for q, (_, text, p) in zip(asked, given, strict=True)
        ]  # fmt: skip
        self.write(f"answers_{split}.json", rows)

    def _score(self, split: str, asked: list[Question], answers: list[str]) -> dict[str, Any]:
        """Metrics for the log; scores with intervals, by type and category of question, go into `scores_SPLIT.json`."""
        known = [(q, text) for q, text in zip(asked, answers, strict=True) if q.answers]
        if not known:  # the references of some test sets are not published
            return {f"{split}_questions": len(asked)}
        questions, texts = [q for q, _ in known], [text for _, text in known]
        references = [q.references or q.answers for q in questions]
        groups = [q.group or q.image_id for q in questions]
        written = self.tokenizer.written
        options: dict[str, Any] = {"groups": groups, "seed": self.config.seed, "written": written}
        details: dict[str, Any] = {
            "by_type": as_json(score_answers(texts, references, [q.answer_type for q in questions], **options))
        }
        categories = sorted({q.category for q in questions if q.category})
        if categories:
            by_category = score_answers(texts, references, [q.category for q in questions], **options)
            details["by_category"] = as_json(by_category)
        metrics: dict[str, Any] = {f"{split}_questions": len(known)}
        for name, scores in details["by_type"].items():
            metrics |= {
                f"{split}_{name}" if kind == "all" else f"{split}_{name}_{kind}": x["mean"]
                for kind, x in scores.items()
            }
        for kind, x in details.get("by_category", {}).get("exact_match", {}).items():
            metrics |= {f"{split}_exact_match_{kind}": x["mean"]} if kind != "all" else {}
        if all(len(q.references) == 10 for q in questions):
            each = [vqa_accuracy(text, q.references, written) for q, text in known]
            metrics[f"{split}_vqa_accuracy"] = float(np.mean(each))
            details["vqa_accuracy"] = as_json({"vqa_accuracy": {"all": bootstrap(each, groups, seed=self.config.seed)}})
        metrics[f"{split}_images"] = len({q.image_id or q.image for q in questions})
        if self.trained_on is not None:
            metrics[f"{split}_images_in_training"] = self.trained_on.shared_images(split, self.held_out[split])
            blind = self.trained_on.majority_answers(questions)
            types, only = [q.answer_type for q in questions], {"exact_match": exact_match}
            without_images = score_answers(blind, references, types, scores=only, **options)["exact_match"]
            details["majority_by_type"] = as_json(without_images)
            metrics[f"{split}_majority"] = without_images["all"].mean
        if self.config.inference == "rank":
            decoding = {"k": self.config.k_test, "answers": len(self.answers)}
        else:
            decoding = vars(self.config.decoding())
        self.write(f"scores_{split}.json", {"inference": self.config.inference, "decoding": decoding, **details})
        return metrics

    def facts(self) -> dict[str, Any]:
        return {"answers": self.answers, "max_answer_tokens": self.config.max_answer_tokens}
