"""The pointing game and its controls count correctly."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers.running import code_and_text, run_verb

import blip
from blip.data.phantoms import write_phantoms
from blip.interpret.pointing_game import Share, centre, inside, localise, peak, read_named, untrained


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("named"), count=30, seed=5, max_lesions=3, name_one=True)


def test_captions_name_one_lesion(named: Path) -> None:
    records = json.loads(named.read_text())
    assert {len(r["lesions"]) for r in records} == {1, 2, 3} and {r["named"] for r in records} == {0, 1, 2}
    for r in records:
        lesion = r["lesions"][r["named"]]
        assert r["caption"].count("lesion") == 1
        assert r["caption"].endswith(f"{lesion['shape']} lesion in the {lesion['position']} {lesion['side']}")


def test_peaks_and_boxes() -> None:
    values = torch.zeros(6, 6)
    values[1, 4] = 1
    assert peak(values, 48, 48) == (36, 12)
    assert peak(values, 96, 48) == (72, 12)  # wide images keep their proportions
    edge = torch.zeros(6, 6)
    edge[0, 3] = 1
    assert peak(edge, 48, 48) == (28, 4)
    assert peak(torch.zeros(6, 6), 48, 48) is None and peak(torch.full((6, 6), float("nan")), 48, 48) is None
    assert not inside(None, (0, 0, 48, 48), (4, 4))
    assert inside((12, 5), (10, 4, 14, 8), (0, 0)) and not inside((14, 5), (10, 4, 14, 8), (0, 0))
    assert inside((16, 5), (10, 4, 14, 8), (4, 0)) and not inside((12, 9), (10, 4, 14, 8), (4, 0))


def test_intervals_are_wilsons() -> None:
    low, high = Share(8, 10).interval()  # Wilson 1927: 0.490 to 0.943
    assert (low, high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert Share(0, 10).interval()[0] == 0 and Share(10, 10).interval()[1] == pytest.approx(1)


def test_a_map_of_the_box_hits_it_and_nothing_else(
    named: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = blip.load(tiny_checkpoint)
    records, left_out = read_named(named)
    assert all(record.others for record in records) and left_out == {"of a single lesion": 30 - len(records)}
    boxes = {record.caption: record.target for record in records}

    def knows(m: object, images: list, texts: list, *args: object, **kwargs: object) -> list:
        found = []
        for text in texts:
            left, top, right, bottom = boxes.get(text, (0, 0, 2, 2))  # shuffled captions point to a corner
            sentence = torch.zeros(48, 48)
            sentence[(top + bottom) // 2, (left + right) // 2] = 1
            found.append(type("Found", (), {"sentence": sentence}))
        return found

    monkeypatch.setattr("blip.interpret.pointing_game.explain_pairs", knows)
    lines = localise(m, records, ["relevance"])
    assert lines[0].target.rate == 1 and lines[0].shuffled.rate < 0.2
    assert 0 <= lines[0].distractor.rate < 0.5
    assert centre(m, records).trials == len(records)


def test_every_method_and_layer_with_its_controls(named: Path, tiny_checkpoint: Path) -> None:
    m = blip.load(tiny_checkpoint)
    lines = localise(m, read_named(named, limit=4)[0])
    # two layers, the last one for [ENC] alone: three rows for each method that has layers
    assert len(lines) == 3 * 3 + 1
    assert all(share.trials == 4 for line in lines for share in (line.target, line.untrained, line.shuffled))
    other = untrained(m, seed=1)
    assert not torch.equal(other.model.itm_head.weight, m.model.itm_head.weight)


def test_command(named: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["localise", named, "--checkpoint", tiny_checkpoint, "--limit", 3, "--method", "raw"]
    done = run_verb(*arguments, "--out", tmp_path / "scores.json")
    assert done.exit_code == 0 and "distractor" in done.output, done.output
    lines = json.loads((tmp_path / "scores.json").read_text())["lines"]
    assert {line["method"] for line in lines} == {"raw"} and lines[0]["target"]["trials"] == 3


def test_images_that_cannot_be_read_are_named(named: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    records = [r for r in json.loads(named.read_text()) if len(r["lesions"]) > 1][:4]
    for record in records:
        record["image"] = str(named.parent / record["image"])
    records[0]["image"], records[1]["image"] = "a\x1b[31m.png", os.fsdecode(b"\xff.png")
    (tmp_path / "set.json").write_text(json.dumps(records))
    result = run_verb("localise", tmp_path / "set.json", "--checkpoint", tiny_checkpoint, "--method", "raw")
    assert result.exit_code == 0 and "of 2 images" in result.output
    for name in (r"a\x1b[31m.png", r"\udcff.png"):
        assert f"cannot read image {tmp_path}/{name}: no such file" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a.png", "caption": "x"}]', "--name_one"),
        ('[{"image": "a.png", "caption": "x", "lesions": [{"box": [1, 2]}], "named": 0}]', "four numbers"),
        ('[{"image": "a.png", "caption": "x", "lesions": [{"box": [1, 2, 3, 4]}], "named": 3}]', "named is 3"),
        ('[{"image": "a.png", "caption": "x", "lesions": [{"box": [1, 2, 3, 4]}], "named": -1}]', "named is -1"),
        ('[{"image": "a.png", "caption": "x", "lesions": [{"box": [5, 2, 3, 4]}], "named": 0}]', "left, top, right"),
        ('[{"image": "a.png", "caption": "x", "lesions": [{"box": [1, 2, null, 4]}], "named": 0}]', "than numbers"),
        ('[{"image": "a.png", "caption": "x", "lesions": [{"box": "abcd"}], "named": 0}]', "four numbers"),
        (
            '[{"image": "a.png", "caption": ["x"], "lesions": [{"box": [1, 2, 3, 4]}], "named": 0}]',
            "caption is no text",
        ),
        (
            f'[{{"image": "a.png", "caption": "x", "lesions": [{{"box": [1, 2, {10**400}, 4]}}], "named": 0}}]',
            "too large",
        ),
        ('[{"image": 5, "caption": "x", "lesions": [{"box": [1, 2, 3, 4]}], "named": 0}]', "image is no path"),
        ('[{"image": "a\\u0000b", "caption": "x", "lesions": [{"box": [1, 2, 3, 4]}], "named": 0}]', "holds a NUL"),
        ('[{"image": "\\ud800", "caption": "x", "lesions": [{"box": [1, 2, 3, 4]}], "named": 0}]', "half a character"),
        ('[{"image": "http://a/b", "caption": "x", "lesions": [{"box": [1, 2, 3, 4]}], "named": 0}]', "is an address"),
        ("[]", "no records"),
    ],
)
def test_bad_records(tiny_checkpoint: Path, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "named.json"
    file.write_text(content)
    code, said = code_and_text("localise", file, "--checkpoint", tiny_checkpoint)
    assert code != 0 and message in said
