"""Statements about two images, true or false: annotations in memory (`read_statements`), then samples, then batches.

The model takes two images, left and right. NLVR2 has two photographs. NLVR has one drawing of three boxes side by side;
it is cut between the first and the second box: left is box 1, right are boxes 2 and 3. Each box occurs once, so that
statements that count boxes stay true; the model has to learn that the right image holds two.

B statements in a batch, T text tokens, S side of an image in pixels.
"""

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from blip.data.batches import Operations, TensorBatch, padded
from blip.data.compact import TextLists, Texts
from blip.data.eval_records import EvalRecords
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import Source, open_image
from blip.data.order import EpochOrder, Walk, open_or_note, seeded
from blip.data.pairs import CaptionEncoder
from blip.data.pictures import pictures_of
from blip.data.sets.statements import STATEMENT_SETS, Statement
from blip.data.skipped import Skipped
from blip.data.sources import Entry, records_of
from blip.data.training_images import TrainingImages, Transform, images_of
from blip.errors import InputError

# ---- annotations in memory -------------------------------------------------------------------------------------------


class Statements:
    """N statements in flat arrays; filled by `read_statements`. `statements[i]` has the full paths of its images."""

    def __init__(self) -> None:
        self._images, self._sentences, self._ids = TextLists(), Texts(), Texts()
        self._labels = array("b")

    def append(self, item: Statement) -> None:
        """Adds a statement."""
        self._images.append([item.images] if isinstance(item.images, str) else list(item.images))
        self._sentences.append(item.sentence)
        self._ids.append(item.id)
        self._labels.append(item.label)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Statement:
        images = self._images[index]
        pair = images[0] if len(images) == 1 else (images[0], images[1])
        return Statement(pair, self._sentences[index], bool(self._labels[index]), self._ids[index])


def read_statements(files: Sequence[Entry], image_root: str = "", dataset: str = "json", **options: Any) -> Statements:
    """Reads sets of statements, each a file or the folder as published; `dataset` is a name of STATEMENT_SETS.

    Arguments and errors are those of `read_questions`; in addition, a weight of a file raises InputError, and a side of
    a statement that is several pictures does.
    """
    if not files:
        raise InputError("no files of statements are given")
    statements = Statements()
    for opened in records_of(STATEMENT_SETS, files, image_root=image_root, dataset=dataset, **options):
        if opened.source.weight != 1:
            path, weight = opened.source.path, opened.source.weight
            raise InputError(f"{path}: weight is {weight}; files of statements take none")
        file, item = opened.file, opened.record()
        item.images = full_paths(item.images, file.root)
        if several := next((image for image in item.image_paths if pictures_of(image)), None):
            raise InputError(
                f"{file.path}, {opened.place}: {several} is a video or a volume, and a statement is about two, "
                "one picture on each side: a slice is named by #slice=N, a frame has to be saved as an image"
            )
        item.id = item.id or f"{os.path.basename(file.path)}:{opened.place.split()[-1]}"
        statements.append(item)
    return statements


def full_paths(images: tuple[str, str] | str, root: str) -> tuple[str, str] | str:
    """The paths joined to the folder that they are relative to."""
    if isinstance(images, str):
        return os.path.normpath(os.path.join(root, images))
    left, right = (os.path.normpath(os.path.join(root, image)) for image in images)
    return left, right


# ---- samples ---------------------------------------------------------------------------------------------------------


@dataclass
class NlvrSample:
    """Two images with a sentence. In evaluation `images` is None where one of them is unreadable."""

    images: Tensor | None  # (2, 3, S, S), left and right, see `Pixels`
    ids: list[int]  # [CLS] ... [SEP]
    label: bool
    index: int
    skipped: list[Skipped]  # unreadable images that this sample replaces
    operations: list[Operations] = field(default_factory=list)  # of each image, see `Pixels`


def open_images(images: tuple[str, str] | str, limits: ImageLimits = LIMITS) -> tuple[Image.Image, Image.Image]:
    """The left and the right image. UnreadableImage names the one that cannot be read."""
    if not isinstance(images, str):
        return open_image(images[0], limits), open_image(images[1], limits)
    try:
        return cut_boxes(open_image(images, limits))
    except ValueError as error:
        raise UnreadableImage(images, str(error)) from None


