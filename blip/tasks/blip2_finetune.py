"""Fine-tunes BLIP-2 on captions and retrieval; `train_caption.py` and the others choose these classes where the
configuration names a language model or the run starts from a checkpoint of BLIP-2. Questions: blip2_answering.py.

What is scored is that of the classes that these extend; the losses are in blip/models/blip2_language.py and blip2.py.

Shapes: B samples, T text tokens.
"""

import itertools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from blip import distributed
from blip.checkpoints.format import TOKENIZER, CheckpointError, load_weights
from blip.checkpoints.initialize import Source
from blip.data.batches import Batch
from blip.evaluation.losses import LossSums
from blip.models.blip2 import Blip2Model, positives_among
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.decoding import Decoding, Generated
from blip.models.language_tokens import TextBatch
from blip.models.losses import IGNORED
from blip.models.momentum import TEMPERATURE_RANGE
from blip.network.pictures import encode
from blip.tasks import blip2_parts, blip2_start
from blip.tasks.captioning import Captioning
from blip.tasks.finetune import FineTuning
from blip.tasks.language_tokens import LanguageEncoder, LanguageTokenizer, text_batch
from blip.tasks.pairs import PairFineTuning
from blip.tasks.retrieving import Retrieving
from blip.tokenizer import Tokenizer
from blip.train.loop import Step

COUNTED = 2000  # the first so many records tell how many texts are cut


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

    def describe(self) -> tuple[str, dict]:
        """With the share of training captions that are cut."""
        line, info = super().describe()
        encode, config = self.encoder(), self.config
        cut = [encode.is_cut(encode.prompt, text) for text in itertools.islice(self.texts(), COUNTED)]
        return f"{line}; {np.mean(cut):.1%} of captions cut at {config.max_text_tokens} tokens", info

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
