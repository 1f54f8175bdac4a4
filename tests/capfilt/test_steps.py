"""CapFilt: files do not depend on how work is divided, what fails the filter is dropped, a kill loses nothing."""

import json
import math
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from helpers.running import ROOT, Program, code_and_text, forked, run_in_two, script_env
from helpers.tiny import MODEL_SIZES, TINY
from PIL import Image

import blip
from blip.capfilt import steps
from blip.capfilt.candidates import HUMAN, SYNTHETIC, WEB, read_candidates
from blip.capfilt.config import CapFiltConfig
from blip.capfilt.merge import MergeError, Rule, merge, threshold_of
from blip.capfilt.report import write_report
from blip.capfilt.steps import CaptionOptions, ShardOptions
from blip.config import ConfigError, load_config
from blip.data.images import open_image
from blip.data.jsonl_shards import ShardError, read_lines, shard_path, write_jsonl, write_jsonl_shards
from blip.data.skipped import TooManySkipped
from blip.data.webdataset import SIZES, UNFINISHED, TarError, open_shards
from blip.files import WriteError
from blip.inference.predictor import Predictor
from blip.models.decoding import Decoding

run_capfilt = partial(code_and_text, "capfilt")
HOW = Decoding(sample=True, top_p=0.9, num_return=2, max_new_tokens=5)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".blip.lock"}


# ---- shards ----------------------------------------------------------------------------------------------------------


def test_a_shard_is_whole_or_absent(tmp_path: Path) -> None:
    made = []

    def make(block: int) -> list[dict]:
        made.append(block)
        if block == 2 and made.count(2) == 1:
            raise KeyboardInterrupt
        return [{"image": f"{block}.png", "text": "é"}]

    with pytest.raises(KeyboardInterrupt):
        list(write_jsonl_shards(tmp_path, {"seed": 1}, 4, make_lines=make))
    with pytest.raises(ShardError, match=r"shard-00002\.jsonl is missing"):
        list(read_lines(tmp_path))
    assert list(write_jsonl_shards(tmp_path, {"seed": 1}, 4, make_lines=make)) == [2, 3]
    assert [line["image"] for line in read_lines(tmp_path)] == ["0.png", "1.png", "2.png", "3.png"]
    with pytest.raises(ShardError, match="begun with seed 1, now it is 2"):
        list(write_jsonl_shards(tmp_path, {"seed": 2}, 4, make_lines=make))


def test_a_full_disk_is_said_and_leaves_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        if shard_path(tmp_path, 0).exists():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("blip.files.os.fsync", full)
    with pytest.raises(WriteError, match=r"No space left on device.*finished files are whole"):
        list(write_jsonl_shards(tmp_path, {}, 3, make_lines=lambda block: [{"image": str(block)}]))
    assert sorted(files(tmp_path)) == ["settings.json", "shard-00000.jsonl"]


def test_candidates_bring_the_texts_of_an_image_together(tmp_path: Path) -> None:
    (tmp_path / "web.json").write_text(
        json.dumps(
            [
                {"image": "b.png", "caption": "one"},
                {"image": "a.png", "caption": ["two", "three"]},
                {"image": "b.png", "caption": "four"},
            ]
        )
    )
    lines = [{"image": str(tmp_path / "a.png"), "text": "five", "source": SYNTHETIC, "round": 2},
             {"image": str(tmp_path / "c.png"), "problem": "broken"}]  # fmt: skip
    list(write_jsonl_shards(tmp_path / "syn", {"step": "caption"}, 1, make_lines=lambda block: lines))
    found = read_candidates([str(tmp_path / "web.json"), str(tmp_path / "syn")])
    texts = {
        Path(found.image_paths(i)[0]).name: [(c.text, c.source, c.round) for c in found[i]] for i in range(len(found))
    }
    assert texts == {
        "b.png": [("one", WEB, 0), ("four", WEB, 0)],
        "a.png": [("two", WEB, 0), ("three", WEB, 0), ("five", SYNTHETIC, 2)],
    }
    assert found.texts == 5


# ---- captioner -------------------------------------------------------------------------------------------------------


