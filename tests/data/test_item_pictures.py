"""Records with several pictures: read in every form, held in flat arrays, and made into samples and batches."""

import csv
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.set_files import put_parquet
from PIL import Image
from rich.console import Console
from torch import Tensor

from blip.data import pictures
from blip.data.augment import prepared
from blip.data.batches import collate
from blip.data.check import check_data
from blip.data.check_report import print_report
from blip.data.dataset import open_data
from blip.data.formats import AnnotationError
from blip.data.gallery import ImagesByNumber, unreadable
from blip.data.image_bytes import ImageLimits, UnreadableImage
from blip.data.loader import LoaderOptions, eval_loader, make_loader
from blip.data.order import EpochOrder
from blip.data.pairs import EvalPairs, PairDataset, read_pairs
from blip.data.pictures import Kind, evenly, open_pictures
from blip.data.places import find_records
from blip.data.questions import EvalQuestions, VqaDataset, read_questions
from blip.data.stream import StreamDataset, StreamOrder
from blip.data.training_images import FastImages
from blip.data.transforms import eval_transform, train_transform
from blip.data.webdataset import open_shards
from blip.network.pictures import Pictures

SIDE = 16


def draw(folder: Path, count: int = 6) -> None:
    """Images 0.png ...: noise, no two alike."""
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (24, 20, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")


RECORDS: list[dict[str, Any]] = [
    {"images": ["0.png", "1.png"], "caption": "two views"},
    {"image": "2.png", "caption": "one view"},
    {"images": ["3.png", "4.png", "5.png"], "caption": "three views"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path)
    (tmp_path / "pairs.json").write_text(json.dumps(RECORDS))
    return tmp_path


def encode(caption: str) -> list[int]:
    return [1, len(caption), 2]


def paths_of(folder: Path, pairs: Any) -> list[list[str]]:
    return [[Path(path).relative_to(folder).name for path in pairs.image_paths(i)] for i in range(len(pairs))]


# ---- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "parquet"])
def test_every_form_of_annotations(folder: Path, form: str) -> None:
    file = folder / f"set.{form}"
    lists = [record.get("images") or [record["image"]] for record in RECORDS]
    if form == "json":
        file.write_text(json.dumps(RECORDS))
    elif form == "jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    elif form == "csv":
        with file.open("w", newline="") as out:
            rows = csv.writer(out)
            rows.writerow(["images", "caption"])
            rows.writerows([" | ".join(paths), record["caption"]] for paths, record in zip(lists, RECORDS, strict=True))
    else:
        put_parquet(file, [{"images": x, "caption": r["caption"]} for x, r in zip(lists, RECORDS, strict=True)])
    pairs = read_pairs([file])
    assert paths_of(folder, pairs) == lists
    assert [Path(pairs.image_path(i)).name for i in range(3)] == ["0.png", "2.png", "3.png"]
    assert pairs.above(1) == 2 and pairs.above(2) == 1 and pairs.above(3) == 0
    found = list(find_records(file))
    assert [len(record.images) for record in found] == [2, 1, 3] and found[2].captions == ["three views"]


def test_equal_lists_are_equal_images(folder: Path) -> None:
    records = [*RECORDS, {"images": ["0.png", "1.png"], "caption": "again"}, {"image": "0.png", "caption": "one"}]
    (folder / "more.json").write_text(json.dumps(records))
    ids = [read_pairs([folder / "more.json"]).image_id(i) for i in range(5)]
    assert ids[0] == ids[3] and len(set(ids)) == 4


def test_one_picture_costs_no_more_memory(folder: Path) -> None:
    single = [{"image": f"{i}.png", "caption": "x"} for i in range(6)]
    (folder / "one.json").write_text(json.dumps(single))
    pairs = read_pairs([folder / "one.json"])
    assert pairs._further.nbytes == 0 and paths_of(folder, pairs) == [[f"{i}.png"] for i in range(6)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "a.png", "images": ["b.png"]}, "both image and images"),
        ({"images": []}, "an empty list"),
        ({"images": ["a.png", 3]}, "one of its images is a number (3)"),
        ({"images": ["a.png", " "]}, "one of its images is empty"),
        ({"images": {"a": 1}}, "its images are an object"),
        ({"images": ["https://x/a.png"]}, "nothing is downloaded"),
        ({}, "has no 'image'"),
    ],
)
def test_broken_lists(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({**record, "caption": "x", "question": "y", "answer": "z"}))
    for read in (read_pairs, read_questions):
        with pytest.raises(AnnotationError, match=re.escape(f"{file}, line 1: ")) as error:
            read([file])
        assert message in str(error.value)


