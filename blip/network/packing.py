"""How texts of different lengths lie in memory while they pass through the text transformer.

Shapes: R texts (rows), T tokens of the longest, P tokens in memory (R*T, or fewer when packed), D width, H heads,
d head width.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from blip.hardware.transfers import sent

Keys = tuple[Tensor, Tensor]  # keys and values, each (R, H, T, d); of images (B, H, N, d)


def with_first(ids: Tensor, token: int) -> Tensor:
    """A copy of ids (R, T) whose first token is `token`."""
    ids = ids.clone()
    ids[:, 0] = token
    return ids


# ---- what the text transformer needs ---------------------------------------------------------------------------------


class Packing(Protocol):
    """How rows of tokens lie in memory: `Rows`, `OneToken`, or any layout below."""

    def pack(self, x: Tensor) -> Tensor:
        """(R, T, ...) -> (P, ...)."""

    def unpack(self, x: Tensor) -> Tensor:
        """(P, ...) -> (R, T, ...), zeros at padding."""


class OneToken:
    """Rows of one token each: (R, D) and (R, 1, D) are views of one another."""

    def unpack(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)


ONE_TOKEN = OneToken()


class TokenLayout(Packing, Protocol):
    """Where tokens lie in memory, at which position each stands and which others it attends to.

    All that the text transformer needs of the rows that it reads. `Rows` are texts, whose tokens attend to one another
    or to those before them; `answer_tree.TreeRows` are branches of a tree; `query_rows` has those of learned queries.
    """

    count: int  # R
    longest: int  # T
    real: Tensor | None  # (R, T), True at a token; None where every row has T tokens
    first: Tensor  # (R,) place in memory of each row's first token; of several, if more than one is read in the end
    first_packing: Packing  # how those of `first` lie in memory

    def positions(self, ids: Tensor, past: int = 0) -> Tensor:
        """The position (R, T) of each token of ids (R, T), where `past` tokens precede the rows."""

    def attention_mask(self, causal: bool) -> tuple[Tensor | None, bool]:
        """(mask, causal) for `attention.Attention`: what each token attends to in its row."""


class KeyCache(Protocol):
    """Self-attention keys and values of what precedes the tokens that are read: `Cache`, `answer_tree.RootCache`."""

    @property
    def length(self) -> int:
        """The tokens of each row that precede."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> Keys:
        """Keys and values (R, H, T, d) of the tokens that are read, behind those that precede: (R, H, length+T, d)."""


Extend = Callable[[Tensor, Tensor], Keys]  # `KeyCache.extend` of one layer


# ---- texts -----------------------------------------------------------------------------------------------------------


class Rows:
    """R texts in memory: (P, D), each text's tokens in order, one text after the other.

    Packed, P counts real tokens only, and everything that treats tokens one by one (projections, norms, feed-forward
    networks) does no work on padding; attention alone unfolds to (R, T). Unpacked, P = R*T and unfolding is a view.
    """

    first_packing: Packing = ONE_TOKEN

    def __init__(self, lengths: Tensor, longest: int, device: torch.device, *, packed: bool = True):
        """`lengths` (R,) of the texts and T, `longest`. Lengths on the CPU are packed without waiting for a device."""
        self.count, self.longest = len(lengths), longest
        real = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (R, T), True at a token
        full = lengths.device.type == "cpu" and bool(real.all())
        self.real: Tensor | None = None if full else sent(real, device)
        self.index: Tensor | None = None  # (P,) places of the real tokens in the (R, T) grid
        first = torch.arange(self.count, device=lengths.device) * longest
        if packed and not full:
            self.index = sent(real.flatten().nonzero().squeeze(1), device)
            first = lengths.cumsum(0) - lengths
        self.first = sent(first, device)  # (R,) place in memory of each text's first token

    @property
    def mask(self) -> Tensor | None:
        """(R, 1, 1, T), True at a token; None where every text has T tokens."""
        return None if self.real is None else self.real[:, None, None]

    def attention_mask(self, causal: bool) -> tuple[Tensor | None, bool]:
        """(mask, causal) for `attention.Attention`: what each token attends to in its text."""
        # padding stands at the end, behind every real token: a causal query never attends to it
        return (None, True) if causal else (self.mask, False)

    def positions(self, ids: Tensor, past: int = 0) -> Tensor:
        """The position of each token (R, T), where `past` tokens precede the texts."""
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
        """The token after each one in memory: ids (R, T) -> (P,), -100 at the last token of a text and at padding."""
        targets = F.pad(ids[:, 1:], (0, 1), value=-100)
        if self.real is not None:
            targets = targets.masked_fill(~F.pad(self.real[:, 1:], (0, 1)), -100)
        return self.pack(targets)


class Cache:
    """Self-attention keys and values (R, H, T, d) of the tokens decoded so far, by layer; each step extends them."""

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
