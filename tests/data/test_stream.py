"""Webdataset shards: every sample once an epoch, the same batches after a restart and with any number of workers."""

import gzip
import hashlib
import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess

import fsspec
import pytest
import torch
from helpers.running import ROOT, run_script
from helpers.tiny import TINY
from PIL import Image

from blip.config import ConfigError, PretrainConfig, annotation_files
from blip.data.batches import Batch
from blip.data.pairs import CaptionEncoder
from blip.data.skipped import SkipLog, TooManySkipped
from blip.data.stream import StreamDataset, StreamOrder, stream_loader
from blip.data.transforms import eval_transform
from blip.data.webdataset import SIZES, TarError, TarShards, is_tar_address, open_shards, write_tar_shards
from blip.errors import BlipError
from blip.tasks.pretrain_data import open_training
from blip.tokenizer import Tokenizer

pytest.importorskip("webdataset")

COUNTS = [7, 11, 3, 9]  # samples of the shards


def picture(number: int) -> bytes:
    """A PNG whose grey tells its number."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), number * 3).save(buffer, "PNG")
    return buffer.getvalue()


def sample(number: int, **more: object) -> dict:
    return {"png": picture(number), "json": {"caption": f"number {number}", "image": f"/i/{number}.png", **more}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of different sizes, thirty samples."""
    place = tmp_path_factory.mktemp("tars")
    first = 0
    for shard, count in enumerate(COUNTS):
        one = place / f"part{shard}"
        write_tar_shards(
            one, (sample(n, source="web" if n % 3 else "synthetic") for n in range(first, first + count)), 100
        )
        (one / "shard-00000.tar").rename(place / f"shard-{shard:05d}.tar")
        first += count
    (place / SIZES).write_text(json.dumps({f"shard-{n:05d}.tar": c for n, c in enumerate(COUNTS)}))
    return place


@pytest.fixture(scope="module")
def encode() -> CaptionEncoder:
    return CaptionEncoder(Tokenizer.train([f"number {n}" for n in range(30)], 64), 12)


def stream(
    shards: TarShards, encode: CaptionEncoder, start: tuple[int, int] = (0, 0), workers: int = 0, **order: int
) -> tuple[StreamOrder, object]:
    one = StreamOrder(shards, **{"batch_size": 3, "seed": 5, "lanes": 2, "window": 4, **order})
    return one, stream_loader(StreamDataset(one, encode, eval_transform(8), start=start), workers, False)


def equal(a: Batch, b: Batch) -> bool:
    return a.indices == b.indices and torch.equal(a.images, b.images) and torch.equal(a.ids, b.ids)


# ---- the order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "lanes", "window"), [(1, 1, 100), (1, 4, 2), (2, 2, 3), (3, 1, 5), (5, 2, 1)])
def test_an_epoch_has_every_sample_once_and_ranks_get_equal_shares(
    folder: Path, world: int, lanes: int, window: int
) -> None:
    shards = open_shards([str(folder)])
    epochs = []
    for epoch in range(2):
        seen: Counter[int] = Counter()
        for rank in range(world):
            order = StreamOrder(shards, 1, 0, rank=rank, world=world, lanes=lanes, window=window)
            assert order.steps == 30 // world // order.lanes * order.lanes
            for lane in range(order.lanes):
                numbers = [raw.number for raw in order.samples(epoch, lane)]
                assert len(numbers) == order.per_lane
                seen.update(numbers)
        assert max(seen.values()) == 1 and len(seen) == order.per_lane * order.lanes * world
        epochs.append(list(seen))
    assert epochs[0] != epochs[1]


def test_a_lane_can_begin_at_any_place(folder: Path) -> None:
    order = StreamOrder(open_shards([str(folder)]), 2, 3, rank=1, world=2, lanes=2, window=4)
    whole = [raw.number for raw in order.samples(4, 1)]
    assert len(set(whole)) == 7
    for start in range(8):
        assert [raw.number for raw in order.samples(4, 1, start)] == whole[start:]


