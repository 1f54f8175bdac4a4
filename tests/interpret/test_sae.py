"""Sparse autoencoders: they find directions that states are made of, fit into the model, and are shown as a page."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.running import code_and_text
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import blip
from blip.errors import BlipError
from blip.hashing import fingerprint
from blip.inference.predictor import Predictor
from blip.interpret.activations import Capture, capture
from blip.interpret.explain_files import find_pairs
from blip.interpret.features.sae import SaeError, SparseAutoencoder, load_sae, save_sae, splice
from blip.interpret.features.sae_report import find_features, held_out, named
from blip.interpret.features.sae_training import SaeSettings, downstream, quality, train_sae
from blip.interpret.features.states import Cached, Tokens

WIDTH, TRUE = 12, 20
POINT = "text.0.out"


def made() -> tuple[Tensor, Tokens]:
    """Twenty directions in twelve dimensions, and states that are sums of two of them."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(TRUE, WIDTH, generator=generator), dim=1)
    chosen = torch.stack([torch.randperm(TRUE, generator=generator)[:2] for _ in range(2000)])
    sizes = 1 + torch.rand(2000, 2, generator=generator)
    states = (directions[chosen] * sizes[..., None]).sum(dim=1) + 3
    return directions, Tokens({POINT: states}, np.arange(2000), np.arange(2000), np.zeros(2000, dtype=int))


@pytest.mark.parametrize(
    "settings",
    [
        SaeSettings(40, "topk", 2, steps=300, batch_size=128, learning_rate=5e-3, revive_every=50),
        SaeSettings(40, "gated", 2, 0.6, steps=400, batch_size=128, learning_rate=5e-3, revive_every=70),
    ],
    ids=["topk", "gated"],
)
def test_directions_that_states_are_made_of_are_found(settings: SaeSettings) -> None:
    directions, tokens = made()
    sae, about = train_sae(tokens, POINT, settings)
    assert about["quality"]["explained"] > 0.85 and about["quality"]["active"] < 6
    nearest = (directions @ sae.directions.T).amax(dim=1)
    assert float((nearest > 0.9).float().mean()) > 0.7


def test_top_k_keeps_k_and_the_gate_and_the_size_are_two_thresholds() -> None:
    x = torch.randn(50, WIDTH)
    sae = SparseAutoencoder(WIDTH, 30, kind="topk", k=3)
    codes = sae.codes(x)
    assert ((codes > 0).sum(dim=1) <= 3).all() and (codes >= 0).all()
    open_ones = F.relu((x - sae.centre) @ sae.encoder.weight.T)
    assert torch.equal(codes.amax(dim=1), open_ones.amax(dim=1))
    gated = SparseAutoencoder(WIDTH, 30, kind="gated", k=3)
    with torch.no_grad():
        gated.encoder.bias.fill_(-1.0)
        gated.gain.fill_(0.5)
    projected = (x - gated.centre) @ gated.encoder.weight.T
    expected = torch.where(projected > 1, projected * torch.tensor(0.5).exp(), torch.zeros(()))
    assert torch.allclose(gated.codes(x), expected)


def test_dead_features_are_revived() -> None:
    """Half of the features start where no state can open them."""
    _, tokens = made()
    few = {"steps": 200, "batch_size": 128, "learning_rate": 5e-3}
    dead, revived = [], []
    for every in (40, 200):

        def with_dead(module: SparseAutoencoder, states: Tensor, fit=SparseAutoencoder.fit_scale) -> None:
            fit(module, states)
            with torch.no_grad():
                module.encoder.bias[20:] = -100

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SparseAutoencoder, "fit_scale", with_dead)
            _, about = train_sae(tokens, POINT, SaeSettings(40, "topk", 2, revive_every=every, **few))
        dead.append(about["quality"]["dead"])
        revived.append(about["revived"])
    assert dead[1] >= 0.5 > 0.3 > dead[0] and revived[0] >= 20 and revived[1] == 0


def test_k_is_of_topk_alone_and_training_has_gradients() -> None:
    with torch.no_grad():
        sae, _ = train_sae(made()[1], POINT, SaeSettings(8, "gated", 16, steps=2))
    assert sae.features == 8
    with pytest.raises(SaeError, match="sparsity is -1"):
        train_sae(made()[1], POINT, SaeSettings(8, "gated", sparsity=-1))


def test_equal_seeds_give_equal_autoencoders() -> None:
    _, tokens = made()
    one, other = (train_sae(tokens, POINT, SaeSettings(20, k=2, steps=20, revive_every=5))[0] for _ in range(2))
    assert torch.equal(one.directions, other.directions)


def test_quality_is_the_share_of_variance() -> None:
    _, tokens = made()
    states = tokens.states[POINT]
    sae = SparseAutoencoder(WIDTH, 30, kind="topk", k=1)
    sae.fit_scale(states)
    with torch.no_grad():
        sae.encoder.bias.fill_(-100)  # nothing is active: the mean is restored
    found = quality(sae, states)
    assert found.explained == pytest.approx(0, abs=1e-6) and found.active == 0 and found.dead == 1


