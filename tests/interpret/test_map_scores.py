"""Scores of maps: curves and overlaps of planted maps, models that become random, the table, its command."""

import itertools
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bad_finetune_cases import answerer
from helpers.running import code_and_text, run_verb
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import blip
from blip.errors import InputError
from blip.evaluation.bootstrap import Interval
from blip.inference.predictor import Predictor
from blip.inference.scoring import caption_log_probs
from blip.interpret import map_controls, map_curves, map_report
from blip.interpret.map_boxes import Boxed, energy_inside, iou_of_largest, mask_of, read_boxed
from blip.interpret.map_scores import OTHER_TEXT, OWN, UNTRAINED, MapScorer, Scored, Scoring
from blip.interpret.objectives import OBJECTIVES, explained

# ---- curves ----------------------------------------------------------------------------------------------------------


def test_a_map_of_what_is_needed_has_the_smallest_and_the_largest_area() -> None:
    pixels = torch.rand(1, 3, 8, 8)
    needed = (slice(None), slice(None), slice(2, 4), slice(4, 6))  # patch (1, 2) of 4 x 4

    def probability(shown: Tensor) -> Tensor:
        return (shown[needed] == pixels[needed]).float().mean(dim=(1, 2, 3))

    good = torch.zeros(1, 4, 4)
    good[0, 1, 2] = 1
    for fill in map_curves.FILLS:
        deletion, insertion = map_curves.curves(probability, pixels, good, fill=fill, steps=16)
        assert deletion.tolist() == [[1] + 16 * [0]] and insertion.tolist() == [[0] + 16 * [1]]
        deletion, insertion = map_curves.curves(probability, pixels, -good, fill=fill, steps=99)
        assert deletion.tolist() == [16 * [1] + [0]] and insertion.tolist() == [16 * [0] + [1]]
    assert map_curves.area(deletion).item() == pytest.approx(1 - 1 / 32)
    with pytest.raises(InputError, match="blur, mean, black"):
        map_curves.curves(probability, pixels, good, fill="white")


