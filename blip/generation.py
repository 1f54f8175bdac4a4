"""Writing text token by token.

Whoever decodes gives a `Step`: a function from the newest tokens to the logits of the next one, which remembers what
came before. What is decoded, and what the text is about, is not known here.

Shapes: R texts (rows), T tokens, V words.
"""

from typing import Protocol

import torch
from torch import Tensor


class Step(Protocol):
    """One step of a decoder that keeps a cache."""

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest tokens (R, T) of R texts -> logits of the next one (R, V)."""

    def select(self, rows: Tensor, per_image: int = 1) -> None:
        """Goes on with the texts `rows` (R',), in that order; a text may be dropped or taken several times.

        The texts of an image lie side by side, `per_image` of them, and images stay in order.
        """


@torch.no_grad()
def greedy(step: Step, first_ids: Tensor, end_id: int, pad_id: int, max_new_tokens: int) -> Tensor:
    """The likeliest token at each step: first tokens (R, T) -> the new ones (R, L), L at most `max_new_tokens`.

    A text ends with `end_id`, which is returned, and `pad_id` follows. Finished texts leave the batch.
    """
    count = len(first_ids)
    texts = first_ids.new_full((count, max_new_tokens), pad_id)
    alive = torch.arange(count, device=first_ids.device)  # the text of each row that is still being written
    ids, length = first_ids, 0
    while length < max_new_tokens and len(alive):
        tokens = step(ids).argmax(dim=1)  # (R,)
        texts[alive, length] = tokens
        length += 1
        going = (tokens != end_id).nonzero().squeeze(1)
        if len(going) < len(alive):
            alive, tokens = alive[going], tokens[going]
            if len(alive):
                step.select(going)
        ids = tokens[:, None]
    return texts[:, :length]