def test_questions(folder: Path) -> None:
    records = [
        {"images": ["0.png", "1.png"], "question": "how many?", "answer": "2"},
        {"image": "2.png", "question": "what?", "answer": "this"},
        {"images": ["0.png", "1.png"], "question": "where?", "answer": "there"},
    ]
    (folder / "asked.json").write_text(json.dumps(records))
    questions = read_questions([folder / "asked.json"])
    assert [len(questions[i].image_paths) for i in range(3)] == [2, 1, 2]
    assert questions.image_number(0) == questions.image_number(2) != questions.image_number(1)
    assert questions.view([2, 1]).image_paths(0) == questions[0].image_paths
    assert questions.above(1) == 1  # an item with two questions
    transform = eval_transform(SIDE)
    sample = EvalQuestions(questions, lambda q: ([1], [[2]]), transform)[2]  # type: ignore[arg-type]
    assert sample.image is not None and sample.image.shape == (2, 3, SIDE, SIDE)
    data = VqaDataset(
        questions,
        EpochOrder(3, 0),
        lambda q: ([1], [[2]]),
        transform=FastImages(SIDE, augment_here=False),
        seed=0,  # type: ignore[arg-type]
    )
    assert sorted(data[0, i].image.dim() for i in range(3)) == [3, 4, 4]


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_evaluation(folder: Path) -> None:
    transform = eval_transform(SIDE)
    data = EvalPairs(read_pairs([folder / "pairs.json"]), encode, transform)
    (batch,) = eval_loader(data, 4, num_workers=0)
    assert isinstance(batch.images, Pictures) and batch.images.counts.tolist() == [2, 1, 3]
    expected = [transform(Image.open(folder / f"{i}.png")) for i in range(6)]
    assert torch.equal(batch.images.real(), torch.stack(expected))
    assert isinstance(collate([data[1]]).images, Tensor)  # as ever
    gallery = ImagesByNumber([data.records.image_paths(i) for i in range(3)], transform)
    (pixels,) = gallery([[2, 0]])
    assert isinstance(pixels, Pictures) and torch.equal(pixels.real(), torch.stack(expected)[[3, 4, 5, 0, 1]])


def test_one_unreadable_picture_makes_the_item_unreadable(folder: Path) -> None:
    (folder / "4.png").write_bytes(b"no image")
    pairs = read_pairs([folder / "pairs.json"])
    loader = eval_loader(EvalPairs(pairs, encode, eval_transform(SIDE)), 4, num_workers=0)
    (batch,) = loader
    assert batch.indices == [0, 1] and [Path(path).name for _, path, _ in loader.skipped] == ["4.png"]
    notes = unreadable([pairs.image_paths(i) for i in range(3)])
    assert [(number, Path(path).name) for number, path, _ in notes] == [(2, "4.png")]
    report = check_data([str(folder / "pairs.json")], num_workers=0)
    assert report.images == 6 and report.of_several == 2 and len(report.broken_images) == 1
    console = Console(record=True, width=120)
    print_report(report, console)
    assert "about several pictures: 2 records" in console.export_text()


@pytest.mark.parametrize("way", ["fast", "fast on the device", "pil"])
def test_training_draws_once_an_item(folder: Path, way: str) -> None:
    """Every picture of an item gets the pixels that it would get alone under the same number."""
    same = [{"images": [f"{i}.png", f"{(i + 1) % 6}.png", f"{i}.png"], "caption": "x"} for i in range(6)]
    (folder / "same.json").write_text(json.dumps(same))
    (folder / "alone.json").write_text(json.dumps([{"image": f"{i}.png", "caption": "x"} for i in range(6)]))
    usual: dict[str, Any] = {"horizontal_flip": True}
    ways: dict[str, Any] = {
        "pil": train_transform(SIDE, (0.2, 1.0), (2, 5), **usual),
        "fast": FastImages(SIDE, (0.2, 1.0), (2, 5), **usual),
        "fast on the device": FastImages(SIDE, (0.2, 1.0), (2, 5), augment_here=False, **usual),
    }
    batches = []
    for name in ("same", "alone"):
        pairs, order = read_pairs([folder / f"{name}.json"]), EpochOrder(6, 0)
        data = PairDataset(pairs, order, encode, transform=ways[way], seed=3)
        loader = make_loader(data, order, 6, options=LoaderOptions(0, 3))
        batches.append(next(prepared(iter([next(loader)]), torch.device("cpu"), 5)))
    several, alone = batches
    assert several.indices == alone.indices and isinstance(several.images, Pictures)
    pixels = several.images.tensor
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels[:, 0], alone.images) and torch.equal(pixels[:, 2], alone.images)
    assert not torch.equal(pixels[:, 1], alone.images)


