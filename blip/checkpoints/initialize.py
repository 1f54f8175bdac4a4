"""Starting weights: from a Vision Transformer of timm, from BERT, or from a checkpoint of another task."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip.checkpoints import convert
from blip.checkpoints.format import (
    CheckpointError,
    load_strict,
    unique_state,
)
from blip.checkpoints.names import (
    TIMM_VIT,
    Tensors,
    listed,
    prefixed,
    rename,
    with_copies,
)
from blip.checkpoints.sizes import (
    grid_side,
)
from blip.models.factory import Model, spec_of
from blip.models.pretrain import PretrainModel
from blip.network.vit import ViTConfig, fit_image_size

# keys and values of a decoder's cross-attention: their shapes follow from what it attends to
DECODER_KEYS = re.compile(r"text_decoder\..*\.cross_attention\.")


def check_heads(info: dict, image_heads: int, text_heads: int, *, path: str) -> None:
    """CheckpointError where a checkpoint's attention has other heads than asked for: the tensors do not show it."""
    for part, asked in (("image_encoder", image_heads), ("text_encoder", text_heads)):
        if part in info and info[part]["heads"] != asked:
            raise CheckpointError(f"{path}: its {part} has {info[part]['heads']} heads, the configuration has {asked}")


def init_vision(model: PretrainModel, source: str) -> None:
    """Image encoder weights from a plain ViT of timm: `timm/NAME`, also `hub:timm/NAME`, which timm downloads unless
    it has them."""
    source = source.removeprefix("hub:")
    if not source.startswith("timm/"):
        raise CheckpointError(
            f"vision_init: {source!r}; expected timm/NAME, for example timm/vit_base_patch16_224.augreg_in21k"
        )
    try:
        import timm

        vit = timm.create_model(source.removeprefix("timm/"), pretrained=True)
    except Exception as error:  # an unknown name, no weights of it, no network: each of another kind
        raise CheckpointError(f"vision_init: {source}: {error}") from error
    weights = from_timm(vit.state_dict())
    fit_image_size(weights, model.image_encoder.config)
    own = {name.removeprefix("image_encoder."): tensor for name, tensor in weights.items()}
    load_strict(model.image_encoder, own, f"vision_init: {source}")


def init_text(model: PretrainModel, source: str) -> None:
    """Text encoder and decoder weights from BERT; cross-attention, which BERT lacks, keeps its random start.

    The decoder's self-attention starts as the encoder's. Words that BERT lacks ([DEC], [ENC]) keep their random start.
    """
    weights = convert.read_bert(source)
    expected = unique_state(model)
    for name in [n for n in weights if ".self_attention." in n]:
        weights[name.replace("text_encoder.", "text_decoder.")] = weights[name]
    words = "text_encoder.embeddings.words.weight"
    for name, tensor in weights.items():
        if name not in expected:
            raise CheckpointError(f"text_init: {source}: {name} has no place in a text encoder of this depth")
        target = expected[name]
        if name in (words, "text_decoder.head.bias") and len(tensor) <= len(target) <= len(tensor) + 2:
            target = target[: len(tensor)]
        if target.shape != tensor.shape:
            raise CheckpointError(
                f"text_init: {source}: {name} is {tuple(tensor.shape)}, the model needs {tuple(target.shape)}; "
                "text_width, text_layers, text_hidden and the tokenizer must be those of the BERT"
            )
        target.copy_(tensor)
    layers = {name.split(".")[2] for name in weights if name.startswith("text_encoder.layers.")}
    if len(layers) != model.text_encoder.config.layers:
        raise CheckpointError(
            f"text_init: {source} has {len(layers)} layers, the model {model.text_encoder.config.layers}: "
            "set text_layers"
        )


@dataclass
class Source:
    """The checkpoint of `init_from`."""

    tensors: dict[str, Tensor]
    info: dict[str, Any]
    path: str

    @property
    def text(self) -> dict[str, Any]:
        return self.info.get("text_encoder") or self.info["text_decoder"]


@torch.no_grad()
def adopt(model: Model, task: str, source: Source, *, vit: ViTConfig) -> list[str]:
    """Copies what `source` has for this model; returns the names of what it has not.

    CheckpointError for a tensor of another shape, except for the keys of VQA's decoder, which attends to other states.
    """
    tensors = with_copies(source.tensors, source.info["task"])[0]
    fit_image_size(tensors, vit)
    spec = spec_of(task)
    if spec.images == 2 and spec_of(source.info["task"]).images == 1:
        for name in [n for n in tensors if ".cross_attention." in n]:
            for image in ("first", "second"):
                tensors.setdefault(name.replace(".cross_attention.", f".cross_attention.{image}."), tensors[name])
    missing = []
    for name, own in unique_state(model).items():
        theirs = tensors.get(name)
        if theirs is not None and theirs.shape == own.shape:
            own.copy_(theirs)
        elif theirs is None or (spec.decoder_reads_question and DECODER_KEYS.match(name)):
            missing.append(name)
        else:
            raise CheckpointError(f"{source.path}: {name} is {tuple(theirs.shape)}, the model needs {tuple(own.shape)}")
    return missing


def parts_of(names: list[str]) -> list[str]:
    """The parts of a model that tensors of these names belong to, each once."""
    return sorted({name.split(".")[0] for name in names})


def from_timm(state: Tensors) -> Tensors:
    """The state dict of a plain Vision Transformer of timm (DeiT, AugReg, DINO ...) as `image_encoder.*`.

    The classifier (`head.*`) is left out. Raises CheckpointError for transformers that compute something else.
    """
    reasons = {
        r"dist_token|head_dist": "a distillation token",
        r"\.ls[12]\.|\.gamma_[12]$": "layer scale",
        r"reg_token": "register tokens",
        r"[qk]_norm": "normalised queries and keys",
        r"norm_pre": "a norm before the blocks",
        r"fc_norm": "the mean of all tokens instead of a CLS token",
    }
    for pattern, reason in reasons.items():
        if any(re.search(pattern, name) for name in state):
            raise CheckpointError(f"not a plain Vision Transformer: it has {reason}; choose another model of timm")
    if "cls_token" not in state or "pos_embed" not in state:
        raise CheckpointError("not a plain Vision Transformer: it has no cls_token or no pos_embed")
    if state["pos_embed"].shape[1] == grid_side(state["pos_embed"].shape[1]) ** 2:
        raise CheckpointError("not a plain Vision Transformer: its CLS token has no position")
    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    table = prefixed(TIMM_VIT, "", "image_encoder.")
    renamed = {name: rename(name, table) for name in state}
    unknown = [name for name, ours in renamed.items() if ours is None]
    if unknown:
        raise CheckpointError("not a plain Vision Transformer: " + listed("not known", unknown))
    return {ours: state[name] for name, ours in renamed.items() if ours}
