"""Adapters: only they are trained, they change nothing before training, and folded in they compute the same."""

import json
import re
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny_text, tiny_vit
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from blip.checkpoints.adapter_files import ADAPTER, ADAPTER_INFO, load_adapter, save_adapter
from blip.checkpoints.adapters import (
    LoraError,
    adapter_state,
    add_lora,
    load_adapter_state,
    merge,
    merged_state,
)
from blip.checkpoints.format import CheckpointError, load_strict, save_tensors, unique_state
from blip.errors import BlipError
from blip.network.med import TextDecoder, TextEncoder
from blip.network.packing import Rows
from blip.network.vit import ViT

WORDS = 50


class Model(nn.Module):
    """The parts of a pre-training model; gives a result of each way through them."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ViT(tiny_vit(image_size=16, width=20, heads=2))
        self.text_encoder = TextEncoder(tiny_text(vocab_size=WORDS, width=24, hidden=32, image_width=20))
        self.text_decoder = TextDecoder(self.text_encoder.config, self.text_encoder)
        self.image_proj = nn.Linear(20, 8)
        self.itm_head = nn.Linear(24, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def forward(self, images: Tensor, ids: Tensor) -> list[Tensor]:
        rows = Rows(torch.full((len(ids),), ids.shape[1]), ids.shape[1], ids.device)
        states = self.image_encoder(images)
        keys = self.text_encoder.image_keys(states)
        return [
            states,
            self.image_proj(self.image_encoder(images, cls_only=True)[:, 0]) / self.temperature,
            self.text_encoder.text(ids, rows, first_only=True),
            self.itm_head(self.text_encoder.multimodal(ids, rows, keys, first_only=True)),
            self.text_decoder.head(self.text_decoder(ids, rows, keys)),
        ]


ALL = ["qkv", "proj", "mlp.0", "mlp.2", "q", "k", "v", "out", "up", "down", "transform", "image_proj", "itm_head"]
SOME = ["qkv", "self_attention.q", "cross_attention.v"]


@pytest.fixture
def with_peft() -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[lora]'")


needs_peft = pytest.mark.usefixtures("with_peft")


def model_and_inputs() -> tuple[Model, Tensor, Tensor]:
    model = Model()
    for parameter in model.parameters():  # biases and norms too: zeros and ones hide errors
        nn.init.normal_(parameter, std=0.3)
    return model, torch.randn(2, 3, 16, 16), torch.randint(1, WORDS, (2, 5))


def disturb(model: nn.Module) -> None:
    """As if trained: B is no longer zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)


def loss(outputs: list[Tensor]) -> Tensor:
    return torch.stack([(x * torch.linspace(-1, 1, x.numel()).view_as(x)).mean() for x in outputs]).sum()


@needs_peft
def test_targets_are_names_or_endings_and_shared_layers_are_wrapped_once() -> None:
    model, *_ = model_and_inputs()
    assert add_lora(model, 2, [*SOME, "text_decoder.*.cross_attention.out", "image_encoder.*.proj"]) == [
        "image_encoder.blocks.0.qkv",
        "image_encoder.blocks.0.proj",
        "image_encoder.blocks.1.qkv",
        "image_encoder.blocks.1.proj",
        "text_encoder.layers.0.self_attention.q",
        "text_encoder.layers.0.cross_attention.v",
        "text_encoder.layers.0.cross_attention.out",  # the decoder's is the encoder's
        "text_encoder.layers.1.self_attention.q",
        "text_encoder.layers.1.cross_attention.v",
        "text_encoder.layers.1.cross_attention.out",
        "text_decoder.layers.0.self_attention.q",
        "text_decoder.layers.1.self_attention.q",
    ]
    assert len([m for m in model.modules() if hasattr(m, "lora_A")]) == 12
    assert len(adapter_state(model)) == 24


@needs_peft
def test_only_linear_layers_are_meant() -> None:
    patches = nn.Conv2d(3, 3, 2)
    model = nn.ModuleDict(
        {"proj": nn.Linear(3, 3), "patches": nn.ModuleDict({"proj": patches, "xproj": nn.Linear(3, 3)})}
    )
    assert add_lora(model, 2, ["proj"]) == ["proj"]
    assert model["patches"]["proj"] is patches


@needs_peft
@pytest.mark.parametrize("targets", [SOME, ALL])
def test_new_adapters_leave_outputs_bit_equal(targets: list[str]) -> None:
    model, *inputs = model_and_inputs()
    before = model(*inputs)
    adapted = deepcopy(model)
    add_lora(adapted, 2, targets)
    if "qkv" in targets:  # with `cls_only` an adapted layer is called whole: the same numbers, other products
        assert_close(adapted(*inputs)[1], before[1], rtol=1e-5, atol=1e-5)
    for i in (0, 2, 3, 4):
        assert torch.equal(adapted(*inputs)[i], before[i])


