"""From pairs to a data set: filters, duplicate images, evaluation images, parts by article, card, page."""

import csv
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.running import run_verb
from PIL import Image

from blip.data.image_bytes import LIMITS
from blip.data.pairs import read_pairs
from blip.data.webdataset import open_shards
from blip.pubmed.build import build
from blip.pubmed.card import data_card, write_credits
from blip.pubmed.duplicates import PictureIndex, read_signature, signature
from blip.pubmed.report import ReportError, _picture, write_report
from blip.pubmed.rules import BuildError, Rules

STAYED = "compound figure that stayed whole"


def picture(path: Path, seed: int, size: tuple[int, int] = (160, 120)) -> str:
    """Soft shapes, another picture for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return str(path)


def line(image: str, article: str, **more: Any) -> dict[str, Any]:
    about = {"image": image, "caption": "Axial MRI of the brain.", "article": article, "figure": "f1",
             "label": "Figure 1", "license": "CC-BY-4.0", "retracted": False, "year": 2020, "source": "pubmed",
             "article_title": "A <study>", "authors": ["Nobody N"], "journal": "J", "doi": "10.0/x"}  # fmt: skip
    return about | more


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def records(out: Path) -> list[dict[str, Any]]:
    return [record for name in ("train", "val", "test") for record in json.loads((out / f"{name}.json").read_text())]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Ninety pictures of thirty articles."""
    lines = [line(picture(tmp_path / f"{at}.png", at), f"PMC{at // 3}", how="order", confidence=0.7, box=[0, 0, 9, 9],
                  whole_image=str(tmp_path / f"{at}.png"), panel=["A"], caption=f"Axial MRI of the brain <{at}>.")
             for at in range(90)]  # fmt: skip
    return write(tmp_path / "pairs.jsonl", lines)


