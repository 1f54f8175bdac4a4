"""Image encoders of elsewhere, for BLIP-2 and for starting weights: EVA ViT-g/14, CLIP ViT-L/14 and the towers of whole
checkpoints, as weights of our `ViT`.
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from blip.checkpoints import places
from blip.checkpoints.blip2_names import CLIP_VIT, HUGGINGFACE_CLIP, joined_heads, whole_bias
from blip.checkpoints.fingerprint import fingerprint_of
from blip.checkpoints.format import INFO, CheckpointError, check_numbers, load_strict, unique_state
from blip.checkpoints.info import read_info
from blip.checkpoints.names import HUGGINGFACE_VIT, TIMM_VIT, Table, Tensors, listed, rename
from blip.checkpoints.sizes import vit_sizes
from blip.checkpoints.states import read_state
from blip.files import ReadError, checked_as, read_json
from blip.network.vit import ViT, fit_image_size, form_of

# in front of the names of a tower in a file of more
PREFIXES = ("visual_encoder.", "vision_model.", "image_encoder.", "visual.", "")
# a tensor by which each kind of tower is known, its names, and what is left out: classifiers and projections
KINDS: dict[str, tuple[str, Table, str]] = {
    "eva": ("blocks.0.attn.q_bias", TIMM_VIT, r"(fc_)?norm\.|head\.|rel_pos_bias\.|mask_token$"),
    "timm": ("blocks.0.attn.qkv.weight", TIMM_VIT, r"head\."),
    "clip": ("transformer.resblocks.0.ln_1.weight", CLIP_VIT, r"ln_post\.|proj$"),
    "huggingface_clip": ("pre_layrnorm.weight", HUGGINGFACE_CLIP, r"post_layernorm\.|embeddings\.position_ids$"),
    "huggingface": ("encoder.layers.0.self_attn.qkv.weight", HUGGINGFACE_VIT, "a^"),
    "ours": ("blocks.0.qkv.weight", {ours: ours for ours in (*TIMM_VIT.values(), "first_norm")}, "a^"),
}
# whole towers, whose last block BLIP-2 does without, and the blocks of those that were released
PENULTIMATE = {"eva": 40, "clip": 24, "huggingface_clip": 24}
HEAD_WIDTH = {"eva": 88}  # of the others 64


class _Stated(BaseModel):
    """The entries of transformers' `config.json` that matter here."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    num_attention_heads: int | None = Field(None, gt=0, le=1 << 16)
    hidden_act: Literal["gelu", "quick_gelu"] | None = None
    layer_norm_eps: float | None = Field(None, gt=0, lt=1)


def read_tower(source: str | Path, heads: int | None = None) -> tuple[Tensors, dict[str, Any]]:
    """The weights of an image encoder by the names of `ViT`, and its sizes and form as in `model.json`.

    EVA ViT-g and CLIP ViT-L come without what BLIP-2 does without: the last block, where a file has the whole tower,
    and the norm behind it. The final norm is then BLIP-2's own, and absent here.

    Args:
        source: a file, a folder or a name as of `places.local`, of a tower alone or of a checkpoint with one.
        heads: of attention; width / 64 unless given or stated by a `config.json`, of EVA width / 88.

    Raises:
        CheckpointError: it holds no image encoder that `ViT` can be.
    """
    path = places.local(source)
    if not path.exists():
        raise CheckpointError(f"image encoder: {source} does not exist")
    return tower_in(read_state(path), path, heads)


def tower_in(state: Tensors, path: Path, heads: int | None = None) -> tuple[Tensors, dict[str, Any]]:
    """`read_tower` of a state dict."""
    kind, state = _tower_of(state, path)
    _, table, unused = KINDS[kind]
    whole = any(re.match(unused, name) for name in state)
    try:
        state = joined_heads(state) if kind == "huggingface_clip" else whole_bias(state)
    except KeyError as error:
        raise CheckpointError(f"{path} is incomplete: it has no {error.args[0]}") from error
    tensors, unknown = {}, []
    for name, tensor in state.items():
        ours = rename(name, table)
        if ours is not None:
            tensors[ours] = tensor
        elif not re.match(unused, name):
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{path} holds an image encoder of another kind: " + listed("not known", unknown))
    for name, axes in (("cls_token", 3), ("positions", 3)):  # CLIP's have fewer axes
        if name in tensors and tensors[name].dim() < axes:
            tensors[name] = tensors[name].reshape(1, -1, tensors[name].shape[-1])
    if kind in PENULTIMATE:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")}
        blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
        if whole or len(blocks) == PENULTIMATE[kind]:
            tensors = {name: t for name, t in tensors.items() if not name.startswith(f"blocks.{max(blocks)}.")}
    check_numbers(tensors, path)
    return tensors, _info(tensors, kind, path, heads=heads)


