"""The filter of CapFilt: what passes, what people wrote, thresholds, scores that are none, the shards that come out."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.running import code_and_text
from PIL import Image

import blip
from blip.capfilt.candidates import HUMAN, SYNTHETIC, WEB
from blip.capfilt.merge import MergeError, Rule, merge, threshold_of
from blip.capfilt.report import write_report
from blip.data.images import open_image
from blip.data.jsonl_shards import write_jsonl_shards
from blip.data.webdataset import SIZES, UNFINISHED, TarError, open_shards
from blip.inference.predictor import Predictor

run_capfilt = partial(code_and_text, "capfilt")


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    lines = [
        {"image": f"/i/{i}.png", "text": f"text {i}", "source": WEB if i % 2 else SYNTHETIC, "round": i % 2 ^ 1,
         "match": i / 10, "itc": 1 - i / 10, "model": "f"}
        for i in range(10)
    ]  # fmt: skip
    folder = tmp_path / "made"
    list(write_jsonl_shards(folder, {"step": "score"}, 2, make_lines=lambda block: lines[5 * block : 5 * block + 5]))
    return folder


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (Rule(0.5), [5, 6, 7, 8, 9]),
        (Rule(0.5, itc=0.3), [5, 6, 7]),
        (Rule(None, itc=0.8), [0, 1, 2]),
        (Rule(fraction=0.3), [7, 8, 9]),
        (Rule(fraction=1.0), list(range(10))),
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_what_passes(scored: Path, tmp_path: Path, rule: Rule, kept: list[int], ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    found = merge([scored], out, rule)
    text = out.read_text()
    records = json.loads(text) if ending == "json" else [json.loads(line) for line in text.splitlines()]
    assert [int(r["caption"].split()[1]) for r in records] == kept
    assert records[0].keys() == {"image", "caption", "source", "round"}
    assert sum(found.kept.values()) == len(kept) and sum(found.dropped.values()) == 10 - len(kept)
    assert json.loads((tmp_path / f"out.{ending}.merge.json").read_text())["kept"] == found.kept
    pairs = blip.data.pairs.read_pairs([str(out)])  # pre-training reads it
    assert len(pairs) == len(kept)


def test_what_people_wrote_stays(scored: Path, phantoms: Path, tmp_path: Path) -> None:
    found = merge([scored], tmp_path / "out.json", Rule(0.9), keep=[str(phantoms / "captions.json")])
    assert found.kept == {HUMAN: 48, WEB: 1}
    records = json.loads((tmp_path / "out.json").read_text())
    assert Path(records[-1]["image"]).is_file() and records[-1]["source"] == HUMAN


def test_threshold_of_a_share(scored: Path) -> None:
    assert threshold_of([scored], 0.3) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "--scored", "{scored}", "--out", "{tmp}/o.csv"], "end in .json or .jsonl"),
        (["merge", "--scored", "{scored}", "--out", "{tmp}/o.json", "--threshold", "1.0"], "nothing passes"),
        (["merge", "--scored", "{scored}", "--out", "{tmp}/o.json", "--threshold", "2"], "between 0 and 1"),
        (["merge", "--scored", "{scored}", "--out", "{tmp}/o.json", "--fraction", "0"], "above 0"),
        (["merge", "--scored", "{scored}", "--out", "{tmp}/o.json", "--fraction", "nan"], "fraction is nan"),
        (["merge", "--scored", "{scored}", "--out", "{tmp}/o.json", "--threshold", "nan"], "threshold is nan"),
        (["merge", "--scored", "{scored}", "--out", "{tmp}/o.json", "--itc_threshold", "nan"], "itc_threshold is nan"),
        (["merge", "--scored", "{scored}", "--out", "{tmp}/o.json", "--source", "human"], "can be web or synthetic"),
        (["merge", "--scored", "{tmp}", "--out", "{tmp}/o.json"], "holds no shards"),
        (["merge", "--scored", "{captions}", "--out", "{tmp}/o.json"], "score them first"),
        (["filter", "--data", "nowhere.json", "--checkpoint", "{start}", "--out", "{tmp}/o"], "no such file"),
    ],
)
def test_bad_input(scored: Path, tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    list(write_jsonl_shards(tmp_path / "captions", {"step": "caption"}, 0, make_lines=lambda block: []))
    places = {"scored": scored, "tmp": tmp_path, "captions": tmp_path / "captions", "start": tiny_checkpoint}
    code, said = run_capfilt(*(a.format(**places) for a in arguments))
    assert code != 0 and message in said, said
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize("rule", [Rule(fraction=0.5), Rule(0.5), Rule(None, itc=0.5)])
@pytest.mark.parametrize(
    ("name", "score"),
    [("match", math.nan), ("match", math.inf), ("match", "0.7"), ("match", True), ("match", None), ("match", 1.5),
     ("match", -0.5), ("itc", math.nan), ("itc", -math.inf), ("itc", [0.2]), ("itc", 2)],
)  # fmt: skip
def test_what_is_no_score_is_named(name: str, score: Any, rule: Rule, tmp_path: Path) -> None:
    """NaN would count as the highest of all, and as below every threshold."""
    lines = [{"image": f"{n}.png", "text": str(n), "source": WEB, "round": 0, "match": n / 10, "itc": 0.6}
             for n in range(10)]  # fmt: skip
    lines[3][name] = score
    list(write_jsonl_shards(tmp_path / "scored", {"step": "score"}, 1, make_lines=lambda block: lines))
    for run in (
        lambda: merge([tmp_path / "scored"], tmp_path / "out.json", rule),
        lambda: write_report([tmp_path / "scored"], tmp_path / "page.html", rule),
    ):
        with pytest.raises(MergeError) as error:
            run()
        assert all(part in str(error.value) for part in ("scored, line 4", "3.png", f"`{name}` is {score!r}"))
    assert not (tmp_path / "out.json").exists() and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("scores", [[i / 10 for i in range(10)], [0.999997] * 6 + [0.1] * 4, [0.3] * 10])
def test_a_share_is_kept_whatever_the_scores(scores: list[float], tmp_path: Path) -> None:
    """At least as many as asked for; more only where texts share the score at the border."""
    lines = [{"image": "i", "text": str(n), "source": WEB, "round": 0, "match": x, "itc": 0.0}
             for n, x in enumerate(scores)]  # fmt: skip
    list(write_jsonl_shards(tmp_path / "scored", {"step": "score"}, 1, make_lines=lambda block: lines))
    for tenth in range(1, 11):
        found = merge([tmp_path / "scored"], tmp_path / "out.jsonl", Rule(fraction=tenth / 10))
        border = sorted(scores, reverse=True)[tenth - 1]
        assert found.kept[WEB] == sum(score >= border for score in scores) >= tenth
    write_report([tmp_path / "scored"], tmp_path / "page.html", Rule(fraction=0.2))
    kept = len(scores) if len(set(scores)) == 1 else 6 if len(set(scores)) == 2 else 2
    assert f"<td>10</td><td>{kept}</td><td>{10 - kept}</td>" in (tmp_path / "page.html").read_text()


def test_human_texts_alone_are_no_result(scored: Path, phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="nothing passes"):
        merge([scored], tmp_path / "out.json", Rule(1.0), keep=[str(phantoms / "captions.json")])
    assert not (tmp_path / "out.json").exists()


def test_one_source_alone(scored: Path, tmp_path: Path) -> None:
    found = merge([scored], tmp_path / "out.json", Rule(0.0), sources=[WEB])
    assert found.kept == {WEB: 5} and found.dropped == {SYNTHETIC: 5}


def test_webdataset_shards_hold_the_images(model: Predictor, phantoms: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = [str(phantoms / "images" / f"{n:06d}.png") for n in range(4)] + [str(tmp_path / "rare.ppm")]
    Image.new("L", (8, 8), 7).save(good[4])
    lines = [{"image": i, "text": f"text {n}", "source": WEB, "round": 0, "match": 0.9, "itc": 0.1}
             for n, i in enumerate([*good, str(tmp_path / "broken.png"), str(tmp_path / "gone.png")])]  # fmt: skip
    list(write_jsonl_shards(tmp_path / "scored", {"step": "score"}, 1, make_lines=lambda block: lines))
    found = merge([tmp_path / "scored"], tmp_path / "tars", Rule(), tar_size=2)
    assert found.kept[WEB] == 5 and found.problems == 2
    shards = open_shards([str(tmp_path / "tars")])
    assert shards.counts == [2, 2, 1]
    raws = [raw for n in range(3) for raw in shards.read(n)]
    assert [raw.image() for raw in raws[:4]] == [Path(image).read_bytes() for image in good[:4]]
    assert open_image(raws[4].image()).getpixel((0, 0)) == (7, 7, 7) and "png" in raws[4].parts
    assert [raw.record()["caption"] for raw in raws] == [[f"text {n}"] for n in range(5)]
    assert raws[0].record()["source"] == WEB and raws[0].record()["image"] == good[0]
    (tmp_path / "tars" / SIZES).rename(tmp_path / "sizes")
    (tmp_path / "tars" / UNFINISHED).write_text("true")  # as a kill leaves it
    with pytest.raises(TarError, match="not complete"):
        open_shards([str(tmp_path / "tars")])
    again = merge([tmp_path / "scored"], tmp_path / "tars", Rule(), tar_size=100)  # fewer shards than before
    assert again.kept[WEB] == 5 and open_shards([str(tmp_path / "tars")]).counts == [5]
    assert not (tmp_path / "tars" / "shard-00001.tar").exists()
