"""What each of several processes does with its share of a batch of BLIP-2's first stage."""

from pathlib import Path

import torch
from torch import Tensor

from blip import distributed
from blip.models.blip2 import Blip2Model, positives_among
from helpers.running import join
from helpers.tiny import spread, tiny_blip2

LENGTHS = torch.tensor([6, 4, 7, 3])  # the same number of tokens in each half
CAPTIONS, IMAGES = torch.tensor([0, 1, 2, 0]), torch.tensor([5, 6, 7, 8])  # two equal captions, in both halves
SIZE = len(LENGTHS)


def build() -> Blip2Model:
    torch.manual_seed(2)
    return spread(tiny_blip2(), std=0.3)  # type: ignore[return-value]


def most_similar(weights: Tensor) -> tuple[Tensor, Tensor]:
    return weights.argmax(dim=1), weights.sum(dim=1) > 0


def step(rows: slice, *, both: bool) -> dict[str, Tensor]:
    """Losses and gradients of these pairs of the batch, means over all processes."""
    torch.manual_seed(1)
    images, ids = torch.randn(SIZE, 3, 32, 32), torch.randint(1, 48, (SIZE, 7))
    ids = ids.masked_fill(torch.arange(7) >= LENGTHS[:, None], 0)[rows]
    ids = ids[:, : LENGTHS[rows].max()]  # each process has another width
    model, positives = build(), positives_among(CAPTIONS[rows], IMAGES[rows])
    out = model(images[rows], ids, LENGTHS[rows], positives=positives, gather_gradients=both, draw=most_similar)
    (out.itc + out.itm + out.lm).backward()
    found = {"itc": out.itc.detach(), "itm": out.itm.detach(), "lm": out.lm.detach()}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: distributed.all_reduce(x) for name, x in found.items()}


def process(rank: int, port: int, folder: Path) -> None:
    """All of one process: joins the others, takes a step both ways, writes FOLDER/RANK.pt."""
    join(rank, port)
    half = SIZE // distributed.world_size()
    own = slice(rank * half, (rank + 1) * half)
    found = {both: step(own, both=both) for both in (False, True)}
    distributed.stop()
    torch.save(found, folder / f"{rank}.pt")
