"""What captioning and retrieval share: image-caption pairs in, batches of them out."""

from collections.abc import Iterator

import numpy as np

from blip.data.batches import Batch
from blip.data.formats import AnnotationError
from blip.data.pairs import CaptionEncoder, PairDataset, Pairs, has_words, read_pairs
from blip.data.training_images import TrainingImages
from blip.tasks.data_options import entries, read_as
from blip.tasks.finetune import FineTuning
from blip.tasks.item_pictures import tell_left_out


class PairFineTuning(FineTuning):
    """A fine-tuning run on image-caption pairs."""

    prompt_text = ""  # before every caption

    def read_data(self) -> None:
        self.pairs: Pairs | None = None
        if self.config.train_file:
            self.pairs = self._read("train")
        self.held_out = {split: self._read(split) for split in ("val", "test") if self.files(split)}

    def add_parts(self) -> None:
        """Warns of captions without letters and digits, from which nothing is learned.

        Raises:
            AnnotationError: all captions are such, or a record has none, as in test sets.
        """
        if not self.pairs:
            return
        count, wordless = 0, 0
        for i in range(len(self.pairs)):
            if not (captions := self.pairs.captions(i)):
                problem = f"has no caption of {self.pairs.given_path(i)} to learn from"
                raise AnnotationError(self.pairs.annotation_file(i), "", problem)
            count += len(captions)
            wordless += sum(not has_words(text) for text in captions)
        if wordless == count:
            problem = f"none of {count} captions has a letter or a digit, the first being {self.pairs.captions(0)[0]!r}"
            raise AnnotationError(self.pairs.annotation_file(0), "", problem)
        if wordless:
            advice = f"{wordless} of {count} training captions have no letter and no digit: remove or correct them"
            self.warning = "\n".join(filter(None, (self.warning, advice)))

    def _read(self, split: str) -> Pairs:
        pairs = read_pairs(entries(self.entries(split)), **read_as(self.config, split))
        tell_left_out(pairs, self.config)
        return pairs

    def texts(self) -> Iterator[str]:
        assert self.pairs is not None
        for i in range(len(self.pairs)):
            yield from self.pairs.captions(i)

    def records(self) -> tuple[int, np.ndarray | None]:
        return (len(self.pairs), self.pairs.record_weights()) if self.pairs else (0, None)

    def encoder(self) -> CaptionEncoder:
        """Captions to ids, with what they begin with."""
        config = self.config
        return CaptionEncoder(
            self.tokenizer, config.max_text_tokens, self.prompt_text, text_cleaning=config.text_cleaning
        )

    def dataset(self, images: TrainingImages) -> PairDataset:
        assert self.pairs is not None
        return PairDataset(self.pairs, self.order, self.encoder(), **self.reading(images))

    def name(self, batch: Batch) -> str:
        """The images of a batch, for an error message."""
        assert self.pairs is not None
        return ", ".join(self.pairs.image_path(i) for i in batch.indices[:16])
