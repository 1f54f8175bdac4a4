"""What maps are compared with: maps that know nothing, the boxes themselves, and models with random weights.

The sanity check of Adebayo et al. 2018 makes a model random from its output to its input, one layer after the other.
A map that explains the model has to change with it; one that stays shows the image, as an edge detector would.

Shapes: R pairs, h*w patches.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blip.inference.predictor import Predictor
from blip.interpret.objectives import Objective
from blip.interpret.points import STACKS, layers_of
from blip.network.med import TextDecoder
from blip.network.qformer import QFormer


def random_maps(count: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    """(R, h, w) of uniform noise."""
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def centre_maps(count: int, grid: tuple[int, int]) -> Tensor:
    """(R, h, w), largest in the middle: a normal distribution, whose standard deviation is a quarter of the side."""
    y, x = (torch.linspace(-1 + 1 / size, 1 - 1 / size, size) for size in grid)
    return torch.exp(-2 * (y[:, None] ** 2 + x[None] ** 2)).expand(count, *grid)


def other_texts(texts: Sequence[str]) -> list[str]:
    """For each text the next one in the list that differs from it, the same where all are equal."""
    texts, found = list(texts), []
    for i, text in enumerate(texts):
        found.append(next((other for other in texts[i + 1 :] + texts[:i] if other != text), text))
    return found


# ---- random weights --------------------------------------------------------------------------------------------------


def parts_of(model: nn.Module, objective: Objective) -> list[tuple[str, list[nn.Parameter]]]:
    """(name, parameters) of the parts that an objective runs through, from the output to the input.

    First the heads, then the layers, at last what is left of image encoder and text transformer, such as embeddings,
    which are a decoder's output matrix too. Every parameter is in one part.
    """
    stacks = {"image", objective.stack} | ({"decoder"} if objective.has_answers else set())
    modules = {stack: getattr(model, STACKS[stack][0]) for stack in stacks}
    heads = [child for name, child in model.named_children() if name not in {place for place, _ in STACKS.values()}]
    writer = modules.get("decoder", modules.get("qformer"))
    if isinstance(writer, TextDecoder | QFormer):
        head = writer.head
        heads += [head.transform, head.norm, nn.ParameterList([head.bias])]
    parts: list[tuple[str, list[nn.Module]]] = [("heads", heads)]
    layers = [(name, layer) for name, layer in layers_of(model) if name.split(".")[0] in stacks]
    parts += [(name, [layer]) for name, layer in reversed(layers)]
    parts.append(("embeddings", list(modules.values())))
    seen: set[int] = set()
    found = []
    for name, of_part in parts:
        own = [p for module in of_part for p in module.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        found.append((name, own))
    return found


@torch.no_grad()
def draw_again(parameter: Tensor, generator: torch.Generator) -> None:
    """Replaces a tensor by normally distributed numbers with its own mean and standard deviation."""
    mean, std = parameter.float().mean().item(), parameter.float().std(correction=0).item()
    noise = torch.randn(parameter.shape, generator=generator)
    parameter.copy_((mean + std * noise).to(parameter))


def randomised(m: Predictor, objective: Objective, seed: int = 0) -> Iterator[tuple[str, Predictor]]:
    """(name of the part that was made random last, predictor), from the heads alone to the whole model.

    Weights are drawn anew with the mean and the standard deviation of each tensor, so that states keep their size. It
    is one model, which changes from step to step: use each before taking the next. `m` stays as it is.
    """
    model = deepcopy(m.model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameters in parts_of(model, objective):
        for parameter in parameters:
            draw_again(parameter, generator)
        yield name, type(m)(model, m.tokenizer, m.info, device=m.device, precision=m.precision)


def untrained(m: Predictor, objective: Objective, seed: int = 0) -> Predictor:
    """The model with all weights random: the last step of `randomised`."""
    *_, (_, last) = randomised(m, objective, seed)
    return last


# ---- rank correlation ------------------------------------------------------------------------------------------------


def ranks(values: NDArray) -> NDArray:
    """The rank of each of n numbers, from 0; equal numbers share the mean of theirs."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count) - 1
    return (last - (count - 1) / 2)[group.ravel()]


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's correlation of two maps, 0 where one of them is constant."""
    a, b = (ranks(x.detach().cpu().double().numpy().ravel()) for x in (one, other))
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
