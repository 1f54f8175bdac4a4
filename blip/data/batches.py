"""Samples and batches: the tensors of one pair, and those of B pairs side by side.

B samples in a batch, T text tokens, S side of an image in pixels, F pictures of an item.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from blip.data.skipped import Skipped
from blip.network.pictures import Pictures, beside_one_another

# operations of RandAugment on an image: numbers of `blip.data.randaugment.OPERATIONS`, negative in the other direction
Operations = tuple[int, ...]


@dataclass(frozen=True)
class Pixels:
    """An image of a sample: normalised, or as `blip.data.augment.prepared` takes it."""

    image: Tensor  # float32 (3, S, S), or uint8; (F, 3, S, S) of an item of several pictures
    operations: Operations = ()  # those that are still to be done, the same on all pictures


@dataclass
class Sample:
    """One image with one caption. In evaluation `image` is None where it is unreadable."""

    image: Tensor | None  # (3, S, S) or (F, 3, S, S), see `Pixels`
    ids: list[int]  # [CLS] ... [SEP]
    caption_id: int
    image_id: int
    index: int
    skipped: list[Skipped]  # unreadable images that this sample replaces
    source: str = ""  # of the pair, such as web or synthetic; "": not given
    operations: Operations = ()  # of the image, see `Pixels`


@dataclass
class TensorBatch:
    """Base of the batches of every task: their tensors move to a device, except lengths, which the CPU reads.

    Images of training are uint8 until `blip.data.augment.prepared` makes them float32, unless their reader has done so.
    """

    _: KW_ONLY
    operations: list[Operations] = field(default_factory=list)  # of each picture in order, see `Pixels`

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy on the device; lengths stay on the CPU."""
        tensors = {name: x for name, x in self._tensors().items() if not name.endswith("lengths")}
        return self._with({name: x.to(device, non_blocking=non_blocking) for name, x in tensors.items()})

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, called by the loader."""
        return self._with({name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _with(self, tensors: dict[str, Any]) -> Self:
        return replace(self, **tensors)

    def _tensors(self) -> dict[str, Tensor | Pictures]:
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor | Pictures)}

    def __len__(self) -> int:
        return len(self.indices)  # type: ignore[attr-defined]


@dataclass
class Batch(TensorBatch):
    """Tensors of B samples."""

    images: Tensor | Pictures  # float32 (B, 3, S, S), or where an item has several, up to F of each
    ids: Tensor  # int64 (B, T), [CLS] first, padded to the longest of the batch
    lengths: Tensor  # int64 (B,), without pads; stays on the CPU
    caption_ids: Tensor  # int64 (B,), equal for equal captions, see `caption_id`
    image_ids: Tensor  # int64 (B,), equal for equal images
    indices: list[int]  # of the records, to name a sample in a message
    skipped: list[Skipped]
    sources: list[str] = field(default_factory=list)  # of each pair, see `Sample`


def collate(samples: list[Sample], pad_id: int = 0, pad_to: tuple[int, ...] = ()) -> Batch:
    """Puts samples side by side; those without an image only leave notes in `skipped`. `pad_to`: see `padded`."""
    skipped = [note for sample in samples for note in sample.skipped]
    samples = [sample for sample in samples if sample.image is not None]
    ids, lengths = padded([sample.ids for sample in samples], pad_id, pad_to)
    return Batch(
        images=beside_one_another([sample.image for sample in samples]),  # type: ignore[misc]
        ids=ids,
        lengths=lengths,
        caption_ids=torch.tensor([sample.caption_id for sample in samples], dtype=torch.int64),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        indices=[sample.index for sample in samples],
        skipped=skipped,
        sources=[sample.source for sample in samples],
        operations=operations_of(samples),
    )


def operations_of(samples: Sequence[Any]) -> list[Operations]:
    """The operations of each picture of samples, in the order of the pictures."""
    return [sample.operations for sample in samples for _ in range(len(sample.image) if sample.image.dim() > 3 else 1)]


def padded(rows: list[list[int]], pad_id: int, pad_to: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """B lists of ids -> int64 (B, T) and their lengths (B,).

    `pad_to`: lengths for compiled code, which needs padding in every batch: ids are padded to the smallest one above
    the longest text, or to the longest text itself where there is none.
    """
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    longest = max(map(len, rows), default=0)
    width = min((length for length in pad_to if length > longest), default=longest)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return ids, lengths
