"""Statements about two images: the sets as distributed, the drawing of three boxes, samples and batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.real_files import lines, read
from helpers.set_files import png, put
from PIL import Image

from blip.data.images import UnreadableImage
from blip.data.loader import LoaderOptions, eval_loader, make_loader
from blip.data.order import EpochOrder
from blip.data.pairs import CaptionEncoder
from blip.data.statements import (
    EvalStatements,
    NlvrBatch,
    NlvrDataset,
    Statements,
    collate_nlvr,
    cut_boxes,
    open_images,
    read_statements,
)
from blip.data.transforms import eval_transform, train_transform
from blip.errors import BlipError
from blip.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the left dog sits right of two others 0 1 2 3 4 5 6 7 8 9"] * 2, vocab_size=90)


def test_nlvr2(tmp_path: Path) -> None:
    lines = [
        {"identifier": "train-10171-0-1", "directory": 47, "sentence": "a dog", "label": "True", "left_url": "http://"},
        {"identifier": "train-10171-2-0", "directory": 47, "sentence": "two dogs", "label": "False"},
    ]
    put(tmp_path / "data/train.json", "\n".join(map(json.dumps, lines)))
    (tmp_path / "images/train").mkdir(parents=True)
    found = read_statements([str(tmp_path)], dataset="nlvr2", split="train")
    folder = tmp_path / "images/train/47"
    assert found[0].images == (f"{folder}/train-10171-0-img0.png", f"{folder}/train-10171-0-img1.png")
    assert [(found[i].sentence, found[i].label, found[i].id) for i in range(2)] == [
        ("a dog", True, "train-10171-0-1"), ("two dogs", False, "train-10171-2-0"),
    ]  # fmt: skip
    put(tmp_path / "data/dev.json", json.dumps({"identifier": "dev-8-0-0", "sentence": "x", "label": "True"}))
    (tmp_path / "dev").mkdir()
    found = read_statements([str(tmp_path)], dataset="nlvr2", split="dev")
    assert found[0].images == (f"{tmp_path}/dev/dev-8-0-img0.png", f"{tmp_path}/dev/dev-8-0-img1.png")


def test_the_json_of_blip_and_the_generic_one(tmp_path: Path) -> None:
    rows = [{"images": ["dev/l.png", "dev/r.png"], "sentence": "x", "label": "False"}]
    for kind in ("nlvr2", "json"):
        found = read_statements([str(put(tmp_path / "a.json", rows))], image_root=str(tmp_path), dataset=kind)
        assert found[0].images == (f"{tmp_path}/dev/l.png", f"{tmp_path}/dev/r.png")
        assert (found[0].label, found[0].id) == (False, "a.json:1")
    rows = [{"image": "three.png", "sentence": "x", "label": True}]
    assert read_statements([str(put(tmp_path / "b.json", rows))])[0].images == f"{tmp_path}/three.png"
    with pytest.raises(ValueError, match="weight is 2"):
        read_statements([{"path": str(tmp_path / "b.json"), "weight": 2}])


def test_nlvr_is_cut_behind_the_first_box(tmp_path: Path) -> None:
    line = {"identifier": "3597-0", "directory": "5", "sentence": "x", "label": "true", "evals": {}}
    put(tmp_path / "dev/dev.json", json.dumps(line))
    drawing = np.full((100, 400, 3), 128, np.uint8)
    for box, first in enumerate((0, 150, 300)):
        drawing[:, first : first + 100] = 10 * (box + 1)
    path = tmp_path / "dev/images/5/dev-3597-0-0.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(drawing).save(path)
    found = read_statements([str(tmp_path)], dataset="nlvr", split="validation")
    assert found[0].images == str(path)
    left, right = open_images(found[0].images)
    assert (left.size, right.size) == ((100, 100), (250, 100))
    assert set(np.unique(np.asarray(left))) == {10}
    assert set(np.unique(np.asarray(right))) == {20, 30, 128}
    Image.new("L", (300, 100)).save(path)
    with pytest.raises(UnreadableImage, match="300 x 100 pixels; a drawing of three boxes is four times as wide"):
        open_images(str(path))
    with pytest.raises(ValueError):
        cut_boxes(Image.new("L", (401, 100)))


@pytest.fixture
def nine(tmp_path: Path) -> Statements:
    """Statement i is about the shades i and 100 + i; the right image of the fourth is broken."""
    rows = []
    for i in range(9):
        put(tmp_path / f"{i}l.png", png(i))
        put(tmp_path / f"{i}r.png", png(100 + i))
        sentence = "the left dog sits right of " + "two " * (i % 3)
        rows.append({"images": [f"{i}l.png", f"{i}r.png"], "sentence": sentence, "label": bool(i % 2)})
    put(tmp_path / "3r.png", b"broken")
    return read_statements([str(put(tmp_path / "s.json", rows))])


def batches(
    statements: Statements, tokenizer: Tokenizer, count: int, start: tuple[int, int] = (0, 0), workers: int = 0
) -> list[NlvrBatch]:
    order = EpochOrder(len(statements), seed=2)
    data = NlvrDataset(statements, order, CaptionEncoder(tokenizer, 16), transform=train_transform(8), seed=2)
    loader = make_loader(data, order, 3, start=start, options=LoaderOptions(workers, collate_fn=collate_nlvr))
    return [next(loader) for _ in range(count)]


def test_batches_do_not_depend_on_workers_or_start(nine: Statements, tokenizer: Tokenizer) -> None:
    ours, theirs = batches(nine, tokenizer, 6), batches(nine, tokenizer, 6, workers=1)
    for a, b in zip(ours + ours[4:], theirs + batches(nine, tokenizer, 2, (1, 1)), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels)
        assert (a.indices, a.skipped) == (b.indices, b.skipped)
    notes = [note for batch in ours for note in batch.skipped]
    assert {(index, Path(path).name) for index, path, _ in notes} == {(3, "3r.png")}


def test_left_stays_left(nine: Statements, tokenizer: Tokenizer) -> None:
    order = EpochOrder(9, seed=0)
    plain = eval_transform(4)
    train = NlvrDataset(nine, order, CaptionEncoder(tokenizer, 16), transform=plain, seed=0)
    left, right = (torch.stack([plain(Image.new("RGB", (6, 6), (v + i,) * 3)) for i in range(9)]) for v in (0, 100))
    for sample in [train[(epoch, position)] for epoch in range(4) for position in range(9)]:
        assert torch.equal(sample.images, torch.stack([left[sample.index], right[sample.index]]))
        assert sample.ids == tokenizer.encode([nine[sample.index].sentence], 16)[0]
    data = EvalStatements(nine, CaptionEncoder(tokenizer, 16), plain)
    found = list(eval_loader(data, 4, collate_fn=collate_nlvr))
    assert [batch.indices for batch in found] == [[0, 1, 2], [4, 5, 6, 7], [8]]
    assert [batch.labels.tolist() for batch in found] == [[0, 1, 0], [0, 1, 0, 1], [0]]
    images = torch.cat([batch.images for batch in found])
    kept = [0, 1, 2, 4, 5, 6, 7, 8]
    assert images.shape == (8, 2, 3, 4, 4)
    assert torch.equal(images, torch.stack([left[kept], right[kept]], dim=1))
    moved = found[0].to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta" and moved.lengths.device.type == "cpu"
    assert found[0].skipped[0][0] == 3 and len(collate_nlvr([data[3]])) == 0


@pytest.mark.parametrize("images, message", [
    (["a.png", "b.png", "c.png"], "has 3 images; a statement is about two, left and right, one picture each"),
    (["a.png"], "has 1 image; a statement is about two"),
    ([["a.png", "b.png"], ["c.png"]], "has images of another form; a statement is about two"),
    ("a.png|b.png", "has images of another form"),
    (["a.png", "clip.mp4"], r"clip.mp4 is a video or a volume, .* a slice is named by #slice=N, a frame has to be"),
    (["ct/#slices=4", "b.png"], "ct/#slices=4 is a video or a volume, and a statement is about two, one pic"),
    (["b.png", "ct/"], "ct is a video or a volume"),
])  # fmt: skip
def test_a_side_of_a_statement_is_one_picture(tmp_path: Path, images: object, message: str) -> None:
    (tmp_path / "ct").mkdir()
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"images": images, "sentence": "both lungs are clear", "label": True}]))
    with pytest.raises(BlipError, match=f"x.json, record 1: .*{message}"):
        read_statements([str(path)])


@pytest.mark.real_data
def test_real_statements_of_nlvr(data_dir: Path) -> None:
    raw = read(data_dir, "nlvr_sample/nlvr.json")
    found = read_statements([str(data_dir / "nlvr_sample")], dataset="nlvr", split="validation")
    plain = read_statements([str(data_dir / "nlvr_sample" / "nlvr.json")])
    assert len(found) == len(plain) == len(raw)
    assert {found[i].sentence for i in range(len(raw))} == {row["sentence"] for row in raw}
    both = [[(x[i].images, x[i].sentence, x[i].label) for i in range(len(raw))] for x in (found, plain)]
    assert both[0] == both[1]
    left, right = open_images(found[0].images)
    with Image.open(data_dir / "nlvr_sample" / raw[0]["image"]) as image:
        whole = np.asarray(image.convert("RGB"))
    assert np.array_equal(left, whole[:, :100]) and np.array_equal(right, whole[:, 150:])
    assert left.size == (100, 100) and right.size == (250, 100)
    assert right.getpixel((100, 50)) == right.getpixel((149, 50)) == (128, 128, 128), "the gap between two boxes"


@pytest.mark.real_data
def test_real_statements_of_nlvr2(data_dir: Path, tokenizer: Tokenizer) -> None:
    raw = lines(data_dir, "format_fixtures/vision/nlvr2/tiny-dev.json")
    pairs = read_statements([str(data_dir / "format_fixtures/vision/nlvr2/tiny-dev.json")], dataset="nlvr2")
    assert [pairs[i].label for i in range(len(pairs))] == [row["label"] == "True" for row in raw]
    data = EvalStatements(pairs, CaptionEncoder(tokenizer, 30), eval_transform(32))
    images = collate_nlvr([data[i] for i in range(len(raw))]).images
    assert images.shape == (len(raw), 2, 3, 32, 32)
