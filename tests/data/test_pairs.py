"""Annotation files, what they become in memory, samples, and the log of unreadable images."""

import csv
import json
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.real_files import read, tokenizer_of
from helpers.samples import write_images

from blip.data import pairs as pairs_module
from blip.data.batches import Sample, collate
from blip.data.check import check_data
from blip.data.check_report import print_report
from blip.data.formats import AnnotationError
from blip.data.order import EpochOrder
from blip.data.pairs import CaptionEncoder, EvalPairs, PairDataset, Pairs, caption_id, has_words, read_pairs
from blip.data.skipped import SkipLog, TooManySkipped
from blip.data.transforms import eval_transform, train_transform
from blip.tokenizer import Tokenizer

RECORDS = [
    {"image": "a.png", "caption": 'left lung, "clear"', "image_id": 7, "licence": "CC BY"},
    {"image": "b.png", "caption": "5.0 mm (nodule)\u2028größer", "image_id": "x"},
    {"image": "c/d.png", "caption": "edema"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["axial ct of the liver", "chest x-ray 5 mm nodule", "one two three four"], vocab_size=200)


def write_as(path: Path, records: list[dict]) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow")
        from pyarrow import parquet

        rows = [{**record, "image_id": str(record.get("image_id", ""))} for record in records]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(
                file, ["image_id", "caption", "image", "licence"], delimiter="\t" if path.suffix == ".tsv" else ","
            )
            table.writeheader()
            table.writerows(records)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_all_formats_read_alike(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"set{suffix}"
    write_as(path, RECORDS)
    pairs = read_pairs([str(path)])
    assert len(pairs) == 3
    assert [pairs.captions(i) for i in range(3)] == [[record["caption"]] for record in RECORDS]
    assert pairs.image_path(2) == str(tmp_path / "c" / "d.png")
    assert pairs.annotation_file(1) == str(path)
    assert [pairs.image_id(i) for i in range(2)] == [pairs_module.stable_hash("7"), pairs_module.stable_hash("x")]
    assert len({pairs.image_id(i) for i in range(3)}) == 3


def test_several_files_roots_and_lists(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_as(tmp_path / "one.json", RECORDS)
    more = [{"image": "a.png", "caption": ["first", "second"]}, {"image": "/x.png", "caption": "y"}]
    write_as(tmp_path / "two.jsonl", more)
    files = [str(tmp_path / "one.json"), {"path": str(tmp_path / "two.jsonl"), "weight": 2}]
    pairs = read_pairs(files, str(tmp_path / "images"))
    assert len(pairs) == 5
    assert pairs.captions(3) == ["first", "second"]
    assert pairs.captions(4) == ["y"]
    assert pairs.image_path(3) == str(tmp_path / "images" / "a.png")
    assert pairs.image_path(4) == "/x.png"
    assert pairs.annotation_file(3).endswith("two.jsonl")
    assert pairs.record_weights().tolist() == [1, 1, 1, 2, 2]
    assert read_pairs([str(tmp_path / "one.json")]).record_weights() is None


def test_same_image_same_id(tmp_path: Path) -> None:
    write_as(tmp_path / "set.json", [{"image": name, "caption": "x"} for name in ("a.png", "./a.png", "b.png")])
    pairs = read_pairs([str(tmp_path / "set.json")])
    assert pairs.image_id(0) == pairs.image_id(1) != pairs.image_id(2)
    assert 0 <= pairs.image_id(0) < 2**63


def test_caption_id() -> None:
    assert caption_id("Left  lung\n") == caption_id("left lung") != caption_id("right lung")
    assert caption_id("left lung") == 6371487221083048106  # stored in checkpoints: it must never change


def test_groups_are_numbers_and_without_one_an_image_is_its_own(tmp_path: Path) -> None:
    given = [{}, {"pmcid": "PMC1"}, {"article": "PMC1"}, {}, {"patient": 0}, {"group": ""}]
    records = [{"image": f"{i}.png", "caption": "x", **more} for i, more in enumerate(given)]
    write_as(tmp_path / "set.jsonl", records)
    write_as(tmp_path / "plain.jsonl", [{"image": "9.png", "caption": "x"}])
    pairs = read_pairs([str(tmp_path / "set.jsonl"), str(tmp_path / "plain.jsonl")])
    groups = [pairs.group(i) for i in range(7)]
    assert groups[1] == groups[2] and len(set(groups)) == 6
    assert [groups[i] for i in (0, 3, 5, 6)] == [pairs.image_id(i) for i in (0, 3, 5, 6)]
    plain = read_pairs([str(tmp_path / "plain.jsonl")])
    assert plain.group(0) == plain.image_id(0) and not plain._groups


def test_words_have_a_letter_or_a_digit() -> None:
    assert all(map(has_words, ["a", "4.", "größer", "肺", "-1"]))
    assert not any(map(has_words, ["", ".", "\u200b", "( - )", "\u200d\ufeff"]))


def test_memory_is_flat_arrays(tmp_path: Path) -> None:
    count = 100_000
    pairs = Pairs()
    pairs.annotation_files, pairs.roots, pairs.weights = ["set.jsonl"], ["images"], [1.0]
    for i in range(count):
        pairs.append(0, f"figures/{i:07}.jpg", [f"caption number {i} of some thirty characters more"], image_id=None)
    assert pairs.nbytes / count < 120
    # no object per record hides in it: containers and their own buffers, nothing else
    held = [pairs._caption_ends, pairs._image_ids, pairs._files]
    held += [buffer for texts in (pairs._paths, pairs._captions, pairs._names) for buffer in (texts.bytes, texts.ends)]
    assert {type(item).__name__ for item in held} == {"array", "bytearray"}
    assert sum(map(sys.getsizeof, held)) < 20e6
    assert len(pairs._groups) == 0, "nothing is kept where no record has a group"
    assert pairs.captions(count - 1) == [f"caption number {count - 1} of some thirty characters more"]


def test_order_is_a_new_permutation_each_epoch_split_over_ranks() -> None:
    orders = [EpochOrder(23, seed=1, rank=rank, world=3) for rank in range(3)]
    epochs = []
    for epoch in range(3):
        ranks = [[order.index(epoch, p) for p in range(order.per_rank)] for order in orders]
        assert [len(rank) for rank in ranks] == [7, 7, 7]
        flat = list(chain(*ranks))
        assert len(set(flat)) == 21
        epochs.append(tuple(flat))
    assert len(set(epochs)) == 3
    single = EpochOrder(23, seed=1)
    assert sorted(single.index(5, p) for p in range(23)) == list(range(23))
    assert [single.index(0, p) for p in range(21)] == [orders[p % 3].index(0, p // 3) for p in range(21)]
    assert [EpochOrder(23, seed=2).index(0, p) for p in range(23)] != [single.index(0, p) for p in range(23)]


def test_weights_say_how_often_a_record_is_visited() -> None:
    order = EpochOrder(30, seed=0, weights=np.repeat([1.0, 2.5, 0.2], 10))
    assert order.per_rank == 10 + 25 + 2
    visits = np.bincount([order.index(0, p) for p in range(order.per_rank)], minlength=30)
    assert (visits[:10] == 1).all()
    assert sorted(visits[10:20]) == [2] * 5 + [3] * 5
    assert sorted(visits[20:]) == [0] * 8 + [1] * 2
    rare = {order.index(epoch, p) for epoch in range(40) for p in range(order.per_rank)} & set(range(20, 30))
    assert rare == set(range(20, 30))


def dataset(folder: Path, tokenizer: Tokenizer, seed: int = 0, **options: str) -> PairDataset:
    pairs = read_pairs([str(folder / "pairs.json")])
    encode = CaptionEncoder(tokenizer, 12, **options)
    return PairDataset(pairs, EpochOrder(len(pairs), seed=0), encode, transform=train_transform(8), seed=seed)


def test_chance_depends_on_seed_epoch_and_index_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_images(tmp_path, 4, size=32)
    data = dataset(tmp_path, tokenizer)
    state = torch.get_rng_state()
    first = data[(3, 1)]
    assert torch.equal(torch.get_rng_state(), state)  # nothing is taken from the global generator
    data[(0, 2)]
    torch.rand(5)
    assert torch.equal(data[(3, 1)].image, first.image)

    def image_of(data: PairDataset, epoch: int, index: int) -> torch.Tensor:
        position = [data.order.index(epoch, p) for p in range(4)].index(index)
        return data[(epoch, position)].image

    epochs = [image_of(data, epoch, 2) for epoch in range(6)]
    assert len({image.sum().item() for image in epochs}) == 6
    assert not torch.equal(image_of(dataset(tmp_path, tokenizer, seed=1), 0, 2), epochs[0])


def test_one_caption_of_a_list_is_drawn(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_images(tmp_path, 1)
    (tmp_path / "pairs.json").write_text(json.dumps([{"image": "0.png", "caption": ["one", "two", "three"]}]))
    data = dataset(tmp_path, tokenizer)
    drawn = [data[(epoch, 0)] for epoch in range(30)]
    expected = tokenizer.encode(["one", "two", "three"], 12)
    assert {tuple(sample.ids) for sample in drawn} == {tuple(ids) for ids in expected}
    assert {sample.caption_id for sample in drawn} == {caption_id(word) for word in ("one", "two", "three")}


def test_prompt_and_cleaning(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_images(tmp_path, 1)
    (tmp_path / "pairs.json").write_text(json.dumps([{"image": "0.png", "caption": "5.0 mm"}]))
    assert dataset(tmp_path, tokenizer)[(0, 0)].ids == tokenizer.encode(["5.0 mm"], 12)[0]
    data = dataset(tmp_path, tokenizer, prompt="one two ", text_cleaning="blip")
    assert data[(0, 0)].ids == tokenizer.encode(["one two 5 0 mm"], 12)[0]
    assert data[(0, 0)].caption_id == caption_id("5.0 mm")


def test_unreadable_image_is_replaced_and_reported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_images(tmp_path, 5)
    data = dataset(tmp_path, tokenizer)
    order = [data.order.index(0, p) for p in range(5)]
    (tmp_path / f"{order[4]}.png").unlink()
    (tmp_path / f"{order[0]}.png").write_bytes(b"broken")
    sample = data[(0, 4)]  # the last two of the ring 4, 0, 1: it wraps
    assert sample.index == order[1]
    assert [index for index, _, _ in sample.skipped] == [order[4], order[0]]
    assert [Path(path).name for _, path, _ in sample.skipped] == [f"{order[4]}.png", f"{order[0]}.png"]
    assert sample.skipped[0][2] == "no such file"
    assert torch.equal(sample.image, data[(0, 1)].image)
    assert data[(0, 1)].skipped == []


@pytest.mark.parametrize(("count", "failures"), [(3, 3), (40, 11)])
def test_too_many_unreadable_images_in_a_row(tmp_path: Path, tokenizer: Tokenizer, count: int, failures: int) -> None:
    write_images(tmp_path, count)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    message = rf"{failures} images in a row .*\.png \(no such file\).*image_root.*check-data"
    with pytest.raises(TooManySkipped, match=message):
        dataset(tmp_path, tokenizer)[(0, 0)]


def test_evaluation_reports_instead_of_replacing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "1.png").unlink()
    data = EvalPairs(read_pairs([str(tmp_path / "pairs.json")]), CaptionEncoder(tokenizer, 12), eval_transform(8))
    batch = collate([data[i] for i in range(3)])
    assert batch.indices == [0, 2]
    assert [index for index, _, _ in batch.skipped] == [1]
    assert len(collate([data[1]])) == 0


def _sample(index: int, ids: list[int]) -> Sample:
    return Sample(torch.full((3, 2, 2), float(index)), ids, index + 10, index + 20, index, [(index, "p", "r")])


def test_collate() -> None:
    batch = collate([_sample(0, [2, 5, 3]), _sample(1, [2, 3])], pad_id=9)
    assert batch.ids.tolist() == [[2, 5, 3], [2, 3, 9]]
    assert batch.lengths.tolist() == [3, 2]
    assert batch.images.shape == (2, 3, 2, 2)
    assert (batch.caption_ids.tolist(), batch.image_ids.tolist(), batch.indices) == ([10, 11], [20, 21], [0, 1])
    assert batch.skipped == [(0, "p", "r"), (1, "p", "r")]
    assert collate([_sample(0, [2, 5, 3])], pad_to=(8, 4)).ids.shape == (1, 4)
    assert collate([_sample(0, [2, 5, 3])], pad_to=(8, 3)).ids.shape == (1, 8)  # there is padding in every batch
    assert collate([_sample(0, [2, 5, 3])], pad_to=(2,)).ids.shape == (1, 3)
    moved = batch.to("meta")
    assert moved.ids.device.type == moved.images.device.type == "meta"
    assert moved.lengths.device.type == "cpu"
    assert moved.indices == [0, 1]


def test_skip_log_names_each_image_once_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "run" / "skipped.jsonl"
    log = SkipLog(path, total=1000)
    log.add([(3, "a.png", "empty"), (4, "b.png", "empty")])
    log.add([(3, "a.png", "empty")])
    path.write_text(path.read_text() + '{"path": "cut')  # killed while writing
    log = SkipLog(path, total=1000)
    log.add([(4, "b.png", "empty"), (5, "ü.png", "empty")])
    names = [json.loads(line)["path"] for line in path.read_text().splitlines() if line.endswith("}")]
    assert names == ["a.png", "b.png", "ü.png"]


def test_skip_log_stops_above_the_fraction(tmp_path: Path) -> None:
    log = SkipLog(tmp_path / "skipped.jsonl", total=1000, max_fraction=0.01, world=2)
    log.add([(i, f"{i}.png", "empty") for i in range(5)], samples=90)
    message = r"6 images on one of 2 ranks of 1000 records \(limit 1.00%\).*0\.png \(empty\)"
    with pytest.raises(TooManySkipped, match=message):
        log.add([(5, "5.png", "empty")])
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 6


def test_skip_log_of_one_rank_may_see_all_that_is_broken_in_later_epochs(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    ranks = [SkipLog(path, total=1000, max_fraction=0.01, world=2) for _ in range(2)]
    for epoch in range(3):  # 9 of 1000 are broken; in each epoch a rank looks at another half
        for rank, log in enumerate(ranks):
            broken = [(i, f"{i}.png", "empty") for i in range(9) if i % 2 == (rank + epoch) % 2]
            log.add(broken, samples=500 - len(broken))
    assert len(path.read_text().splitlines()) == 9, "two ranks name an image once"
    with pytest.raises(TooManySkipped):
        ranks[0].add([(i, f"{i}.png", "empty") for i in range(9, 11)])


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(AnnotationError, match=r"pip install -e '.\[parquet\]'"):
        read_pairs([str(tmp_path / "set.parquet")])


@pytest.mark.parametrize("workers", [0, 2])
def test_check_data_finds_everything(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, 4)
    (tmp_path / "same.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:80])
    more = [
        {"image": "same.png", "caption": "Text  0"},
        {"image": "absent[1].png", "caption": "a caption of as many as seven words"},
        {"image": "2.png", "caption": " "},
        {"image": "2.png"},
    ]
    write_as(tmp_path / "more.jsonl", more)
    (tmp_path / "bad.json").write_text('[{"image": "a.png", "caption": "x"}, {')
    files = [str(tmp_path / name) for name in ("pairs.json", "more.jsonl", "bad.json", "absent.csv")]
    report = check_data(files, str(tmp_path), max_text_tokens=8, num_workers=workers)  # type: ignore[arg-type]
    assert not report.ok
    counts = [(file.records, file.texts, file.errors) for file in report.files]
    assert counts == [(4, 4, 0), (4, 2, 2), (1, 1, 1), (0, 0, 1)]
    assert len(report.errors) == 4
    assert "more.jsonl, line 7: has no 'caption'" in report.errors[1]
    assert "bad.json, record 2: not valid JSON" in report.errors[2]
    assert {Path(path).name for path, _ in report.broken_images} == {"1.png", "absent[1].png", "a.png"}
    assert (report.images, report.duplicate_images, report.duplicate_texts, report.empty_texts) == (7, 1, 1, 1)
    assert report.cut_share == pytest.approx(1 / 7)
    assert report.length_percentiles == {50: 2, 90: 8, 95: 8, 99: 8, 100: 8}
    report.save(tmp_path / "report.json")
    assert len(json.loads((tmp_path / "report.json").read_text())["broken_images"]) == 3
    print_report(report)
    assert "absent[1].png: no such file" in capsys.readouterr().out


def test_check_data_counts_tokens_and_accepts_a_sound_set(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_images(tmp_path, 3)
    report = check_data([str(tmp_path / "pairs.json")], tokenizer=tokenizer, max_text_tokens=30, num_workers=0)
    assert report.ok
    assert report.length_unit == "tokens"
    assert report.length_percentiles[100] == max(tokenizer.count([f"text {i}" for i in range(3)]))
    assert report.cut_share == 0


@pytest.mark.parametrize("counted", [False, True])
def test_check_data_counts_captions_without_words(
    tmp_path: Path, tokenizer: Tokenizer, counted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, 1)
    captions = [".", "\u200b", "one two", "\u200b\u200d"]
    write_as(tmp_path / "set.jsonl", [{"image": "0.png", "caption": caption} for caption in captions])
    report = check_data([str(tmp_path / "set.jsonl")], tokenizer=tokenizer if counted else None, num_workers=0)
    assert report.wordless_texts == 3
    print_report(report)
    assert "without words: 3 captions" in capsys.readouterr().out


@pytest.mark.real_data
def test_real_captions_and_images(data_dir: Path) -> None:
    tokenizer = tokenizer_of(data_dir)
    raw = read(data_dir, "coco_sample/captions.json")
    pairs = read_pairs([str(data_dir / "coco_sample" / "captions.json")])
    assert [pairs.captions(i) for i in range(len(pairs))] == [row["caption"] for row in raw]
    encode = CaptionEncoder(tokenizer, 30)
    data = PairDataset(pairs, EpochOrder(len(pairs), seed=0), encode, transform=train_transform(32), seed=0)
    batch = collate([data[(0, position)] for position in range(4)])
    assert not batch.skipped
    assert batch.images.shape == (4, 3, 32, 32)
    assert torch.isfinite(batch.images).all()
    assert (batch.ids[:, 0] == tokenizer.cls_id).all()