def test_only_the_shards_that_are_needed_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, opened = open_shards([str(folder)]), []
    read = TarShards.read
    monkeypatch.setattr(TarShards, "read", lambda self, n, start=0: opened.append((n, start)) or read(self, n, start))
    order = StreamOrder(shards, 1, 0, lanes=1, window=4)
    whole = [raw.number for raw in order.samples(0, 0)]
    assert sorted(opened) == [(n, 0) for n in range(4)]  # each once, although windows end within them
    for start in range(30):
        opened.clear()
        assert [raw.number for raw in order.samples(0, 0, start)] == whole[start:]
        assert sum(COUNTS[n] - inside for n, inside in opened) == 30 - start // 4 * 4  # not from the epoch's first on


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_batches_depend_neither_on_workers_nor_on_the_start(folder: Path, encode: CaptionEncoder, workers: int) -> None:
    shards = open_shards([str(folder)])
    order, plain = stream(shards, encode)
    assert order.steps == 10
    expected = [next(plain) for _ in range(25)]  # two epochs and a half
    for batch in expected:
        for image, index in zip(batch.images, batch.indices, strict=True):
            grey = (image[0, 0, 0] * 0.26862954 + 0.48145466) * 255
            assert round(float(grey)) == index * 3
    for start in (0, 1, 7, 12):
        _, loader = stream(shards, encode, divmod(start, order.steps), workers)
        for number in range(start, start + 9):
            assert equal(next(loader), expected[number]), (start, number)


def test_a_caption_may_lie_beside_other_facts(tmp_path: Path) -> None:
    """As img2dataset writes them: the text in one file, and JSON with or without it."""
    facts = {"url": "https://somewhere", "width": 8}
    beside = [{"txt": "one\n"}, {"txt": "two", "json": facts}, {"txt": "x", "json": {**facts, "caption": "three"}}]
    write_tar_shards(tmp_path, ({"png": picture(0), **parts} for parts in beside), 100)
    raws = list(open_shards([str(tmp_path)]).read(0))
    assert [raw.record()["caption"] for raw in raws] == [["one"], ["two"], ["three"]]


def test_sources_and_captions_travel(folder: Path, encode: CaptionEncoder) -> None:
    _, batches = stream(open_shards([str(folder)]), encode, batch_size=15, lanes=1)
    batch = next(batches)
    assert batch.sources == ["web" if n % 3 else "synthetic" for n in batch.indices]
    assert len(set(batch.caption_ids.tolist())) == len(set(batch.image_ids.tolist())) == 15


# ---- where they lie --------------------------------------------------------------------------------------------------


def test_addresses(folder: Path, tmp_path: Path) -> None:
    whole = open_shards([str(folder)])
    assert whole.counts == COUNTS and len(whole) == 30
    assert whole.name(17).endswith("shard-00001.tar#10") and whole.name(18).endswith("shard-00002.tar#0")
    for address in (f"{folder}/shard-*.tar", f"{folder}/shard-{{00000..00003}}.tar", f"file://{folder}"):
        assert open_shards([address]).counts == COUNTS
    assert open_shards([f"{folder}/shard-00002.tar"]).counts == [3]
    memory = fsspec.filesystem("memory")
    for file in sorted(folder.glob("*.*")):
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    remote = open_shards(["memory://bucket"])
    assert remote.counts == COUNTS and remote.addresses[0].startswith("memory://")
    assert [raw.number for raw in remote.read(1, 4)] == [raw.number for raw in whole.read(1, 4)]


def test_shards_without_sizes_are_counted_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in folder.glob("*.tar"):
        (tmp_path / file.name).symlink_to(file)
    known = tmp_path / "out" / "known.json"
    assert open_shards([str(tmp_path)], known).counts == COUNTS
    monkeypatch.setattr("blip.data.webdataset._samples", lambda address: pytest.fail("read again"))
    assert open_shards([str(tmp_path)], known).counts == COUNTS


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{here}/nothing", "there are no .tar files"),
        ("{here}/no-*.tar", "there are no .tar files"),
        ("nonsense://bucket", "nonsense"),
        ("{here}/cut.tar", "cannot be read"),
        ("{here}/empty.tar", "holds no samples"),
    ],
)
def test_addresses_that_are_of_no_use(tmp_path: Path, address: str, message: str) -> None:
    (tmp_path / "cut.tar").write_bytes(b"this is no tar file" * 100)
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(TarError, match=message):
        open_shards([address.format(here=tmp_path)])


