"""Attention, the one operation that the image encoder and the text transformer share.

Shapes: B batch, H heads, T queries, N keys, d head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tap(nn.Module):
    """Returns its input: a named place for forward hooks where no other module has that output.

    It has no parameters, so the keys of a state dict do not change with it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x


class Attention(nn.Module):
    """Soft-max attention of queries to keys, without the projections around it.

    The fused kernel is used unless `pattern` has a forward hook: then the soft-max is written out, so that the hook
    receives the pattern and may replace it. Reading a pattern needs no such hook, since it follows from `q` and `k`.
    The other exception is speed, see `fused_is_slow`.

    Args:
        dropout: share of the pattern's entries dropped in training (BERT drops attention probabilities).
    """

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.q, self.k, self.v, self.z, self.pattern = Tap(), Tap(), Tap(), Tap(), Tap()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """q (B, H, T, d), k and v (B, H, N, d) -> (B, H, T, d).

        `mask` is boolean, True where a query may attend to a key, and broadcasts to (B, H, T, N). With `causal`, which
        excludes `mask`, query t attends to keys 0..t.
        """
        q, k, v = self.q(q), self.k(k), self.v(v)
        dropout = self.dropout if self.training else 0.0
        if self.pattern._forward_hooks or fused_is_slow(q):
            pattern = self.pattern(attention_pattern(q, k, mask, causal=causal))
            z = F.dropout(pattern, dropout).to(v.dtype) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.z(z)


def fused_is_slow(q: Tensor) -> bool:
    """Whether the soft-max written out is faster: in bf16 on a CPU, where plain products use the bf16 units better.

    Of a pre-training step at batch 8 on two cores the fused kernels take 1.1 s, written out about half of that.
    It keeps the pattern for the backward pass: a layer of ViT-B at 224 px has 12 * 197 * 197 numbers an image.
    """
    return q.device.type == "cpu" and q.dtype == torch.bfloat16


def attention_pattern(q: Tensor, k: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """The soft-max written out: (B, H, T, N), rows sum to one. The twin of the fused kernel, in float32 or wider."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def cast_once(x: Tensor) -> Tensor:
    """x in the type in which autocast multiplies: else each projection that reads x makes a copy, and keeps it."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
