"""Transforms that change with the epoch: a sample's size is that of its epoch, from any start and any worker."""

import json
from pathlib import Path

import pytest
import torch
from helpers.samples import write_images

from blip.data.by_epoch import ByEpoch, at_epoch
from blip.data.loader import LoaderOptions, make_loader
from blip.data.order import EpochOrder
from blip.data.pairs import CaptionEncoder, PairDataset, read_pairs
from blip.data.stream import StreamDataset, StreamOrder, stream_loader
from blip.data.transforms import train_transform
from blip.data.webdataset import open_shards, write_tar_shards
from blip.tokenizer import Tokenizer

COUNT, BATCH = 9, 3  # three batches an epoch
SIZES = [4] * 6 + [8] * 3 + [12] * 3  # of the batches of four epochs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images with captions, as a file of annotations and as shards."""
    place = tmp_path_factory.mktemp("growing")
    write_images(place, COUNT)
    records = [{"image": f"{i}.png", "caption": f"number {i}"} for i in range(COUNT)]
    (place / "pairs.json").write_text(json.dumps(records))
    samples = ({"png": (place / r["image"]).read_bytes(), "json": {"caption": r["caption"]}} for r in records)
    write_tar_shards(place / "shards", samples, 4)
    return place


def growing() -> ByEpoch:
    return ByEpoch({0: train_transform(4), 2: train_transform(8), 3: train_transform(12)})


def loaders(folder: Path, start: tuple[int, int], workers: int) -> list:
    """Batches of the annotation file, and of the shards."""
    encode = CaptionEncoder(Tokenizer.train([f"number {n}" for n in range(COUNT)], 64), 12)
    order = EpochOrder(COUNT, seed=1)
    data = PairDataset(read_pairs([str(folder / "pairs.json")]), order, encode, transform=growing(), seed=1)
    found = [make_loader(data, order, BATCH, start=start, options=LoaderOptions(workers))]
    if (folder / "shards").is_dir() and pytest.importorskip("webdataset"):
        stream = StreamOrder(open_shards([str(folder / "shards")]), BATCH, 1, lanes=1, window=4)
        found.append(stream_loader(StreamDataset(stream, encode, growing(), start=start), workers, False))
    return found


@pytest.mark.parametrize(("start", "workers"), [((0, 0), 2), ((1, 2), 0), ((1, 2), 2), ((2, 1), 1)])
def test_sizes_follow_the_epoch(folder: Path, start: tuple[int, int], workers: int) -> None:
    first = 3 * start[0] + start[1]
    for whole, resumed in zip(loaders(folder, (0, 0), 0), loaders(folder, start, workers), strict=True):
        expected = [next(whole) for _ in SIZES]
        assert [batch.images.shape for batch in expected] == [(BATCH, 3, size, size) for size in SIZES]
        for batch in expected[first:]:
            found = next(resumed)
            assert torch.equal(found.images, batch.images) and found.indices == batch.indices


def test_which_transform_an_epoch_has() -> None:
    plain, small, large = object(), object(), object()
    assert at_epoch(plain, 7) is plain  # type: ignore[arg-type, comparison-overlap]
    several = ByEpoch({3: large, 0: small})  # type: ignore[dict-item]
    assert [at_epoch(several, epoch) for epoch in (0, 2, 3, 9)] == [small, small, large, large]


@pytest.mark.parametrize("begins", [[], [1, 2]])
def test_the_first_one_begins_with_epoch_0(begins: list[int]) -> None:
    with pytest.raises(ValueError, match="the first one has to be 0"):
        ByEpoch(dict.fromkeys(begins, train_transform(8)))
