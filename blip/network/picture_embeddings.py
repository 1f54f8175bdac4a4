"""What tells the pictures of an item apart, where a model is asked to: see `pictures.py`.

Shapes: B items, P pictures of all items, N tokens of a picture, D width.
"""

import torch
from torch import Tensor, nn

from blip.errors import InputError


class PictureEmbeddings(nn.Module):
    """Learned vectors that are added to all tokens of a picture, by its place among the pictures of its item.

    `place` counts from the first picture: view 0, slice 3. `time` counts from the last one: 0 is the current picture, 1
    the one before, so that an item of one picture is current. The vectors are zero at the start.

    They are stored divided by the square root of the width, as word embeddings often are (Vaswani et al. 2017, section
    3.4). Beside states with values near 1, steps of Adam on the vectors themselves are too small: a captioner of frames
    in time learned no order in 600 steps.
    """

    def __init__(self, kind: str, most: int, width: int):
        """`kind`: place or time; `most` pictures of an item are told apart."""
        super().__init__()
        self.by_time = kind == "time"
        self.scale = width**0.5
        self.table = nn.Parameter(torch.zeros(most, width))

    def forward(self, states: Tensor, places: Tensor | None = None) -> Tensor:
        """states (P, N, D) of pictures at `places` (P,), all at 0 without them -> (P, N, D)."""
        vectors = self.vectors
        return states + (vectors[0] if places is None else vectors[places][:, None])

    @property
    def vectors(self) -> Tensor:
        """The vectors of all places (most, D)."""
        return self.scale * self.table

    def places(self, counts: Tensor) -> Tensor:
        """The places (P,) of the pictures of items with `counts` (B,) of them, item by item; on the CPU.

        Raises:
            InputError: an item has more pictures than there are places.
        """
        if len(counts) and int(counts.max()) > len(self.table):
            raise InputError(
                f"an item has {int(counts.max())} pictures, and the model's picture_embeddings tell {len(self.table)} "
                "apart: give fewer"
            )
        each = [torch.arange(count) for count in counts.tolist()]
        return torch.cat([places.flip(0) if self.by_time else places for places in each])
