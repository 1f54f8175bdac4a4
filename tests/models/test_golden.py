"""Models with the published code's checkpoints, read by the converter, return the published code's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.golden_numbers import FEATURES, LATER, Golden, arg_max, check_gradients, check_twin, close
from torch.nn import functional as F

from blip.checkpoints import convert
from blip.checkpoints.format import load_strict
from blip.models.momentum import Entries, Queue, candidates, unit_features, update_twin
from blip.network.med import TextConfig
from blip.network.packing import with_first
from blip.network.vit import ViTConfig, resize_positions

pytestmark = pytest.mark.golden


@pytest.mark.usefixtures("packed")
def test_pretraining(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "pretrain")
    settings, numbers = golden.settings, golden.numbers
    model, twin, queue = golden.pretrain_model()
    optimizer_settings = dict(settings["optimizer"])
    optimizer = getattr(torch.optim, optimizer_settings.pop("kind"))(model.parameters(), **optimizer_settings)
    ids, lengths = golden.ids()
    unique = torch.arange(len(ids))  # nobody is anybody else's positive
    last = len(settings["losses"]) - 1
    for step, expected in enumerate(settings["losses"]):
        images = numbers[f"image{step}"]
        image_features, text_features = twin(images, ids, lengths)
        entries = Entries(image_features, text_features, unique, unique)
        columns = candidates(entries, queue, equal_captions=False, equal_images=False)
        output = model(images, ids, lengths, columns, settings["alpha"], draw=arg_max)
        losses = torch.stack([output.itc, output.itm, output.lm])
        assert settings["loss_names"] == ["ita", "itm", "lm"]
        close(losses, torch.tensor(expected), FEATURES if step == 0 else LATER)
        optimizer.zero_grad()
        losses.sum().backward()
        if step == 0:
            check_gradients(golden, model)
        optimizer.step()
        with torch.no_grad():
            model.temperature.clamp_(0.001, 0.5)
        if step == last:  # the published code updates the twin at the start of the next forward
            check_twin(golden, twin)
        update_twin(*twin.pairs_with(model), settings["momentum"])
        queue.push(entries)
    close(queue.images, numbers["after.image_queue"], LATER)
    close(queue.texts, numbers["after.text_queue"], LATER)
    assert queue.pointer == numbers["after.queue_ptr"].item()
    close(model.temperature, numbers["after.temp"], FEATURES)


@torch.no_grad()
def test_retrieval(golden_dir: Path, packed: bool) -> None:
    golden = Golden(golden_dir, "retrieval")
    model, numbers = golden.retrieval_model(), golden.numbers
    ids, lengths = golden.ids()
    rows = golden.rows(lengths, packed)
    states = model.image_encoder(numbers["image0"])
    close(states, numbers["eval_image_embeds"], FEATURES)
    close(unit_features(model.image_proj, states[:, 0]), numbers["eval_image_feat"], FEATURES)
    first = model.text_encoder.text(ids, rows, first_only=True)
    close(unit_features(model.text_proj, first), numbers["eval_text_feat"], FEATURES)

    # every text of every image side by side on the query axis
    images, texts = len(states), len(ids)
    all_ids = with_first(ids, golden.tokenizer.enc_id).repeat(images, 1)
    all_rows = golden.rows(lengths.repeat(images), packed)
    keys = model.text_encoder.image_keys(states)
    logits = model.itm_head(model.text_encoder.multimodal(all_ids, all_rows, keys, first_only=True))
    close(logits.unflatten(0, (images, texts)), numbers["eval_itm_logits"], FEATURES)


def test_retrieval_queue_and_twin_are_read(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "retrieval")
    queue = Queue(golden.settings["queue_size"], golden.info["embed_dim"])
    load_strict(queue, golden.queue_tensors, "queue")
    names = set(golden.retrieval_model().state_dict()) - {"itm_head.weight", "itm_head.bias", "temperature"}
    assert set(golden.twin_tensors) == names


@torch.no_grad()
def test_matching(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "itm")
    model, numbers = golden.retrieval_model(), golden.numbers
    ids, lengths = golden.ids()
    rows = golden.rows(lengths, packed=True)
    states = model.image_encoder(numbers["image0"])
    close(states, numbers["image_states"], FEATURES)
    first = F.normalize(model.text_proj(model.text_encoder.text(ids, rows, first_only=True)), dim=-1)
    close(unit_features(model.image_proj, states[:, 0]) @ first.T, numbers["itc"], FEATURES)

    keys = model.text_encoder.image_keys(states)
    with_cls = model.text_encoder.multimodal(ids, rows, keys, first_only=True)  # that class leaves [CLS] first
    close(model.itm_head(with_cls), numbers["itm_logits_cls_token"], FEATURES)

    text_states = rows.unpack(model.text_encoder.text(ids, rows))
    enc_ids = with_first(ids, golden.tokenizer.enc_id)
    multimodal_states = rows.unpack(model.text_encoder.multimodal(enc_ids, rows, keys))
    for i, length in enumerate(lengths.tolist()):
        close(text_states[i : i + 1, :length], numbers[f"text_states{i}"], FEATURES)
        close(multimodal_states[i : i + 1, :length], numbers[f"multimodal_states{i}"], FEATURES)


def test_position_interpolation(golden_dir: Path) -> None:
    with np.load(golden_dir / "pos_embed.npz") as file:
        before, after = torch.from_numpy(file["before"]), torch.from_numpy(file["after"])
    side = int((after.shape[1] - 1) ** 0.5)
    close(resize_positions(before, (side, side)), after, FEATURES)


@pytest.mark.parametrize("kind", ["pretrain", "retrieval", "itm"])
def test_sizes_follow_from_the_tensors(golden_dir: Path, kind: str) -> None:
    golden = Golden(golden_dir, kind)
    vit, text = golden.meta["vit"], golden.meta["text"]
    assert golden.info["task"] == ("pretrain" if kind == "pretrain" else "retrieval")
    assert golden.info["embed_dim"] == golden.meta["embed_dim"]
    assert golden.vit == ViTConfig(
        vit["image_size"], vit["patch_size"], vit["width"], vit["depth"], vit["heads"], vit["mlp_ratio"]
    )
    assert golden.text == TextConfig(
        text["vocab_size"], text["width"], text["layers"], text["heads"], text["intermediate"],
        text["max_positions"], vit["width"],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["pretrain", "retrieval", "itm", "caption", "vqa", "nlvr"])
def test_released_names_and_values_survive_the_round_trip(golden_dir: Path, tmp_path: Path, kind: str) -> None:
    meta = json.loads((golden_dir / "meta.json").read_text())
    tensors, info = convert.read(golden_dir / f"{kind}.pth", meta["vit"]["heads"], meta["text"]["heads"])
    assert convert.write(tmp_path / "again.pth", tensors, info, to="salesforce") == []
    before = torch.load(golden_dir / f"{kind}.pth", weights_only=True)["model"]
    after = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name
