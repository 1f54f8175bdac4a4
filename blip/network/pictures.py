"""Items of several pictures: the one place where pictures become what texts attend to.

An item is what one text is about: one picture, or F of them, such as the views of a study, the frames of a video or the
slices of a volume. The image encoder sees every picture alone. Texts, and the queries of BLIP-2, attend to the tokens
of all pictures of their item side by side, F*N keys of which those of absent pictures are masked. For contrast, the
projected CLS of the pictures are averaged, and the mean has unit length:

    states = encode(image_encoder, images)           # in place of image_encoder(images)
    keys = text_encoder.image_keys(states)           # also keys_or_states, of text transformers and the Q-Former
    features = item_features(image_proj, states)     # (B, E)

`images` in these lines are of one of three forms, and all models take any of them:

    (B, 3, h, w)       items of one picture each; then states are a tensor (B, N, D), and nothing here is computed
    (B, F, 3, h, w)    items of F pictures each
    `Pictures`         items of F pictures at most, with what is absent

The last two give `PictureStates`. Both classes have a length and can be indexed by items, as tensors can.

Shapes: B items, F pictures of an item at most, P real pictures of all items, N tokens of a picture, D width, E
embedding width, h and w sides of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip.hardware.transfers import sent
from blip.network.vit import ViT


class _Items:
    """Items in rows of a tensor (B, F, ...), and which of their pictures are real.

    `present` (B, F) is boolean and on the CPU, whatever the device of the tensor: True at real pictures, which come
    first, at least one an item. None: all are real.
    """

    tensor: Tensor
    present: Tensor | None

    def __len__(self) -> int:
        """B."""
        return len(self.tensor)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @property
    def counts(self) -> Tensor:
        """The real pictures of each item (B,), on the CPU."""
        if self.present is None:
            return torch.full((len(self),), self.tensor.shape[1])
        return self.present.sum(dim=1)

    def _chosen(self, items: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """The rows of some items, cut to the most pictures that one of them has."""
        on_cpu = items.cpu() if isinstance(items, Tensor) else items
        counts = self.counts[on_cpu]
        most = int(counts.max()) if len(counts) else 1
        return self.tensor[items][:, :most], present_of(counts, most)


@dataclass
class Pictures(_Items):
    """The pixels of a batch of items.

    Args:
        tensor: (B, F, 3, h, w); of an absent picture any numbers, such as 0.
        present: (B, F), see above.
    """

    tensor: Tensor
    present: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """(B, F, 3, h, w)."""
        return self.tensor.shape

    def to(self, device: Any, non_blocking: bool = False) -> "Pictures":
        """A copy on the device, except of `present`."""
        return Pictures(self.tensor.to(device, non_blocking=non_blocking), self.present)

    def pin_memory(self) -> "Pictures":
        """A copy in page-locked memory."""
        return Pictures(self.tensor.pin_memory(), self.present)

    def __getitem__(self, items: Tensor | slice) -> "Pictures":
        """Some of the items."""
        return Pictures(*self._chosen(items))

    def real(self) -> Tensor:
        """The real pictures of all items one after the other, (P, 3, h, w)."""
        flat = self.tensor.flatten(0, 1)
        return flat if self.present is None else flat.index_select(0, sent(_places(self.present), flat.device))

    def with_real(self, pictures: Tensor) -> "Pictures":
        """The same items with other pixels: pictures (P, 3, h, w) in the order of `real`; absent ones become 0."""
        return Pictures(_spread(pictures, self.present, self.tensor.shape[:2]), self.present)


@dataclass
class PictureStates(_Items):
    """What the image encoder gives of a batch of items.

    Args:
        tensor: states (B, F, N, D); of an absent picture 0.
        present: (B, F), see above.
    """

    tensor: Tensor
    present: Tensor | None = None

    @property
    def cls(self) -> Tensor:
        """The first token of each picture (B, F, D)."""
        return self.tensor[:, :, 0]

    def side_by_side(self) -> tuple[Tensor, Tensor | None]:
        """Tokens of all pictures of an item (B, F*N, D), and a mask (B, F*N), True at those of real ones, or None."""
        tokens = self.tensor.flatten(1, 2)
        if self.present is None:
            return tokens, None
        mask = self.present.repeat_interleave(self.tensor.shape[2], dim=1)
        return tokens, sent(mask, tokens.device)

    def __getitem__(self, items: Tensor | slice) -> "PictureStates":
        """Some of the items."""
        return PictureStates(*self._chosen(items))

    def split(self, size: int) -> "list[PictureStates]":
        """As `Tensor.split`: parts of `size` items, the last one smaller; what no item of a part has is cut off."""
        return [self[start : start + size] for start in range(0, len(self), size)]


States = Tensor | PictureStates  # of B items, a tensor (B, N, D) where each has one picture


# ---- from pixels to keys and features --------------------------------------------------------------------------------


@overload
def encode(encoder: ViT, images: Pictures, cls_only: bool = False) -> PictureStates: ...


@overload
def encode(encoder: ViT, images: Tensor, cls_only: bool = False) -> Tensor: ...


def encode(encoder: ViT, images: Tensor | Pictures, cls_only: bool = False) -> States:
    """Images of a form named above -> their states; `cls_only` as in `ViT.forward`.

    Raises:
        InputError: an item has more pictures than the encoder has embeddings of places.
    """
    if isinstance(images, Tensor) and images.dim() == 4:
        return encoder(images, cls_only)
    pictures = Pictures(images) if isinstance(images, Tensor) else images
    places = None
    if encoder.picture_embeddings is not None:
        places = sent(encoder.picture_embeddings.places(pictures.counts), pictures.device)
    states = encoder(pictures.real(), cls_only, places)  # (P, N, D)
    return PictureStates(_spread(states, pictures.present, pictures.shape[:2]), pictures.present)


def side_by_side(states: States, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """What texts attend to, (B, F*N, D), and where, as a mask (B, F*N) or None; a tensor stays as it is."""
    return (states, mask) if isinstance(states, Tensor) else states.side_by_side()


def item_features(linear: nn.Linear, states: States) -> Tensor:
    """Features of unit length (B, E), in float32: of several pictures, the mean of their projected CLS is scaled."""
    if isinstance(states, Tensor):
        return F.normalize(linear(states[:, 0]).float(), dim=-1)
    each = linear(states.cls).float()  # (B, F, E)
    if states.present is None:
        return F.normalize(each.mean(dim=1), dim=-1)
    present = sent(states.present, each.device)[..., None]
    return F.normalize((each * present).sum(dim=1) / present.sum(dim=1), dim=-1)


# ---- which pictures are real -----------------------------------------------------------------------------------------


def present_of(counts: Tensor, most: int) -> Tensor | None:
    """`present` (B, most) of items with `counts` (B,) pictures, on the CPU; None where all have `most`."""
    return None if bool((counts == most).all()) else torch.arange(most) < counts[:, None]


def padded_pictures(states: States, most: int) -> Tensor:
    """States of items with `most` pictures each, absent ones 0: (B, most, N, D); (B, N, D) where `most` is 1."""
    if isinstance(states, Tensor):
        states = PictureStates(states[:, None])
    if most == 1:
        return states.tensor[:, 0]
    return F.pad(states.tensor, (0, 0, 0, 0, 0, most - states.tensor.shape[1]))


def beside_one_another(items: Sequence[Tensor]) -> Tensor | Pictures:
    """Items as one batch: each (3, h, w), or (F', 3, h, w) of several pictures; (B, 3, h, w) if all are of one."""
    if all(item.dim() == 3 for item in items):
        return torch.stack(list(items)) if items else torch.empty(0)
    several = [item if item.dim() > 3 else item[None] for item in items]
    counts = torch.tensor([len(item) for item in several])
    tensor = several[0].new_zeros(len(items), int(counts.max()), *several[0].shape[1:])
    for row, item in zip(tensor, several, strict=True):
        row[: len(item)] = item
    return Pictures(tensor, present_of(counts, tensor.shape[1]))


def _places(present: Tensor) -> Tensor:
    """The numbers (P,) of real pictures among all B*F, in their order."""
    return present.flatten().nonzero()[:, 0]


def _spread(real: Tensor, present: Tensor | None, size: torch.Size) -> Tensor:
    """Rows (P, ...) of real pictures -> (B, F, ...), 0 at absent ones; `size` is (B, F)."""
    if present is not None:
        places = sent(_places(present), real.device)
        real = real.new_zeros(size.numel(), *real.shape[1:]).index_copy(0, places, real)
    return real.unflatten(0, size)
