"""Deletion and insertion curves (Petsiuk et al. 2018): does the model need the patches that a map marks?

Deletion covers the patches of an image, those with the largest values of the map first; the probability should fall
early. Insertion uncovers them in the same order in a covered image; it should rise early. The area under a curve is the
mean probability while the share of patches goes from 0 to 1.

Covered patches are not empty: they have the values of a blurred image, its mean colour, or black. A model may react to
the edges of what was covered, so areas are compared with those of a random order, never read alone.

Shapes: R pairs, h*w = N patches, S the side of an image in pixels, K steps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from blip.data.transforms import MEAN, STD
from blip.errors import InputError
from blip.inference.predictor import Predictor
from blip.inference.query_scoring import token_counts
from blip.interpret.objectives import Objective

Probability = Callable[[Tensor], Tensor]  # of images (R, 3, S, S) -> (R,)


def black(pixels: Tensor) -> Tensor:
    """Black images, normalised as the model's are."""
    mean, std = pixels.new_tensor(MEAN), pixels.new_tensor(STD)
    return (-mean / std)[:, None, None].expand_as(pixels)


def mean_colour(pixels: Tensor) -> Tensor:
    """Each image in its mean colour."""
    return pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)


def blurred(pixels: Tensor) -> Tensor:
    """Each image blurred by a normal distribution, whose standard deviation is an eighth of the side."""
    side = pixels.shape[-1]
    width = 2 * (side // 4) + 1  # two standard deviations to either side
    return gaussian_blur(pixels, [width, width], [side / 8, side / 8])


FILLS = {"blur": blurred, "mean": mean_colour, "black": black}


def order_of(maps: Tensor, seed: int = 0) -> Tensor:
    """The place of each patch (R, h, w), 0 for the largest value of its map; equal values in random order."""
    values = maps.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffle = torch.rand(values.shape, generator=generator).argsort(dim=1).to(values.device)
    among_shuffled = values.gather(1, shuffle).argsort(dim=1, descending=True, stable=True)
    return shuffle.gather(1, among_shuffled).argsort(dim=1).unflatten(1, maps.shape[1:])


@torch.no_grad()
def curves(
    probability: Probability, pixels: Tensor, maps: Tensor, *, fill: str = "blur", steps: int = 12, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Deletion and insertion curves, (R, K+1) each: the probability with a share of 0, 1/K, ... 1 of the patches.

    Args:
        probability: what is watched, of images (R, 3, S, S).
        pixels: (R, 3, S, S), normalised.
        maps: (R, h, w).
        fill: what covers a patch, of `FILLS`.
        steps: K; not more than there are patches are made.
        seed: of the order of equal values.

    Raises:
        InputError: an unknown fill.
    """
    if fill not in FILLS:
        raise InputError(f"fill is {fill!r}; it can be {', '.join(FILLS)}")
    cover, order = FILLS[fill](pixels), order_of(maps, seed)
    patches = order[0].numel()
    steps = min(steps, patches)
    deletion, insertion = [], []
    for step in range(steps + 1):
        marked = (order < round(step * patches / steps)).float()
        marked = F.interpolate(marked[:, None], size=pixels.shape[-2:], mode="nearest").bool()  # (R, 1, S, S)
        deletion.append(probability(torch.where(marked, cover, pixels)))
        insertion.append(probability(torch.where(marked, pixels, cover)))
    return torch.stack(deletion, dim=1), torch.stack(insertion, dim=1)


def area(curve: Tensor) -> Tensor:
    """The area (R,) under curves (R, K+1) over shares from 0 to 1, by trapezoids."""
    return (curve[:, :-1] + curve[:, 1:]).mean(dim=1) / 2


def probability_of(m: Predictor, objective: Objective, texts: Sequence[str], answers: Sequence[str]) -> Probability:
    """The probability of a match, of an answer, or of a caption's token (their geometric mean), from images."""

    counts = torch.ones(len(texts))
    if objective.per_token:
        counts = torch.tensor(token_counts(m, texts)) - 1  # the first token is given

    def of(pixels: Tensor) -> Tensor:
        images = list(pixels)
        if objective.ability == "match":
            return m.match_probability(images, texts, len(texts)).cpu()
        scores = objective.scores(m, images, texts, answers=answers)  # log-probabilities (R, n), zero after the end
        return (scores.sum(dim=1) / counts.to(scores)).exp().cpu()

    return of
