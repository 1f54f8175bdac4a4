"""What scores an image against a text, in pre-training, retrieval and inference: features, contrast, match logits.

Shapes: B images, R texts, T text tokens, N image tokens, D width, E embedding width, C candidates.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from blip.network.med import TextEncoder
from blip.network.packing import ImageKeys, Rows

Draw = Callable[[Tensor], tuple[Tensor, Tensor]]  # weights (B, C) -> index (B,), exists (B,); see losses.draw_negatives


def match_logits(
    encoder: TextEncoder,
    head: nn.Linear,
    ids: Tensor,
    lengths: Tensor,
    keys: ImageKeys,
    packed: bool = True,
    words: Tensor | None = None,
) -> Tensor:
    """Logits (R, 2) of texts that look at images as `keys` says; ids (R, T), the first one `[ENC]`; class 1 = match.

    lengths (R,), on the CPU when `packed`; `words` as in `med.Embeddings`.
    """
    rows = Rows(lengths, ids.shape[1], ids.device, packed)
    return head(encoder.multimodal(ids, rows, keys, first_only=True, words=words))


def match_with_negatives(
    encoder: TextEncoder,
    head: nn.Linear,
    ids: Tensor,
    lengths: Tensor,
    keys: ImageKeys,
    hard_text: Tensor,
    hard_image: Tensor,
    packed: bool,
    words: Tensor | None = None,
) -> Tensor:
    """Logits (3B, 2) of the rows: matched, (text, hard image), (hard text, image), in one pass.

    ids (B, T), the first one `[ENC]`; with `words`, rows of it (`med.Embeddings`). `hard_text` and `hard_image` (B,)
    number pairs of this batch.
    """
    count = len(ids)
    # texts of one image side by side: its own and the hard one; then each text with its hard image
    ids = torch.cat([torch.stack([ids, ids[hard_text]], dim=1).flatten(0, 1), ids])  # (3B, T)
    hard_lengths = lengths[hard_text.to(lengths.device)]
    lengths = torch.cat([torch.stack([lengths, hard_lengths], dim=1).flatten(), lengths])
    keys = ImageKeys(keys.layers, extra=hard_image)
    logits = match_logits(encoder, head, ids, lengths, keys, packed, words)
    own, extra = logits.split([2 * count, count])
    matched, with_hard_text = own.unflatten(0, (count, 2)).unbind(dim=1)
    return torch.cat([matched, extra, with_hard_text])
