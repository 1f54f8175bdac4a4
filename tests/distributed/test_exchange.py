"""Rows that travel between processes: equal to a gather of all, in two and three of them, and few bytes in many."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.exchanged import BATCH, EMBED, MOST, model, process
from helpers.fine_tuning import same_tensors
from helpers.running import start_two
from torch.testing import assert_close
from torch.testing._internal.distributed.fake_pg import FakeStore

from blip import distributed
from blip.models import momentum
from blip.models.momentum import Entries, Queue
from blip.models.retrieval import RetrievalModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 3])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two or three processes saw."""
    return start_two(process, tmp_path_factory.mktemp("many"), request.param, world=request.param)


def test_rows_and_their_gradients(seen: list[dict]) -> None:
    for one in seen:
        for name, (fetched, gathered) in one["rows"].items():
            # gradients are summed in another order, and those in bf16 in float32, which a reduction in bf16 does not do
            error = 0.02 if "bfloat16" in name else 1e-6
            assert_close(fetched, gathered, rtol=0, atol=error if "gradient" in name else 0)


def test_the_last_rows(seen: list[dict]) -> None:
    for one in seen:
        for most in MOST:
            found, twin = one["last"][most]
            assert len(found[0]) == min(most, len(seen) * BATCH)
            assert_close(found, twin, rtol=0, atol=0)


def test_a_queue_of_any_size(seen: list[dict]) -> None:
    for one in seen:
        for queue, plain in one["queues"].values():
            assert_close(queue, plain, rtol=0, atol=0)
        assert_close(one["queues"], seen[0]["queues"], rtol=0, atol=0)


@pytest.mark.parametrize("bf16", [False, True])
def test_hard_negatives_of_all_processes(seen: list[dict], bf16: bool) -> None:
    for one in seen:
        found, twin = one["losses"][bf16]
        assert found.keys() == twin.keys() and len(found) > 20
        assert_close(found["itm"], twin["itm"], rtol=0, atol=0)
        # the twin sums gradients of float32 states in bf16 layers in another order
        close = {"rtol": 0.03, "atol": 0.003} if bf16 else {"rtol": 1e-4, "atol": 1e-6}
        assert_close(found, twin, **close)


def test_hard_negatives_of_several_pictures(seen: list[dict]) -> None:
    """Some processes have items of more pictures than others; absent ones take no part."""
    for one in seen:
        found, twin = one["several"]
        assert found.keys() == twin.keys() and len(found) > 20
        assert_close(found, twin, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(found["itm"], one["losses"][False][0]["itm"])


def test_compressed_gradients(seen: list[dict]) -> None:
    """Rounded before they are averaged, equal on all processes, and float32 for the optimizer."""
    for one in seen:
        exact, rounded = one["averaged"]["none"], one["averaged"]["bf16"]
        assert_close(rounded, seen[0]["averaged"]["bf16"], rtol=0, atol=0)
        assert_close(rounded, exact, rtol=0.02, atol=0.05)
        for name, gradient in rounded.items():
            assert gradient.dtype == torch.float32
            assert_close(gradient, gradient.bfloat16().float(), rtol=0, atol=0)
            assert not torch.equal(gradient, exact[name])


def test_what_the_main_process_reads(seen: list[dict]) -> None:
    for rank, one in enumerate(seen):
        shared = one["shared"]
        assert shared["reads"] == (1 if rank == 0 else 0) and shared["info"] == {"info": None}
        same_tensors(shared["found"], shared["wanted"])


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """A group of as many processes as the test asks for, which exchange nothing -> what this one would receive."""
    dist.init_process_group("fake", rank=request.param - 1, world_size=request.param, store=FakeStore())
    received: list[tuple[str, int]] = []
    for name in ("all_gather_into_tensor", "all_gather_single", "all_to_all_single"):
        call = getattr(dist, name, None)

        def counted(out: Any, *given: Any, name: str = name, call: Any = call) -> None:
            received.append(("exchange" if "to_all" in name else "gather", out.nbytes))
            out.zero_()
            call(out, *given)

        if call is not None:
            monkeypatch.setattr(dist, name, counted)
    yield received
    dist.destroy_process_group()


ROW = 4 * (EMBED + EMBED) + 8 + 8  # bytes of an entry


@pytest.mark.parametrize("group", [8, 64], indirect=True)
@pytest.mark.parametrize("size", [10, 100_000])
def test_bytes_of_the_queue(group: list[tuple[str, int]], size: int) -> None:
    """One gather; and of a batch larger than the queue as many rows as the queue has, with one small exchange."""
    world = distributed.world_size()
    Queue(size, EMBED).push(Entries(*torch.randn(2, BATCH, EMBED), *torch.zeros(2, BATCH, dtype=torch.long)))
    if size > world * BATCH:
        assert group == [("gather", world * BATCH * ROW)]
        return
    share = -(-size // world)
    (first, few), (second, all_of_them) = group
    assert first == "exchange" and few <= share * ROW
    assert second == "gather" and all_of_them == world * share * ROW < 2 * size * ROW + world * ROW


@pytest.mark.parametrize("group", [8, 64], indirect=True)
def test_bytes_of_hard_negatives(group: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """States travel for the pairs of this process alone, however many others there are, and in bf16."""
    world, made = distributed.world_size(), model(RetrievalModel)
    # a fake group tells nothing of what others draw: each process draws the pairs of the next one
    wanted = (torch.arange(BATCH) + BATCH * torch.arange(1, world + 1)[:, None]) % (world * BATCH)
    lengths = torch.tensor([5, 4, 5])
    alike = (torch.full((world, BATCH), number) for number in (5, 1))  # width of the texts, pictures of an item
    asked = torch.stack([wanted, wanted, lengths.expand(world, -1), *alike], dim=1)
    gather = distributed.all_gather
    monkeypatch.setattr(
        distributed,
        "all_gather",
        lambda x: asked if x.dim() == 3 else gather(x),
    )
    entries = Entries(*torch.randn(2, BATCH, EMBED), *torch.arange(2 * BATCH).view(2, BATCH))
    found = momentum.candidates(entries, Queue(4, EMBED))
    others = torch.zeros(BATCH, world * BATCH, dtype=torch.bool)
    ids = torch.randint(1, 40, (BATCH, 5))
    with torch.autocast("cpu", torch.bfloat16):
        out = made(torch.randn(BATCH, 3, 32, 32), ids, lengths, found, 0.4, others=others)
    (out.itc + out.itm).backward()
    exchanged = [count for name, count in group if name == "exchange"]
    states = BATCH * 17 * 24 * 2  # pairs, tokens and width of an image, bytes of bf16
    tokens = BATCH * 5 * 8
    assert exchanged == [tokens, states, states], exchanged  # the last are gradients
    assert [count for name, count in group if name == "gather"] == [world * BATCH * 4 * EMBED] * 2
