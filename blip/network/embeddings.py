"""Words in and out of the text transformer: embeddings, the head that predicts, and the matrix that both share.

Shapes: R texts (rows), T tokens of the longest, P tokens in memory, D width, V words, W words looked up.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip.network.packing import TokenLayout


@dataclass
class TextConfig:
    """Sizes of the text transformer. `image_width` is the width of the states that cross-attention attends to.

    `images`: how many a text attends to, 1, or 2 as in NLVR2.
    """

    vocab_size: int = 30524
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    max_positions: int = 512
    image_width: int = 768
    dropout: float = 0.1
    images: int = 1


class Embeddings(nn.Module):
    """Word and learned position embeddings, normalised. BLIP has no token types."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.width, padding_idx=0)
        self.positions = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, rows: TokenLayout, past: int = 0, *, words: Tensor | None = None) -> Tensor:
        """ids (R, T) -> (P, D); `past` tokens precede the first one.

        With `words` (W, D), embeddings that `TiedLookUp` returned, `ids` are rows of it.
        """
        positions = rows.pack(rows.positions(ids, past))
        ids = rows.pack(ids)
        x = self.words(ids) if words is None else F.embedding(ids, words)
        return self.dropout(self.norm(x + self.positions(positions)))


class TiedLookUp(torch.autograd.Function):
    """Rows `ids` (W,) of the vocabulary's matrix (V, D), and the matrix itself for the word head: -> (W, D), (V, D).

    A separate look-up costs a gradient of the vocabulary's size, and its sum with the head's gradient another: 94 MB
    each for BERT's vocabulary. Here the gradient of the rows is added in place to that of the head, to which nothing
    else refers.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids)
        return matrix.index_select(0, ids), matrix.view_as(matrix)

    @staticmethod
    def backward(ctx: Any, rows: Tensor, matrix: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        # on a CPU `index_put_` adds in no fixed order, and two runs would differ in the last bits
        return matrix.index_add_(0, ids, rows.to(matrix.dtype)), None


class LMHead(nn.Module):
    """BERT's prediction head: transform, then the word embedding as the output matrix."""

    def __init__(self, config: TextConfig, words: nn.Embedding):
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.words = words
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, matrix: Tensor | None = None) -> Tensor:
        """(..., D) -> logits (..., V). `matrix`: the word embedding as `TiedLookUp` returned it."""
        return self.logits(self.norm(F.gelu(self.transform(x))), matrix)

    def logits(self, x: Tensor, matrix: Tensor | None = None) -> Tensor:
        """What is transformed (..., D) -> logits (..., V)."""
        return F.linear(x, self.words.weight if matrix is None else matrix, self.bias)


def init_weights(module: nn.Module, width: int) -> None:
    """BERT's initialisation: normal, standard deviation 0.02 at width 768, the padding's embedding zero.

    Narrower models start larger, by the square root: with 0.02 at width 96 losses do not fall for hundreds of steps.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 * (768 / width) ** 0.5)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx].detach())
