"""The images of an evaluation set by number, each read whenever it is requested."""

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from blip import distributed
from blip.data.image_bytes import LIMITS, ImageLimits
from blip.data.loader import data_loader
from blip.data.order import open_or_note
from blip.data.pictures import eval_pixels
from blip.data.skipped import Skipped
from blip.network.pictures import Pictures, beside_one_another

OPENED_AT_ONCE = 16  # images in a batch of `unreadable`


class ImagesByNumber:
    """Called with batches of image numbers, it yields their pixels (B, 3, S, S) or `Pictures`, batch by batch.

    An unreadable image is black, so that the others keep their numbers, and is noted in `skipped`.
    """

    def __init__(
        self,
        paths: Sequence[str | Sequence[str]],
        transform: Callable[[Image.Image], Tensor],
        num_workers: int = 0,
        *,
        pin_memory: bool = False,
        limits: ImageLimits = LIMITS,
    ):
        """`paths`: of each image, or of all pictures of an item; `pin_memory`: as in `data_loader`."""
        self.files = _Files(paths, transform, limits)
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.skipped: set[Skipped] = set()

    def __call__(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor | Pictures]:
        loader = data_loader(
            self.files, list(batches), _side_by_side, num_workers=self.num_workers, pin_memory=self.pin_memory
        )
        for pixels, skipped in loader:
            self.skipped.update(skipped)
            yield pixels


def unreadable(
    paths: Sequence[str | Sequence[str]], num_workers: int = 0, *, limits: ImageLimits = LIMITS
) -> list[Skipped]:
    """Notes about the images that cannot be read, by number, the same in every process. Each process opens its share.

    Ranking needs them in advance: an unreadable image is neither a query nor a candidate.
    """
    images = ImagesByNumber(paths, _no_pixels, num_workers, limits=limits)
    own = range(distributed.rank(), len(paths), distributed.world_size())
    for _ in images([own[first : first + OPENED_AT_ONCE] for first in range(0, len(own), OPENED_AT_ONCE)]):
        pass
    return sorted({note for part in distributed.gather_objects(images.skipped) for note in part})


def _no_pixels(image: Image.Image) -> Tensor:
    return torch.empty(0, 0, 0)


class _Files(Dataset):
    def __init__(
        self, paths: Sequence[str | Sequence[str]], transform: Callable[[Image.Image], Tensor], limits: ImageLimits
    ):
        self.paths, self.transform, self.limits = paths, transform, limits
        self.black = torch.zeros_like(transform(Image.new("RGB", (8, 8))))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, list[Skipped]]:
        given = self.paths[index]
        paths = [given] if isinstance(given, str) else given
        pixels, skipped = open_or_note(index, lambda _: eval_pixels(paths, self.transform, self.limits))
        return self.black if pixels is None else pixels, skipped


def _side_by_side(samples: list[tuple[Tensor, list[Skipped]]]) -> tuple[Tensor | Pictures, list[Skipped]]:
    return beside_one_another([pixels for pixels, _ in samples]), [note for _, notes in samples for note in notes]
