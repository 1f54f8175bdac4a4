"""`blip data shard`: what is written, that every task reads it, and what is refused."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.dicom import write_scans
from helpers.fine_tuning import TASKS, configure, train
from helpers.running import run_verb
from helpers.tiny import TINY
from PIL import Image

from blip.config import PretrainConfig, load_config
from blip.data.formats import AnnotationError
from blip.data.image_bytes import ImageLimits, UnreadableImage
from blip.data.images import open_image
from blip.data.pairs import read_pairs
from blip.data.pictures import open_pictures
from blip.data.questions import read_questions
from blip.data.statements import read_statements
from blip.data.webdataset import open_shards
from blip.shards.resize import ImageForm, stored
from blip.tasks import pretrain
from blip.train.log import read_metrics

pytest.importorskip("webdataset")


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    grey = Image.effect_noise((width // 8, height // 8), 40).resize((width, height), Image.Resampling.BICUBIC)
    return grey if mode == "L" else Image.merge("RGB", (grey, grey.rotate(180), grey)).convert(mode)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of many kinds, records of them, some of one image, and two images that cannot be read."""
    folder = tmp_path_factory.mktemp("set")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(120, 60).save(folder / "turned.jpg", exif=exif)
    noise(90, 120, "L").save(folder / "grey.png")
    Image.fromarray(np.linspace(0, 60_000, 80 * 100).reshape(80, 100).astype(np.uint16)).save(folder / "deep.png")
    noise(100, 70, "CMYK").save(folder / "inks.jpg", quality=95)
    noise(64, 200, "P").save(folder / "palette.png", transparency=3)
    noise(30, 20).save(folder / "small.jpg")
    (folder / "broken.jpg").write_bytes((folder / "inks.jpg").read_bytes()[:900])
    names = [*sorted(path.name for path in folder.iterdir()), "missing.jpg"]
    records = [{"image": name, "caption": [f"about {name}", "again"]} for name in names]
    records.append({"image": "grey.png", "caption": "the grey one", "source": "web"})
    (folder / "captions.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def shards(place: Path) -> Path:
    out = place.parent / "shards"
    result = run_verb("data", "shard", place / "captions.json", "--out", out, "--image_size", 40, "--shard_size", 4)
    assert result.exit_code == 0, result.output
    assert "6 images in 2 shards" in result.output and "7 records" in result.output
    assert "2 images could not be read, and 2 records with them" in " ".join(result.output.split())
    return out


def test_images_are_small_and_upright_and_records_stay_as_they_are(place: Path, shards: Path) -> None:
    before, after = read_pairs([str(place / "captions.json")]), read_pairs([str(shards)])
    kept = [
        i for i in range(len(before)) if "broken" not in before.image_path(i) and "miss" not in before.image_path(i)
    ]
    assert [after.captions(i) for i in range(len(after))] == [before.captions(i) for i in kept]
    assert [after.image_name(i) for i in range(len(after))] == [before.image_name(i) for i in kept]
    assert [after.pair_source(i) for i in range(len(after))] == [before.pair_source(i) for i in kept]
    for new, old in enumerate(kept):
        small, large = open_image(after.image_path(new)), open_image(before.image_path(old))
        assert min(small.size) == min(40, min(large.size))
        scale = small.width / large.width
        assert abs(small.height - large.height * scale) <= 1
        expected = np.asarray(large.resize(small.size, Image.Resampling.BICUBIC)).astype(float)
        assert np.abs(np.asarray(small) - expected).mean() < 4, before.image_path(old)
    assert after.image_id(1) == after.image_id(6), "two records of one image"


def test_skipped_images_are_named(shards: Path) -> None:
    notes = [json.loads(line) for line in (shards / "skipped.jsonl").read_text().splitlines()]
    reasons = {Path(note["path"]).name: note["reason"] for note in notes}
    assert reasons.keys() == {"broken.jpg", "missing.jpg"}
    assert "truncated" in reasons["broken.jpg"] and "no such file" in reasons["missing.jpg"]


def test_a_stream_has_each_image_once_with_all_its_captions(shards: Path) -> None:
    opened = open_shards([str(shards)])
    records = {raw.record()["image"]: raw.record() for n in range(2) for raw in opened.read(n)}
    assert len(opened) == len(records) == 6
    assert records["grey.png"]["caption"] == ["about grey.png", "again", "the grey one"]
    assert records["grey.png"]["image_id"] == "grey"


def test_what_needs_no_change_keeps_its_bytes_and_pictures_that_lost_nothing_lose_nothing(place: Path) -> None:
    form = ImageForm(40)
    assert stored(str(place / "small.jpg"), form).content == (place / "small.jpg").read_bytes()
    assert stored(str(place / "grey.png"), ImageForm(90)).content == (place / "grey.png").read_bytes()
    deep = stored(str(place / "deep.png"), ImageForm(80))
    assert deep.ending == "png"
    whole = open_image(place / "deep.png").convert("L")
    assert Image.open(io.BytesIO(deep.content)).mode == "L"
    assert Image.open(io.BytesIO(deep.content)).tobytes() == whole.tobytes(), "windowed as training windows it"
    assert stored(str(place / "turned.jpg"), ImageForm(500)).content != (place / "turned.jpg").read_bytes()
    assert stored(str(place / "grey.png"), ImageForm(40, "jpeg")).ending == "jpg"
    assert stored(str(place / "small.jpg"), ImageForm(40, "png")).ending == "png"


def test_the_same_set_gives_the_same_shards_whatever_the_workers(place: Path, shards: Path, tmp_path: Path) -> None:
    words = ["data", "shard", place / "captions.json", "--image_size", 40, "--shard_size", 4]
    assert run_verb(*words, "--output", tmp_path / "again", "--num_workers", 0).exit_code == 0
    for file in shards.glob("*.*"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    assert run_verb(*words, "--out", tmp_path / "other", "--seed", 1, "--num_workers", 0).exit_code == 0
    orders = [[raw.record()["image"] for n in range(2) for raw in open_shards([str(one)]).read(n)]
              for one in (shards, tmp_path / "other")]  # fmt: skip
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_annotations_do_not_read_other_shards(place: Path, shards: Path, tmp_path: Path) -> None:
    for file in shards.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    pairs = read_pairs([str(tmp_path)])
    open_image(pairs.image_path(0))
    path = pairs.image_path(0).rpartition("#")[0]
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:512] + content)  # all moved by a block
    with pytest.raises(UnreadableImage, match="these annotations belong to other shards"):
        for i in range(len(pairs)):
            open_image(pairs.image_path(i))
    Path(path).write_bytes(content[: len(content) // 8])
    with pytest.raises(UnreadableImage, match="these annotations belong to other shards"):
        for i in range(len(pairs)):
            open_image(pairs.image_path(i))
    Path(path).unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        for i in range(len(pairs)):
            open_image(pairs.image_path(i))


# ---- every task ------------------------------------------------------------------------------------------------------


def made(phantoms: Path, name: str, out: Path, *more: object) -> Path:
    result = run_verb("data", "shard", phantoms / name, "--out", out, "--image_size", 40, "--num_workers", 0, *more)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("task", [task for task in TASKS if task != "dialogue"])  # dialogues are not sharded
@pytest.mark.usefixtures("no_java_nor_peak", "tiny_config")
def test_fine_tuning_reads_shards(task: str, phantoms: Path, tmp_path: Path) -> None:
    out = made(phantoms, TASKS[task][3], tmp_path / "shards", "--limit", 16)
    options = [f"train_file=[{out}]", f"val_file=[{out}]", "test_file=[]", "max_steps=2", "randaugment=[2, 5]"]
    config = configure(task, phantoms, tmp_path, *options)
    train(task, config, tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 2]


@pytest.mark.usefixtures("no_java_nor_peak", "tiny_config")
def test_pretraining_streams_the_shards_and_validates_on_them(phantoms: Path, tmp_path: Path) -> None:
    out = made(phantoms, "captions.json", tmp_path / "shards", "--limit", 24, "--shard_size", 10)
    values = {**TINY, "train_file": f"[{out}]", "val_file": f"[{out}]", "tokenizer": phantoms / "tokenizer.json",
              "epochs": 1, "max_steps": 2, "stream_window": 4}  # fmt: skip
    (tmp_path / "run.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    config = load_config(tmp_path / "run.yaml", PretrainConfig)
    assert pretrain.run(config, tmp_path / "run", "", device=torch.device("cpu"))
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "itc" in line] == [1, 2]


def test_questions_and_statements_keep_all_that_they_say(phantoms: Path, tmp_path: Path) -> None:
    asked = made(phantoms, "questions.json", tmp_path / "asked", "--limit", 30)
    before, after = read_questions([str(phantoms / "questions.json")]), read_questions([str(asked)])
    assert len(after) == 30
    for i in range(30):
        one, other = before[i], after[i]
        one.image = other.image = ""
        assert one == other
    judged = made(phantoms, "statements.json", tmp_path / "judged", "--limit", 30)
    first, second = read_statements([str(phantoms / "statements.json")]), read_statements([str(judged)])
    assert [(second[i].sentence, second[i].label, second[i].id) for i in range(30)] == [
        (first[i].sentence, first[i].label, first[i].id) for i in range(30)
    ]
    images = {image for i in range(30) for image in second[i].images}
    assert len(images) == len({image for i in range(30) for image in first[i].images}), "each image once"


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{place}/captions.json", "--format", "gif"], "format is 'gif'; it can be auto, jpeg, png"),
        (["{place}/none.json"], "does not exist"),
        (["{place}/captions.json", "--dataset", "rocco"], "did you mean"),
        (["{phantoms}/captions.json", "{phantoms}/questions.json"], "one kind of records at a time"),
        (["{place}/only.json"], "none of 1 images could be read, the first being .*missing.jpg .no such file"),
        (["{place}/bare.json"], "have none of dialog, caption, question, sentence"),
        (["{place}/talk.json"], "dialogues are trained from their own files"),
    ],
)
def test_what_cannot_be_sharded(place: Path, phantoms: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (place / "only.json").write_text(json.dumps([{"image": "missing.jpg", "caption": "x"}]))
    (place / "bare.json").write_text(json.dumps([{"image": "small.jpg"}]))
    turn = {"question": "is it large", "answer": "no", "answer_options": ["yes", "no"]}
    (place / "talk.json").write_text(json.dumps([{"image": "small.jpg", "caption": "x", "dialog": [turn]}]))
    given = [word.format(place=place, phantoms=phantoms) for word in words]
    result = run_verb("data", "shard", *given, "--out", tmp_path / "out", "--num_workers", 0)
    text = " ".join(result.output.split())
    assert result.exit_code == 1 and text.startswith("error: ") and "Traceback" not in text, text
    assert re.search(message, text), text
    assert not list((tmp_path / "out").glob("*.*")) if (tmp_path / "out").is_dir() else True


def test_fine_tuning_says_what_shards_it_needs(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "shard-00000.tar").write_bytes((shards / "shard-00000.tar").read_bytes())
    with pytest.raises(AnnotationError, match=r"shards without annotations\.jsonl.*blip data shard"):
        read_pairs([str(tmp_path)])


# ---- items of several pictures ---------------------------------------------------------------------------------------


def test_items_of_several_pictures_are_kept_whole_and_in_order(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("L", (30, 24), 10 + 20 * i).save(tmp_path / f"{i}.png")
    Image.new("L", (30, 24), 200).save(tmp_path / "scan.png")
    twelve = [f"{i}.png" for i in (11, *range(11))]
    records = [
        {"images": twelve, "caption": "twelve", "image_id": "a"},
        {"image": "3.png", "caption": "one of them"},
        {"images": twelve, "caption": "again"},
        {"images": ["3.png", "gone.png"], "caption": "half of it"},
        {"images": ["scan.png", "3.png"], "caption": "two"},
    ]
    (tmp_path / "studies.json").write_text(json.dumps(records))
    words = ["data", "shard", tmp_path / "studies.json", "--out", tmp_path / "out", "--image_size", 16]
    result = run_verb(*words, "--num_workers", 0)
    assert result.exit_code == 0 and "15 images of 3 items in 1 shards" in result.output, result.output
    assert "4 records" in result.output and "gone.png: no such file" in " ".join(result.output.split())

    def shades(paths: list[str]) -> list[int]:
        return [round((open_image(path).getpixel((0, 0))[0] - 10) / 20) for path in paths]

    pairs = read_pairs([str(tmp_path / "out")])
    found = {pairs.captions(i)[0]: shades(pairs.image_paths(i)) for i in range(len(pairs))}
    in_order = [11, *range(11)]
    assert found == {"twelve": in_order, "one of them": [3], "again": in_order, "two": [10, 3]}
    raws = {tuple(raw.record()["caption"]): raw for raw in open_shards([str(tmp_path / "out")]).read(0)}
    assert raws.keys() == {("twelve", "again"), ("one of them",), ("two",)}
    assert shades(raws["twelve", "again"].images()) == in_order and raws["twelve", "again"].record()["image_id"] == "a"
    asked = [{"images": ["1.png", "0.png"], "question": "is it new", "answer": "yes"}]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    assert run_verb("data", "shard", tmp_path / "asked.json", "--out", tmp_path / "asked").exit_code == 0
    question = read_questions([str(tmp_path / "asked")])[0]
    assert shades(question.image_paths) == [1, 0] and question.answers == ["yes"]


def test_volumes_become_items_of_their_slices(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    write_scans(tmp_path)
    records = [{"image": "ct/#slices=3", "caption": "a volume"}, {"image": "ct/", "caption": "the same"}]
    (tmp_path / "scans.json").write_text(json.dumps(records))
    words = ["data", "shard", tmp_path / "scans.json", "--out", tmp_path / "out", "--window", "bone", "--slices", 2]
    assert run_verb(*words, "--num_workers", 0).exit_code == 0
    pairs = read_pairs([str(tmp_path / "out")])
    for i, given in enumerate(("ct/#slices=3", "ct/#slices=2")):
        read = open_pictures(pairs.image_paths(i))
        shown = open_pictures([f"{tmp_path}/{given}"], ImageLimits(window="bone"))
        assert [image.tobytes() for image in read] == [image.tobytes() for image in shown]
    (tmp_path / "scans.json").write_text(json.dumps([{"image": "gone/#slices=3", "caption": "x"}]))
    result = run_verb("data", "shard", tmp_path / "scans.json", "--out", tmp_path / "none", "--num_workers", 0)
    text = " ".join(result.output.split())
    assert result.exit_code == 1 and "gone/#slices=3 (" in text and "Traceback" not in text, text
