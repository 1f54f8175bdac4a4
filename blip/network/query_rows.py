"""How learned queries and texts lie in memory while they pass through the Q-Former (`qformer.py`).

Queries come before texts: a pass over both has all R*Q queries first and the P tokens of the texts behind them, so that
what treats only the one or the other takes a slice.

Shapes: R rows, Q queries of a row, T tokens of the longest text, P tokens of texts in memory, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from blip.network.packing import Packing, Rows


class QueryRows:
    """Rows of queries alone, a `TokenLayout`: (R*Q, D) and (R, Q, D) are views of one another."""

    real: Tensor | None = None  # there is no padding

    def __init__(self, count: int, queries: int, device: torch.device):
        self.count, self.longest = count, queries
        self.first = torch.arange(count * queries, device=device)  # all queries are read in the end
        self.first_packing: Packing = self

    def pack(self, x: Tensor) -> Tensor:
        """(R, Q, ...) -> (R*Q, ...)."""
        return x.flatten(0, 1)

    def unpack(self, x: Tensor) -> Tensor:
        """(R*Q, ...) -> (R, Q, ...)."""
        return x.unflatten(0, (self.count, self.longest))

    def positions(self, ids: Tensor, past: int = 0) -> Tensor:
        """Queries have no positions: their order means nothing."""
        raise NotImplementedError("queries have no positions")

    def attention_mask(self, causal: bool) -> tuple[Tensor | None, bool]:
        """Every query attends to all queries of its row."""
        return None, False


class QueriesAndText:
    """Rows of queries with a text behind them, all of which attend to one another, a `TokenLayout`."""

    def __init__(self, queries: QueryRows, texts: Rows):
        """`queries` and `texts` have the same number of rows."""
        self.queries, self.texts = queries, texts
        self.count, self.longest = texts.count, queries.longest + texts.longest
        self.real: Tensor | None = None  # (R, Q+T)
        if texts.real is not None:
            self.real = F.pad(texts.real, (queries.longest, 0), value=True)
        # the queries alone are read in the end
        self.first, self.first_packing = queries.first, queries.first_packing

    def pack(self, x: Tensor) -> Tensor:
        """(R, Q+T, ...) -> (R*Q+P, ...)."""
        queries, texts = x.split([self.queries.longest, self.texts.longest], dim=1)
        return torch.cat([self.queries.pack(queries), self.texts.pack(texts)])

    def unpack(self, x: Tensor) -> Tensor:
        """(R*Q+P, ...) -> (R, Q+T, ...), zeros at padding."""
        count = len(self.queries.first)
        return torch.cat([self.queries.unpack(x[:count]), self.texts.unpack(x[count:])], dim=1)

    def positions(self, ids: Tensor, past: int = 0) -> Tensor:
        """The position (R, T) of each token of its text; queries have none."""
        return self.texts.positions(ids, past)

    def attention_mask(self, causal: bool) -> tuple[Tensor | None, bool]:
        """Queries and tokens attend to all of their row but padding."""
        return None if self.real is None else self.real[:, None, None], False


class TextBehind:
    """Rows of text behind `past` tokens, which every token of the text attends to, a `TokenLayout`."""

    def __init__(self, texts: Rows, past: int):
        self.count, self.longest, self.real = texts.count, texts.longest, texts.real
        self.first, self.first_packing = texts.first, texts.first_packing
        self.pack, self.unpack, self.positions = texts.pack, texts.unpack, texts.positions
        size = texts.longest, past + texts.longest
        self.mask = torch.ones(size, dtype=torch.bool, device=texts.first.device).tril(past)  # (T, past+T)

    def attention_mask(self, causal: bool) -> tuple[Tensor | None, bool]:
        """With `causal` a token attends to what precedes its text and to its text up to itself: (T, past+T)."""
        return (self.mask if causal else None), False  # a single new token attends to all that precede it
