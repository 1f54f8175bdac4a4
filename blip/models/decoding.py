"""The text decoder as a `generation.Step`.

Shapes: R texts (rows), T tokens, V words, B images.
"""

from torch import Tensor

from blip.med import TextDecoder
from blip.rows import Cache, ImageKeys


class DecoderStep:
    """Steps of R = B * per_image texts about B images; the keys of an image are held once, however many its texts."""

    def __init__(self, decoder: TextDecoder, keys: ImageKeys, per_image: int = 1):
        """`keys` of the images, as `TextDecoder.project` makes them."""
        self.decoder, self.keys, self.per_image = decoder, keys, per_image
        self.cache = Cache()

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest tokens (R, T) -> logits of the next one (R, V)."""
        return self.decoder.step(ids, self.keys, self.cache)

    def select(self, rows: Tensor, per_image: int = 1) -> None:
        """Goes on with the texts `rows` (R',): see `generation.Step`."""
        self.cache.select(rows)
        images = rows[::per_image] // self.per_image  # (B',)
        self.per_image = per_image
        if len(images) < len(self.keys):  # images stay in order: as many as before are the same
            self.keys = self.keys.select(images)
