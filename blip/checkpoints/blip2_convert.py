"""BLIP-2 from LAVIS's files and transformers' folders, and back: only names change, never values.

The parts of a checkpoint are the image encoder, the Q-Former, and in the first stage (`blip2`) projections and heads,
in the second (`blip2_language`) a projection into a language model. The language model is named, not held: see
`language_models.py`. LAVIS leaves out what was frozen: the image encoder is then read from a file of its own.
"""

from pathlib import Path
from typing import Any

import torch

from blip.checkpoints import towers
from blip.checkpoints.blip2_names import (
    COUNTED,
    HEAD_COPIES,
    HUGGINGFACE_BLIP2,
    LANGUAGE_MODEL,
    LAVIS_CLIP,
    LAVIS_LANGUAGE_MODEL,
    LAVIS_PROJECTIONS,
    divided_bias,
    lavis,
)
from blip.checkpoints.blip2_sizes import Stated, qformer_of
from blip.checkpoints.format import CheckpointError, check_numbers, disk_errors
from blip.checkpoints.info import check_info
from blip.checkpoints.language_files import fingerprint_of_files, hub_name, revision_of
from blip.checkpoints.names import Tensors, inverse, listed, rename
from blip.checkpoints.states import read_state
from blip.files import whole_file

Heads = dict[str, int | None]
STAGES = ("blip2", "blip2_language")
PART = "image_encoder."
# what no class of transformers holds, and what of BLIP-2 may therefore be absent
MAY_LACK = ("temperature", "qformer.head.")


def is_lavis(state: Tensors) -> bool:
    """Whether a state dict is that of BLIP-2 by LAVIS."""
    return "query_tokens" in state and any(name.startswith("Qformer.") for name in state)


def read_lavis(state: Tensors, path: Path, heads: Heads, *, image_encoder: str = "") -> tuple[Tensors, dict[str, Any]]:
    """The state dict of a file of LAVIS as (tensors, info); `image_encoder` names the tower, where it is left out.

    Raises:
        CheckpointError: the file lacks the image encoder and none is named, or holds something else.
    """
    kinds = [kind for kind, name in LAVIS_PROJECTIONS.items() if f"{name}.weight" in state]
    kind = kinds[0] if kinds else None
    _check_copies(state, path)
    inside = {name: tensor for name, tensor in state.items() if name.startswith("visual_encoder.")}
    rest = {name: tensor for name, tensor in state.items() if name not in inside}
    tensors = _renamed(rest, lavis(kind), path, lambda name: name in HEAD_COPIES or LAVIS_LANGUAGE_MODEL.match(name))
    if inside:
        tower, vit = towers.tower_in(inside, path, heads["image_encoder"])
    elif image_encoder:
        tower, vit = towers.read_tower(image_encoder, heads["image_encoder"])
    else:
        raise CheckpointError(
            f"{path} holds no image encoder: it was frozen in training, and LAVIS leaves out what is frozen. Convert "
            "it with the file that it was: blip convert --image_encoder, for the released models eva_vit_g.pth"
        )
    tensors |= {f"{PART}{name}": tensor for name, tensor in tower.items() if not name.startswith("norm.")}
    # of other towers, too, the norm behind them is LAVIS's own
    info = _info(tensors, {**vit, "norm_eps": 1e-5}, heads["text_encoder"], path=path, kind=kind)
    if kind:
        info["language_model"] = {"kind": kind, "width": len(tensors["language_proj.weight"])}
        info["language_model"] |= {"activation": "gelu"} if kind == "seq2seq" else {}  # LAVIS sets it for Flan-T5
    return tensors, info


def read_huggingface(folder: Path, stated: Stated, heads: Heads) -> tuple[Tensors, dict[str, Any]]:
    """A folder of transformers' BLIP-2 as (tensors, info). The language model in it is named by the folder.

    Raises:
        CheckpointError: it holds the Q-Former alone, or something else.
    """
    if stated.model_type == "blip_2_qformer":
        raise CheckpointError(
            f"{folder} holds a Q-Former alone, without queries and image encoder: BLIP-2 is read from folders of "
            "Blip2ForConditionalGeneration, Blip2Model or Blip2ForImageTextRetrieval"
        )
    state = read_state(folder, lambda name: not name.startswith(LANGUAGE_MODEL))
    tensors = _renamed(state, HUGGINGFACE_BLIP2, folder, lambda _: False)
    vision, qformer = stated.vision_config, stated.qformer_config
    vit = towers.sizes_of(tensors, folder, PART)
    vit |= {"heads": heads["image_encoder"] or vision.num_attention_heads}
    vit |= {"norm_eps": vision.layer_norm_eps, "block_eps": vision.layer_norm_eps}
    kind = stated.kind if "language_proj.weight" in tensors else None
    info = _info(tensors, vit, heads["text_encoder"] or qformer.num_attention_heads, path=folder, kind=kind)
    info["qformer"]["dropout"] = qformer.hidden_dropout_prob or 0.1
    if kind:
        info["language_model"] = {
            "name": hub_name(folder),
            "revision": revision_of(folder),
            "fingerprint": fingerprint_of_files(folder, LANGUAGE_MODEL),
            "kind": kind,
            "width": len(tensors["language_proj.weight"]),
        }
    return tensors, info


