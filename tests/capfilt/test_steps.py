"""CapFilt step by step: files do not depend on how work is divided; broken images are listed, none is read twice."""

import json
from pathlib import Path

import pytest
import torch

import blip
from blip.capfilt import steps
from blip.capfilt.candidates import SYNTHETIC, WEB, read_candidates
from blip.capfilt.merge import Rule, merge
from blip.capfilt.report import write_report
from blip.capfilt.steps import CaptionOptions, ShardOptions
from blip.data.jsonl_shards import ShardError, read_lines, shard_path, write_jsonl_shards
from blip.data.skipped import TooManySkipped
from blip.data.webdataset import open_shards
from blip.files import WriteError
from blip.inference.predictor import Predictor
from blip.models.decoding import Decoding

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
