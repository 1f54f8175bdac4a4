"""Dialogues as samples (`DialogueDataset`, `EvalDialogues`), then as batches (`collate_dialogues`).

A sample of training is one question with its right answer and a wrong one; a sample of evaluation is a whole dialogue
with all candidates of all its questions, so that an image is encoded once.

B samples in a batch, T and C text tokens, S side of an image in pixels, F pictures of an item.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from blip.data.batches import Operations, TensorBatch, operations_of, padded
from blip.data.dialogue_texts import DialogueEncoder
from blip.data.dialogues import Dialogues, history_of
from blip.data.eval_records import EvalRecords
from blip.data.image_bytes import LIMITS, ImageLimits
from blip.data.order import EpochOrder, Walk, seeded
from blip.data.pictures import finish_item, read_item
from blip.data.skipped import Skipped
from blip.data.training_images import TrainingImages, Transform, images_of
from blip.network.pictures import Pictures, beside_one_another


@dataclass
class RoundTexts:
    """The candidates of a round: what precedes them and their ids, as in `blip.models.dialogue.Round`."""

    number: int  # of the round in its dialogue, from 0
    before: list[int]
    answers: list[list[int]]


@dataclass
class DialogueSample:
    """An image and its caption; in training with a right and a wrong text, in evaluation with the candidates of all
    rounds. In evaluation `image` is None where it is unreadable."""

    image: Tensor | None  # (3, S, S) or (F, 3, S, S), see `Pixels`
    caption: list[int]
    texts: list[list[int]]  # [ENC] ... [SEP]
    rounds: list[RoundTexts]
    index: int  # of the question in training, of the dialogue in evaluation
    skipped: list[Skipped]  # unreadable images that this sample replaces
    operations: Operations = ()  # of the image, see `Pixels`


class DialogueDataset(Dataset):
    """Training samples by (epoch, position): a question with its answer and another option, drawn anew each epoch.

    What is random in a sample depends on (seed, epoch, index) alone. An option with the text of the answer is never
    drawn as a wrong one.
    """

    def __init__(
        self,
        dialogues: Dialogues,
        questions: np.ndarray,
        order: EpochOrder,
        encode: DialogueEncoder,
        *,
        transform: Transform | TrainingImages,
        seed: int,
        max_skipped_fraction: float = 0.01,
        limits: ImageLimits = LIMITS,
    ):
        """`questions`: from `Dialogues.trainable`, as many as `order` has; `transform`: PIL RGB to (3, S, S), or what
        reads images by itself; `max_skipped_fraction`: see `Walk`."""
        self.dialogues, self.questions, self.encode = dialogues, questions, encode
        self.images, self.seed, self.order = images_of(transform, limits), seed, order
        self.walk, self.limits = Walk(order, len(questions), max_skipped_fraction), limits

    def __len__(self) -> int:
        return self.order.per_rank

    def __getitem__(self, key: tuple[int, int]) -> DialogueSample:
        """The sample at (epoch, position), or the next readable one, with notes about those skipped."""
        epoch, position = key
        index, read, skipped = self.walk.open(epoch, position, partial(self._read, epoch))
        place, number = self.questions[index].tolist()
        item = self.dialogues[place]
        one = item.exchanges[number]
        right = one.options[one.right]
        others = [text for text in one.options if text != right]
        with seeded(self.seed, epoch, index):
            wrong = others[int(torch.randint(len(others), ()))]
            pixels = finish_item(self.images, read)
        before = self.encode.before(history_of(item, number), one.question)
        texts = [before + self.encode.answer(text) for text in (right, wrong)]
        return DialogueSample(
            pixels.image, self.encode.caption(item.caption), texts, [], index, skipped, operations=pixels.operations
        )

    def _read(self, epoch: int, index: int) -> list[Any]:
        paths = self.dialogues.image_paths(int(self.questions[index, 0]))
        return read_item(self.images, paths, self.limits, self.seed, epoch, index)


class EvalDialogues(EvalRecords):
    """Evaluation samples by index, each dialogue once."""

    records: Dialogues
    encode: DialogueEncoder

    def __getitem__(self, index: int) -> DialogueSample:
        """The sample; for an unreadable image its `image` is None and `skipped` has a note."""
        item, encode = self.records[index], self.encode
        pixels, skipped = self.pixels(index, item.image_paths)
        rounds = []
        for number, one in enumerate(item.exchanges):
            if one.options:
                before = encode.before(history_of(item, number), one.question)
                rounds.append(RoundTexts(number, before, [encode.answer(option) for option in one.options]))
        return DialogueSample(pixels, encode.caption(item.caption), [], rounds, index, skipped)


# ---- batches ---------------------------------------------------------------------------------------------------------


@dataclass
class DialogueBatch(TensorBatch):
    """Tensors of B samples."""

    images: Tensor | Pictures  # float32 (B, 3, S, S), or where an item has several, up to F of each
    caption_ids: Tensor  # int64 (B, C), [CLS] first, padded to the longest of the batch
    caption_lengths: Tensor  # int64 (B,), without pads; stays on the CPU
    ids: Tensor  # int64 (2B, T), the right text of a sample, then the wrong one; (0, 0) in evaluation
    lengths: Tensor  # int64 (2B,), without pads; stays on the CPU
    indices: list[int]  # see `DialogueSample`
    skipped: list[Skipped]
    rounds: list[list[RoundTexts]] = field(default_factory=list)  # of each sample, in evaluation


def collate_dialogues(samples: list[DialogueSample], pad_id: int = 0, pad_to: tuple[int, ...] = ()) -> DialogueBatch:
    """Puts samples side by side; those without an image only leave notes in `skipped`. `pad_to`: see `padded`."""
    skipped = [note for sample in samples for note in sample.skipped]
    samples = [sample for sample in samples if sample.image is not None]
    captions, caption_lengths = padded([sample.caption for sample in samples], pad_id, pad_to)
    ids, lengths = padded([text for sample in samples for text in sample.texts], pad_id, pad_to)
    return DialogueBatch(
        images=beside_one_another([sample.image for sample in samples]),  # type: ignore[misc]
        caption_ids=captions,
        caption_lengths=caption_lengths,
        ids=ids,
        lengths=lengths,
        indices=[sample.index for sample in samples],
        skipped=skipped,
        rounds=[sample.rounds for sample in samples],
        operations=operations_of(samples),
    )