def test_augmentation_on_the_device_of_a_batch_with_absent_pictures(folder: Path) -> None:
    pairs, order = read_pairs([folder / "pairs.json"]), EpochOrder(3, 0)
    found = []
    for here in (True, False):
        data = PairDataset(pairs, order, encode, transform=FastImages(SIDE, augment_here=here), seed=1)
        batch = collate([data[0, i] for i in range(3)])
        assert len(batch.operations) == 6  # pictures
        found.append(next(prepared(iter([batch]), torch.device("cpu"), 5)).images)
    assert torch.equal(found[0].present, found[1].present)
    assert (found[0].tensor - found[1].tensor).abs().max() < 0.02  # of shears some pixels differ by a level
    assert not found[1].tensor[~found[1].present].any()


# ---- references that mean several pictures, and how many are read ----------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of reference: NAME.strip#N is N grey pictures."""

    def read(reference: str, limits: ImageLimits) -> list[Image.Image]:
        _, _, count = reference.partition("#")
        if count == "0":
            raise UnreadableImage(reference, "has no frames")
        return [Image.new("RGB", (8, 8), (10 * i,) * 3) for i in range(int(count or limits.frames))]

    monkeypatch.setitem(pictures.KINDS, "strip", Kind(lambda path: ".strip" in path, read))


def test_references_that_mean_several_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    limits = ImageLimits(frames=3)
    opened = open_pictures(["a.strip", str(folder / "0.png"), "b.strip#2"], limits)
    assert [image.size for image in opened] == [(8, 8)] * 3 + [(20, 24)] + [(8, 8)] * 2
    records = [{"image": "a.strip#4", "caption": "x"}, {"image": "0.png", "caption": "y"}]
    (folder / "clips.json").write_text(json.dumps(records))
    pairs = read_pairs([folder / "clips.json"])
    data = EvalPairs(pairs, encode, eval_transform(SIDE), limits=limits)
    assert collate([data[0], data[1]]).images.counts.tolist() == [4, 1]
    train = PairDataset(pairs, EpochOrder(2, 0), encode, transform=FastImages(SIDE), seed=0, limits=limits)
    assert sorted(train[0, i].image.dim() for i in range(2)) == [3, 4]
    (folder / "clips.json").write_text(json.dumps([{"image": "a.strip#0", "caption": "x"}]))
    broken = EvalPairs(read_pairs([folder / "clips.json"]), encode, eval_transform(SIDE))[0]
    assert broken.image is None and broken.skipped[0][2] == "has no frames"
    assert len(check_data([str(folder / "clips.json")], num_workers=0).broken_images) == 1


def test_shards(folder: Path) -> None:
    """A sample of several pictures has them in the order of their numbers."""
    pytest.importorskip("webdataset")
    shard = folder / "shards" / "shard-00000.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as file:
        for key, count in (("a", 3), ("b", 1), ("c", 11)):
            names = (
                [f"{key}.{i}.png" for i in (10, 9, 8, 2, 1, 0, 3, 4, 5, 6, 7) if i < count] if count > 1 else ["b.png"]
            )
            for name in [*names, f"{key}.txt"]:
                content = b"a text" if name.endswith("txt") else (folder / f"{len(name) % 6}.png").read_bytes()
                if name.endswith(".png") and count > 1:
                    content += name.encode()  # behind the image, which decoders do not read
                about = tarfile.TarInfo(name)
                about.size = len(content)
                file.addfile(about, io.BytesIO(content))
    shards = open_shards([str(shard.parent)])
    found = [raw.images() for raw in shards.read(0)]
    assert [len(images) for images in found] == [3, 1, 11]
    assert all(image.endswith(f"c.{i}.png".encode()) for i, image in enumerate(found[2]))
    stream = StreamDataset(StreamOrder(shards, 3, 0), encode, FastImages(SIDE), limits=ImageLimits(max_pictures=4))
    batch = next(iter(stream))
    assert isinstance(batch.images, Pictures) and sorted(batch.images.counts.tolist()) == [1, 3, 4]


def test_a_data_set_of_torch(folder: Path) -> None:
    data = open_data(folder / "pairs.json")
    assert [len(item.images) for item in data] == [2, 1, 3] and data[2].images[2].size == (20, 24)


def test_more_pictures_than_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    shades = [image.getpixel((0, 0))[0] // 10 for image in open_pictures(["a.strip#9"], ImageLimits(max_pictures=3))]
    assert shades == [0, 4, 8]
    for count in range(1, 40):
        for most in range(1, 12):
            taken = evenly(count, most)
            assert len(taken) == len(set(taken)) == min(count, most) and taken == sorted(taken) and taken[0] == 0
            assert most == 1 or taken[-1] == count - 1
            gaps = np.diff(taken)
            assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
