"""Fine-tunes BLIP-2 on captions, questions and retrieval; `train_caption.py` and the others choose these classes where
the configuration names a language model or the run starts from a checkpoint of BLIP-2.

What is scored is that of the classes that these extend; the losses are in blip/models/blip2_language.py and blip2.py.
Shapes: B samples, A answers, T text tokens.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from blip import distributed
from blip.checkpoints.format import TOKENIZER, CheckpointError, load_weights
from blip.checkpoints.initialize import Source
from blip.config import ConfigError
from blip.data.batches import Batch
from blip.data.question_batches import VqaBatch
from blip.data.sets.questions import Question
from blip.evaluation.losses import LossSums
from blip.models.blip2 import Blip2Model, positives_among
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.decoding import Decoding, Generated
from blip.models.language_tokens import TextBatch
from blip.models.losses import IGNORED
from blip.models.momentum import TEMPERATURE_RANGE
from blip.network.pictures import encode
from blip.tasks import blip2_parts, blip2_start, tokenizers
from blip.tasks.answering import Answering
from blip.tasks.captioning import Captioning
from blip.tasks.finetune import FineTuning
from blip.tasks.language_tokens import LanguageEncoder, LanguageTokenizer, check_questions, text_batch
from blip.tasks.pairs import PairFineTuning
from blip.tasks.retrieving import Retrieving
from blip.tokenizer import Tokenizer, load_tokenizer
from blip.train.loop import Step


class Blip2FineTuning(FineTuning):
    """What the runs have in common: parts that are frozen or have adapters, and checkpoints of what is trained."""

    starts: ClassVar[Any] = blip2_start
    merges_adapters = False

    def build(self, source: Source | None) -> Any:
        model, frozen = self.start(source)
        model = model.to(self.device)
        self.lora = blip2_parts.lora_of(self.config.lora, source)
        self.trained = blip2_parts.prepare(model, self.config, self.lora, source=source)
        self.frozen = blip2_parts.frozen_tower(model, frozen)
        return model

    def start(self, source: Source | None) -> tuple[Any, blip2_start.Frozen]:
        """The model with its starting weights, and which file its tower is from."""
        raise NotImplementedError

    def describe(self) -> tuple[str, dict]:
        line, info = super().describe()
        return f"{line}; {self.trained}", info

    def info(self) -> dict:
        more = {**self.facts(), **({"lora": self.lora} if self.lora else {})}
        more |= {"frozen": self.frozen} if self.frozen else {}
        return blip2_start.describe(self.task, self.config, self.model, **more)

    def weights(self) -> dict[str, Tensor]:
        return blip2_parts.saved_state(self.model, self.info())

    def load(self, folder: Path, training: dict) -> None:
        self.take(folder)
        self.load_best(folder, training)

    def take(self, folder: Path) -> None:
        tensors, _ = distributed.tensors_from_main(lambda: load_weights(folder))
        blip2_parts.load_saved(self.model, tensors, self.info(), str(folder))


class Language(Blip2FineTuning):
    """With a frozen language model."""

    task = "blip2_language"
    model: Any  # a Blip2LanguageModel
    tokenizer: LanguageTokenizer

    def choose_tokenizer(self, source: Source | None, resume: Path | None, *, save: bool) -> LanguageTokenizer:
        self.language = blip2_start.open_language_model(self.config, source, self.device, max_tokens=self.most_tokens())
        self.words = self.question_words(resume)
        tokenizer = LanguageTokenizer(self.language.tokens)
        if save:
            kept = self.words or tokenizer
            distributed.from_main(lambda: kept.save(self.output / TOKENIZER))
        return tokenizer

    def most_tokens(self) -> int:
        """The longest text of the language model."""
        return self.config.max_text_tokens

    def question_words(self, resume: Path | None) -> Tokenizer | None:
        """The tokenizer of the Q-Former, where it reads questions."""
        return None

    def start(self, source: Source | None) -> tuple[Blip2LanguageModel, blip2_start.Frozen]:
        words = blip2_start.words_of(self.words) if self.words else 0
        return blip2_start.stage2_model(self.config, source, self.language, words=words)

    def facts(self) -> dict[str, Any]:
        return {"language_model": self.language.info}


# ---- captions --------------------------------------------------------------------------------------------------------


class Blip2Captioning(Language, Captioning):
    """Captions by a frozen language model."""

    def add_parts(self) -> None:
        """Checks that the prompt leaves room for a caption."""
        PairFineTuning.add_parts(self)
        self.prompts = self.language.tokens.prompts([self.config.prompt.strip()])  # InputError where it is too long

    def encoder(self) -> LanguageEncoder:  # type: ignore[override]
        return LanguageEncoder(self.language.tokens, self.config.prompt, text_cleaning=self.config.text_cleaning)

    def texts_of(self, batch: Batch) -> TextBatch:
        """What the language model learns of a batch."""
        return text_batch(self.language.tokens, batch.ids, batch.lengths, [self.config.prompt.strip()])

    def step(self, batch: Batch, step: int) -> Step:
        batch = self.prepared(batch, step)
        texts = self.texts_of(batch)
        loss = self.parallel(batch.images, texts.ids, texts.mask, targets=texts.targets)
        return Step(loss, {"lm": loss}, len(batch), describe=lambda: self.name(batch))

    def write_batch(self, batch: Batch, decoding: Decoding, losses: LossSums) -> Generated:
        batch = batch.to(self.device, non_blocking=True)
        queries = self.model.query_inputs(encode(self.model.image_encoder, batch.images))
        if self.config.val_loss:
            texts = self.texts_of(batch)
            found = self.language.model.log_probs(queries, texts.ids, texts.mask, targets=texts.targets)
            losses.add("lm", -found, texts.targets != IGNORED)
        ids, mask = (x.to(self.device).expand(len(queries), -1) for x in (self.prompts.ids, self.prompts.mask))
        return self.model.write_about(
            queries, ids, mask, decoding=decoding, uniforms=self.config.uniforms(batch.indices)
        )

    def facts(self) -> dict[str, Any]:
        return {**Language.facts(self), "prompt": self.config.prompt}


# ---- questions -------------------------------------------------------------------------------------------------------


class AnswerEncoder:
    """A question and its answers: the question's ids for a Q-Former that reads it, and numbers of `LanguageEncoder`."""

    def __init__(self, encode: LanguageEncoder, prompt: str, words: Tokenizer | None, max_tokens: int):
        self.encode, self.prompt, self.words, self.max_tokens = encode, prompt, words, max_tokens

    def __call__(self, question: Question) -> tuple[list[int], list[list[int]]]:
        ids = self.words.encode([question.question], self.max_tokens)[0] if self.words else [0]
        prompt = self.prompt.format(question.question)
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
        return AnswerEncoder(encode, self.config.question_prompt, self.words, self.config.max_text_tokens)

    def add_parts(self) -> None:
        self._check_metric()
        self.tree = None
        parts = [part for part in (self.questions, *self.held_out.values()) if part is not None]
        check_questions(self.language.tokens, self.prompts_of([part[i] for part in parts for i in range(len(part))]))

    def asked(self, batch: VqaBatch) -> dict[str, Tensor]:
        """What the Q-Former reads beside its queries."""
        return {"question_ids": batch.ids, "question_lengths": batch.lengths} if self.words else {}

    def prompts_of(self, asked: list[Question]) -> list[str]:
        return [self.config.question_prompt.format(question.question) for question in asked]

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


