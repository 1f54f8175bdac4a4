"""How texts, and the images that they look at, lie in memory while they pass through the text transformer.

Shapes: R texts (rows), T tokens of the longest, P tokens in memory (R*T, or fewer when packed), D width, H heads,
d head width, B images, N image tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Keys = tuple[Tensor, Tensor]  # keys and values of one layer, each (B, H, N, d)


def with_first(ids: Tensor, token: int) -> Tensor:
    """A copy of ids (R, T) whose first token is `token`."""
    ids = ids.clone()
    ids[:, 0] = token
    return ids


@dataclass
class ImageKeys:
    """Keys and values of B images for every layer, and which rows of text look at which image.

    The first B*c rows lie side by side per image: row r looks at image r // c. `extra` (E,) names the images of E
    further rows, so that a text can be shown another text's image without projecting that image again. Cross-attention
    has no mask on its queries, so rows that share an image lie on the query axis and its keys are never repeated.
    `mask` (B, N) is True at the keys that may be seen, where not all are: questions of different lengths have padding.
    Where few tokens look, `layers` is empty and `states` (B, N, image_width) stand for the keys of every layer.
    """

    layers: list[Keys]
    extra: Tensor | None = None
    mask: Tensor | None = None
    states: Tensor | None = None

    def __len__(self) -> int:
        """B, the images."""
        return len(self.layers[0][0] if self.states is None else self.states)

    @property
    def device(self) -> torch.device:
        return (self.layers[0][0] if self.states is None else self.states).device

    def of_layer(self, index: int) -> Keys | None:
        """None where states stand for keys."""
        return self.layers[index] if self.states is None else None

    def select(self, images: Tensor) -> "ImageKeys":
        """Those of `images` (B',), in that order."""
        layers = [(k.index_select(0, images), v.index_select(0, images)) for k, v in self.layers]
        mask, states = (x if x is None else x.index_select(0, images) for x in (self.mask, self.states))
        return ImageKeys(layers, mask=mask, states=states)


class Rows:
    """Where the tokens of R texts lie in memory: (P, D), each text's tokens in order, one text after the other.

    Packed, P counts real tokens only, and everything that treats tokens one by one (projections, norms, feed-forward
    networks) does no work on padding; attention alone unfolds to (R, T). Unpacked, P = R*T and unfolding is a view.
    """

    def __init__(self, lengths: Tensor, longest: int, device: torch.device, packed: bool = True):
        """`lengths` (R,) of the texts and T, `longest`. Lengths on the CPU are packed without waiting for a device."""
        self.count, self.longest = len(lengths), longest
        real = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (R, T), True at a token
        full = lengths.device.type == "cpu" and bool(real.all())
        self.real = None if full else real.to(device, non_blocking=True)
        self.index: Tensor | None = None  # (P,) places of the real tokens in the (R, T) grid
        first = torch.arange(self.count, device=lengths.device) * longest
        if packed and not full:
            self.index = real.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
            first = lengths.cumsum(0) - lengths
        self.first = first.to(device, non_blocking=True)  # (R,) place in memory of each text's first token

    @property
    def mask(self) -> Tensor | None:
        """(R, 1, 1, T), True at a token; None where every text has T tokens."""
        return None if self.real is None else self.real[:, None, None]

    def sees(self, causal: bool) -> tuple[Tensor | None, bool]:
        """(mask, causal) for `attention.Attention`: what each token may see of its text."""
        # padding stands at the end, where a causal query of a real token never looks
        return (None, True) if causal else (self.mask, False)

    def positions(self, ids: Tensor, past: int = 0) -> Tensor:
        """The position of each token (R, T), where `past` tokens came before."""
        return torch.arange(past, past + ids.shape[1], device=ids.device).expand_as(ids)

    def pack(self, x: Tensor) -> Tensor:
        """(R, T, ...) -> (P, ...)."""
        x = x.flatten(0, 1)
        return x if self.index is None else x.index_select(0, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """(P, ...) -> (R, T, ...), zeros at padding."""
        if self.index is not None:
            full = x.new_zeros(self.count * self.longest, *x.shape[1:])
            x = full.index_copy_(0, self.index, x)
        return x.unflatten(0, (self.count, self.longest))

    def next_tokens(self, ids: Tensor) -> Tensor:
        """What each token in memory predicts: ids (R, T) -> (P,), -100 at the last token of a text and at padding."""
        targets = F.pad(ids[:, 1:], (0, 1), value=-100)
        if self.real is not None:
            targets = targets.masked_fill(~F.pad(self.real[:, 1:], (0, 1)), -100)
        return self.pack(targets)


class OneToken:
    """Rows of one token each: (R, D) and (R, 1, D) are views of one another."""

    def unpack(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)


ONE_TOKEN = OneToken()


class Cache:
    """Self-attention keys and values (R, H, T, d) of the tokens decoded so far, by layer."""

    def __init__(self) -> None:
        self.layers: dict[int, Keys] = {}

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> Keys:
        if layer in self.layers:
            past_k, past_v = self.layers[layer]
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        self.layers[layer] = (k, v)
        return k, v

    def select(self, rows: Tensor) -> None:
        """Keeps the texts `rows` (R',), in that order."""
        self.layers = {i: (k.index_select(0, rows), v.index_select(0, rows)) for i, (k, v) in self.layers.items()}
