"""Images as they come: a figure that EXIF turns is divided as it is seen, a damaged one costs itself alone."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.damaged_images import whole_files
from helpers.hostile_files import IMAGES
from PIL import Image

pytest.importorskip("imagehash")

from blip.data.image_bytes import ImageLimits
from blip.data.webdataset import open_shards
from blip.pubmed.build import build
from blip.pubmed.duplicates import Signature, read_signature
from blip.pubmed.panels.captions import split_caption
from blip.pubmed.panels.compose import compose
from blip.pubmed.panels.split import Options, SplitError, split
from blip.pubmed.report import _picture
from blip.pubmed.rules import BuildError, Rules

pytestmark = pytest.mark.slow  # all of them together

STORED = {  # orientation -> what turns upright pixels into those that are stored
    1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
    7: "TRANSVERSE", 8: "ROTATE_270",
}  # fmt: skip
CAPTION = "Three panels. (A) Red tissue. (B) Green tissue. (C) Blue tissue."
COLORS = ((200, 30, 30), (30, 180, 30), (30, 30, 200))


def figure(path: Path, orientation: int) -> Path:
    """Panels A, B and C from the left, red, green and blue, stored turned."""
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (660, 220), "white")
    for at, color in enumerate(COLORS):
        noise = rng.integers(-25, 25, (200, 200, 3))
        panel = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
        image.paste(Image.fromarray(panel), (10 + 220 * at, 10))
    return saved(image, path, orientation)


def saved(image: Image.Image, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = STORED[orientation]
    image = image.transpose(Image.Transpose[turn]) if turn else image
    image.save(path, exif=exif, quality=95)
    return path


def write(path: Path, images: list[Path]) -> Path:
    lines = [{"image": str(image), "caption": CAPTION, "article": f"PMC{at}", "figure": "f", "license": "CC-BY-4.0"}
             for at, image in enumerate(images)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_panels_of_turned_figures_get_their_own_captions(tmp_path: Path) -> None:
    images = [figure(tmp_path / f"{orientation}.jpg", orientation) for orientation in STORED]
    counts = split(write(tmp_path / "figures.jsonl", images), tmp_path / "out.jsonl", Options(str(tmp_path / "crops")))
    assert counts.figures == len(STORED) and counts.how["whole"] == 0
    lines = read(tmp_path / "out.jsonl")
    assert len(lines) == 3 * len(STORED)
    for line in lines:
        wanted = "ABC".index(line["panel"][0])
        crop = np.asarray(Image.open(line["image"]).convert("RGB")).mean(axis=(0, 1))
        assert crop.argmax() == wanted, (line["whole_image"], line["panel"])
        assert ("Red", "Green", "Blue")[wanted] in line["caption"]
        left, top, right, bottom = line["box"]
        assert abs(left - (10 + 220 * wanted)) <= 3 and abs(top - 10) <= 3 and bottom <= 220 and right <= 660


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_turned_pictures_are_the_same_picture(ending: str, tmp_path: Path) -> None:
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 255, (6, 8, 3), dtype=np.uint8))
    image = coarse.resize((1300, 800), Image.Resampling.BICUBIC)  # a JPEG of this size is decoded at a fraction of it
    paths = [saved(image, tmp_path / f"{at}.{ending}", at) for at in STORED]
    found = [read_signature(str(path)) for path in paths]
    assert all(isinstance(one, Signature) for one in found)
    assert {one.size for one in found} == {(1300, 800)}
    built = build(write(tmp_path / "pairs.jsonl", paths), tmp_path / "set", Rules())
    assert sum(built.pairs.values()) == 1 and built.out["same picture again"] == len(STORED) - 1


def test_reports_and_composed_figures_show_upright_pixels(tmp_path: Path) -> None:
    path = figure(tmp_path / "x.jpg", 6)
    assert Image.open(path).size == (220, 660)
    stored = [figure(tmp_path / f"{at}.png", at) for at in (1, 6)]
    assert len({str(_picture(str(one), 10_000, [([0, 0, 9, 9], "red")], limits=ImageLimits())) for one in stored}) == 1
    boxes = [compose(np.random.default_rng(3), [figure(tmp_path / f"{at}.png", at)]).image.tobytes() for at in (1, 6)]
    assert boxes[0] == boxes[1]


def odd(folder: Path) -> list[Path]:
    """Every hostile image, and damaged ones of every format."""
    made = []
    for number, (make, _) in enumerate(IMAGES.values()):
        make(path := folder / f"odd-{number}.png")
        made.append(path)
    for number, (_, data) in enumerate(whole_files()):
        path = folder / f"cut-{number}.png"
        path.write_bytes(data[: len(data) // 3])
        made.append(path)
    return made


def test_an_odd_image_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    bad = odd(tmp_path / "odd")
    good = [figure(tmp_path / f"good-{at}.jpg", 1) for at in range(6 * len(bad))]
    order = [path for at, one in enumerate(bad) for path in (*good[6 * at : 6 * at + 6], one)]
    lines = write(tmp_path / "figures.jsonl", order)
    limits = ImageLimits.of_mb(1)
    options = Options(str(tmp_path / "crops"), limits=limits)
    counts = split(lines, tmp_path / "out.jsonl", options)
    opened = len(bad) - counts.unreadable  # a cut file may still be an image, such as the first frame of several
    assert counts.figures == len(good) + len(bad) and counts.unreadable > 0.7 * len(bad)
    assert counts.pairs >= 3 * len(good)
    rules = Rules(duplicates=True, min_side=1, max_aspect=99, unlicensed=True)
    built = build(lines, tmp_path / "set", rules, decontaminate=[tmp_path / "odd"] if opened else [], limits=limits)
    assert built.out["unreadable image"] == counts.unreadable
    assert len(built.problems) <= 100 and any("not an image that is read but PostScript" in p for p in built.problems)


def test_shards_hold_the_bytes_of_images(tmp_path: Path) -> None:
    images = [figure(tmp_path / f"{at}.jpg", at) for at in (1, 6)]
    build(
        write(tmp_path / "pairs.jsonl", images),
        tmp_path / "set",
        Rules(duplicates=True, split_shares=(1, 0, 0)),
        shards=True,
    )
    shards = open_shards([str(tmp_path / "set/shards/train")])
    assert sorted(raw.image() for raw in shards.read(0)) == sorted(path.read_bytes() for path in images)


def test_too_many_unreadable_images_end_the_run(tmp_path: Path) -> None:
    paths = []
    for at in range(9):
        os.mkfifo(tmp_path / f"{at}.png")
        paths.append(tmp_path / f"{at}.png")
    with pytest.raises(SplitError, match="not a regular file"):
        split(write(tmp_path / "f.jsonl", paths), tmp_path / "out.jsonl", Options(str(tmp_path)))


def test_the_caption_of_the_test_has_three_parts() -> None:
    assert split_caption(CAPTION).labels == ["A", "B", "C"]


@pytest.mark.parametrize(
    "records", ['[{"image": 7}]', '[{"image": ["a"]}]', '[{"image": "\\ud800"}]', "[7]", "{}", "[" * 99_999]
)
def test_evaluation_sets_that_name_no_images(records: str, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(records)
    lines = write(tmp_path / "pairs.jsonl", [figure(tmp_path / "x.jpg", 1)])
    with pytest.raises(BuildError, match=r"set\.json"):
        build(lines, tmp_path / "set", Rules(), decontaminate=[tmp_path / "set.json"])
