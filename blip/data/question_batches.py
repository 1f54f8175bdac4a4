"""Samples and batches of questions: the tensors of one question about an image, and those of B questions.

B questions in a batch, A answers of all of them, T and Ta text tokens, S side of an image in pixels, F pictures of an
item.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blip.data.batches import Operations, TensorBatch, operations_of, padded
from blip.data.skipped import Skipped
from blip.network.pictures import Pictures, beside_one_another


@dataclass
class VqaSample:
    """One image with a question and its answers. In evaluation `image` is None where it is unreadable."""

    image: Tensor | None  # (3, S, S) or (F, 3, S, S), see `Pixels`
    ids: list[int]  # the question, [CLS] ... [SEP]
    answers: list[list[int]]  # each [CLS] ... [SEP]
    weights: list[float]  # of each answer
    index: int
    skipped: list[Skipped]  # unreadable images that this sample replaces
    operations: Operations = ()  # of the image, see `Pixels`


@dataclass
class VqaBatch(TensorBatch):
    """Tensors of B questions with A answers in all."""

    images: Tensor | Pictures  # float32 (B, 3, S, S), or where an item has several, up to F of each
    ids: Tensor  # int64 (B, T), questions, [CLS] first, padded to the longest of the batch
    lengths: Tensor  # int64 (B,), without pads; stays on the CPU
    answer_ids: Tensor  # int64 (A, Ta), [CLS] first, padded to the longest of the batch
    answer_lengths: Tensor  # int64 (A,), without pads; stays on the CPU
    owner: Tensor  # int64 (A,), the row of each answer's question, in ascending order
    weights: Tensor  # float32 (A,)
    indices: list[int]  # of the questions, to name one in a message
    skipped: list[Skipped]


def collate_vqa(samples: list[VqaSample], pad_id: int = 0, pad_to: tuple[int, ...] = ()) -> VqaBatch:
    """Puts samples side by side; those without an image only leave notes in `skipped`. `pad_to`: see `padded`."""
    skipped = [note for sample in samples for note in sample.skipped]
    samples = [sample for sample in samples if sample.image is not None]
    ids, lengths = padded([sample.ids for sample in samples], pad_id, pad_to)
    answer_ids, answer_lengths = padded([ids for sample in samples for ids in sample.answers], pad_id, pad_to)
    owner = [row for row, sample in enumerate(samples) for _ in sample.answers]
    return VqaBatch(
        images=beside_one_another([sample.image for sample in samples]),  # type: ignore[misc]
        ids=ids,
        lengths=lengths,
        answer_ids=answer_ids,
        answer_lengths=answer_lengths,
        owner=torch.tensor(owner, dtype=torch.int64),
        weights=torch.tensor([weight for sample in samples for weight in sample.weights], dtype=torch.float32),
        indices=[sample.index for sample in samples],
        skipped=skipped,
        operations=operations_of(samples),
    )