def test_features_with_their_largest_tokens() -> None:
    _, tokens = made()
    sae = SparseAutoencoder(WIDTH, 30, kind="topk", k=3)
    features = find_features(sae, tokens, count=5, examples=4)
    codes = sae.codes(tokens.states[POINT])
    assert [one.number for one in features] == codes.sum(dim=0).argsort(descending=True)[:5].tolist()
    for one in features:
        assert [top.code for top in one.top] == pytest.approx(codes[:, one.number].topk(4)[0].tolist())
        assert one.active == pytest.approx(float((codes[:, one.number] > 0).float().mean()))


# ---- in the model ----------------------------------------------------------------------------------------------------


class Same(SparseAutoencoder):
    """Restores everything."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def test_a_perfect_autoencoder_loses_nothing_and_the_mean_recovers_nothing(model: Predictor, phantoms: Path) -> None:
    wanted = [one for one in find_pairs(phantoms / "captions.json", []) if len(one.text.split()) < 14][:8]
    for task, point in (("match", POINT), ("caption", "decoder.0.out"), ("match", "image.1.out")):
        perfect = downstream(model, Same(32, 4, k=1), point, wanted=wanted, task=task)
        assert perfect.spliced == pytest.approx(perfect.original) and perfect.recovered.mean == pytest.approx(1)
        constant = SparseAutoencoder(32, 4, k=1)
        with torch.no_grad():
            constant.encoder.bias.fill_(-100)
        none = downstream(model, constant, point, wanted=wanted, task=task)
        assert none.spliced == pytest.approx(none.mean_state) and none.recovered.mean == pytest.approx(0, abs=1e-6)
    with pytest.raises(BlipError, match="changes nothing in the task match"):
        downstream(model, Same(32, 4, k=1), "decoder.0.out", wanted=wanted, task="match")


def test_an_autoencoder_follows_the_states_to_their_device() -> None:
    states = torch.zeros(1, 2, 8, device="meta")  # stands for a GPU, as nothing can be computed between the two either
    assert splice(SparseAutoencoder(8, 16, k=2))(states).device == states.device  # type: ignore[union-attr]


def test_the_loss_does_not_depend_on_batches(model: Predictor, phantoms: Path) -> None:
    wanted = list(find_pairs(phantoms / "captions.json", []))[:5]
    one, several = (downstream(model, Same(32, 8, k=2), POINT, wanted=wanted, batch_size=size) for size in (1, 3))
    assert one.original == pytest.approx(several.original, rel=1e-5)


def test_only_the_first_token_is_replaced(model: Predictor, pictures: list[Path]) -> None:
    sae = SparseAutoencoder(32, 4, k=1)
    x = torch.randn(2, 3, 32)
    changed = splice(sae, first_only=True)(x)
    assert changed is not None and torch.equal(changed[:, 1:], x[:, 1:]) and not torch.equal(changed[:, 0], x[:, 0])
    with (
        pytest.raises(SaeError, match="of width 8, and the states have width 32"),
        blip.trace(model, edit={POINT: splice(SparseAutoencoder(8, 4, k=1))}),
    ):
        model.match_logits(pictures, ["chest"] * 3)


@pytest.fixture(scope="module")
def shards(model: Predictor, phantoms: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("activations")
    wanted = list(find_pairs(phantoms / "captions.json", []))
    capture(
        model,
        wanted,
        Capture(fingerprint(tiny_checkpoint), "d", ["image.1.out", POINT, "text.0.self.z"], "match"),
        folder,
    )
    return folder


TRAIN = ["--features", "24", "--k", "4", "--steps", "60", "--batch_size", "64"]


@pytest.mark.parametrize("point", ["image.1.out", POINT])
def test_the_verbs(point: str, phantoms: Path, tiny_checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    code, text = code_and_text("sae", "train", shards, "--point", point, "--out", tmp_path / "sae", *TRAIN)
    assert code == 0 and "variance explained" in text, text
    command = ["sae", "report", tmp_path / "sae", shards, phantoms / "captions.json", "--checkpoint", tiny_checkpoint]
    code, text = code_and_text(*command, "--out", tmp_path / "page.html", "--features", "5", "--limit", "8")
    assert code == 0 and "loss recovered" in text and "5 features" in text, text
    page = (tmp_path / "page.html").read_text()
    assert page.count("<h2>Feature") == 5 and "data:image/jpeg" in page and "<script" not in page
    found = json.loads((tmp_path / "page.json").read_text())
    assert found["sae"]["point"] == point and len(found["features"]) == 5
    records = [[top["record"] for top in feature["top"]] for feature in found["features"]]
    assert all(len(set(numbers)) == len(numbers) for numbers in records) and max(map(len, records)) > 3
    marked = re.findall(r"<mark>(.*?)</mark>", page)
    assert any(marked) != point.startswith("image.")
    sae, about = load_sae(tmp_path / "sae")
    assert about["task"] == "match" and sae.features == 24
    assert about["held_out"] == list(range(0, 48, 5)) and "8 of 10 held-out records" in text
    assert found["downstream"]["measured_on"] == "8 of 10 held-out records"
    records = list(find_pairs(phantoms / "captions.json", []))
    tested = [records[number] for number in about["held_out"][:8]]
    expected = downstream(blip.load(tiny_checkpoint), sae, point, wanted=tested, task="match")
    assert found["downstream"]["original"] == pytest.approx(expected.original)
    assert found["downstream"]["spliced"] == pytest.approx(expected.spliced)


def test_images_that_test_do_not_train_and_others_can_be_named(
    model: Predictor, phantoms: Path, tiny_checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    """Two records of each image, but one: they are trained on, or tested, together."""
    all_records = list(find_pairs(phantoms / "captions.json", []))[:11]
    wanted = [*all_records, *all_records[:10][::-1]]
    about = Capture(fingerprint(tiny_checkpoint), "d", [POINT], "match", shard_size=7)
    capture(model, wanted, about, tmp_path / "shards")
    tokens = Cached(tmp_path / "shards").tokens([POINT])
    assert dict(zip(tokens.records.tolist(), tokens.images.tolist(), strict=True)) == {
        **{number: number for number in range(11)}, **{number: 20 - number for number in range(11, 21)},
    }  # fmt: skip
    _, known = train_sae(tokens, POINT, SaeSettings(8, k=2, steps=2))
    assert known["held_out"] == [0, 5, 10, 15, 20]
    assert known["quality"]["states"] == int(np.isin(tokens.records, known["held_out"]).sum())
    tested = held_out(wanted, known, limit=3)
    assert tested.records == [wanted[0], wanted[5], wanted[10]] and tested.name == "3 of 5 held-out records"
    other = named("other.json", [wanted[0], wanted[1]], wanted, known, limit=0)
    assert other.name == "2 records of other.json, 1 of them about images that trained it"
    with pytest.raises(SaeError, match=r"does not tell which records it held out.*--test_data"):
        held_out(wanted, {}, limit=0)
    one = Tokens(tokens.states, tokens.records, 0 * tokens.images, tokens.places)
    assert sorted({*one.records[one.held_out().numpy()].tolist()}) == [0, 5, 10, 15, 20]


def test_the_loss_is_of_all_pictures_of_an_item(model: Predictor, phantoms: Path) -> None:
    first, second, *_ = find_pairs(phantoms / "captions.json", [])
    both = replace(first, further=[second.image])
    found = downstream(model, Same(32, 8, k=2), POINT, wanted=[both], task="match")
    logits = model.match_logits([blip.Study([first.image, second.image])], [first.text])
    assert found.original == pytest.approx(float(-logits.log_softmax(dim=1)[0, 1]), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "nowhere"}, "nowhere holds no activations"),
        ({"--point": "text.1.out"}, "has no states at 'text.1.out'; it has image.1.out"),
        ({"--point": "text.0.self.z"}, "text.0.self.z is no state"),
        ({"--point": "*"}, "an autoencoder is of one point"),
        ({"--k": "40"}, "k is 40 and there are 24 features"),
        ({"--k": "33", "--features": "64"}, "k is 33 and the states have width 32"),
        ({"--kind": "relu"}, "kind is 'relu'; it can be topk, gated"),
    ],
)
def test_bad_settings(change: dict, message: str, shards: Path, tmp_path: Path) -> None:
    options = {"--point": POINT, "--features": "24", "--k": "4", "--steps": "2", "--out": str(tmp_path / "sae")}
    options |= {key: value for key, value in change.items() if isinstance(key, str)}
    words = [word for pair in options.items() for word in pair]
    code, text = code_and_text("sae", "train", change.get(0, shards), *words)
    assert code == 1 and message in text and not (tmp_path / "sae" / "sae.json").exists()


def test_a_report_of_other_data_or_other_activations(
    model: Predictor, phantoms: Path, tiny_checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    weights = fingerprint(tiny_checkpoint)
    about = {"point": POINT, "task": "match", "pool": "all", "weights": weights, "contents": "", "revived": 0}
    save_sae(tmp_path / "sae", SparseAutoencoder(32, 8, k=2), about)
    command = ["sae", "report", tmp_path / "sae", shards, phantoms / "captions.json", "--checkpoint", tiny_checkpoint]
    code, text = code_and_text(*command, "--out", tmp_path / "page.html")
    assert code == 1 and "has another contents than the activations" in text
    index = json.loads((shards / "index.json").read_text())
    save_sae(tmp_path / "sae", SparseAutoencoder(32, 8, k=2), {**about, "contents": index["contents"]})
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    weights_file = other / "model.safetensors"
    save_file(
        {name: x + 1 if x.is_floating_point() else x for name, x in load_file(weights_file).items()}, weights_file
    )
    code, text = code_and_text(*command[:-1], other, "--out", tmp_path / "page.html")
    assert code == 1 and "is another checkpoint than that of" in text
    command[4] = phantoms / "questions.json"
    code, text = code_and_text(*command, "--out", tmp_path / "page.html")
    assert code == 1 and "has other records than" in text
    code, text = code_and_text("sae", "report", tmp_path, shards, command[4], "--checkpoint", tiny_checkpoint,
                               "--out", tmp_path / "page.html")  # fmt: skip
    assert code == 1 and "holds no sparse autoencoder" in text
