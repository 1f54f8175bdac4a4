"""A loaded model with what turns images and texts into its tensors: the base of `Predictor`.

Shapes: B images, S their sides in pixels, R texts, T tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from blip.checkpoints.format import CheckpointError
from blip.data.batches import padded
from blip.data.images import LIMITS
from blip.data.pictures import eval_pixels, evenly, pictures_of
from blip.data.transforms import eval_transform
from blip.hardware.precision import AUTO
from blip.hardware.profile import profile_of
from blip.inference.computation import Computation
from blip.inference.inputs import Images, OneImage, Study, as_list
from blip.models.factory import spec_of
from blip.network.pictures import Pictures, States, beside_one_another, encode
from blip.tokenizer import Tokenizer, blip_cleaning

# what a model can do (`TaskSpec.can`): as messages put it, and the part of the model that it takes
TEXT_PARTS = ("text_encoder", "text_decoder", "qformer")  # the first that a model has gives its positions
ABILITIES = {
    "encode": ("encode for retrieval", "image_proj"),
    "match": ("match images and texts", "itm_head"),
    "caption": ("write captions", "text_decoder"),
    "answer": ("answer questions", "text_decoder"),
    "judge": ("judge statements about two images", "cls_head"),
    "rank": ("rank answers in a dialogue", "itm_head"),
}


class LoadedModel(Computation):
    """A model in evaluation mode with its tokenizer and image transform."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        info: dict,
        *,
        device: str | torch.device = "cpu",
        precision: str = AUTO,
    ) -> None:
        """`info` is the content of the checkpoint's `model.json`; `precision` as in `choose_precision`."""
        super().__init__(model, torch.device(device), precision)
        self.profile = profile_of(self.device)
        self.model = cast(Any, model.to(self.device).eval())
        self.tokenizer, self.info = tokenizer, info
        self.transform = eval_transform(self.model.image_encoder.config.image_size)
        text = next(part for part in TEXT_PARTS if hasattr(model, part))
        self.positions: int = getattr(self.model, text).config.max_positions
        self.max_text_tokens = int(info.get("max_text_tokens") or self.positions)
        # how the files of images are read, and how many pictures of an item; scans are shown as in training
        read = {name: info[name] for name in ("max_pictures", "frames", "slices") if info.get(name)}
        views = {"window": info.get("window", ""), "channels": tuple(info.get("channels", ()))}
        self.limits = replace(LIMITS, **views, **read)

    def needs(self, ability: str, action: str = "") -> Any:
        """The model, if its task has an ability of `ABILITIES`; `action` names what needs it in the error.

        Raises:
            CheckpointError: the task does not have it.
        """
        usual, part = ABILITIES[ability]
        if ability in spec_of(self.info["task"]).can:
            return self.model
        lacks = "" if hasattr(self.model, part) else f": it has no {part.replace('_', ' ')}"
        raise CheckpointError(f"a checkpoint of {self.info['task']} cannot {action or usual}{lacks}")

    def pixels(self, images: Images) -> Tensor | Pictures:
        """Images -> (B, 3, S, S), normalised, on the device; items of several pictures as `Pictures`."""
        ready = [self._item(x) for x in as_list(images)]
        return beside_one_another(ready).to(self.device, non_blocking=True)

    def _item(self, image: OneImage) -> Tensor:
        """(3, S, S) of one picture, (F, 3, S, S) of several: of a study, as many as the limits allow."""
        if isinstance(image, Tensor):
            return image
        if not isinstance(image, Study):
            return eval_pixels([cast(Any, image)], self.transform, self.limits)
        parts = [self._item(picture) for picture in image.pictures]
        pictures = torch.cat([part if part.dim() > 3 else part[None] for part in parts])
        pictures = pictures[evenly(len(pictures), self.limits.max_pictures)]
        return pictures[0] if len(pictures) == 1 else pictures

    def opened(self, image: OneImage) -> OneImage:
        """An image as it is; of a study, or a reference that means several pictures, a study of its ready pictures."""
        if not isinstance(image, Study) and pictures_of(image) is None:  # type: ignore[arg-type]
            return image
        pictures = self._item(image)
        return Study(pictures) if pictures.dim() > 3 else pictures

    def states(self, images: Images) -> States:
        """What the image encoder gives of images: (B, N, D), or `PictureStates` of items of several pictures."""
        return encode(self.model.image_encoder, self.pixels(images))

    def cleaned(self, text: str) -> str:
        """A text as the model was trained to read it."""
        return blip_cleaning(text) if self.info.get("text_cleaning") == "blip" else text

    def ids(self, texts: Sequence[str], longest: int = 0) -> tuple[Tensor, Tensor]:
        """Texts -> ids (R, T), `[CLS] ... [SEP]`, padded, at most `longest`; lengths (R,), on the CPU."""
        encoded = self.tokenizer.encode([self.cleaned(text) for text in texts], longest or self.max_text_tokens)
        ids, lengths = padded(encoded, self.tokenizer.pad_id)
        return ids.to(self.device, non_blocking=True), lengths