def test_parts_are_divided_by_article(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    built = build(many, out, Rules(split_shares=(0.6, 0.2, 0.2)))
    parts = {name: json.loads((out / f"{name}.json").read_text()) for name in ("train", "val", "test")}
    articles = [{record["article"] for record in part} for part in parts.values()]
    assert sum(map(len, parts.values())) == 90 == sum(built.pairs.values())
    assert sum(map(len, articles)) == len(set.union(*articles)) == 30, "no article is in two parts"
    assert all(map(len, articles)) and len(articles[0]) > len(articles[1])
    assert all(len(part) == 3 * len(names) for part, names in zip(parts.values(), articles, strict=True))
    again = tmp_path / "again"
    write(many, [json.loads(text) for text in many.read_text().splitlines()][:45])
    build(many, again, Rules(split_shares=(0.6, 0.2, 0.2)))
    for name, some in parts.items():
        smaller = {record["article"] for record in json.loads((again / f"{name}.json").read_text())}
        assert smaller <= {record["article"] for record in some}, "an article stays in its part as the corpus grows"
    build(many, tmp_path / "other", Rules(split_shares=(0.6, 0.2, 0.2), seed=1))
    assert (tmp_path / "other" / "train.json").read_text() != (again / "train.json").read_text()


def test_what_is_written_can_be_trained_on(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    build(many, out, Rules(), shards=True, num_workers=2)
    pairs = read_pairs([out / "train.json"])
    assert len(pairs) == len(json.loads((out / "train.json").read_text()))
    record = json.loads((out / "train.json").read_text())[0]
    assert record["license"] == "CC-BY-4.0" and record["confidence"] == 0.7 and record["image_id"]
    assert pairs.captions(0) == [record["caption"]] and Path(pairs.image_path(0)).samefile(out / record["image"])
    shards = open_shards([str(out / "shards" / "train")])
    first = next(iter(shards.read(0)))
    assert first.record()["caption"] == [record["caption"]] and first.image() == (out / record["image"]).read_bytes()


@pytest.mark.parametrize(
    ("more", "rules", "why"),
    [
        ({"license": "CC-BY-NC-4.0"}, {"licenses": ["CC-BY", "CC0"]}, "licence"),
        ({"license": ""}, {}, "no open licence named"),
        ({"license": "other"}, {}, "no open licence named"),
        ({"license": "TDM"}, {}, "no open licence named"),
        ({"retracted": True}, {}, "retracted"),
        ({"image": ""}, {}, "no file"),
        ({"confidence": 0.3}, {}, "confidence"),
        ({"how": "whole", "panels": [[0, 0, 1, 1], [1, 1, 2, 2]]}, {"keep_whole": False}, STAYED),
        ({"caption": "A scan here."}, {"min_words": 4}, "caption too short"),
        ({"caption": "word " * 301}, {}, "caption too long"),
        ({}, {"words": ["CT", "PET"]}, "none of the words"),
        ({}, {"not_words": ["mri"]}, "word that is not wanted"),
        ({}, {"min_side": 121}, "too small"),
        ({}, {"max_aspect": 1.2}, "too long and narrow"),
    ],
)
def test_each_rule_keeps_out_what_it_should(tmp_path: Path, more: dict, rules: dict, why: str) -> None:
    good = line(picture(tmp_path / "good.png", 0, (300, 300)), "PMC1", caption="A CT and PET of the brain.")
    bad = line(picture(tmp_path / "bad.png", 1), "PMC2") | more
    built = build(write(tmp_path / "pairs.jsonl", [good, bad]), tmp_path / "out", Rules(**rules))
    assert built.out == {why: 1} and [record["article"] for record in records(tmp_path / "out")] == ["PMC1"]
    opposite: dict[str, Any] = {
        "unlicensed": True,
        "retracted": True,
        "min_confidence": 0,
        "min_words": 1,
        "max_words": 999,
    }
    if why != "no file":
        assert build(tmp_path / "pairs.jsonl", tmp_path / "all", Rules(**opposite)).out == {}


def test_the_same_picture_is_taken_once(tmp_path: Path) -> None:
    """Scaled, saved as JPEG, a little brighter, of two articles; and others that only look alike to a hash."""
    original = Image.open(picture(tmp_path / "a.png", 5, (320, 240)))
    original.resize((200, 150)).save(tmp_path / "smaller.jpg", quality=60)
    original.point(lambda value: min(255, value + 5)).save(tmp_path / "brighter.png")
    original.rotate(180).save(tmp_path / "turned.png")
    names = ["a.png", "smaller.jpg", "brighter.png", "turned.png"]
    lines = [line(str(tmp_path / name), f"PMC{at}") for at, name in enumerate(names)]
    pairs = write(tmp_path / "pairs.jsonl", lines)
    built = build(pairs, tmp_path / "out", Rules())
    assert built.out == {"same picture again": 2}
    assert {Path(record["image"]).name for record in records(tmp_path / "out")} == {"a.png", "turned.png"}
    assert sum(build(pairs, tmp_path / "all", Rules(duplicates=True)).pairs.values()) == 4


def test_plots_are_not_all_the_same(tmp_path: Path) -> None:
    """Lines on white paper: their hashes are near, they are not."""
    from blip.pubmed.panels.plots import plot

    index = PictureIndex()
    for seed in range(60):
        found = signature(plot(np.random.default_rng(seed), 300, 200))
        assert index.find(found) is None
        index.add(found, str(seed))


@pytest.mark.parametrize("form", ["folder", "file"])
def test_evaluation_images_are_removed(many: Path, tmp_path: Path, form: str) -> None:
    """Also where they are smaller and of another format."""
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    for at in (3, 40):
        with Image.open(tmp_path / f"{at}.png") as image:
            image.resize((120, 90)).save(evaluation / f"q{at}.jpg")
    (evaluation / "set.json").write_text(json.dumps([{"image": "q3.jpg"}, {"image": "q40.jpg"}]))
    place = evaluation if form == "folder" else evaluation / "set.json"
    built = build(many, tmp_path / "out", Rules(), decontaminate=[place])
    assert built.evaluation_images == 2 and built.out == {"evaluation image": 2}
    left = {Path(record["image"]).stem for record in records(tmp_path / "out")}
    assert len(left) == 88 and not left & {"3", "40"}
    assert "(2 images) were removed" in (tmp_path / "out" / "README.md").read_text()


def test_panels_of_evaluation_figures_are_removed(many: Path, tmp_path: Path) -> None:
    """The evaluation set has the whole figure, the data set a part of it that looks otherwise."""
    whole = picture(tmp_path / "whole.png", 500, (400, 300))
    (tmp_path / "evaluation").mkdir()
    Image.open(whole).save(tmp_path / "evaluation" / "q.png")
    wholes = [whole if at == 3 else str(tmp_path / f"{at}.png") for at in range(6)]
    lines = [line(str(tmp_path / f"{at}.png"), f"PMC{at}", box=[0, 0, 9, 9], whole_image=wholes[at]) for at in range(6)]
    pairs = write(tmp_path / "p.jsonl", lines)
    built = build(pairs, tmp_path / "out", Rules(), decontaminate=[tmp_path / "evaluation"])
    assert built.out == {"evaluation image": 1}
    assert {r["article"] for r in records(tmp_path / "out")} == {f"PMC{at}" for at in range(6) if at != 3}


def test_pictures_on_clear_ground_and_of_16_bits_differ(tmp_path: Path) -> None:
    index = PictureIndex()
    for seed in range(2):
        coarse = np.random.default_rng(seed).integers(0, 2, (8, 8), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
        clear = np.zeros((160, 160, 4), dtype=np.uint8)
        clear[..., 3] = coarse * 255
        Image.fromarray(clear).save(tmp_path / f"clear{seed}.png")
        Image.fromarray(1000 + coarse.astype(np.uint16) * 2000).save(tmp_path / f"deep{seed}.png")
    for name in ("clear0", "clear1", "deep0", "deep1"):
        found = read_signature(str(tmp_path / f"{name}.png"))
        assert not isinstance(found, str)
        if name.startswith("clear"):  # both kinds show the same drawings
            assert index.find(found) is None
            index.add(found, name)
    deep = [read_signature(str(tmp_path / f"deep{seed}.png")) for seed in range(2)]
    assert deep[0].copy != deep[1].copy  # type: ignore[union-attr]


def test_card_and_credits(many: Path, tmp_path: Path) -> None:
    build(many, tmp_path / "out", Rules())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| CC-BY-4.0 | 90 | credit the authors | https://creativecommons.org/licenses/by/4.0/ |" in card
    assert "No evaluation set was given" in card and "NIH NLM" in card
    with open(tmp_path / "out" / "credits.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 and rows[0]["authors"] == "Nobody N" and rows[0]["address"].endswith("/articles/PMC0/")
    assert data_card(json.loads((tmp_path / "out" / "build.json").read_text()), ("train", "val", "test")) == card


def test_blank_lines_are_skipped_and_lines_keep_their_numbers(many: Path, tmp_path: Path) -> None:
    lines = many.read_text().splitlines(keepends=True)
    many.write_text("\n" + "".join(lines[:40]) + " \t\n" + "".join(lines[40:]) + "\n\n")
    assert build(many, tmp_path / "out", Rules()).read == 90
    many.write_text(f"{lines[0]}\n[]\n")
    with pytest.raises(BuildError, match="line 3: not a pair"):
        build(many, tmp_path / "out", Rules())


def test_a_report_shows_pairs_of_which_less_is_known(many: Path, tmp_path: Path) -> None:
    build(many, tmp_path / "out", Rules())
    file = tmp_path / "out" / "train.json"
    pairs = json.loads(file.read_text())[:3]
    file.write_text(json.dumps([{**pairs[0], "how": "letter"}, {**pairs[1], "confidence": 0.5}, pairs[2]]))
    write_report(tmp_path / "out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "letter" in page and "0.50" in page


def test_names_that_no_encoding_holds_are_built(tmp_path: Path) -> None:
    odd = line(picture(tmp_path / "0.png", 0), "PMC\ud800", article_title="\udfff", year="\ud800", license="CC-BY-4.0")
    for seed in range(3):
        built = build(write(tmp_path / "odd.jsonl", [odd]), tmp_path / "out", Rules(seed=seed), shards=True)
        assert built.pairs.total() == 1 and records(tmp_path / "out")[0]["article"] == "PMC\ud800"
    write_report(tmp_path / "out", tmp_path / "report.html")
    assert "PMC\\ud800" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["", "/", ".", "..", "x" * 5000, "a\0b", "\ud800", "/dev/null"])
def test_names_of_files_that_are_not_there_are_no_fault_of_a_report(name: str, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    build(many, out, Rules())
    (out / "build.json").write_text(json.dumps(json.loads((out / "build.json").read_text()) | {"pairs_file": name}))
    write_report(out, tmp_path / "report.html", 1)
    assert "pairs in the data set" in (tmp_path / "report.html").read_text()


def test_the_page_shows_pairs_and_split_figures(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    build(many, out, Rules(not_words=["<7>"]))
    result = run_verb("pubmed", "report", out, "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="pair"') == 24 and page.count('class="figure"') == 10
    assert page.count("<img") == 34 and 'src="data:image/jpeg' in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<h2>Licences</h2>" in page and "Axial MRI of the brain &lt;" in page, "captions are escaped"
    with pytest.raises(ReportError, match="blip pubmed build"):
        write_report(tmp_path, tmp_path / "other.html")


def test_foreign_texts_are_no_part_of_the_card() -> None:
    odd = "a | b\n# <b> [x](http://127.0.0.1) `"
    counts = {"pairs": {"train": 4}, "articles": {"train": 1}, "evaluation_images": 1}
    built = counts | {"out": {odd: 3}, "licenses": {odd: 4}, "decontaminated": ["/data/vqa_rad", odd]}
    card = data_card(
        built | {"rules": {"not_words": [odd, "x"], "min_side": 64, "share": 0.5, "word": odd}}, ("train",)
    )
    shown = r"a \| b\\x0a# &lt;b&gt; \[x\](http&#58;//127.0.0.1) \`"
    assert f"| {shown} | 4 | see the article |  |" in card and f"| {shown} | 3 |" in card
    assert f"Images of /data/vqa_rad, {shown} (1 images)" in card and f"- word: {shown}\n" in card
    assert "- min_side: 64\n- share: 0.5\n" in card and ", 'x']\n" in card
    assert "<" not in card and odd not in card and len([line for line in card.splitlines() if line[:1] == "#"]) == 4


def test_foreign_texts_are_no_formula_in_credits(tmp_path: Path) -> None:
    odd = {"title": '=HYPERLINK("http://127.0.0.1")', "authors": ["@SUM(A1)", "\ud800\x00"], "journal": "\t+1",
           "doi": "-1", "license": None}  # fmt: skip
    names = ("=1", "-2", "PMC7", "PMC8 ", "PMC9/../x")
    write_credits(tmp_path / "credits.csv", {name: odd | {"year": -number} for number, name in enumerate(names)})
    with open(tmp_path / "credits.csv", newline="", encoding="utf-8") as file:
        rows = {row["article"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == ["'-2", "'=1", "PMC7", "PMC8 ", "PMC9/../x"]
    assert [rows[name]["address"][-6:] for name in sorted(rows)] == ["", "", "/PMC7/", "", ""]
    row = rows["'-2"]
    assert row["title"] == "'" + odd["title"] and row["authors"] == r"'@SUM(A1); \ud800\x00"
    assert row["journal"] == r"'\x09+1" and row["doi"] == "'-1" and row["license"] == ""
    assert row["year"] == "-1", "numbers stay numbers"


BOX = (20, 10, 90, 70)


@pytest.mark.parametrize(
    "box", [[20, 10, 10**9, 10**9], [-(10**9), -(10**300), 90, 70], [10**9, 10**9, 10**10, 10**10]]
)
def test_boxes_outside_of_a_picture_take_no_time(box: list[int], tmp_path: Path) -> None:
    place = picture(tmp_path / "x.png", 1)
    show = partial(_picture, place, 420, limits=LIMITS)
    shown = show([(box, "#d62728")])  # a line of 10^9 pixels would take minutes
    assert shown["picture"] and not shown["problem"]
    near = [min(max(x, -500), 500) for x in box]
    assert shown == show([(near, "#d62728")]), "what is seen of a box does not change"
    assert (shown == show()) == (box[0] == 10**9)


@pytest.mark.parametrize("box", [
    [math.nan, 1, 5, 5], [0, 0, math.inf, 9], [9, 9, 1, 1], [1, 2, 3], ["a", 0, 9, 9], [[0], 0, 9, 9], "0099", {"x": 1},
])  # fmt: skip
def test_boxes_that_are_none_are_not_drawn(box: object, tmp_path: Path) -> None:
    place = picture(tmp_path / "x.png", 1)
    show = partial(_picture, place, 420, limits=LIMITS)
    assert show([(box, "#d62728")]) == show()
    assert show([(BOX, "#d62728")]) != show()


def test_build_tells_what_is_wrong(many: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="do not add up to 1"):
        build(many, tmp_path / "out", Rules(split_shares=(0.8, 0.1, 0.2)))
    for odd in ((math.nan,) * 3, (1.0, math.nan, 0.0), (math.inf, -math.inf, 1.0), (1.2, -0.2, 0.0)):
        with pytest.raises(BuildError, match="do not add up to 1"):
            build(many, tmp_path / "out", Rules(split_shares=odd))
    for name in ("min_confidence", "max_aspect"):
        with pytest.raises(BuildError, match=f"{name} is nan"):
            build(many, tmp_path / "out", Rules(**{name: math.nan}))
    said = run_verb("pubmed", "build", many, "--out", tmp_path / "out", "--splits", "nan", "nan", "nan")
    assert said.exit_code == 1 and "do not add up to 1" in said.stderr and not (tmp_path / "out").exists()
    with pytest.raises(BuildError, match=r"of 90 pairs none is left \(licence 90\)"):
        build(many, tmp_path / "out", Rules(licenses=["CC0"]))
    assert not list((tmp_path / "out").glob("*.json*"))
    with pytest.raises(BuildError, match="make it with"):
        build(tmp_path / "nothing.jsonl", tmp_path / "out", Rules())
    with pytest.raises(BuildError, match="line 1: not a pair"):
        build(write(tmp_path / "odd.jsonl", [{"image": "x"}]), tmp_path / "out", Rules())
    (tmp_path / "empty").mkdir()
    (tmp_path / "elsewhere.json").write_text('[{"image": "not/here.png"}]')
    for place in ("empty", "elsewhere.json"):
        with pytest.raises(BuildError, match=r"none of its \d images can be read"):
            build(many, tmp_path / "out", Rules(), decontaminate=[tmp_path / place])
    with pytest.raises(BuildError, match="neither a folder"):
        build(many, tmp_path / "out", Rules(), decontaminate=[many])
    damaged = tmp_path / "0.png"
    damaged.write_bytes(b"none")
    built = build(many, tmp_path / "out", Rules())
    assert built.out == {"unreadable image": 1} and str(damaged) in built.problems[0]
