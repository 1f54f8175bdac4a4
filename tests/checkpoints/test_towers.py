"""Image encoders of EVA, CLIP and others: the published states, transformers' states, refusals with a message."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.tiny import STORED_VIT, add_noise
from torch import Tensor

from blip.checkpoints import frozen, towers
from blip.checkpoints.fingerprint import fingerprint_of
from blip.checkpoints.format import CheckpointError, unique_state
from blip.checkpoints.info import ImageSizes
from blip.network.vit import VIT_SIZES, QuickGELU, ViT, ViTConfig, named_vit, resize_positions

CLOSE = {"rtol": 0, "atol": 1e-5}


def built(tensors: dict[str, Tensor], info: dict) -> ViT:
    vit = ViT(ViTConfig(**info)).eval()
    own = unique_state(vit)
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
    return vit


# ---- the form of the network -----------------------------------------------------------------------------------------


def test_names_have_the_published_sizes() -> None:
    eva, clip = named_vit("eva_g", 224), named_vit("clip_l14", 224)
    assert (eva.width, eva.depth, eva.heads, eva.hidden, eva.norm_eps) == (1408, 39, 16, 6144, 1e-5)
    assert (clip.width, clip.depth, clip.hidden, clip.pre_norm, clip.patch_bias) == (1024, 23, 4096, True, False)
    assert all(named_vit(name, 224).hidden == 4 * VIT_SIZES[name][0] for name in ("tiny", "small", "base", "large"))


def test_the_form_of_blip_adds_nothing() -> None:
    """Files of earlier versions have neither more tensors nor other sizes."""
    names = set(unique_state(ViT(STORED_VIT)))
    assert not any("first_norm" in name for name in names) and "patch_embed.bias" in names
    old = {"image_size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2, "drop_path": 0.0}
    assert ViTConfig(**old) == ViTConfig(**ImageSizes(**old).model_dump())


def test_quick_gelu() -> None:
    x = torch.linspace(-4, 4, 9)
    assert torch.allclose(QuickGELU()(x), x / (1 + (-1.702 * x).exp()))


# ---- EVA -------------------------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_states_are_those_of_eva(golden2_dir: Path) -> None:
    heads = json.loads((golden2_dir / "meta.json").read_text())["vit"]["heads"]
    tensors, info = towers.read_tower(golden2_dir / "eva_vit.pth", heads)
    vit = built(tensors, info)
    with np.load(golden2_dir / "pretrain.npz") as file:
        images, states = (torch.from_numpy(file[name]) for name in ("image0", "vit_states"))
    vit.norm = torch.nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        assert torch.allclose(vit(images), states, **CLOSE)


@pytest.mark.golden
def test_positions_are_resized_as_published(golden2_dir: Path) -> None:
    with np.load(golden2_dir / "pos_embed.npz") as file:
        before = torch.from_numpy(file["before"])
        after = [torch.from_numpy(file[name]) for name in file.files if name != "before"]
    assert after
    for expected in after:
        side = int((expected.shape[1] - 1) ** 0.5)
        assert torch.allclose(resize_positions(before, (side, side)), expected, **CLOSE)


def eva(folder: Path, depth: int = 3, **more: Tensor) -> Path:
    """A file of EVA's kind with a whole tower: the last block, a norm and a head too."""
    torch.manual_seed(3)
    wide = timm.models.VisionTransformer(img_size=28, patch_size=14, embed_dim=24, depth=depth, num_heads=3)
    state = add_noise(wide, std=0.2).state_dict()
    for name in [name for name in state if name.endswith("qkv.bias")]:
        q, _, v = state.pop(name).chunk(3)
        state |= {name.replace("qkv.bias", "q_bias"): q, name.replace("qkv.bias", "v_bias"): v}
    torch.save({**state, **more}, folder / "eva.pth")
    return folder / "eva.pth"


def test_a_whole_tower_of_eva_loses_its_last_block(tmp_path: Path) -> None:
    tensors, info = towers.read_tower(eva(tmp_path), heads=3)
    assert info["depth"] == 2 and not any(name.startswith(("norm.", "blocks.2.")) for name in tensors)
    assert bool((tensors["blocks.0.qkv.bias"][24:48] == 0).all()) and info["norm_eps"] == 1e-5
    vit = ViT(ViTConfig(image_size=42, patch=14, width=24, depth=2, heads=3))
    before = vit.norm.weight.detach().clone()
    entry = towers.load_tower(vit, str(tmp_path / "eva.pth"))
    assert torch.equal(vit.blocks[1].qkv.weight, tensors["blocks.1.qkv.weight"])  # type: ignore[union-attr]
    assert vit.positions.shape[1] == 10 and torch.equal(vit.norm.weight, before)
    assert entry == {"name": str(tmp_path / "eva.pth"), "fingerprint": towers.tower_entry("x", tensors)["fingerprint"]}


# ---- CLIP ------------------------------------------------------------------------------------------------------------


def clip_model() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14
    )
    torch.manual_seed(4)
    return add_noise(transformers.CLIPVisionModel(config), std=0.2).eval()


def as_openai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by the names of CLIP's own files."""
    names = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.patch_embedding": "conv1",
        "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post",
        "encoder.layers": "transformer.resblocks",
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm": "ln_",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    result = {}
    for name, tensor in towers.joined_heads(state).items():
        for theirs, openai in names.items():
            name = name.replace(theirs, openai)
        name = name.replace("self_attn.qkv.", "attn.in_proj_").removeprefix("vision_model.")
        result[f"visual.{name}"] = tensor
    return result


