"""Ablation equals a loop of traced edits, for every method; `blip ablate` continues and refuses what it should."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bad_finetune_cases import answerer
from helpers.fine_tuning import write_part
from helpers.running import code_and_text, run_verb
from torch import Tensor

import blip
from blip.errors import BlipError
from blip.inference.predictor import Predictor
from blip.interpret.causes.ablation import Ablator, Component
from blip.interpret.causes.ablation_files import pairs_of
from blip.interpret.causes.donors import Donors, fitted
from blip.interpret.causes.metrics import match
from blip.interpret.explain_files import Wanted

TEXTS = ["a small bright lesion on the left", "head with a large lesion", "a large bright lesion on the left"]
EDITED = "text.0.cross.z"


@pytest.fixture
def pairs(pictures: list[Path]) -> list[tuple[Path, str]]:
    return list(zip(pictures, TEXTS, strict=True))


def drawn(m: Predictor, pairs: list, groups: list, *, seed: int) -> list[int]:
    donors = Donors(m, pairs, groups, seed=seed)
    return [next(donors.of(number)) for number in range(len(pairs))]


def values_at(m: Predictor, pair: tuple[Path, str], point: str) -> Tensor:
    with blip.trace(m, point) as t:
        m.match_logits(*pair)
    return t[point]


def change(m: Predictor, pair: tuple[Path, str], edits: dict) -> float:
    """The match log-odds with edits minus those without."""
    clean = match(m, [pair[0]], [pair[1]])
    with blip.trace(m, edit=edits):
        return float(match(m, [pair[0]], [pair[1]]) - clean)


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
@pytest.mark.parametrize("point", ["text.0.cross.z", "image.1.attn.z"])
def test_heads_are_ablated_as_by_traced_edits(model: Predictor, pairs: list, method: str, point: str) -> None:
    ablation = blip.ablate(model, pairs, method=method)
    column = list(ablation.components).index(Component(point, 1))
    of_image = point.startswith("image")
    all_values = [values_at(model, pair, point)[0, 1] for pair in pairs]  # (T, d) each
    mean = torch.stack(all_values).mean(dim=0) if of_image else torch.cat(all_values).mean(dim=0, keepdim=True)
    donors = drawn(model, pairs, ablation.groups, seed=0)
    for row, pair in enumerate(pairs):

        def edit(z: Tensor, row: int = row) -> Tensor:
            other = all_values[donors[row]]
            tokens = min(z.shape[2], len(other))
            z = z.clone()
            if method == "resample":
                z[:, 1, :tokens], z[:, 1, tokens:] = other[:tokens], other[-1]
            else:
                z[:, 1] = mean if method == "mean" else 0
            return z

        assert ablation.changes[row, column] == pytest.approx(change(model, pair, {point: edit}), abs=1e-5)
        assert ablation.clean[row] == pytest.approx(float(match(model, [pair[0]], [pair[1]])), abs=1e-5)
    assert abs(ablation.changes[:, column]).max() > 1e-4


def test_layers_and_feed_forward_networks(model: Predictor, pairs: list) -> None:
    layers, networks = (blip.ablate(model, pairs, by=by) for by in ("layer", "mlp"))
    assert [str(one) for one in layers.components] == ["image.0.out", "image.1.out", "text.0.out", "text.1.out"]
    assert [str(one) for one in networks.components] == ["image.0.mlp", "image.1.mlp", "text.0.mlp", "text.1.mlp"]
    came_in: list[Tensor] = []
    for row, pair in enumerate(pairs):
        for number, point in enumerate(("image.1", "text.0", "text.1")):
            edits = {f"{point}.in": lambda x: came_in.append(x), f"{point}.out": lambda x: came_in[-1][:, : x.shape[1]]}
            expected = change(model, pair, edits)
            assert layers.changes[row, number + 1] == pytest.approx(expected, abs=1e-5)
            zeroed = change(model, pair, {f"{point}.mlp": torch.zeros_like})
            assert networks.changes[row, number + 1] == pytest.approx(zeroed, abs=1e-5)


def test_the_mean_of_a_layer_is_of_what_it_adds(model: Predictor, pairs: list) -> None:
    ablator = Ablator(model, pairs, by="layer", metric="match", method="mean", seed=0, batch_size=8)
    added = [values_at(model, pair, "text.0.out")[0] - values_at(model, pair, "text.0.in")[0] for pair in pairs]
    torch.testing.assert_close(
        ablator.means["text.0.out"][0], torch.cat(added).mean(dim=0).double(), rtol=1e-4, atol=1e-6
    )
    assert ablator.means["text.0.out"].shape[0] == 1 < ablator.means["image.0.out"].shape[0]


def test_ranks_and_tables(model: Predictor, pairs: list, tmp_path: Path) -> None:
    ablation = blip.ablate(model, pairs, batch_size=5)
    ranked = ablation.ranked()
    assert len(ranked) == len(ablation.components) == 2 * 2 + 2 * 2 * 2  # heads of the image, and twice of the text
    sizes = [abs(effect.change.mean) for effect in ranked]
    assert sizes == sorted(sizes, reverse=True)
    for effect in ranked:
        assert effect.change.low <= effect.change.mean <= effect.change.high
        values = ablation.changes[:, list(ablation.components).index(effect.component)]
        assert effect.change.mean == pytest.approx(values.mean()) and effect.falls == (values < 0).mean()
    table = ablation.labelled()
    assert table.dims == ("point", "head") and not np.isnan(table.values).any()
    first = ranked[0].component
    assert table.select(point=first.point, head=str(first.head)).values == pytest.approx(ranked[0].change.mean)
    assert blip.ablate(model, pairs, by="mlp").labelled().dims == ("point",)


def test_donors(model: Predictor) -> None:
    images = [f"{number // 2}.png" for number in range(8)]  # two texts each
    pairs = list(zip(images, [TEXTS[0], TEXTS[1]] * 4, strict=True))
    donors = drawn(model, pairs, images, seed=1)
    assert all(images[a] != images[b] and pairs[a][1] == pairs[b][1] for a, b in enumerate(donors))
    assert donors == drawn(model, pairs, images, seed=1) != drawn(model, pairs, images, seed=2)
    rest = drawn(model, [*pairs, ("8.png", "chest")], [*images, "8.png"], seed=1)
    assert rest[-1] < 8  # no other text is as long
    assert fitted(torch.arange(6.0).view(3, 2), 5)[:, 0].tolist() == [0, 2, 4, 4, 4]
    assert fitted(torch.arange(6.0).view(1, 3, 2), 2)[0, :, 0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "vqaa"}, "metric is 'vqaa'"),
        ({"metric": "answer"}, "question, answer"),
        ({"by": "neuron"}, "by is 'neuron'; it can be head, mlp, layer"),
        ({"method": "noise"}, "zero, mean, resample"),
        ({"by": ["head"]}, "by is .'head'."),
        ({"metric": ["match"]}, "metric is .'match'."),
        ({"pairs": []}, "there are no pairs"),
        ({"pairs": ("a.png", "x")}, "a pair is"),
        ({"pairs": [("a.png",)]}, "a pair is"),
        ({"pairs": [("a.png", "x"), ("a.png", "y")], "method": "resample"}, "one image"),
    ],
)
def test_bad_arguments(model: Predictor, pairs: list, options: dict, message: str) -> None:
    with pytest.raises(BlipError, match=message):
        blip.ablate(model, **{"pairs": pairs, **options})


# ---- the command -----------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on(
    model: Predictor, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["ablate", phantoms / "captions.json", "--checkpoint", tiny_checkpoint, "--limit", 5, "--shard_size", 2]
    command += ["--by", "layer", "--method", "resample", "--out", tmp_path / "out"]
    calls: list[int] = []
    of_pair = Ablator.of_pair

    def dies(self: Ablator, number: int) -> tuple:
        calls.append(number)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return of_pair(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Ablator, "of_pair", dies)
        assert run_verb(*command).exit_code != 0
        done = run_verb(*command)
    assert done.exit_code == 0 and "resample ablation, 5 pairs" in done.output, done.output
    assert calls == [0, 1, 2, 3, 2, 3, 4]  # the first shard was not made again
    records = json.loads((phantoms / "captions.json").read_text())[:5]
    pairs = [(phantoms / record["image"], record["caption"]) for record in records]
    expected = blip.ablate(model, pairs, by="layer", method="resample").ranked()
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "ablation.csv").open()))
    assert len(rows) == 4
    for row, one, effect in zip(rows, content["components"], expected, strict=True):
        assert row["point"] == one["point"] == effect.component.point
        assert float(row["mean"]) == one["mean"] == pytest.approx(effect.change.mean, abs=1e-5)
        assert one["low"] == pytest.approx(effect.change.low, abs=1e-5) and one["falls"] == effect.falls
    assert (tmp_path / "out" / "ablation.png").read_bytes()[:4] == b"\x89PNG"
    for option, message in (
        (("--seed", 3), "was begun with seed 0, now it is 3"),
        (("--tokenizer", tiny_checkpoint / "tokenizer.json"), "was begun with tokenizer"),
    ):
        code, said = code_and_text(*command, *option)
        assert code == 1 and message in said


def test_answers_to_questions(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = answerer(tmp_path, tiny_checkpoint)
    questions = write_part(phantoms, "vqa", 0, 8, tmp_path / "questions.json")
    command = ["ablate", questions, "--checkpoint", checkpoint, "--metric", "vqa", "--limit", 2, "--by", "mlp"]
    done = run_verb(*command, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    points = {one["point"] for one in json.loads((tmp_path / "out" / "ablation.json").read_text())["components"]}
    assert points == {f"{stack}.{layer}.mlp" for stack in ("image", "text", "decoder") for layer in (0, 1)}
    code, said = code_and_text(*command, "--metric", "match", "--out", tmp_path / "other")
    assert code == 1 and "the record is a question" in said


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([{"caption": "a lesion"}], "--metric bleu", "metric is 'bleu'; it can be vqa, match"),
        ([{"caption": "a lesion"}], "--metric vqa", "needs records with question and answer"),
        ([{"caption": "a lesion"}], "--by neuron", "head, mlp, layer"),
        ([{"caption": "a lesion"}], "--method knock", "zero, mean, resample"),
        ([{"caption": "a lesion"}], "--method resample", "all pairs have one image"),
        ([{"caption": "a lesion"}], "--shard_size 0", "shard_size is 0"),
        ([{"caption": "a lesion", "image": "gone.png"}], "", "cannot read image"),
        ([{"caption": "a lesion"}, {"caption": "a lesion", "image": "gone.png"}], "--method resample", "gone.png"),
    ],
)
def test_bad_input(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, records: list, options: str, message: str
) -> None:
    image = str(phantoms / "images" / "000000.png")
    (tmp_path / "data.json").write_text(
        json.dumps([record if "images" in record else {"image": image, **record} for record in records])
    )
    code, said = code_and_text(
        "ablate", tmp_path / "data.json", "--checkpoint", tiny_checkpoint, "--out", tmp_path / "o", *options.split()
    )
    assert code == 1 and message in said, said


def test_an_answer_that_is_too_long_is_found_before_any_work(model: Predictor, phantoms: Path) -> None:
    image = phantoms / "images" / "000000.png"
    wanted = [Wanted(image, "which side", "left"), Wanted(image, "which side", "left " * 40)]
    with pytest.raises(BlipError, match=r"000000\.png: its text has 42 tokens, the model reads"):
        pairs_of(model, wanted, "answer")


def test_a_folder_of_images_has_no_texts(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    code, said = code_and_text(
        "ablate", phantoms / "images", "--checkpoint", tiny_checkpoint, "--limit", 2, "--out", tmp_path / "o"
    )
    assert code == 1 and "its text is empty; give an annotation file" in said