# ---- what is broken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [("{" * 500, "[Bb]races"), ("s-{1..99999999999}.tar", "stands for 99,999,999,999 shards"),
     ("{1..9999}-{1..9999}.tar", "at most 1,000,000")],
)  # fmt: skip
def test_braces_that_are_of_no_use(address: str, message: str) -> None:
    with pytest.raises(TarError, match=message):
        open_shards([address])


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    write_tar_shards(tmp_path, map(sample, range(6)), 2)
    (tmp_path / "shard-00001.tar").unlink()
    with pytest.raises(TarError, match=r"shard-00001\.tar is missing"):
        open_shards([str(tmp_path)])
    assert len(open_shards([f"{tmp_path}/*.tar"])) == 4
    counts = {name: 2 for name in ("shard-00000.tar", "shard-00001.tar", "shard-00002.tar")}
    (tmp_path / SIZES).write_text(json.dumps(counts))  # of another tool
    assert len(open_shards([str(tmp_path)])) == 4


def test_a_broken_sample_is_named_and_replaced(tmp_path: Path, encode: CaptionEncoder) -> None:
    samples = [sample(n) for n in range(12)]
    samples[2]["png"] = b"no image"
    samples[5] = {"png": picture(5)}
    samples[7]["json"] = {"caption": " "}
    samples[9] = {"txt": "no image"}
    write_tar_shards(tmp_path, iter(samples), 100)
    _, batches = stream(open_shards([str(tmp_path)]), encode, batch_size=12, lanes=1, window=12)
    batch = next(batches)
    assert len(batch.indices) == 12 and not {2, 5, 7, 9} & set(batch.indices)
    notes = {index: (path, reason) for index, path, reason in batch.skipped}
    assert notes.keys() == {2, 5, 7, 9} and notes[2][0].endswith("shard-00000.tar#2")
    assert "not an image" in notes[2][1] and "no caption" in notes[5][1]
    assert "empty" in notes[7][1] and "no image" in notes[9][1]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_shard_that_breaks_off_costs_its_rest(
    folder: Path, tmp_path: Path, encode: CaptionEncoder, damage: str
) -> None:
    for file in folder.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shards = open_shards([str(tmp_path)])
    broken = tmp_path / "shard-00001.tar"
    if damage == "gone":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[: 512 * 4 * 5 + 700])  # in the sixth sample's image
    raws = list(shards.read(1))
    readable = [raw.number - 7 for raw in raws if not raw.problem]
    assert len(raws) == 11 and readable == ([] if damage == "gone" else [0, 1, 2, 3, 4])
    _, batches = stream(shards, encode, lanes=1, batch_size=30)
    batch = next(batches)
    assert len(batch.skipped) == 11 - len(readable) and len(batch.indices) == 30


@pytest.mark.parametrize("cut", [100, 512 * 4 * 3, -1024, -1])
def test_shards_that_were_cut_short_are_found_when_opened(tmp_path: Path, cut: int) -> None:
    """By their recorded length; by the end mark where none is recorded; to 100 bytes or between two samples."""
    write_tar_shards(tmp_path, (sample(n) for n in range(6)), 100)
    path = tmp_path / "shard-00000.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TarError, match=r"shard-00000\.tar: has [\d,]+ bytes, and [\d,]+ when it was written"):
        open_shards([str(tmp_path)])
    sizes = json.loads((tmp_path / SIZES).read_text())
    (tmp_path / SIZES).write_text(json.dumps({name: n for name, n in sizes.items() if name.endswith(".tar")}))
    if cut > 0:  # fewer zeros at its end mean nothing
        with pytest.raises(TarError, match=r"shard-00000\.tar: ends without the end mark"):
            open_shards([str(tmp_path)])
        (tmp_path / SIZES).unlink()
        with pytest.raises(TarError, match=r"shard-00000\.tar"):
            open_shards([str(tmp_path)])


