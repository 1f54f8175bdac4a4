"""The same batches for every number of workers and from every starting point."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from helpers.samples import write_images

from blip.data.batches import Batch
from blip.data.loader import LoaderOptions, eval_loader, make_loader
from blip.data.order import EpochOrder, steps_per_epoch
from blip.data.pairs import CaptionEncoder, EvalPairs, PairDataset, Pairs, read_pairs
from blip.data.skipped import TooManySkipped
from blip.data.transforms import eval_transform, train_transform
from blip.tokenizer import Tokenizer

COUNT = 11


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["text 0 1 2 3 4 5 6 7 8 9", "word of another length"], vocab_size=120)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    folder = tmp_path_factory.mktemp("set")
    write_images(folder, COUNT)
    records = [{"image": f"{i}.png", "caption": ["text " * (i + 1), "word"]} for i in range(COUNT)]
    (folder / "pairs.json").write_text(json.dumps(records))
    (folder / "3.png").write_bytes(b"broken")
    return read_pairs([str(folder / "pairs.json")])


def batches(
    pairs: Pairs, tokenizer: Tokenizer, count: int, start: tuple[int, int] = (0, 0), workers: int = 0, size: int = 3
) -> list[Batch]:
    order = EpochOrder(len(pairs), seed=5)
    data = PairDataset(pairs, order, CaptionEncoder(tokenizer, 12), transform=train_transform(8), seed=5)
    loader = make_loader(data, order, size, start=start, options=LoaderOptions(workers, pad_id=tokenizer.pad_id))
    return [next(loader) for _ in range(count)]


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [batch.indices for batch in ours] == [batch.indices for batch in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.lengths, b.lengths)
        assert torch.equal(a.caption_ids, b.caption_ids)
        assert torch.equal(a.image_ids, b.image_ids)
        assert a.skipped == b.skipped


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on machines with fewer than 3 cores
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(pairs: Pairs, tokenizer: Tokenizer, workers: int) -> None:
    state = torch.get_rng_state()
    ours = batches(pairs, tokenizer, 8)
    theirs = batches(pairs, tokenizer, 8, workers=workers)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn here, so that dropout is the same too
    assert_equal(ours, theirs)
    assert sum(len(batch.skipped) for batch in ours) >= 2  # the broken image, once in each epoch


@pytest.mark.parametrize("start", [(0, 2), (1, 0), (1, 1), (0, 3)])
def test_starting_in_the_middle_is_skipping(pairs: Pairs, tokenizer: Tokenizer, start: tuple[int, int]) -> None:
    skipped = start[0] * 3 + start[1]  # three batches an epoch
    everything = batches(pairs, tokenizer, skipped + 4)
    assert_equal(batches(pairs, tokenizer, 4, start, workers=skipped % 2), everything[skipped:])


def test_an_epoch_is_full_batches_and_the_next_differs(pairs: Pairs, tokenizer: Tokenizer) -> None:
    found = [batch.indices for batch in batches(pairs, tokenizer, 6)]
    assert all(len(indices) == 3 for indices in found)
    first, second = list(chain(*found[:3])), list(chain(*found[3:]))
    assert first != second
    assert 3 not in first + second  # the broken one
    assert len(set(first)) >= 8


def test_too_small_a_set_says_so(pairs: Pairs, tokenizer: Tokenizer) -> None:
    order = EpochOrder(COUNT, seed=0, rank=0, world=2)
    assert steps_per_epoch(order, 5) == 1
    data = PairDataset(pairs, order, CaptionEncoder(tokenizer, 12), transform=train_transform(8), seed=0)
    with pytest.raises(
        ValueError, match="5 records on each of 2 ranks, fewer than one batch of 6: set batch_size to 5"
    ):
        make_loader(data, order, 6)
    with pytest.raises(ValueError, match="cannot start at batch 3 of epoch 0: an epoch has 2 batches"):
        make_loader(data, order, 2, start=(0, 3))


def test_the_message_of_a_worker_arrives(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_images(tmp_path, 4)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(TooManySkipped, match="check-data"):
        batches(read_pairs([str(tmp_path / "pairs.json")]), tokenizer, 1, workers=1)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (3, 0)])
def test_evaluation_sees_each_image_once_in_order(pairs: Pairs, tokenizer: Tokenizer, world: int, workers: int) -> None:
    data = EvalPairs(pairs, CaptionEncoder(tokenizer, 12), eval_transform(8))
    seen, skipped = [], []
    for rank in range(world):
        loader = eval_loader(data, 2, rank=rank, world=world, num_workers=workers)
        indices = [index for batch in loader for index in batch.indices]
        assert indices == sorted(indices)
        assert {index % world for index in indices} == {rank}
        seen += indices
        skipped += loader.skipped
    assert sorted(seen) == [index for index in range(COUNT) if index != 3]
    assert [(index, Path(path).name) for index, path, _ in skipped] == [(3, "3.png")]


def test_evaluation_leaves_out_a_batch_of_nothing(pairs: Pairs, tokenizer: Tokenizer) -> None:
    data = EvalPairs(pairs, CaptionEncoder(tokenizer, 12), eval_transform(8))
    loader = eval_loader(data, 1)
    assert len(list(loader)) == COUNT - 1
    assert len(loader.skipped) == 1
    assert len(list(loader)) == COUNT - 1  # it can be walked again
    assert len(loader.skipped) == 1