def test_patches_are_ordered_by_value_and_equal_ones_at_random() -> None:
    maps = torch.tensor([[[0.0, 3.0], [2.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    order = map_curves.order_of(maps)
    assert order[0].tolist() == [[3, 0], [1, 2]] and sorted(order[1].flatten().tolist()) == [0, 1, 2, 3]
    firsts = {map_curves.order_of(maps, seed)[1].argmin().item() for seed in range(40)}
    assert firsts == {0, 1, 2, 3}


def test_covers() -> None:
    pixels = torch.randn(2, 3, 16, 16)
    assert_close(map_curves.mean_colour(pixels)[1, 2, 3, 4], pixels[1, 2].mean())
    assert map_curves.black(pixels)[0, 0, 0, 0].item() == pytest.approx(-0.48145466 / 0.26862954)
    assert map_curves.blurred(pixels).std() < pixels.std() / 2


def test_probability_of_captions_answers_and_matches(
    model: Predictor, pictures: list[Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    texts, pixels = ["a small bright lesion", "a head", "chest"], model.pixels(pictures)
    of_caption = map_curves.probability_of(model, OBJECTIVES["caption"], texts, [])(pixels)
    for i, text in enumerate(texts):
        assert of_caption[i].item() == pytest.approx(
            caption_log_probs(model, [pictures[i]], [text]).mean().exp().item(), rel=1e-5
        )
    tokens = int(model.ids(["a lesion"])[1]) - 1
    certain = torch.tensor([[-float(tokens), *[0.0] * (tokens - 1)]])  # all but the first with probability 1
    sure = replace(OBJECTIVES["caption"], score=lambda *_, **__: certain)
    assert map_curves.probability_of(model, sure, ["a lesion"], [])(pixels[:1]).item() == pytest.approx(math.exp(-1))
    of_match = map_curves.probability_of(model, OBJECTIVES["match"], texts, [])(pixels)
    assert_close(of_match, model.match_probability(pictures, texts))
    asked = blip.load(answerer(tmp_path, tiny_checkpoint))
    objective = explained(asked, "answer")
    of_answer = map_curves.probability_of(asked, objective, texts, ["yes", "no", "left"])(pixels)
    scores = objective.scores(asked, pictures, texts, answers=["yes", "no", "left"])
    assert_close(of_answer, scores[:, 0].exp())


# ---- overlap ---------------------------------------------------------------------------------------------------------


def test_energy_and_iou_of_known_maps() -> None:
    mask = mask_of([(10, 0, 20, 5)], Image.new("L", (40, 20)), side=8)  # wide images become squares
    assert mask.sum() == 4 and mask[:2, 2:4].all()
    values = torch.full((8, 8), -1.0)
    values[:2, 2:4] = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    values[7, 7] = 2
    assert energy_inside(values, mask) == pytest.approx(6 / 8)
    assert iou_of_largest(values, mask) == pytest.approx(3 / 5)  # one of four largest lies outside
    assert energy_inside(-values.abs(), mask) == 0
    assert mask_of([(3, 3, 3.1, 3.1)], Image.new("L", (40, 40)), side=8).sum() == 1


# ---- controls --------------------------------------------------------------------------------------------------------


def test_rank_correlation() -> None:
    assert map_controls.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
    x = torch.tensor([0.1, 5.0, 2.0, 3.0])
    assert map_controls.rank_correlation(x, x.exp()) == pytest.approx(1)
    assert map_controls.rank_correlation(x, -x) == pytest.approx(-1)
    assert map_controls.rank_correlation(x, torch.ones(4)) == 0
    # 1 - 6 * sum of squared differences / (n (n^2 - 1)), by hand
    assert map_controls.rank_correlation(x, torch.tensor([0.0, 1.0, 2.0, 3.0])) == pytest.approx(1 - 6 * 6 / 60)


@pytest.mark.parametrize("task", ["match", "caption"])
def test_models_become_random_from_output_to_input(model: Predictor, task: str) -> None:
    objective = OBJECTIVES[task]
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    changed: list[set[str]] = []
    parts = []
    for part, other in map_controls.randomised(model, objective):
        parts.append(part)
        changed.append({n for n, p in other.model.named_parameters() if not torch.equal(p, before[n])})
    assert parts == ["heads", *(f"{objective.stack}.{n}" for n in (1, 0)), "image.1", "image.0", "embeddings"]
    assert all(a < b for a, b in itertools.pairwise(changed))
    word_head = {"text_decoder.head.transform.weight"} if task == "caption" else set()
    assert word_head == changed[0] & {"text_decoder.head.transform.weight", "text_decoder.embeddings.words.weight"}
    # what is constant, such as new norms, stays as it is; the others have been drawn anew
    read = [n for n, p in before.items() if n.split(".")[0] in ("image_encoder", "itm_head") and p.std() > 0]
    assert set(read) <= changed[-1] and all(torch.equal(p, before[n]) for n, p in model.model.named_parameters())
    noisy = dict(other.model.named_parameters())["image_encoder.blocks.0.mlp.0.weight"]
    assert float(noisy.detach().std()) == pytest.approx(
        before["image_encoder.blocks.0.mlp.0.weight"].std().item(), rel=0.1
    )


def test_other_texts_differ() -> None:
    assert map_controls.other_texts(["a", "a", "b"]) == ["b", "b", "a"]
    assert map_controls.other_texts(["a", "a"]) == ["a", "a"]


def test_a_spot_in_the_middle() -> None:
    maps = map_controls.centre_maps(2, (3, 5))
    assert maps.shape == (2, 3, 5) and maps[0].argmax() == 7 and maps[1, 0, 0] == maps[1, 2, 4]


# ---- the table -------------------------------------------------------------------------------------------------------


def records_of(phantoms: Path, limit: int) -> list[Boxed]:
    return read_boxed(phantoms / "captions.json", OBJECTIVES["match"], limit)[0]


def test_planted_maps_score_as_they_should(model: Predictor, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record for record in records_of(phantoms, 20) if record.boxes]
    boxes = {id(record.image): record for record in records}
    asked = {record.text for record in records}

    def knows(m: Predictor, images: list, texts: list[str], **options: object) -> list:
        found = []
        for image, text in zip(images, texts, strict=True):
            mask = mask_of(boxes[id(image)].boxes, image, 32).float()
            sentence = mask if text == boxes[id(image)].text and m is model else torch.ones(2, 2)
            found.append(type("Found", (), {"sentence": sentence}))
        assert set(texts) <= asked
        return found

    monkeypatch.setattr("blip.interpret.map_scores.explain_pairs", knows)
    how = Scoring(scores=("boxes", "sanity"))
    own, other, untrained, noise, _, known = MapScorer(model, records, how).table(["relevance"])
    assert (own.maps, other.maps, untrained.maps) == (OWN, OTHER_TEXT, UNTRAINED)
    assert own.scores["hit"].mean == own.scores["energy"].mean == own.scores["iou"].mean == 1
    assert other.scores["hit"].mean == 0 and untrained.scores["energy"].mean < 0.3
    assert noise.scores["hit"].mean < 0.5 < known.scores["hit"].mean
    assert own.scores["rank"].mean == 0 and next(iter(own.cascade)) == "heads" and not other.cascade


def test_a_table_of_a_real_model(model: Predictor, phantoms: Path) -> None:
    records = records_of(phantoms, 5)
    lines = MapScorer(model, records, Scoring(steps=3, batch_size=2)).table(["raw"])
    assert [line.maps for line in lines] == [OWN, OTHER_TEXT, UNTRAINED, "", "", ""]
    assert set(lines[0].scores) == {"hit", "energy", "iou", "deletion", "insertion", "rank"}
    for line in lines:
        shown = [curve[0] for curve in line.curves.values()], [curve[-1] for curve in line.curves.values()]
        assert shown[0] == pytest.approx(shown[1][::-1])  # nothing covered, everything covered
    images, texts = [record.image for record in records], [record.text for record in records]
    maps = torch.stack([one.sentence for one in blip.explain_pairs(model, images, texts, method="raw")])
    slow = map_curves.curves(
        lambda shown: model.match_probability(list(shown), texts), model.pixels(images), maps, steps=3
    )
    assert lines[0].scores["deletion"].mean == pytest.approx(map_curves.area(slow[0]).mean().item(), abs=1e-6)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["score-maps", phantoms / "captions.json", "--checkpoint", tiny_checkpoint, "--limit", 3]
    arguments += ["--method", "raw", "--steps", 2, "--out", tmp_path / "scores"]
    for _ in range(2):  # it may replace what it wrote
        done = run_verb(*arguments)
        assert done.exit_code == 0 and "random maps" in done.output, done.output
    content = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert content["records"] == 3 and len(content["lines"]) == 6
    first, *rows = (tmp_path / "scores" / "scores.csv").read_text().splitlines()
    assert first.startswith("method,maps,hit,hit_low,hit_high,energy") and len(rows) == 6
    assert {len(row.split(",")) for row in rows} == {len(first.split(","))}
    assert (tmp_path / "scores" / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({}, "", "has no boxes; --score curves and --score sanity need none"),
        ({"boxes": [[1, 2, 3]]}, "", "four numbers"),
        ({"boxes": 3}, "", "boxes is no list"),
        ({"lesions": [{}]}, "", "four numbers"),
        ({"lesions": ["a"]}, "", "no list of objects"),
        ({"lesions": [{"box": [1, 2, 3, 4]}], "named": 1}, "", "named is 1"),
        ({"caption": ""}, "", "caption is no text"),
        ({"image": 4}, "", "has no image"),
        ({"image": "gone.png", "boxes": [[1, 2, 3, 4]]}, "", "no image that can be read"),
        ({"boxes": [[1, 2, 3, 4]]}, "--score colours", "score is 'colours'; it can be boxes, curves, sanity"),
        ({"boxes": [[1, 2, 3, 4]]}, "--fill white", "blur, mean, black"),
        ({"boxes": [[1, 2, 3, 4]]}, "--method lime", "gradcam, raw, relevance, rollout"),
        ({"boxes": [[1, 2, 3, 4]]}, "--task image", "explain no text"),
        ({"boxes": [[1, 2, 3, 4]]}, "--task answer", "cannot answer"),
    ],
)
def test_bad_input(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, record: dict, options: str, message: str
) -> None:
    image = str(phantoms / "images" / "000000.png")
    (tmp_path / "data.json").write_text(json.dumps([{"image": image, "caption": "a lesion", **record}]))
    command = ["score-maps", tmp_path / "data.json", "--checkpoint", tiny_checkpoint, *options.split()]
    code, said = code_and_text(*command)
    assert code == 1 and message in said, said


def test_a_table_without_curves(tmp_path: Path) -> None:
    rank = Interval(0.5, 0.25, 0.75, 3)
    lines = [
        Scored("raw", OWN, {"rank": rank, "hit": rank}, cascade={"heads": rank}),
        Scored("raw", OTHER_TEXT, {"hit": rank}),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert map_report.save(lines, 3, tmp_path) == ["scores.json", "scores.csv", "curves.png"]
    assert (tmp_path / "scores.csv").read_text().splitlines()[1:] == [
        "raw,own,0.5,0.25,0.75,0.5,0.25,0.75",
        "raw,other text,0.5,0.25,0.75,,,",
    ]


def test_data_without_boxes_has_curves(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    image = str(phantoms / "images" / "000000.png")
    (tmp_path / "data.json").write_text(json.dumps([{"image": image, "caption": ["a lesion", "a chest"]}]))
    command = ["score-maps", tmp_path / "data.json", "--checkpoint", tiny_checkpoint, "--method", "raw"]
    done = run_verb(*command, "--score", "curves", "--steps", 2)
    assert done.exit_code == 0 and "the boxes" not in done.output and "insertion" in done.output