@pytest.mark.parametrize("recorded", [None, {"joined.tar": 6}])
@pytest.mark.parametrize("packed", [False, True])
def test_tar_files_that_were_joined_are_refused(tmp_path: Path, recorded: dict | None, packed: bool) -> None:
    """The samples behind the first end mark would be lost; some padding of zeros is usual."""
    write_tar_shards(tmp_path / "parts", (sample(n) for n in range(12)), 6)
    first, second = [path.read_bytes() for path in sorted((tmp_path / "parts").glob("*.tar"))]
    joined = tmp_path / "joined.tar"
    for content, sound in (
        (first + bytes(1 << 21), True),
        (first + second, False),
        (first + b"\1" + bytes(4095), False),
    ):
        joined.write_bytes(gzip.compress(content) if packed else content)
        if recorded:
            (tmp_path / SIZES).write_text(json.dumps(recorded))
        if sound:
            assert len([raw for raw in open_shards([str(joined)]).read(0) if not raw.problem]) == 6
        else:
            with pytest.raises(TarError, match=r"joined\.tar: more follows the end mark"):
                list(open_shards([str(joined)]).read(0))


def test_compressed_shards_alone_make_a_folder_of_shards(tmp_path: Path) -> None:
    write_tar_shards(tmp_path / "plain", (sample(n) for n in range(6)), 100)
    (tmp_path / "packed").mkdir()
    assert not is_tar_address(str(tmp_path / "packed"))
    packed = gzip.compress((tmp_path / "plain" / "shard-00000.tar").read_bytes())
    (tmp_path / "packed" / "a.tar.gz").write_bytes(packed)
    assert is_tar_address(str(tmp_path / "packed"))
    assert len(open_shards([str(tmp_path / "packed")])) == 6


@pytest.mark.parametrize(("recorded", "message"), [
    (5, "holds more than the 5 samples as recorded"),
    (7, "holds 6 samples, not 7 as recorded"),
    (10**9, "for which it is too small"),
    (0, "holds no samples"),
    (-1, "greater than or equal to 0"),
    ("6", "valid integer"),
    (True, "valid integer"),
    (6.5, "valid integer"),
    (None, "valid integer"),
])  # fmt: skip
def test_sizes_that_are_wrong(tmp_path: Path, recorded: object, message: str) -> None:
    write_tar_shards(tmp_path, (sample(n) for n in range(6)), 100)
    (tmp_path / SIZES).write_text(json.dumps({"shard-00000.tar": recorded}))
    with pytest.raises(BlipError, match=message) as caught:
        # a reader that takes as many samples as are recorded, and then asks for no more
        list(itertools.islice(open_shards([str(tmp_path)]).read(0), int(recorded or 0)))  # type: ignore[call-overload]
    assert "shard-00000.tar" in str(caught.value)


def test_a_shard_that_changed_is_found_when_it_has_been_read(tmp_path: Path) -> None:
    write_tar_shards(tmp_path, (sample(n) for n in range(6)), 100)
    shards = open_shards([str(tmp_path)])
    assert len(list(shards.read(0))) == 6 and shards.hashes == [""]  # once is enough
    path = tmp_path / "shard-00000.tar"
    path.write_bytes(path.read_bytes().replace(b"number 3", b"number 8"))
    shards = open_shards([str(tmp_path)])
    assert len(list(shards.read(0, 2))) == 4  # a part alone has no hash
    with pytest.raises(TarError, match=r"shard-00000\.tar: has changed since it was written"):
        list(itertools.islice(shards.read(0), 6))


def test_counts_alone_are_what_other_tools_read(tmp_path: Path) -> None:
    write_tar_shards(tmp_path, (sample(n) for n in range(6)), 4)
    sizes = json.loads((tmp_path / SIZES).read_text())
    assert [sizes["shard-00000.tar"], sizes["shard-00001.tar"]] == [4, 2]
    for number in range(2):
        data = (tmp_path / f"shard-{number:05d}.tar").read_bytes()
        assert sizes["bytes"][f"shard-{number:05d}.tar"] == len(data)
        assert sizes["sha256"][f"shard-{number:05d}.tar"] == hashlib.sha256(data).hexdigest()