def load_tower(encoder: ViT, source: str, option: str = "vision_init") -> dict[str, Any]:
    """Copies the weights of `read_tower` into an image encoder; a final norm that they lack stays as it is.

    Returns:
        what `frozen` of `model.json` says of it where it stays frozen: see `tower_entry`.

    Raises:
        CheckpointError: they do not fit; positions are interpolated to the image size of the encoder.
    """
    tensors, info = read_tower(source, encoder.config.heads)
    config, entry = encoder.config, tower_entry(source, tensors)
    other = {name: value for name, value in info.items() if name in ("width", "depth", "patch", "pre_norm")}
    other |= {"activation": info["activation"]}
    wrong = [f"{name} {value} (here {getattr(config, name)})" for name, value in other.items()
             if getattr(config, name) != value]  # fmt: skip
    if wrong:
        raise CheckpointError(
            f"{option}: {source} has another form than the image encoder: {', '.join(wrong)}; see vit"
        )
    fit_image_size(tensors, config, prefix="")
    own = unique_state(encoder)
    load_strict(encoder, {**{n: t for n, t in own.items() if n.startswith("norm.")}, **tensors}, f"{option}: {source}")
    return entry


def tower_entry(name: str | Path, tensors: Tensors) -> dict[str, Any]:
    """What `frozen` of `model.json` says of an image encoder; `name` and `tensors` as of `read_tower`."""
    return {"name": places.pinned(str(name)), "fingerprint": fingerprint_of(tensors.values())}


def _tower_of(state: Tensors, path: Path) -> tuple[str, Tensors]:
    """The kind of the tower in a state dict, and its tensors without their prefix."""
    for prefix in PREFIXES:
        inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for kind, (mark, _, _) in KINDS.items():
            if mark in inside:
                if prefix in ("visual_encoder.", "vision_model.") and "ln_vision.weight" in state:
                    inside |= {f"norm.{name}": state[f"ln_vision.{name}"] for name in ("weight", "bias")}
                return kind, inside
    raise CheckpointError(f"{path} holds no image encoder: " + listed("its tensors", list(state)))


def sizes_of(tensors: Tensors, path: Path, prefix: str) -> dict[str, Any]:
    """`vit_sizes`; CheckpointError where the tensors show none."""
    try:
        return vit_sizes(tensors, prefix)
    except KeyError as error:
        raise CheckpointError(f"{path} is incomplete: it has no {error.args[0]}") from error
    except (ValueError, IndexError, ZeroDivisionError, TypeError) as error:
        raise CheckpointError(f"{path} holds a tensor of a shape that no image encoder has: {error}") from error


def _info(tensors: Tensors, kind: str, path: Path, *, heads: int | None) -> dict[str, Any]:
    sizes, clip = sizes_of(tensors, path, ""), "clip" in kind
    form: dict[str, Any] = {"norm_eps": 1e-5 if kind in PENULTIMATE else 1e-6, "block_eps": 1e-5 if clip else 1e-6}
    form |= {"activation": "quick_gelu" if clip else "gelu"}
    form |= _stated(path, kind) if path.is_dir() else {}
    heads, width = heads or form.get("heads"), HEAD_WIDTH.get(kind, 64)
    if sizes["width"] % (heads or width):
        raise CheckpointError(f"{path}: the heads do not follow from the width {sizes['width']}: give image_heads")
    return {**sizes, **form, "heads": heads or sizes["width"] // width}


def _stated(folder: Path, kind: str) -> dict[str, Any]:
    """What `model.json` or `config.json` beside the weights says of an image encoder and tensors do not show."""
    try:
        if kind == "ours":
            ours = read_info(folder / INFO)["image_encoder"]
            return {**form_of(ours), "heads": ours["heads"]}
        content = read_json(folder / "config.json", dict[str, Any])
        stated = checked_as(content.get("vision_config", content), _Stated, folder / "config.json")
    except (ReadError, KeyError) as error:
        raise CheckpointError(f"{folder} does not state the form of its image encoder: {error}") from error
    form: dict[str, Any] = {"heads": stated.num_attention_heads, "activation": stated.hidden_act}
    form |= {"block_eps": stated.layer_norm_eps}
    form |= {} if kind in PENULTIMATE else {"norm_eps": stated.layer_norm_eps}
    return {name: value for name, value in form.items() if value is not None}
