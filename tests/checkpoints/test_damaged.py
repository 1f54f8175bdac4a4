"""Checkpoints that are damaged, or made to take memory: refused before anything is built, with the tensor or entry."""

import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bad_checkpoint_cases import HEADS, folder, released
from helpers.hostile_files import as_complex
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import blip
from blip.checkpoints import convert, format
from blip.checkpoints.adapter_files import ADAPTER_INFO, load_adapter, save_adapter
from blip.checkpoints.adapters import add_lora
from blip.checkpoints.format import INFO, WEIGHTS, CheckpointError, save_weights
from blip.errors import InputError
from blip.files import whole_folder
from blip.network import vit

QUERY = "text_encoder.layers.0.self_attention.q.weight"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return folder(tmp_path)


def info(ours: Path, change: Callable[[dict], Any]) -> None:
    content = json.loads((ours / INFO).read_text())
    change(content)
    (ours / INFO).write_text(json.dumps(content))


# ---- numbers ---------------------------------------------------------------------------------------------------------


def one(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.flatten()[3] = value
        return tensor

    return change


@pytest.mark.parametrize(("change", "message"), [
    (one(float("nan")), "holds 1 numbers that are infinite or not a number"),
    (one(float("inf")), "holds 1 numbers"),
    (lambda t: t.half() * float("-inf"), "holds 2,304 numbers that are infinite"),
    (lambda t: one(1e300)(t.double()), "holds 1 numbers"),  # infinite in the precision of the model
    (lambda t: t.int(), "is of type int32, not float32"),
    (lambda t: t > 0, "is of type bool"),
    (as_complex, "is of type complex64"),
    (lambda t: t.to(torch.float8_e4m3fn), "is of type float8_e4m3fn"),
])  # fmt: skip
def test_weights_that_are_no_finite_floats(ours: Path, change: Callable[[Tensor], Tensor], message: str) -> None:
    tensors = load_file(ours / WEIGHTS)
    save_file({**tensors, QUERY: change(tensors[QUERY])}, ours / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {QUERY} {message}"):
        blip.load(ours)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_large_finite_weights_of_any_float_are_read(ours: Path, kind: torch.dtype) -> None:
    """Their sum overflows; they do not, nor do they in single precision."""
    tensors = load_file(ours / WEIGHTS)
    largest = min(torch.finfo(kind).max, torch.finfo(torch.float32).max)
    save_file({**tensors, QUERY: torch.full_like(tensors[QUERY], largest, dtype=kind)}, ours / WEIGHTS)
    assert convert.read(ours)[0][QUERY].dtype == kind


def test_foreign_weights_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pth: itm_head\.bias holds 2 numbers"):
        convert.read(released(tmp_path, **{"itm_head/bias": torch.full((2,), float("nan"))}), **HEADS)
    with pytest.raises(CheckpointError, match=r"model\.pth: itm_head\.bias is of type int64"):
        convert.read(released(tmp_path, **{"itm_head/bias": torch.ones(2).long()}), **HEADS)
    torch.save({"bert.embeddings.position_embeddings.weight": torch.full((9, 4), float("nan"))}, tmp_path / "bert.bin")
    with pytest.raises(CheckpointError, match=r"bert\.bin: text_encoder\.embeddings\.positions\.weight"):
        convert.read_bert(tmp_path / "bert.bin")


@pytest.mark.parametrize("queue", [
    {"image_queue": torch.zeros(24, 7), "text_queue": torch.zeros(24, 7), "queue_ptr": torch.tensor([7])},
    {"image_queue": torch.zeros(24, 7), "text_queue": torch.zeros(24, 7), "queue_ptr": torch.tensor([0, 1])},
    {"image_queue": torch.zeros(24, 7), "text_queue": torch.zeros(24, 8), "queue_ptr": torch.tensor([0])},
    {"image_queue": torch.zeros(24, 7), "queue_ptr": torch.tensor([0])},
    {"image_queue": torch.zeros(24), "text_queue": torch.zeros(24), "queue_ptr": torch.tensor([0])},
    {"image_queue": torch.zeros(24, 7), "text_queue": torch.zeros(24, 7)},
])  # fmt: skip
def test_queues_whose_parts_do_not_fit(tmp_path: Path, queue: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pth: .*queue"):
        convert.read(released(tmp_path, **queue), **HEADS)


@pytest.mark.parametrize("tensor", [
    torch.zeros(1).expand(1 << 20, 1 << 20), torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"),
])  # fmt: skip
def test_tensors_that_are_larger_than_their_file(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(CheckpointError, match="larger than what is stored of it, or is sparse"):
        convert.read(released(tmp_path, **{"itm_head/weight": tensor}), **HEADS)


@pytest.mark.parametrize("shorter", [False, True])
def test_zip_files_that_torch_did_not_write(tmp_path: Path, shorter: bool) -> None:
    """Compressed records may be a million times larger than the file; torch reads behind the end of short ones."""
    path, other = released(tmp_path), tmp_path / "other.pth"
    kind = zipfile.ZIP_STORED if shorter else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", kind) as new:
        for record in old.infolist():
            content = old.read(record)
            new.writestr(record.filename, content[:16] if shorter and "/data/" in record.filename else content)
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        convert.read(other, **HEADS)


# ---- sizes -----------------------------------------------------------------------------------------------------------

NUMBERS = (0, -1, 10**7, 10**9, 10**30, 1.5, "x", None, True, [1], float("nan"))
ENTRIES = {
    "image_encoder": ("image_size", "patch", "width", "depth", "heads", "mlp_ratio"),
    "text_encoder": ("vocab_size", "width", "layers", "heads", "hidden", "max_positions", "image_width", "images"),
}


@pytest.mark.parametrize(("part", "entry"), [(part, entry) for part, names in ENTRIES.items() for entry in names])
def test_sizes_are_those_of_the_tensors(ours: Path, part: str, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built from others: a depth of 10^7 would take hours."""
    monkeypatch.setattr(vit.ViT, "__init__", lambda *_: pytest.fail("built"))
    for value in NUMBERS:
        info(ours, lambda content, value=value: content[part].update({entry: value}))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=r"does not give the model's sizes"):
            blip.load(ours)


@pytest.mark.parametrize("change", [
    lambda content: content.pop("embed_dim"), lambda content: content.update(embed_dim=None),
    lambda content: content.update(embed_dim=10**9), lambda content: content.update(embed_dim=3),
    lambda content: content["image_encoder"].update(heads=7), lambda content: content.update(text_encoder=None),
    lambda content: content.update(text_encoder=[1]), lambda content: content["image_encoder"].update(drop_path=2),
    lambda content: content.update(text_cleaning="evil"),
])  # fmt: skip
def test_other_entries_of_model_json(ours: Path, change: Callable[[dict], Any]) -> None:
    info(ours, change)
    with pytest.raises(CheckpointError, match="does not give the model's sizes"):
        blip.load(ours)


def test_tensors_that_agree_with_impossible_sizes(ours: Path) -> None:
    """Names for a million layers of one number each, and a width that one tensor has: no memory is taken for them."""
    tensors = load_file(ours / WEIGHTS)
    many = {f"image_encoder.blocks.{n}.x": torch.zeros(1) for n in range(2, 2000)}
    save_file({**tensors, **many}, ours / WEIGHTS)
    info(ours, lambda content: content["image_encoder"].update(depth=2000))
    with pytest.raises(CheckpointError, match=r"image_encoder\.depth: Input should be less than or equal to 512"):
        blip.load(ours)
    wide = {"image_encoder.patch_embed.weight": torch.zeros(1 << 20, 3, 8, 8),
            "image_encoder.blocks.0.mlp.0.weight": torch.zeros(1 << 20, 1)}  # fmt: skip
    save_file({**tensors, **wide}, ours / WEIGHTS)
    info(ours, lambda content: content["image_encoder"].update(depth=2, width=1 << 20, heads=1, mlp_ratio=1))
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*wrong shape"):
        blip.load(ours)


def test_heads_are_positive(tmp_path: Path) -> None:
    path = released(tmp_path)
    for heads in (-1, 0):
        for given in ({"image_heads": heads}, {"text_heads": heads}):
            with pytest.raises(InputError, match=f"_heads is {heads}; it has to be 1 or more"):
                convert.read(path, **{**HEADS, **given})


@pytest.mark.parametrize("heads", [-1, 0, 10**9, "2", 2.0, True, [2]])
def test_heads_of_a_hugging_face_configuration(tmp_path: Path, heads: Any) -> None:
    config = {"vision_config": {"num_attention_heads": heads}, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json is not the configuration of a BLIP.*num_attention"):
        convert.read(tmp_path)


# ---- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "message"), [
    ({"rank": 10**9}, "rank"), ({"rank": 0}, "rank"), ({"rank": 3}, "rank is 3, and .* is \\(2, 4\\)"),
    ({"alpha": float("nan")}, "alpha"), ({"dropout": 1.5}, "dropout"), ({"targets": []}, "targets"),
    ({"targets": "x"}, "targets"), ({"new": [1]}, "new"), ({"format_version": "1"}, "format_version"),
    ({"model": {"image_encoder": {"depth": 10**7}}}, "image_encoder.depth"), ({"base": 3}, "base"),
])  # fmt: skip
def test_adapters_are_typed(tmp_path: Path, change: dict, message: str) -> None:
    pytest.importorskip("peft")
    model = nn.ModuleDict({"proj": nn.Linear(4, 4)})
    add_lora(model, 2, ["proj"])
    save_adapter(tmp_path, model, {"base": "x"})
    about = json.loads((tmp_path / ADAPTER_INFO).read_text())
    (tmp_path / ADAPTER_INFO).write_text(json.dumps({**about, **change}))
    with pytest.raises(CheckpointError, match=rf"adapter\.json.*{message}"):
        load_adapter(nn.ModuleDict({"proj": nn.Linear(4, 4)}), tmp_path)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_each_file_of_a_checkpoint_is_flushed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(
        "blip.files.os.fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    )
    with whole_folder(tmp_path / "step") as temporary:
        save_weights(temporary, {"x": torch.zeros(2)}, {"task": "caption"}, flush=False)
    names = [Path(name).name for name in flushed]
    assert sorted(names) == sorted([WEIGHTS, INFO, ".step.partial"])
    flushed.clear()
    save_weights(tmp_path / "alone", {"x": torch.zeros(2)}, {"task": "caption"})
    assert len(flushed) == 2


def test_everybody_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_weights(tmp_path, {"x": torch.zeros(2)}, {"task": "caption"})
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (WEIGHTS, format.INFO)} == {0o644}