BAD_JSON = {
    "deep": b"[" * 100_000,
    "lone surrogate": b'{"caption": "a \\ud800 b"}',
    "long number": b'{"caption": "x", "n": ' + b"9" * 5000 + b"}",
    "twice": b'{"caption": "x", "caption": "y"}',
    "not UTF-8": b'{"caption": "\xff"}',
    "a list": b"[]",
    "huge caption": b'{"caption": "' + b"w " * 600_000 + b'"}',
    "caption is a number": b'{"caption": 3}',
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_odd_json_costs_its_sample(kind: str, tmp_path: Path, encode: CaptionEncoder) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for n in range(6):
            text = BAD_JSON[kind] if n == 2 else json.dumps({"caption": f"number {n}"}).encode()
            for name, content in ((f"{n}.png", picture(n)), (f"{n}.json", text)):
                about = tarfile.TarInfo(name)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    _, batches = stream(open_shards([str(tmp_path)]), encode, batch_size=6, lanes=1, window=6)
    batch = next(batches)
    assert len(batch.indices) == 6 and 2 not in batch.indices
    ((index, path, reason),) = batch.skipped
    assert index == 2 and path.endswith("x.tar#2") and len(reason) < 300
    log = SkipLog(tmp_path / "skipped.jsonl", 6, 0.5)
    log.add(batch.skipped, 5)
    assert json.loads((tmp_path / "skipped.jsonl").read_text())["path"] == path


def test_a_batch_without_any_image_ends_the_run(tmp_path: Path, encode: CaptionEncoder) -> None:
    write_tar_shards(tmp_path, ({"png": b"x", "txt": "number 1"} for _ in range(6)), 100)
    _, batches = stream(open_shards([str(tmp_path)]), encode)
    with pytest.raises(TooManySkipped, match=r"a whole batch of 3 samples.*shard-00000\.tar#"):
        next(batches)


def test_bad_settings(folder: Path, tmp_path: Path) -> None:
    shards = open_shards([str(folder)])
    with pytest.raises(ValueError, match="an epoch has 15 samples on each of 2 ranks"):
        StreamOrder(shards, 16, 0, world=2)
    for files, message in (
        ([str(folder), "captions.json"], "one kind at a time"),
        ([{"path": str(folder), "weight": 2.0}], "weight"),
    ):
        config = PretrainConfig(train_file=files)
        with pytest.raises(ConfigError, match=message):
            open_training(config, annotation_files(config), tmp_path)


# ---- pre-training ----------------------------------------------------------------------------------------------------


def pretrain(output: Path, folder: Path, *more: str) -> CompletedProcess:
    options = {**TINY, "train_file": f"[{folder}]", "batch_size": 4, "stream_lanes": 2, "stream_window": 6}
    options |= {
        "val_file": "[]",
        "max_steps": 9,
        "log_every_steps": 1,
        "image_size": 16,
        "vit_patch": 8,
        "tokenizer": "train",
    }
    words = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    config = ROOT / "configs" / "pretrain_demo.yaml"
    return run_script("--config", config, "--output_dir", output, *words, *more, timeout=300)


@pytest.mark.slow
def test_pretraining_on_shards_goes_on_exactly_and_counts_sources(folder: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    done = pretrain(whole, folder)
    assert done.returncode == 0, done.stderr
    words = ["--set", f"tokenizer={whole / 'tokenizer.json'}"]
    assert pretrain(halves, folder, *words, "--set", "save_every_steps=4", "--set", "num_workers=2").returncode == 0
    for later in ("step-00000009",):
        for file in sorted((halves / "checkpoints" / later).iterdir()):
            file.unlink()
        (halves / "checkpoints" / later).rmdir()
    again = pretrain(
        halves, folder, *words, "--set", "save_every_steps=4", "--set", "num_workers=1", "--resume", "auto"
    )
    assert again.returncode == 0, again.stderr
    assert "after step 8" in again.stdout + again.stderr
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, halves)]
    losses = [{line["step"]: line["lm"] for line in log if "lm" in line} for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 9
    seen = [[line for line in log if "pairs_web" in line][-1] for log in logs]
    assert seen[0]["pairs_web"] == seen[1]["pairs_web"]
    assert seen[0]["pairs_web"] + seen[0]["pairs_synthetic"] == 9 * 4