# ---- retrieval -------------------------------------------------------------------------------------------------------


class Blip2Retrieving(Blip2FineTuning, Retrieving):
    """Contrast of queries and texts, and matching; pairs that share an image are positives of one another."""

    task = "blip2"
    model: Any  # a Blip2Model

    def choose_tokenizer(self, source: Source | None, resume: Path | None, *, save: bool) -> Tokenizer:
        """Raises CheckpointError where the run would start from the second stage."""
        if source is not None and source.info["task"] != self.task:
            raise CheckpointError(
                f"{source.path} is a checkpoint of {source.info['task']}, which lacks the words and heads of the first "
                "stage: start from a run of that, or from Salesforce/blip2-itm-vit-g"
            )
        return super().choose_tokenizer(source, resume, save=save)

    def start(self, source: Source | None) -> tuple[Blip2Model, blip2_start.Frozen]:
        return blip2_start.stage1_model(self.config, source, self.tokenizer)

    def add_parts(self) -> None:
        PairFineTuning.add_parts(self)
        self.galleries = {}
        self.equal_captions = self.config.equal_captions == "positives"

    def step(self, batch: Batch, step: int) -> Step:
        """A batch to its losses; those of stage 1, without language modelling."""
        batch = self.prepared(batch, step)
        positives = positives_among(batch.caption_ids, batch.image_ids, equal_captions=self.equal_captions)
        out = self.parallel(batch.images, batch.ids, batch.lengths, positives=positives)
        count = len(batch)
        matched, unmatched = out.match_logits.argmax(dim=1).split([count, 2 * count])
        logs: dict[str, Tensor | float] = {"itc": out.itc, "itm": out.itm, "lm": out.lm}
        logs |= {"itm_matched": (matched == 1).float().mean(), "itm_unmatched": (unmatched == 0).float().mean()}
        loss = out.itc + out.itm + out.lm
        return Step(loss, logs, count, describe=lambda: self.name(batch))

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        self.model.temperature.clamp_(*TEMPERATURE_RANGE)

    def state(self) -> dict:
        return FineTuning.state(self)

    def load(self, folder: Path, training: dict) -> None:
        Blip2FineTuning.load(self, folder, training)
