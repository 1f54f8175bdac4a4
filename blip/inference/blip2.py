"""BLIP-2 that takes images and strings, its first stage; `blip.load` makes one. Start with `predictor.py`.

Shapes: B images, T tokens of a prompt, S side of an image in pixels.
"""

from typing import Any

from torch import Tensor

from blip.checkpoints.format import CheckpointError
from blip.inference.predictor import Predictor
from blip.models.decoding import Decoding, Generated
from blip.network.pictures import Pictures


class Blip2Predictor(Predictor):
    """The first stage: features of an image for each query, matching and captions."""

    @property
    def can_write(self) -> bool:
        """Whether the checkpoint has the head that writes: files of transformers lack it."""
        return not self.info.get("lacks")

    def needs(self, ability: str, action: str = "") -> Any:
        """As of `LoadedModel`; CheckpointError for captions where the head that writes them is absent, too."""
        model = super().needs(ability, action)
        if ability == "caption" and not self.can_write:
            raise CheckpointError(
                "this checkpoint cannot write captions: it comes from transformers, whose classes do not hold the "
                "word head of the first stage; a file of LAVIS does"
            )
        return model

    def _continued(
        self, pixels: Tensor | Pictures, ids: Tensor, decoding: Decoding, *, uniforms: Tensor | None
    ) -> Generated:
        return self.model.write(pixels, ids, decoding, end_id=self.tokenizer.sep_id, uniforms=uniforms)