def test_captions_are_new_and_different(model: Predictor, phantoms: Path, tmp_path: Path) -> None:
    candidates = read_candidates([str(phantoms / "captions.json")])
    steps.caption(
        model,
        candidates,
        tmp_path,
        model_fingerprint="m",
        options=CaptionOptions(HOW),
        shards=ShardOptions(shard_size=20, batch_size=7),
    )
    lines = list(read_lines(tmp_path))
    assert len({line["image"] for line in lines}) == 48 and {line["source"] for line in lines} == {SYNTHETIC}
    for i in range(len(candidates)):
        own = [line["text"].lower() for line in lines if line["image"] == candidates.image_paths(i)[0]]
        assert len(own) == len(set(own)) and not {c.text for c in candidates[i]} & set(own)
    assert all(line["log_prob"] < 0 and line["round"] == 1 and line["model"] == "m" for line in lines)


def test_samples_follow_from_the_image(model: Predictor, phantoms: Path, tmp_path: Path) -> None:
    """Shards and batches change nothing."""
    candidates, texts = read_candidates([str(phantoms / "captions.json")]), []
    for number, sizes in enumerate([(20, 7), (48, 48), (5, 1)]):
        folder, shards = tmp_path / str(number), ShardOptions(shard_size=sizes[0], batch_size=sizes[1])
        steps.caption(model, candidates, folder, model_fingerprint="m", options=CaptionOptions(HOW), shards=shards)
        texts.append([(line["image"], line["text"]) for line in read_lines(folder)])
    assert texts[0] == texts[1] == texts[2]


# ---- filter ----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_pair_by_pair(model: Predictor, phantoms: Path, tmp_path: Path) -> None:
    records = json.loads((phantoms / "captions.json").read_text())[:7]
    for number, record in enumerate(records):
        record["image"] = str(phantoms / record["image"])
        record["caption"] = [record["caption"], "a dark square", "chest"][: number % 3 + 1]
    (tmp_path / "some.json").write_text(json.dumps(records))
    candidates = read_candidates([str(tmp_path / "some.json")])
    steps.score(
        model, candidates, tmp_path / "scored", model_fingerprint="f", shards=ShardOptions(shard_size=4, batch_size=3)
    )
    lines = list(read_lines(tmp_path / "scored"))
    assert len(lines) == sum(len(r["caption"]) for r in records)
    for line in lines:
        assert line["match"] == pytest.approx(float(model.match_probability(line["image"], line["text"])[0]), abs=1e-5)
        assert line["itc"] == pytest.approx(float(model.itc_score(line["image"], line["text"])[0, 0]), abs=1e-5)
        assert line["source"] == WEB and line["model"] == "f"