def cut_boxes(drawing: Image.Image) -> tuple[Image.Image, Image.Image]:
    """A drawing of NLVR -> box 1, and boxes 2 and 3. ValueError unless it is four times as wide as high.

    Boxes are squares as high as the drawing, half a box apart (400 x 100 pixels, boxes from 0, 150 and 300).
    """
    width, height = drawing.size
    if width != 4 * height:
        raise InputError(f"{width} x {height} pixels; a drawing of three boxes is four times as wide as high")
    return drawing.crop((0, 0, height, height)), drawing.crop((height * 3 // 2, 0, width, height))


class NlvrDataset(Dataset):
    """Training samples by (epoch, position). What is random in a sample depends on (seed, epoch, index) alone.

    The published code swaps the two images, and the words left and right in the sentence, at random. Here they are
    never swapped: a statement about medical images means the sides that it names.
    """

    def __init__(
        self,
        statements: Statements,
        order: EpochOrder,
        encode: CaptionEncoder,
        *,
        transform: Transform | TrainingImages,
        seed: int,
        max_skipped_fraction: float = 0.01,
        limits: ImageLimits = LIMITS,
    ):
        """`transform`: PIL RGB to (3, S, S), or what reads images by itself; `max_skipped_fraction`: see `Walk`; a
        statement is skipped if one of its images is unreadable."""
        self.statements, self.encode, self.images = statements, encode, images_of(transform, limits)
        self.seed, self.limits = seed, limits
        self.order, self.walk = order, Walk(order, len(statements), max_skipped_fraction)

    def __len__(self) -> int:
        return self.order.per_rank

    def __getitem__(self, key: tuple[int, int]) -> NlvrSample:
        """The sample at (epoch, position), or the next readable one, with notes about those skipped."""
        epoch, position = key
        index, pair, skipped = self.walk.open(epoch, position, lambda i: self._read(epoch, i))
        with seeded(self.seed, epoch, index):
            pixels = [self.images.finish(image) for image in pair]
        item = self.statements[index]
        return NlvrSample(
            torch.stack([one.image for one in pixels]),
            self.encode(item.sentence),
            item.label,
            index,
            skipped,
            [one.operations for one in pixels],
        )

    def _read(self, epoch: int, index: int) -> list[Any]:
        """The left and the right image as `images` reads them."""
        given = self.statements[index].images
        pair: Sequence[Source] = open_images(given, self.limits) if isinstance(given, str) else given
        return [self.images.read(one, self.seed, epoch, index, side) for side, one in enumerate(pair)]


class EvalStatements(EvalRecords):
    """Evaluation samples by index, each statement once."""

    records: Statements
    encode: CaptionEncoder

    def __getitem__(self, index: int) -> NlvrSample:
        """The sample; where an image is unreadable its `images` is None and `skipped` has a note."""
        item = self.records[index]
        images, skipped = open_or_note(
            index, lambda _: torch.stack([self.transform(image) for image in open_images(item.images, self.limits)])
        )
        return NlvrSample(images, self.encode(item.sentence), item.label, index, skipped)


# ---- batches ---------------------------------------------------------------------------------------------------------


@dataclass
class NlvrBatch(TensorBatch):
    """Tensors of B statements."""

    images: Tensor  # float32 (B, 2, 3, S, S), left and right
    ids: Tensor  # int64 (B, T), [CLS] first, padded to the longest of the batch
    lengths: Tensor  # int64 (B,), without pads; stays on the CPU
    labels: Tensor  # int64 (B,), 1 where the statement is true
    indices: list[int]  # of the statements, to name one in a message
    skipped: list[Skipped]


def collate_nlvr(samples: list[NlvrSample], pad_id: int = 0, pad_to: tuple[int, ...] = ()) -> NlvrBatch:
    """Puts samples side by side; those without images only leave notes in `skipped`. `pad_to`: see `padded`."""
    skipped = [note for sample in samples for note in sample.skipped]
    samples = [sample for sample in samples if sample.images is not None]
    ids, lengths = padded([sample.ids for sample in samples], pad_id, pad_to)
    return NlvrBatch(
        images=torch.stack([sample.images for sample in samples]) if samples else torch.empty(0),  # type: ignore[misc]
        ids=ids,
        lengths=lengths,
        labels=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        indices=[sample.index for sample in samples],
        skipped=skipped,
        operations=[operations for sample in samples for operations in sample.operations],
    )