def write_lavis(path: Path, tensors: Tensors, info: dict[str, Any]) -> list[str]:
    """Writes a file of LAVIS, whole, with its image encoder; returns the names of what it cannot hold."""
    to_foreign = inverse(lavis(_kind(info)))
    if info["image_encoder"].get("pre_norm"):
        to_foreign |= inverse(LAVIS_CLIP)
    state, lost = {}, []
    for name, tensor in tensors.items():
        foreign = rename(name, to_foreign)
        if foreign is None:
            lost.append(name)
        else:
            state[foreign] = _as_clip(foreign, tensor)
    state = divided_bias(state)
    for copy, original in HEAD_COPIES.items():
        if original in state and "Qformer.cls.predictions.bias" in state:
            state[copy] = state[original]
    positions = "Qformer.bert.embeddings.position_embeddings.weight"
    if positions in state:
        state["Qformer.bert.embeddings.position_ids"] = torch.arange(len(state[positions]))[None]
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: LAVIS's format is one file, such as {path / 'model.pth'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors("the checkpoint", path), whole_file(path) as file:
        torch.save({"model": state}, file)
    return lost + ([] if info["image_encoder"].get("norm_eps", 1e-6) == 1e-5 else ["model.json: norm_eps"])


def _as_clip(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """In the shape that CLIP has it in; the same of other towers."""
    if name == "visual_encoder.class_embedding":
        return tensor.flatten()
    return tensor[0] if name == "visual_encoder.positional_embedding" else tensor


def _renamed(state: Tensors, table: dict[str, str], path: Path, unused: Any) -> Tensors:
    """By our names; CheckpointError for names that the table lacks."""
    tensors, unknown = {}, []
    for name, tensor in state.items():
        if unused(name) or COUNTED.search(name):
            continue
        ours = rename(name, table)
        if ours is None:
            unknown.append(name)
        else:
            tensors[ours] = tensor
    if unknown:
        raise CheckpointError(f"{path} holds tensors that BLIP-2 does not have: " + listed("not known", unknown))
    if "temperature" in tensors:
        tensors["temperature"] = tensors["temperature"].reshape(())
    check_numbers(tensors, path)
    return tensors


def _check_copies(state: Tensors, path: Path) -> None:
    for copy, original in HEAD_COPIES.items():
        if copy in state and original in state and not torch.equal(state[copy], state[original]):
            raise CheckpointError(f"{path}: shared weights differ from one another: {copy} and {original}")


def _info(tensors: Tensors, vit: dict, text_heads: int | None, *, path: Path, kind: str | None) -> dict[str, Any]:
    qformer = qformer_of(tensors, text_heads, path)
    needed = ["language_proj.weight"] if kind else ["image_proj.weight", "text_proj.weight", "itm_head.weight"]
    needed += [f"{PART}norm.weight", "qformer.embeddings.norm.weight"]
    if absent := [name for name in needed if name not in tensors]:
        raise CheckpointError(f"{path} is incomplete: it has no {', '.join(absent)}")
    if qformer["image_width"] != vit["width"]:
        raise CheckpointError(
            f"{path}: its Q-Former reads states of width {qformer['image_width']}, and the image encoder gives "
            f"{vit['width']}: it was trained with another image encoder"
        )
    info: dict[str, Any] = {"task": STAGES[kind is not None], "image_encoder": vit, "qformer": qformer}
    if not kind:
        info["embed_dim"] = len(tensors["image_proj.weight"])
    check_info(info, path)
    return info


def _kind(info: dict[str, Any]) -> str | None:
    """Of the language model; None of the first stage."""
    return info["language_model"]["kind"] if info["task"] == STAGES[1] else None
