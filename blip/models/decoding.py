"""Options of generation, and the choice of the next token: penalties, bans and the draw. `generation.py` generates.

Shapes: R texts being generated (rows), T tokens of a prompt, L new tokens, V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from blip.errors import InputError

NEVER = float("-inf")


class Step(Protocol):
    """One step of a decoder that keeps a cache."""

    def __call__(self, ids: Tensor) -> Tensor:
        """The newest tokens (R, T) of R texts -> logits of the next one (R, V)."""

    def select(self, rows: Tensor, per_image: int = 1) -> None:
        """Continues with the texts `rows` (R',), in that order; a text may be dropped or taken several times.

        The texts of an image lie side by side, `per_image` of them, and images stay in order.
        """


@dataclass
class Decoding:
    """Options of generation: greedy, unless `beams` is above 1 or `sample` is set.

    Lengths are in tokens, without the prompt.

    Raises:
        InputError: values that are out of range or exclude each other.
    """

    beams: int = 1
    sample: bool = False
    max_new_tokens: int = 30
    min_new_tokens: int = 0  # tokens before the end token
    num_return: int = 1  # texts for each prompt; with beams at most their number
    temperature: float = 1.0  # this one and the next two are for sampling only
    top_k: int = 0  # draw from this many tokens; 0: from all (the published code has a hidden 50)
    top_p: float = (
        1.0  # draw from the fewest tokens of at least this probability together (nucleus, Holtzman et al. 2020)
    )
    length_penalty: float = 1.0  # a beam's score is its log-probability over its length to this power
    # `whole` includes the prompt, as in BLIP's published code, `whole_blip2` also stops as that of BLIP-2: `BeamSearch`
    length_norm: Literal["generated", "whole", "whole_blip2"] = "generated"
    repetition_penalty: float = 1.0  # above 1: tokens of the text so far, prompt included, become less likely
    no_repeat_ngram: int = 0  # no run of this many tokens occurs twice; 0: any run may

    def __post_init__(self) -> None:
        counts = ("beams", "max_new_tokens", "num_return")
        wrong = [f"{name} is {getattr(self, name)}, it must be 1 or more" for name in counts if getattr(self, name) < 1]
        wrong += [f"{n} is {getattr(self, n)}, it must be above 0" for n in ("temperature", "repetition_penalty")
                  if getattr(self, n) <= 0]  # fmt: skip
        if not 0 < self.top_p <= 1:
            wrong.append(f"top_p is {self.top_p}, it must be above 0 and at most 1")
        if min(self.top_k, self.no_repeat_ngram, self.min_new_tokens) < 0:
            wrong.append("top_k, no_repeat_ngram and min_new_tokens must be 0 or more")
        if self.min_new_tokens > self.max_new_tokens:
            wrong.append(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        if self.length_norm not in ("generated", "whole", "whole_blip2"):
            wrong.append(f"length_norm is {self.length_norm!r}, it can be generated, whole or whole_blip2")
        if self.sample and self.beams > 1:
            wrong.append("sample and beams exclude each other")
        if not self.sample and self.num_return > self.beams:
            wrong.append(f"num_return is {self.num_return} with {self.beams} beams: sample, or search with more beams")
        if wrong:
            raise InputError("; ".join(wrong))

    @property
    def texts(self) -> int:
        """Texts of one prompt that are generated at the same time."""
        return max(self.beams, self.num_return)


@dataclass
class Generated:
    """Generated texts: R = B * num_return rows, those of a prompt side by side; of beams, the best first."""

    ids: Tensor  # (R, L) new tokens, the end token included, then padding
    log_probs: Tensor  # (R, L) of each token, as the model gives it before any penalty; 0 at padding
    scores: Tensor  # (R,) the sum of log_probs; of beams, the score by which they were ranked


def constrained(logits: Tensor, texts: Tensor, new: int, *, decoding: Decoding, end_id: int) -> Tensor:
    """Scores (R, V) with penalties and bans applied; texts (R, T+new) are prompts and the `new` tokens after them."""
    scores = logits
    if decoding.repetition_penalty != 1:
        used = scores.gather(1, texts)
        used = torch.where(used < 0, used * decoding.repetition_penalty, used / decoding.repetition_penalty)
        scores = scores.scatter(1, texts, used)
    size = decoding.no_repeat_ngram
    if size and texts.shape[1] >= size:
        runs = texts.unfold(1, size, 1)  # (R, runs, size)
        begun = (runs[:, :, :-1] == texts[:, None, texts.shape[1] - size + 1 :]).all(dim=2)
        banned = torch.zeros_like(scores).scatter_add(1, runs[:, :, -1], begun.to(scores.dtype)) > 0
        scores = scores.masked_fill(banned, NEVER)
    if new < decoding.min_new_tokens:
        scores = scores.index_fill(1, torch.full((1,), end_id, device=scores.device), NEVER)
    return scores


def draw(scores: Tensor, decoding: Decoding, uniforms: Tensor | None = None) -> Tensor:
    """A token for each row (R,), drawn from the soft-max of scores (R, V).

    By `uniforms` (R,), numbers from 0 to 1: the token at which the sum of the probabilities, in the order of the
    vocabulary, passes that number. Without them by torch's global generator.
    """
    scores = scores / decoding.temperature
    if 0 < decoding.top_k < scores.shape[1]:
        least = scores.topk(decoding.top_k, dim=1).values[:, -1:]
        scores = scores.masked_fill(scores < least, NEVER)
    probabilities = scores.softmax(dim=1)
    if decoding.top_p < 1:
        probabilities = probabilities.masked_fill(probabilities < _least_of_nucleus(probabilities, decoding.top_p), 0)
    if uniforms is None:
        # what is not a number would end the process on a GPU; `check_numbers` reports it
        return probabilities.nan_to_num(nan=1.0).multinomial(1).squeeze(1)
    # in float64 no rounding puts a bound between two tokens of which one cannot be drawn
    sums = probabilities.double().cumsum(dim=1)
    passed = torch.searchsorted(sums, uniforms.double()[:, None] * sums[:, -1:], right=True)
    return passed.squeeze(1).clamp(max=scores.shape[1] - 1)


def _least_of_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The least probability (R, 1) of the fewest tokens that have `top_p` together, in each row of (R, V)."""
    ordered = _descending(probabilities)
    before = ordered.cumsum(dim=1) - ordered  # the sum over likelier tokens; the first one always stays
    count = (before < top_p).sum(dim=1, keepdim=True).clamp(min=1)
    return ordered.gather(1, count - 1)


def _descending(x: Tensor) -> Tensor:
    """The numbers of each row, the largest first; without their places, numpy sorts them far faster on a CPU."""
    if x.device.type != "cpu":
        return x.sort(dim=1, descending=True).values
    return torch.from_numpy(np.sort(x.numpy(), axis=1)).flip(1)


def uniforms_of(seeds: Sequence[int], decoding: Decoding) -> Tensor | None:
    """A number from 0 to 1 for each token of each text (B * num_return, max_new_tokens), for `generate`; None where
    nothing is sampled.

    Those of prompt i follow from `seeds[i]` alone: its samples depend neither on the prompts beside it nor, beyond
    rounding, on the device.
    """
    if not decoding.sample:
        return None
    shape = decoding.num_return, decoding.max_new_tokens
    return torch.cat([torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def check_numbers(log_probs: Tensor) -> None:
    """InputError where log-probabilities of sampled tokens are not numbers."""
    if bool(log_probs.isnan().any()):
        raise InputError("the scores of the next token are not numbers: the model's weights are too large or damaged")
