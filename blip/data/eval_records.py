"""What the evaluation sets of all tasks share: each record once, by its number, and its pictures or a note on them."""

from collections.abc import Callable, Sequence, Sized
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from blip.data.image_bytes import LIMITS, ImageLimits
from blip.data.order import open_or_note
from blip.data.pictures import eval_pixels
from blip.data.skipped import Skipped


class EvalRecords(Dataset):
    """Evaluation samples by index; a task's own class makes them of the records."""

    def __init__(
        self,
        records: Sized,
        encode: Any,
        transform: Callable[[Image.Image], Tensor],
        *,
        limits: ImageLimits = LIMITS,
    ):
        """`records` of annotation files; `encode`: texts of one to ids; `transform`: PIL RGB to (3, S, S)."""
        self.records: Any = records
        self.encode: Any = encode
        self.transform, self.limits = transform, limits

    def __len__(self) -> int:
        return len(self.records)

    def pixels(self, index: int, paths: Sequence[str]) -> tuple[Tensor | None, list[Skipped]]:
        """The pixels of the pictures of record `index`, see `eval_pixels`; None and a note where one is unreadable."""
        return open_or_note(index, lambda _: eval_pixels(paths, self.transform, self.limits))