def test_each_image_is_encoded_once(
    model: Predictor, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = read_candidates([str(phantoms / "captions.json"), str(phantoms / "captions.json")])
    assert candidates.texts == 96
    seen, forward = [], blip.network.vit.ViT.forward
    monkeypatch.setattr(
        "blip.network.vit.ViT.forward", lambda self, x, *a, **k: seen.append(len(x)) or forward(self, x, *a, **k)
    )
    steps.score(model, candidates, tmp_path / "scored", model_fingerprint="f")
    assert sum(seen) == 48


def test_broken_images_are_listed_and_left_out(model: Predictor, phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = str(phantoms / "images" / "000000.png")
    data = tmp_path / "web.json"
    data.write_text(json.dumps([{"image": i, "caption": "x"} for i in ("gone.png", good, "broken.png")]))
    candidates = read_candidates([str(data)])
    steps.caption(model, candidates, tmp_path / "syn", model_fingerprint="m", options=CaptionOptions(HOW))
    steps.score(model, read_candidates([str(data), str(tmp_path / "syn")]), tmp_path / "scored", model_fingerprint="f")
    for folder in ("syn", "scored"):
        problems = [line for line in read_lines(tmp_path / folder) if "problem" in line]
        assert sorted(Path(line["image"]).name for line in problems) == ["broken.png", "gone.png"]
    found = merge([tmp_path / "scored"], tmp_path / "out.jsonl", Rule(match=0.0))
    assert found.problems == 2 and found.kept[WEB] == 1


def test_little_but_unreadable_images_end_the_work(model: Predictor, tmp_path: Path) -> None:
    data = tmp_path / "web.json"
    data.write_text(json.dumps([{"image": f"gone{n}.png", "caption": "x"} for n in range(40)]))
    candidates = read_candidates([str(data)])
    with pytest.raises(TooManySkipped, match=r"11 of a shard's 20 images.*gone10\.png.*no such file.*image_root"):
        steps.score(model, candidates, tmp_path / "scored", model_fingerprint="f", shards=ShardOptions(shard_size=20))
    with pytest.raises(TooManySkipped, match="5 of a shard's 5"):
        steps.caption(
            model,
            candidates,
            tmp_path / "syn",
            model_fingerprint="m",
            options=CaptionOptions(HOW),
            shards=ShardOptions(shard_size=5),
        )
    assert not list(tmp_path.rglob("shard-*.jsonl"))  # nothing that a second try would take for done
    shards = ShardOptions(shard_size=20, max_skipped_fraction=1.0, precision="bf16")
    with pytest.raises(TooManySkipped, match="20 of a shard's 20"):
        steps.score(
            model, candidates, tmp_path / "scored", model_fingerprint="f", shards=shards
        )  # other settings: no shard binds it


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captions_and_scores_have_the_precision_that_is_asked_for(
    precision: str, model: Predictor, phantoms: Path, tmp_path: Path
) -> None:
    candidates, shards = read_candidates([str(phantoms / "captions.json")]), ShardOptions(precision=precision)
    formats: list[torch.dtype] = []
    with model.model.image_encoder.blocks[0].mlp[0].register_forward_hook(lambda _, __, out: formats.append(out.dtype)):
        options = CaptionOptions(Decoding(max_new_tokens=2))
        steps.caption(model, candidates, tmp_path / "a", model_fingerprint="m", options=options, shards=shards)
        count = len(formats)
        steps.score(model, candidates, tmp_path / "b", model_fingerprint="m", shards=shards)
    assert 0 < count < len(formats)
    assert set(formats) == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_the_prompt_is_no_part_of_a_caption(model: Predictor, phantoms: Path, tmp_path: Path) -> None:
    candidates = read_candidates([str(phantoms / "captions.json")])
    how = Decoding(sample=True, max_new_tokens=4, min_new_tokens=3)
    steps.caption(model, candidates, tmp_path, model_fingerprint="m", options=CaptionOptions(how, prompt="Chest with "))
    texts = [line["text"] for line in read_lines(tmp_path)]
    written = [
        several[0].text for several in model.write([candidates.image_paths(0)[0]], "Chest with ", how, batch_size=1)
    ]
    assert written[0].startswith("chest with") and texts and not any(text.startswith("chest with") for text in texts)


# ---- merge -----------------------------------------------------------------------------------------------------------


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


# ---- items of several pictures ---------------------------------------------------------------------------------------


def test_texts_of_studies_are_written_and_scored_with_all_their_pictures(
    model: Predictor, phantoms: Path, tmp_path: Path
) -> None:
    names = [str(phantoms / "images" / f"{n:06d}.png") for n in range(5)]
    records = [{"images": names[:3], "caption": "three"}, {"image": names[3], "caption": "one"},
               {"images": [names[4], names[0]], "caption": ["two", "both"]},
               {"images": [names[4], "gone.png"], "caption": "half"}]  # fmt: skip
    (tmp_path / "web.json").write_text(json.dumps(records))
    candidates = read_candidates([str(tmp_path / "web.json")])
    options = CaptionOptions(Decoding(max_new_tokens=4, min_new_tokens=2))
    steps.caption(model, candidates, tmp_path / "syn", model_fingerprint="m", options=options)
    everything = read_candidates([str(tmp_path / "web.json"), str(tmp_path / "syn")])
    assert len(everything) == 4
    steps.score(model, everything, tmp_path / "scored", model_fingerprint="f")
    items = {"three": blip.Study(names[:3]), "one": names[3], "two": blip.Study([names[4], names[0]])}
    written = [line["text"] for line in read_lines(tmp_path / "syn") if "text" in line]
    assert written == [model.caption(item, decoding=options.decoding)[0] for item in items.values()]
    lines = [line for line in read_lines(tmp_path / "scored") if "text" in line]
    scored = {line["text"]: line for line in lines}
    assert scored.keys() == {*items, "both", *written} and scored["two"]["images"] == [names[4], names[0]]
    for text, item in items.items():
        assert scored[text]["match"] == pytest.approx(float(model.match_probability(item, text)[0]), abs=1e-5)
        assert scored[text]["itc"] == pytest.approx(float(model.itc_score(item, text)[0, 0]), abs=1e-5)
    found = merge([tmp_path / "scored"], tmp_path / "out.json", Rule(0.0), keep=[str(tmp_path / "web.json")])
    assert found.problems == 1 and sum(found.kept.values()) == len(lines) + 5
    pairs = blip.data.pairs.read_pairs([str(tmp_path / "out.json")])
    assert [len(pairs.image_paths(i)) for i in range(4)] == [3, 3, 1, 1]
    merge([tmp_path / "scored"], tmp_path / "tars", Rule(0.0))
    raws = {raw.record()["caption"][0]: raw.images() for raw in open_shards([str(tmp_path / "tars")]).read(0)}
    assert raws["three"] == [Path(name).read_bytes() for name in names[:3]] and len(raws["one"]) == 1
    write_report([tmp_path / "scored"], tmp_path / "page.html", Rule(0.0))
    assert "000000.png and 2 more" in (tmp_path / "page.html").read_text()


# ---- killed ----------------------------------------------------------------------------------------------------------


def one_process(step: str, checkpoint: Path, data: Path, out: Path, rank: int, world: int) -> None:
    """What one of several processes does in a step, without a rendezvous."""
    torch.set_num_threads(1)
    blip.files.os.fsync = lambda descriptor: time.sleep(0.05)  # a slow disk: there is a middle to be killed in
    answers = {"rank": rank, "world_size": world, "is_main": rank == 0, "barrier": None}
    for name, answer in answers.items():
        setattr(blip.distributed, name, lambda answer=answer: answer)
    if step == "merge":  # the main process's work, while the others wait
        if rank == 0:
            merge([data], out / "tars", Rule(0.0), tar_size=3)
            merge([data], out / "out.jsonl", Rule(0.0))
        return
    while rank and not (out / "settings.json").exists():
        time.sleep(0.005)
    candidates, model = read_candidates([str(data)]), blip.load(checkpoint)
    if step == "caption":
        steps.caption(
            model,
            candidates,
            out,
            model_fingerprint="m",
            options=CaptionOptions(HOW, seed=4),
            shards=ShardOptions(shard_size=3, batch_size=2),
        )
    else:
        steps.score(model, candidates, out, model_fingerprint="m", shards=ShardOptions(shard_size=3, batch_size=2))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("step", ["caption", "filter", "merge"])
def test_killed_processes_leave_what_an_undisturbed_one_leaves(
    step: str, tiny_checkpoint: Path, model: Predictor, phantoms: Path, tmp_path: Path
) -> None:
    """Both processes are killed five times, at random moments; then they may end."""
    if step == "merge":
        pytest.importorskip("webdataset")
    data, out = phantoms / "captions.json", tmp_path / "two"
    if step == "merge":
        steps.score(model, read_candidates([str(data)]), tmp_path / "scored", model_fingerprint="m")
        data = tmp_path / "scored"
    one_process_in_order = (step, tiny_checkpoint, data, tmp_path / "one")

    def start(out: Path, world: int) -> list:
        arguments = (*one_process_in_order[:3], out)
        processes = [forked(one_process, *arguments, rank, world) for rank in range(world)]
        for process in processes:
            process.start()
        return processes

    for folder in ("one", "timed"):  # the first one also waits for the server of processes
        begun = time.monotonic()
        for process in start(tmp_path / folder, 1):
            process.join(120)
    whole, rng, cut = time.monotonic() - begun, random.Random(step), 0
    for _ in range(5):
        processes = start(out, 2)
        time.sleep(rng.uniform(0.1, 0.5) * whole)
        for process in processes:
            cut += process.is_alive()
            process.kill()  # SIGKILL
            process.join(60)
    assert cut  # at least one was killed in its work
    for process in start(out, 2):
        process.join(120)
        assert process.exitcode == 0
    assert contents(tmp_path / "one") == contents(out)


# ---- a whole round ---------------------------------------------------------------------------------------------------


def small_rounds(start: Path, phantoms: Path) -> list[str]:
    """Options of `blip capfilt run` for rounds on 48 phantoms, two training steps each."""
    whole = {key: None if value == "null" else value for key, value in TINY.items()}
    whole |= {"crop_scale": [0.5, 1.0], "max_steps": 2, "val_file": []}
    small = {key: value for key, value in whole.items() if key not in (*MODEL_SIZES, "queue_size")}
    data = [str(phantoms / "captions.json")]
    options = {
        "web_file": data, "human_file": data, "start": str(start), "device": "cpu",
        "pretrain_set": {**whole, "tokenizer": str(start / "tokenizer.json")},
        "captioner_set": small, "filter_set": {**small, "queue_size": 8}, "shared_set": {**whole, "lr": 1e-3},
        "fraction": 0.5, "shard_size": 20, "max_new_tokens": 5,
    }  # fmt: skip
    return [word for key, value in options.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def bootstrap(start: Path, phantoms: Path, output: Path, *more: str) -> CompletedProcess:
    """One round or more."""
    command = ["capfilt", "run", "--config", ROOT / "configs" / "capfilt_phantoms.yaml", "--output_dir", output]
    return Program("blip", *command, *small_rounds(start, phantoms), *more).finish(600)


@pytest.mark.slow
def test_two_rounds_by_one_command(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    done = bootstrap(tiny_checkpoint, phantoms, tmp_path, "--rounds", "2")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for number in (1, 2):
        place = tmp_path / f"round{number}"
        records = [json.loads(line) for line in (place / "bootstrapped.jsonl").read_text().splitlines()]
        assert {record["source"] for record in records} >= {HUMAN, WEB}
        assert (place / "report.html").is_file() and (place / "model" / "checkpoints" / "latest").exists()
        assert {line["round"] for line in read_lines(place / "synthetic") if "text" in line} == {number}
    config = (tmp_path / "round2" / "captioner" / "config.yaml").read_text()
    assert "round1/model" in config  # the second round starts from the model of the first
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*")}
    shutil.rmtree(tmp_path / "round2" / "model")
    for step in (tmp_path / "round1" / "model" / "checkpoints").glob("step-*"):
        shutil.copytree(step, step.with_name("step-00000009"))  # a copy that is passed over, as in any run
    merged = tmp_path / "round1" / "bootstrapped.jsonl"
    lost = merged.read_bytes()
    merged.unlink()
    again = bootstrap(tiny_checkpoint, phantoms, tmp_path, "--rounds", "2")
    assert again.returncode == 0 and "training" in again.stdout
    assert again.stdout.count("training") == 1  # what was done is not done again
    assert merged.read_bytes() == lost
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*")}
    shutil.rmtree(tmp_path / "round2" / "model" / "checkpoints")
    gone = bootstrap(tiny_checkpoint, phantoms, tmp_path, "--rounds", "2")
    assert gone.returncode == 1 and "round2/model was trained and has lost its checkpoints" in gone.stderr
    shared = bootstrap(tiny_checkpoint, phantoms, tmp_path / "s", "--set", "shared=configs/pretrain_demo.yaml")
    assert shared.returncode == 0, shared.stderr[-3000:]
    assert not (tmp_path / "s" / "round1" / "filter").exists()
    longer = bootstrap(tiny_checkpoint, phantoms, tmp_path / "s", "--set", "shared=configs/pretrain_demo.yaml")
    assert longer.returncode == 0 and "training" not in longer.stdout
    done = tmp_path / "s" / "round1" / "shared" / "done.json"
    done.write_text(done.read_text().replace('"max_steps": 2', '"max_steps": 3'))
    changed = bootstrap(tiny_checkpoint, phantoms, tmp_path / "s", "--set", "shared=configs/pretrain_demo.yaml")
    assert changed.returncode == 1 and "was trained with another max_steps" in changed.stderr
    other = bootstrap(tiny_checkpoint, phantoms, tmp_path, "--set", "threshold=0.7")
    assert other.returncode == 1 and "begun with other settings: threshold 0.1 -> 0.7" in other.stderr


@pytest.mark.slow
def test_a_round_under_torchrun_with_packaged_configurations(
    tiny_checkpoint: Path, phantoms: Path, tmp_path: Path
) -> None:
    """Outside a checkout, where only names of configurations can be found; two processes share every step."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "blip"]
    command += ["capfilt", "run", "--config", "capfilt_phantoms", "--output_dir", "out"]
    names = ["--set", "shared=pretrain_demo", "--set", "pretrain=configs/pretrain_demo.yaml"]
    done = subprocess.run(
        [*command, *small_rounds(tiny_checkpoint, phantoms), *names],
        cwd=tmp_path, env=script_env({"PYTHONPATH": str(ROOT)}), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    place = tmp_path / "out" / "round1"
    assert (place / "shared" / "done.json").is_file() and (place / "model" / "checkpoints" / "latest").exists()
    assert len(list((place / "scored").glob("shard-*.jsonl"))) == 3
    assert done.stdout.count("done: ") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 2, "pretrain": "", "start": "x"}, "set pretrain"),
        ({"pretrain": ""}, "nothing to start from"),
        ({"web_file": []}, "web_file"),
        ({"treshold": 0.4}, "threshold"),
    ],
)
def test_rounds_that_cannot_be(options: dict, message: str) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    with pytest.raises(ConfigError, match=message):
        load_config(ROOT / "configs" / "capfilt_phantoms.yaml", CapFiltConfig, words)


# ---- the verbs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verbs_in_two_processes(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    """Two processes write what one writes; merging is the work of one of them."""
    data = phantoms / "captions.json"
    steps = [
        ["filter", "--checkpoint", tiny_checkpoint, "--data", data, "--shard_size", 10, "--device", "cpu"],
        ["merge", "--scored", tmp_path / "two" / "filter", "--fraction", 0.5],
    ]
    for step in steps:
        name = step[0] + ("" if step[0] == "filter" else ".jsonl")
        for done in run_in_two("blip", "capfilt", *step, "--out", tmp_path / "two" / name):
            assert done.returncode == 0, done.stderr[-3000:]
        assert run_capfilt(*step, "--out", tmp_path / "one" / name)[0] == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_verbs_from_captions_to_a_page(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    data, syn, out = phantoms / "captions.json", tmp_path / "syn", tmp_path / "scored"
    options = ["--checkpoint", tiny_checkpoint, "--shard_size", 16]
    assert run_capfilt("caption", "--data", data, "--out", syn, "--max_new_tokens", 4, *options)[0] == 0
    code, said = run_capfilt("filter", "--data", data, "--data", syn, "--out", out, *options)
    assert code == 0 and "texts of 48 images" in said, said
    assert run_capfilt("merge", "--scored", out, "--out", tmp_path / "boot.json", "--fraction", 0.5)[0] == 0
    lines = list(read_lines(out))
    lines[0]["text"] = "<script>alert(1)</script>"
    write_jsonl(out / "shard-00000.jsonl", lines[:30], end=True)
    shown = ["--fraction", 0.5, "--examples", 5]
    code, said = run_capfilt("report", "--scored", out, "--out", tmp_path / "page.html", *shown)
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and "<script>alert" not in page and "http" not in page.replace("http-equiv", ""), said
    assert page.count("<article") == 20 and page.count("data:image/jpeg") == 20 and page.count("<svg") == 4
    code, said = run_capfilt("caption", "--data", data, "--out", syn, "--max_new_tokens", 5, *options)
    assert code != 0 and "begun with max_new_tokens 4, now it is 5" in said
