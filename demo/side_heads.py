"""Which heads tell left from right? They are found on phantoms, patched from the opposite image, and ablated.

python demo/side_heads.py --checkpoint runs/demo/run/checkpoints/latest --out runs/demo/side_heads.json

`docs/side_heads.ipynb` goes through the same steps one by one, and reads the side off each head. A pair of images is
one body with the same lesion on the left and on the right; nothing else differs. The model is asked which of two
captions it prefers for an image, the one that says left or the one that says right, by the log-probability of the
caption or by the logit of a match. To patch heads is to run one image with the outputs of these heads (`z`) for the
opposite one: the answer flips where the caption about the opposite image is preferred then. It is done with left images
and with right images. Heads are found on pairs of one seed and tested on pairs of another.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import blip
from blip.data.phantoms import draw_opposites
from blip.inference.predictor import Predictor
from blip.interpret.causes.labelled import Labelled
from blip.interpret.causes.metrics import METRICS

Head = tuple[str, int]  # its point, such as `image.1.attn.z`, and its number
Values = dict[str, list[Tensor]]  # by point, what passed it: (R, H, T, d) for each pass of the model
POINTS = {"caption": ("image.*.attn.z", "decoder.*.cross.z"), "match": ("image.*.attn.z", "text.*.cross.z")}
WAYS = ("left to right", "right to left")  # which images are patched, and from which their outputs come
SEARCHED, HELD_OUT = 32, 200  # pairs to find the heads on, pairs to test them on
DRAWS = 20  # random sets of heads
ENOUGH = 0.9  # of the answers that the named heads flip on the pairs that they are found on


@dataclass
class Opposites:
    """Images with a lesion on one side, the same on the opposite side, and their captions."""

    images: list[Image.Image]
    opposites: list[Image.Image]
    texts: list[str]
    opposite_texts: list[str]

    @classmethod
    def drawn(cls, count: int, seed: int, image_size: int = 48) -> "Opposites":
        """`count` left images and the right ones; those of another seed are others."""
        pairs = [draw_opposites(np.random.default_rng([seed, i]), image_size) for i in range(count)]
        sides = list(zip(*pairs, strict=True))
        images = [[image for _, image in side] for side in sides]
        texts = [[phantom.caption() for phantom, _ in side] for side in sides]
        return cls(*images, *texts)

    def turned(self) -> "Opposites":
        """The same pairs with the two exchanged."""
        return Opposites(self.opposites, self.images, self.opposite_texts, self.texts)


def main(
    checkpoint: Annotated[Path, typer.Option(help="of make demo")],
    out: Annotated[Path | None, typer.Option(help="a JSON file")] = None,
    searched: Annotated[int, typer.Option(help="pairs to find the heads on")] = SEARCHED,
    held_out: Annotated[int, typer.Option(help="pairs to test them on")] = HELD_OUT,
) -> None:
    """Finds the heads that carry the side of a lesion, and tests them on pairs that they were not found on."""
    console, m = Console(), blip.load(checkpoint)
    found, tested = Opposites.drawn(searched, seed=1), Opposites.drawn(held_out, seed=2)
    results: dict[str, dict[str, Any]] = {metric: {} for metric in POINTS}
    for metric, of_metric in results.items():
        for way in WAYS:
            of_metric[way] = test_heads(m, metric, tested, heads_that_flip(m, metric, found))
            show(console, f"{metric}, {way}", of_metric[way])
            found, tested = found.turned(), tested.turned()
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")


# ---- the answer, also with the outputs of some heads replaced --------------------------------------------------------


def preference(m: Predictor, metric: str, images: Sequence[Image.Image], pairs: Opposites) -> Tensor:
    """By how much the texts of `pairs` are preferred (R,); negative where the texts of the opposite images are."""
    score = METRICS[metric]
    with torch.no_grad():
        return score(m, images, pairs.texts) - score(m, images, pairs.opposite_texts)


def outputs(m: Predictor, metric: str, images: Sequence[Image.Image], pairs: Opposites) -> Values:
    """What the heads read while the model answers about these images."""
    with blip.trace(m, POINTS[metric]) as t:
        preference(m, metric, images, pairs)
    return {point: t.all(point) for point in blip.names(m) if point in t.wanted}


def heads_of(values: Values) -> list[Head]:
    """Every head, in the order of computation."""
    return [(point, head) for point, passes in values.items() for head in range(passes[0].shape[1])]


def patched_preference(m: Predictor, metric: str, pairs: Opposites, heads: Sequence[Head], values: Values) -> Tensor:
    """The preference for the images of pairs, while some heads have other outputs (R,)."""

    def replace(point: str) -> Any:
        passes, numbers = iter(values[point]), [head for at, head in heads if at == point]

        def edit(z: Tensor) -> Tensor:
            z[:, numbers] = next(passes)[:, numbers]
            return z

        return edit

    with blip.trace(m, edit={point: replace(point) for point in {point for point, _ in heads}}):
        return preference(m, metric, pairs.images, pairs)


def flipped(preferences: Tensor) -> float:
    """The share of images for which the caption of the opposite image is preferred."""
    return float((preferences < 0).double().mean())


# ---- finding the heads -----------------------------------------------------------------------------------------------


def shares_of_heads(m: Predictor, metric: str, pairs: Opposites) -> Labelled:
    """How much of the difference between the two images each head makes up for when it alone is patched.

    The difference is that of the score of the image's own caption, and the share that of the sums over all pairs.
    """
    effects, whole = [], 0.0
    for image, opposite, text in zip(pairs.images, pairs.opposites, pairs.texts, strict=True):
        effects.append(blip.patch_sweep(m, (image, text), (opposite, text), metric=metric, points=POINTS[metric]))
        whole += float(METRICS[metric](m, [opposite], [text]) - METRICS[metric](m, [image], [text]))
    total = np.sum([effect.values for effect in effects], axis=0)
    return Labelled(total / whole, effects[0].dims, effects[0].coords, "share of the difference")


def heads_that_flip(m: Predictor, metric: str, pairs: Opposites) -> list[Head]:
    """Few heads that together flip enough answers.

    One after the other is added, each time the one that moves the mean preference most beside those that were chosen:
    heads that do the same thing are all large alone, and of little use together.
    """
    values = outputs(m, metric, pairs.opposites, pairs)
    chosen: list[Head] = []
    others = heads_of(values)
    while others:
        moved = {head: patched_preference(m, metric, pairs, [*chosen, head], values) for head in others}
        best = min(others, key=lambda head: float(moved[head].mean()))
        chosen.append(best)
        others.remove(best)
        if flipped(moved[best]) >= ENOUGH:
            break
    return chosen


# ---- testing them ----------------------------------------------------------------------------------------------------


def test_heads(m: Predictor, metric: str, pairs: Opposites, named: list[Head]) -> dict[str, Any]:
    """Patches and ablates the named heads and random sets of as many, and patches all heads but the named."""
    opposite, same = outputs(m, metric, pairs.opposites, pairs), outputs(m, metric, pairs.images, pairs)
    turned = pairs.turned()
    back = outputs(m, metric, turned.opposites, turned)
    average = {  # of both sides: what a head reads when it does not know the side
        point: [((a + b) / 2).mean(dim=0, keepdim=True).expand_as(a) for a, b in zip(same[point], of, strict=True)]
        for point, of in opposite.items()
    }
    every = heads_of(opposite)
    rng = np.random.default_rng(0)
    drawn = [[every[i] for i in rng.choice(len(every), len(named), replace=False)] for _ in range(DRAWS)]
    flips = [flipped(patched_preference(m, metric, pairs, heads, opposite)) for heads in drawn]
    others = [head for head in every if head not in named]
    return {
        "heads": [f"{point} {head}" for point, head in named],
        "of": len(every),
        "right": 1 - flipped(preference(m, metric, pairs.images, pairs)),
        "flipped by the named heads": flipped(patched_preference(m, metric, pairs, named, opposite)),
        "flipped the other way by the named heads": flipped(patched_preference(m, metric, turned, named, back)),
        "flipped by random heads": mean(flips),
        "flipped by random heads at most": max(flips),
        "flipped by all other heads": flipped(patched_preference(m, metric, pairs, others, opposite)),
        "right without the named heads": 1 - flipped(patched_preference(m, metric, pairs, named, average)),
        "right without random heads": 1
        - mean(flipped(patched_preference(m, metric, pairs, heads, average)) for heads in drawn),
    }


def show(console: Console, name: str, result: dict[str, Any]) -> None:
    """A table of one metric and one way."""
    table = Table("", "", title=f"{name}: {len(result['heads'])} of {result['of']} heads")
    table.add_row("the named heads", ", ".join(result["heads"]))
    for what, value in result.items():
        if isinstance(value, float):
            table.add_row(what, f"{value:.1%}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