@needs_peft
def test_only_adapters_and_parts_asked_for_get_gradients_and_move() -> None:
    model, *inputs = model_and_inputs()
    add_lora(model, 2, SOME, trainable=["itm_head", "temperature"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    extra = {"itm_head.weight", "itm_head.bias", "temperature"}
    assert {name for name in trained if "lora_" not in name} == extra
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # A moves from the second step on: at the first, B is zero
        loss(model(*inputs)).backward()
        optimizer.step()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trained


@needs_peft
def test_an_adapted_layer_computes_what_the_paper_says() -> None:
    model, *_ = model_and_inputs()
    layer, x = deepcopy(model.itm_head), torch.randn(4, 24)
    add_lora(model, 2, ["itm_head"], alpha=6)
    disturb(model)
    state = adapter_state(model)
    low_rank = x @ state["itm_head.lora_A.weight"].T @ state["itm_head.lora_B.weight"].T
    assert_close(model.itm_head(x), F.linear(x, layer.weight, layer.bias) + 6 / 2 * low_rank)


@needs_peft
def test_adapters_act_on_every_way_through_a_shared_layer() -> None:
    model, *inputs = model_and_inputs()
    before = model(*inputs)
    add_lora(model, 2, ["cross_attention.v"])
    disturb(model)
    changed = [not torch.allclose(x, y, atol=1e-3) for x, y in zip(model(*inputs), before, strict=True)]
    assert changed == [False, False, False, True, True]  # matching and writing


@needs_peft
def test_a_layer_with_two_parents_is_wrapped_for_both() -> None:
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"one": nn.Sequential(shared), "two": nn.Sequential(shared)})
    assert add_lora(model, 2, ["two.0"]) == ["one.0"]
    assert model["one"][0] is model["two"][0] is not shared
    merge(model)
    assert model["one"][0] is model["two"][0] is shared


@needs_peft
def test_cls_only_does_not_bypass_the_adapter() -> None:
    model, images, _ = model_and_inputs()
    add_lora(model, 2, ["qkv"])
    disturb(model)
    alone, full = model.image_encoder(images, cls_only=True), model.image_encoder(images)
    assert_close(alone, full[:, :1], rtol=1e-4, atol=1e-5)


