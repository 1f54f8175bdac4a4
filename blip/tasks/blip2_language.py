"""Trains the second stage of BLIP-2: a frozen language model reads what the queries have read, and writes the caption.

    python pretrain_blip2.py --config configs/blip2_stage2_opt.yaml --output_dir runs/q2 --init_from runs/q1

The loss of a batch is in blip/models/blip2_language.py, texts of language models in blip/models/language_tokens.py.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.checkpoints.initialize import Source
from blip.data.batches import Batch
from blip.evaluation.losses import LossSums, with_total
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.decoding import Decoding
from blip.models.language_tokens import TextBatch
from blip.models.losses import IGNORED
from blip.network.pictures import Pictures, encode
from blip.tasks import blip2_start
from blip.tasks.blip2_run import Blip2Run
from blip.tasks.language_tokens import LanguageEncoder, LanguageTokenizer, text_batch
from blip.tasks.pretrain_data import Encode
from blip.train.loop import Step


class Stage2(Blip2Run):
    """A run of the second stage: language modelling of captions by a language model that is not trained."""

    task = "blip2_language"
    main_scores = ("val_lm",)
    model: Blip2LanguageModel
    tokenizer: LanguageTokenizer

    def choose_tokenizer(self, resume: Path | None) -> LanguageTokenizer:
        """Loads the language model, and gives its tokenizer, of which the run keeps a copy."""
        self.language = blip2_start.open_language_model(self.config, self.source, self.device)
        tokenizer = LanguageTokenizer(self.language.tokens)
        distributed.from_main(lambda: tokenizer.save(self.output / "tokenizer.json"))
        return tokenizer

    def encoder(self) -> Encode:
        config = self.config
        return LanguageEncoder(self.language.tokens, config.prompt, text_cleaning=config.text_cleaning)

    def build(self, source: Source | None) -> tuple[Blip2LanguageModel, blip2_start.Frozen]:
        return blip2_start.stage2_model(self.config, source, self.language)

    def texts(self, batch: Batch) -> TextBatch:
        """What the language model learns of a batch."""
        return text_batch(self.language.tokens, batch.ids, batch.lengths, [self.config.prompt])

    def step(self, batch: Batch, step: int) -> Step:
        """A batch to its loss."""
        batch = self.prepared(batch, step)
        texts = self.texts(batch)
        loss = self.parallel(batch.images, texts.ids, texts.mask, targets=texts.targets)
        return Step(loss, {"lm": loss}, len(batch), describe=lambda: self.name(batch))

    @torch.no_grad()
    def evaluate(self, batches: Any) -> tuple[dict[str, Any], dict[str, list]]:
        """The loss of the tokens of the validation captions."""
        training, sums, count = self.model.training, LossSums(), 0
        self.model.eval()
        for batch in batches:
            batch = batch.to(self.device, non_blocking=True)
            texts, count = self.texts(batch), count + len(batch)
            states = encode(self.model.image_encoder, batch.images)
            found = self.model.log_probs(states, texts.ids, texts.mask, targets=texts.targets)
            sums.add("lm", -found, texts.targets != IGNORED)
        self.model.train(training)
        pairs = sum(distributed.gather_objects(count))
        return {"val_pairs": float(pairs), **with_total(sums.means(), "val")}, {}

    def captions(self, images: Tensor | Pictures) -> list[str]:
        read = self.language.tokens.prompts([self.config.prompt])
        decoding = Decoding(max_new_tokens=self.config.max_new_tokens, min_new_tokens=self.config.min_new_tokens)
        ids, mask = (x.to(self.device).expand(len(images), -1) for x in (read.ids, read.mask))
        return self.language.tokens.decode(self.model.write(images, ids, mask, decoding=decoding).ids)

    def facts(self) -> dict[str, Any]:
        return {"prompt": self.config.prompt, "language_model": self.language.info}
