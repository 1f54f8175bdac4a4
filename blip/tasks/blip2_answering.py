"""Fine-tunes BLIP-2 on questions, which a frozen language model answers; `train_vqa.py` chooses it where the
configuration names a language model or the run starts from a checkpoint of BLIP-2.

Shapes: B samples, A answers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip.checkpoints.format import TOKENIZER
from blip.config import ConfigError
from blip.data.question_batches import VqaBatch
from blip.data.sets.questions import Question
from blip.evaluation.losses import LossSums
from blip.models.language_tokens import TextBatch
from blip.network.pictures import encode
from blip.tasks import tokenizers
from blip.tasks.answering import Answering
from blip.tasks.blip2_finetune import COUNTED, Language
from blip.tasks.language_tokens import LanguageEncoder, QuestionPrompts, text_batch
from blip.tokenizer import Tokenizer, load_tokenizer
from blip.train.loop import Step


class AnswerEncoder:
    """A question and its answers: the question's ids for a Q-Former that reads it, and numbers of `LanguageEncoder`."""

    def __init__(self, encode: LanguageEncoder, prompts: QuestionPrompts, words: Tokenizer | None, max_tokens: int):
        self.encode, self.prompts, self.words, self.max_tokens = encode, prompts, words, max_tokens

    def __call__(self, question: Question) -> tuple[list[int], list[list[int]]]:
        ids = self.words.encode([question.question], self.max_tokens)[0] if self.words else [0]
        prompt = self.prompts(question.question)
        return ids, [self.encode.of(prompt, answer) for answer in question.answers]


class Blip2Answering(Language, Answering):
    """Answers by a frozen language model, which writes them."""

    def read_data(self) -> None:
        """Raises ConfigError where answers would be ranked, or the prompt has no place for a question."""
        config = self.config
        if config.inference != "generate":
            if "inference" in config.model_fields_set and not config.config_file.endswith("config.yaml"):
                raise ConfigError(
                    f"inference: {config.inference} is not for BLIP-2, whose language model writes answers"
                )
            self.config = config = config.model_copy(update={"inference": "generate"})
        if config.question_prompt.count("{}") != 1:
            raise ConfigError(f"question_prompt {config.question_prompt!r} needs one {{}}, where the question stands")
        super().read_data()

    def most_tokens(self) -> int:
        return self.config.max_text_tokens + self.config.max_answer_tokens

    def question_words(self, resume: Path | None) -> Tokenizer | None:
        if not self.config.question_in_qformer:
            return None
        own = resume / TOKENIZER if resume else self.config.tokenizer or tokenizers.own_tokenizer(self.config.init_from)
        return load_tokenizer(str(own))

    def encoder(self) -> AnswerEncoder:  # type: ignore[override]
        encode = LanguageEncoder(self.language.tokens)
        return AnswerEncoder(encode, self.prompts, self.words, self.config.max_text_tokens)

    def add_parts(self) -> None:
        """Raises ConfigError where `question_prompt` leaves no place for a question."""
        self._check_metric()
        self.tree = None
        config = self.config
        self.prompts = QuestionPrompts(self.language.tokens, config.question_prompt, config.max_text_tokens)

    def describe(self) -> tuple[str, dict]:
        """With the shares of training questions and answers that are cut."""
        line, info = super().describe()
        return f"{line}; {self._cut()}" if self.questions else line, info

    def _cut(self) -> str:
        assert self.questions is not None
        encode, config = LanguageEncoder(self.language.tokens), self.config
        asked = [self.questions[i] for i in range(min(COUNTED, len(self.questions)))]
        answers = [encode.is_cut(self.prompts(one.question), answer) for one in asked for answer in one.answers]
        questions = [
            self.prompts.is_cut(one.question)
            or bool(self.words and self.words.count([one.question])[0] > config.max_text_tokens)
            for one in asked
        ]
        return (
            f"{np.mean(questions):.1%} of questions cut at {config.max_text_tokens} tokens, {np.mean(answers):.1%} of "
            f"answers where both have {self.most_tokens()}"
        )

    def asked(self, batch: VqaBatch) -> dict[str, Tensor]:
        """What the Q-Former reads beside its queries."""
        return {"question_ids": batch.ids, "question_lengths": batch.lengths} if self.words else {}

    def prompts_of(self, asked: list[Question]) -> list[str]:
        return [self.prompts(question.question) for question in asked]

    def step(self, batch: VqaBatch, step: int) -> Step:
        """A batch to its loss; of several answers one is drawn, in proportion to their weights."""
        batch = self.prepared(batch, step)
        prompts = self.prompts_of([self.questions[i] for i in batch.indices] if self.questions else [])
        texts = self.drawn(batch, prompts)
        loss = self.parallel(batch.images, texts.ids, texts.mask, targets=texts.targets, **self.asked(batch))
        return Step(loss, {"lm": loss}, len(batch), describe=lambda: self._name(batch))

    def drawn(self, batch: VqaBatch, prompts: list[str]) -> TextBatch:
        """What the language model learns: for each question one of its answers."""
        owner = batch.owner.cpu()
        counts = owner.bincount(minlength=len(batch))
        if int(counts.max()) == 1:
            chosen = torch.arange(len(owner))
        else:
            places = (owner, torch.arange(len(owner)))
            weights = torch.zeros(len(batch), len(owner)).index_put(places, batch.weights.cpu())
            chosen = weights.multinomial(1).flatten()
        numbers = batch.answer_ids[chosen.to(batch.answer_ids.device)]
        return text_batch(self.language.tokens, numbers, batch.answer_lengths[chosen], prompts)

    def answer_batch(self, batch: VqaBatch, asked: list[Question], losses: LossSums) -> list[tuple[str, float]]:
        prompts = self.prompts_of(asked)
        states = encode(self.model.image_encoder, batch.images)
        queries = self.model.query_inputs(states, **self.asked(batch))
        if self.config.val_loss and len(batch.owner):
            owners = batch.owner.tolist()
            texts = text_batch(
                self.language.tokens, batch.answer_ids, batch.answer_lengths, [prompts[i] for i in owners]
            )
            found = self.language.model.log_probs(queries[batch.owner], texts.ids, texts.mask, targets=texts.targets)
            losses.add("lm", -(batch.weights * found.sum(dim=1)), len(set(owners)))
        read = self.language.tokens.prompts(prompts)
        out = self.model.write_about(
            queries, read.ids.to(self.device), read.mask.to(self.device),
            decoding=self.config.decoding(), uniforms=self.config.uniforms(batch.indices),
        )  # fmt: skip
        sure = out.log_probs.sum(dim=1).exp().tolist()
        return list(zip(self.language.tokens.decode(out.ids), sure, strict=True))

    def facts(self) -> dict[str, Any]:
        config = self.config
        more = {"question_prompt": config.question_prompt, "question_in_qformer": config.question_in_qformer}
        return {**Language.facts(self), **more, "max_answer_tokens": config.max_answer_tokens}
