"""What each of many processes keeps and exchanges when weights are divided among them."""

import math
from collections.abc import Iterable, Iterator

import pytest
import torch
from helpers.fake_group import Exchanged, fake_group
from helpers.sharded_training import needs_sums
from helpers.tiny import specials_of, tiny_text, tiny_vit
from torch import nn
from torch.nn import functional as F

from blip.models.momentum import Candidates, Twin
from blip.models.pretrain import PretrainModel
from blip.train.optim import build_optimizer
from blip.train.sharding import Sharded, units

pytestmark = needs_sums
CPU, BATCH, EMBED = torch.device("cpu"), 3, 8
WIDTH = 512  # divisible by the processes, as real widths are


@pytest.fixture(params=[8, 64, 512])
def world(request: pytest.FixtureRequest) -> Iterator[int]:
    with fake_group(request.param):
        yield request.param


def model() -> PretrainModel:
    text = tiny_text(vocab_size=1024, width=WIDTH, hidden=2 * WIDTH, image_width=WIDTH, heads=2, max_positions=512)
    return PretrainModel(tiny_vit(width=WIDTH, heads=2), text, specials_of(text), embed_dim=EMBED)


def numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def step(parallel: Sharded) -> None:
    features = [F.normalize(torch.randn(EMBED, BATCH + 4), dim=0) for _ in range(2)]
    candidates = Candidates(*features, torch.eye(BATCH, BATCH + 4, dtype=torch.bool))
    ids, lengths = torch.randint(1, 40, (BATCH, 6)), torch.tensor([6, 4, 5])

    def draw(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(BATCH).roll(1), torch.ones(BATCH, dtype=torch.bool)

    out = parallel(torch.randn(BATCH, 3, 32, 32), ids, lengths, candidates, 0.4, draw=draw)
    (out.itc + out.itm + out.lm).backward()


def test_a_process_keeps_its_share_of_weights_and_optimizer(world: int) -> None:
    whole = model()
    total, twin = numbers(whole.parameters()), Twin(whole)
    of_twin = numbers(twin.parameters())
    sharded, sharded_twin = Sharded(whole, CPU), Sharded(twin, CPU)
    for kept, parallel, count in ((whole, sharded, total), (twin, sharded_twin, of_twin)):
        rows = sum(math.ceil(len(p) / world) * p[:1].numel() for p in kept.parameters() if p.ndim)
        here = numbers(map(parallel.own, kept.parameters()))
        assert here == rows + (kept is whole), "whole rows, and the temperature"
        # the first process has a row of every tensor of fewer rows than there are processes
        few = sum(p[:1].numel() for p in kept.parameters() if p.ndim and len(p) < world)
        assert count / world <= here <= 1.05 * count / world + few + 1
    own, theirs = twin, dict(whole.named_parameters())
    for name, p in own.named_parameters():
        assert sharded_twin.own(p).shape == sharded.own(theirs[name]).shape, "an update exchanges nothing"
    optimizer = build_optimizer(whole, 0.1, 0.0, own=sharded.own)
    assert numbers(optimizer.param_groups[0]["params"]) == numbers(map(sharded.own, whole.parameters()))


def test_bytes_of_a_step(world: int) -> None:
    made = model()
    total = 4 * numbers(made.parameters())
    parallel = Sharded(made, CPU)
    with Exchanged() as exchanged:
        step(parallel)
        parallel.clip(1.0)
    # rows are padded to a multiple of the processes
    padded = sum(4 * world * math.ceil(len(p) / world) * p[:1].numel() for p in made.parameters() if p.ndim)
    assert total - 4 <= padded == exchanged.bytes["_reduce_scatter_base_"], "every gradient is summed once"
    assert exchanged.bytes["allreduce_"] == 8, "of the temperature, and for the norm"
    # forward: images once; the decoder's self-attention once, the encoder's twice, what both share three times; all of
    # it again backwards, but for what belongs to no unit
    used = {id(unit): 1 for unit in units(made)}
    for layer in made.text_encoder.layers:
        used |= {id(layer.self_attention): 2, id(layer.cross_attention): 3, id(layer.feed_forward): 3}
    of_units = [(used[id(unit)], gathered_bytes(unit, world)) for unit in units(made)]
    rest = padded - sum(size for _, size in of_units)
    assert exchanged.bytes["_allgather_base_"] == rest + 2 * sum(times * size for times, size in of_units)


def gathered_bytes(unit: nn.Module, world: int) -> int:
    return sum(4 * world * math.ceil(len(p) / world) * p[:1].numel() for p in unit.parameters())