@pytest.mark.parametrize("form", ["transformers", "openai"])
def test_states_are_those_of_clip_before_its_last_block(tmp_path: Path, form: str) -> None:
    model = clip_model()
    if form == "transformers":
        model.save_pretrained(tmp_path)  # type: ignore[operator]
        path = tmp_path
    else:
        torch.save(as_openai(model.state_dict()), path := tmp_path / "clip.pt")
    tensors, info = towers.read_tower(path, None if form == "transformers" else 4)
    vit = built(tensors, info)
    vit.norm = torch.nn.Identity()  # type: ignore[assignment]
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = model(images, output_hidden_states=True).hidden_states[-2]
        assert torch.allclose(vit(images), expected, **CLOSE)


# ---- frozen towers that a checkpoint names ---------------------------------------------------------------------------


def test_a_named_tower_is_read_and_checked(tmp_path: Path) -> None:
    path = eva(tmp_path)
    tower, vit = towers.read_tower(path, 3)
    info = {"image_encoder": vit, "frozen": {"image_encoder": towers.tower_entry(path, tower)}}
    norm = {"image_encoder.norm.weight": torch.ones(24), "image_encoder.norm.bias": torch.zeros(24)}
    whole = frozen.with_tower(norm, info, tmp_path)
    assert whole.keys() == {f"image_encoder.{name}" for name in tower} | norm.keys()
    assert frozen.without_tower(whole).keys() == norm.keys()
    moved = {**info, "frozen": {"image_encoder": {**info["frozen"]["image_encoder"], "name": "eva.pth"}}}
    assert frozen.with_tower(norm, moved, tmp_path).keys() == whole.keys()  # relative to the checkpoint
    eva(tmp_path, **{"blocks.0.norm1.weight": torch.full((24,), 2.0)})
    with pytest.raises(CheckpointError, match=r"was trained with a frozen image encoder \w{12}, and .*eva.pth is now"):
        frozen.with_tower(norm, info, tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"frozen image encoder from .*eva\.pth, which does not exist"):
        frozen.with_tower(norm, info, tmp_path)


def test_fingerprints_are_of_numbers() -> None:
    tensors = {"a": torch.randn(70, 80), "b": torch.randn(5)}
    other = {"x": tensors["b"].double(), "y": tensors["a"].clone(), "copy": tensors["a"]}
    found = fingerprint_of(tensors.values())
    assert found == fingerprint_of(other.values()) and len(found) == 12
    tensors["b"][0] += 1e-3
    assert found != fingerprint_of(tensors.values())


# ---- refusals --------------------------------------------------------------------------------------------------------


BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "layer scale": ({"blocks.0.ls1.gamma": torch.ones(24)}, "image encoder of another kind: not known"),
    "half of the bias": ({}, r"is incomplete: it has no blocks\.0\.attn\.v_bias"),
    "patches that are no square": ({"pos_embed": torch.ones(1, 4, 24)}, "has 3 patches, which is no square"),
    "not a number": ({"blocks.0.norm1.weight": torch.full((24,), torch.nan)}, "holds 24 numbers that are infinite"),
}


@pytest.mark.parametrize("case", BAD)
def test_towers_that_cannot_be_read(tmp_path: Path, case: str) -> None:
    more, message = BAD[case]
    path = eva(tmp_path, **more)
    if case == "half of the bias":
        state = torch.load(path)
        del state["blocks.0.attn.v_bias"]
        torch.save(state, path)
    with pytest.raises(CheckpointError, match=message):
        towers.read_tower(path, 3)


def test_towers_of_other_sizes_and_no_towers(tmp_path: Path) -> None:
    path = eva(tmp_path)
    with pytest.raises(CheckpointError, match="the heads do not follow from the width 24: give image_heads"):
        towers.read_tower(path)
    with pytest.raises(CheckpointError, match=r"vision_init: .* has another form .*: depth 2 \(here 5\)"):
        towers.load_tower(ViT(ViTConfig(image_size=28, patch=14, width=24, depth=5, heads=3)), str(path))
    with pytest.raises(CheckpointError, match="does not exist"):
        towers.read_tower(tmp_path / "absent.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"holds no image encoder: its tensors \(1\): a"):
        towers.read_tower(tmp_path / "other.pth")


def test_model_json_of_a_tower_in_another_form(tmp_path: Path) -> None:
    """`mlp_ratio` may be a fraction, whose product with the width is rounded."""
    config = ViTConfig(image_size=28, patch=14, width=24, depth=1, heads=3, mlp_ratio=4.3637, pre_norm=True)
    assert config.hidden == 105
    from blip.checkpoints.sizes import check_sizes

    tensors = {f"image_encoder.{name}": tensor for name, tensor in unique_state(ViT(config)).items()}
    check_sizes({"image_encoder": asdict(config)}, tensors, tmp_path)
    wrong = {**asdict(config), "pre_norm": False}
    with pytest.raises(CheckpointError, match=r"image_encoder\.pre_norm is False, by the tensors' shapes True"):
        check_sizes({"image_encoder": wrong}, tensors, tmp_path)