@needs_peft
@pytest.mark.parametrize("alpha", [None, 8])
def test_merged_equals_unmerged_under_the_original_names(alpha: float | None) -> None:
    model, *inputs = model_and_inputs()
    original = unique_state(deepcopy(model))
    add_lora(model, 2, ALL, alpha=alpha)
    disturb(model)
    expected, state = model(*inputs), merged_state(model)
    assert list(state) == list(original)
    assert all(torch.equal(one, other) for one, other in zip(expected, model(*inputs), strict=True))  # still unmerged
    merge(model)
    assert [(name, t.shape) for name, t in unique_state(model).items()] == [(n, t.shape) for n, t in original.items()]
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    for merged, unmerged in zip(model(*inputs), expected, strict=True):
        assert_close(merged, unmerged, rtol=1e-5, atol=1e-5)
    fresh = Model()
    load_strict(fresh, state, "the merged state")
    fresh.requires_grad_(False)  # as in the merged model: torch 2.7 multiplies frozen weights in another order
    for one, other in zip(fresh(*inputs), model(*inputs), strict=True):
        assert torch.equal(one, other)
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, original[name])}
    assert changed == {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def test_without_adapters_merging_does_nothing() -> None:
    model, *_ = model_and_inputs()
    before = unique_state(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in merged_state(model).items())
    merge(model)
    assert list(unique_state(model)) == list(merged_state(model)) == list(before)


@needs_peft
def test_saved_adapters_come_back(tmp_path: Path) -> None:
    model, *inputs = model_and_inputs()
    base = deepcopy(model)
    add_lora(model, 2, SOME, alpha=3, dropout=0.25, trainable=["itm_head"])
    disturb(model)
    nn.init.ones_(model.itm_head.weight)
    save_adapter(tmp_path, model, {"base": "runs/pretrain/checkpoints/latest"})
    about = load_adapter(base, tmp_path)
    assert about == json.loads((tmp_path / ADAPTER_INFO).read_text())
    assert (about["rank"], about["alpha"], about["dropout"]) == (2, 3, 0.25)
    assert about["base"] == "runs/pretrain/checkpoints/latest"
    assert about["trainable"] == ["itm_head.weight", "itm_head.bias"]
    assert "image_encoder.blocks.1.qkv" in about["targets"]
    stored = load_file(tmp_path / ADAPTER)
    assert stored.keys() == adapter_state(model).keys()
    assert not any("base_layer" in name or "default" in name for name in stored)  # peft's names stay inside
    for one, other in zip(base.eval()(*inputs), model.eval()(*inputs), strict=True):
        assert torch.equal(one, other)
    assert adapter_state(base).keys() == adapter_state(model).keys()
    assert base.itm_head.weight.requires_grad and not base.image_proj.weight.requires_grad


@needs_peft
def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    model, *_ = model_and_inputs()
    with pytest.raises(LoraError, match="no adapters to save"):
        save_adapter(tmp_path, model, {})
    with pytest.raises(CheckpointError, match=rf"holds no adapter: it has no {ADAPTER}"):
        load_adapter(model, tmp_path)
    add_lora(model, 2, SOME)
    save_adapter(tmp_path, model, {})
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*adapters already"):
        load_adapter(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*'image_encoder.blocks.0.qkv' is no linear"):
        load_adapter(nn.ModuleDict({"head": nn.Linear(2, 2)}), tmp_path)
    state = adapter_state(model)
    name = "text_encoder.layers.0.self_attention.q.lora_A.weight"
    state["odd"] = state.pop("image_encoder.blocks.0.qkv.lora_B.weight")
    state[name] = torch.zeros(1, 24)
    with pytest.raises(CheckpointError) as caught:
        load_adapter_state(model, state, "it")
    for part in ("qkv.lora_B.weight is missing", "odd is not known", f"{name} is (1, 24), the model needs (2, 24)"):
        assert part in str(caught.value)
    about = json.loads((tmp_path / ADAPTER_INFO).read_text())
    (tmp_path / ADAPTER_INFO).write_text(json.dumps({**about, "format_version": 2}))
    with pytest.raises(CheckpointError, match="newer blip"):
        load_adapter(Model(), tmp_path)
    del about["rank"]
    (tmp_path / ADAPTER_INFO).write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"adapter.json is damaged: .*rank: Field required"):
        load_adapter(Model(), tmp_path)
    (tmp_path / ADAPTER).write_bytes(b"half")
    (tmp_path / ADAPTER_INFO).write_text(json.dumps({**about, "rank": 2}))
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load_adapter(Model(), tmp_path)


@needs_peft
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"targets": ["self_attention.qq"]},
            r"target 'self_attention.qq' is no linear layer.*nearest are self_attention.q,",
        ),
        ({"targets": ["qkv", "image_encodr.*.qkv"]}, r"'image_encodr.*nearest are image_encoder.blocks.\*.qkv"),
        ({"targets": ["words"]}, "target 'words' is no linear layer"),
        ({"targets": ["patch_embed"]}, "target 'patch_embed' is no linear layer"),
        ({"targets": []}, r"targets is empty; linear layers are image_encoder.blocks.\*.qkv, "),
        ({"trainable": ["itm_haed"]}, r"trainable 'itm_haed' is no part with parameters; the nearest are itm_head"),
        ({"trainable": ["image_encoder.blocks.0"]}, "among targets and trainable: image_encoder.blocks.0.qkv"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_mistakes_are_named_and_change_nothing(options: dict, message: str) -> None:
    model, *_ = model_and_inputs()
    names = list(model.state_dict())
    with pytest.raises(LoraError, match=message):
        add_lora(model, **{"rank": 2, "targets": ["qkv"], **options})
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


@needs_peft
def test_adapters_are_added_once_and_again_after_merging() -> None:
    model, *_ = model_and_inputs()
    add_lora(model, 2, ["qkv"])
    with pytest.raises(LoraError, match="has adapters already; merge them first"):
        add_lora(model, 2, ["itm_head"])
    merge(model)
    assert not hasattr(model, "peft_config")
    assert add_lora(model, 2, ["itm_head"]) == ["itm_head"]


@needs_peft
def test_copies_made_afterwards_have_adapters_of_their_own() -> None:
    model, images, _ = model_and_inputs()
    add_lora(model, 2, ["qkv", "image_proj"])
    twin = deepcopy(model.image_encoder)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in model.image_encoder.named_parameters()]
    disturb(model)
    assert not torch.allclose(twin(images), model.image_encoder(images), atol=1e-3)
    twin.load_state_dict(model.image_encoder.state_dict())
    assert torch.equal(twin(images), model.image_encoder(images))


@needs_peft
def test_adapters_work_in_bf16() -> None:
    model, *inputs = model_and_inputs()
    add_lora(model, 2, ALL, trainable=["temperature"])
    disturb(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(*inputs)
    for low, full in zip(outputs, model(*inputs), strict=True):
        assert F.cosine_similarity(low.float().flatten(), full.flatten(), dim=0) > 0.99


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model, *_ = model_and_inputs()
    install = re.escape("lora needs peft: pip install -e '.[lora]'")
    with pytest.raises(BlipError, match=f"^{install}"):
        add_lora(model, 2, ["qkv"])
    save_tensors({}, tmp_path / ADAPTER)
    about = {"format_version": 1, "rank": 2, "targets": ["qkv"], "alpha": 2, "dropout": 0.0, "trainable": []}
    (tmp_path / ADAPTER_INFO).write_text(json.dumps(about))
    with pytest.raises(BlipError, match=f"^{install}"):
        load_adapter(model, tmp_path)
