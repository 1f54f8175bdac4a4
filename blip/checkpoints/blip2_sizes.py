"""Sizes of BLIP-2 from its tensors, and to and from the configuration of transformers."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from blip.checkpoints.info import CheckpointError
from blip.checkpoints.names import Tensors
from blip.files import ReadError, read_json

Sizes = dict[str, Any]
MODEL_TYPES = ("blip-2", "blip_2_qformer")  # of transformers' configurations
PREFIX = "qformer."


def qformer_sizes(tensors: Tensors) -> Sizes:
    """What shapes show of the Q-Former; KeyError and errors of indexing where they show none. The heads are not among
    it, nor `cross_every` where one layer alone has cross-attention."""
    _, queries, width = tensors[f"{PREFIX}queries"].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith(f"{PREFIX}layers.")}
    attending = sorted(n for n in range(len(layers)) if f"{PREFIX}layers.{n}.cross_attention.k.weight" in tensors)
    sizes = {
        "width": width,
        "layers": len(layers),
        "hidden": len(tensors[f"{PREFIX}layers.0.query_feed_forward.up.weight"]),
        "image_width": tensors[f"{PREFIX}layers.0.cross_attention.k.weight"].shape[1],
        "queries": queries,
        "text": f"{PREFIX}embeddings.words.weight" in tensors,
    }
    if len(attending) > 1:
        sizes["cross_every"] = attending[1] - attending[0]
    if sizes["text"]:
        sizes["vocab_size"] = len(tensors[f"{PREFIX}embeddings.words.weight"])
        sizes["max_positions"] = len(tensors[f"{PREFIX}embeddings.positions.weight"])
    return sizes


def qformer_of(tensors: Tensors, heads: int | None, path: Path) -> Sizes:
    """The sizes of a foreign Q-Former, whole; `heads` width / 64 unless given.

    Raises:
        CheckpointError: the tensors show none.
    """
    try:
        sizes = qformer_sizes(tensors)
    except KeyError as error:
        raise CheckpointError(f"{path} is incomplete: it has no {error.args[0]}") from error
    except (ValueError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path} holds a tensor of a shape that no Q-Former has: {error}") from error
    width = sizes["width"]
    if width % (heads or 64):
        reason = f"{heads} heads do not divide" if heads else "heads do not follow from"
        raise CheckpointError(f"{path}: {reason} the width {width} of the Q-Former: give text_heads")
    sizes.setdefault("cross_every", 2 if sizes["layers"] <= 2 else sizes["layers"])
    return {**sizes, "heads": heads or width // 64, "dropout": 0.1}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Vision(_Strict):
    num_attention_heads: int = Field(16, gt=0, le=1 << 16)
    hidden_act: str = "gelu"
    layer_norm_eps: float = Field(1e-6, gt=0, lt=1)


class _QFormer(_Strict):
    num_attention_heads: int = Field(12, gt=0, le=1 << 16)
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = Field(0.1, ge=0, lt=1)
    layer_norm_eps: float = 1e-12


class _Text(_Strict):
    model_type: str = "opt"
    is_encoder_decoder: bool | None = None


class Stated(_Strict):
    """The entries of transformers' `config.json` that do not follow from the tensors, with its defaults."""

    model_type: str = ""
    architectures: list[str] | None = None
    vision_config: _Vision = Field(default_factory=lambda: _Vision.model_validate({}))
    qformer_config: _QFormer = Field(default_factory=lambda: _QFormer.model_validate({}))
    text_config: _Text = _Text()

    @property
    def kind(self) -> str:
        """Of the language model."""
        several = self.text_config.is_encoder_decoder
        if several is None:
            several = self.text_config.model_type in ("t5", "mt5", "bart", "mbart", "umt5")
        return "seq2seq" if several else "causal"


def read_stated(path: Path) -> Stated | None:
    """The configuration of a folder of transformers with BLIP-2; None where it is that of something else.

    Raises:
        CheckpointError: it is damaged, or computes something else than BLIP-2.
    """
    try:
        if read_json(path, dict[str, Any]).get("model_type") not in MODEL_TYPES:
            return None
        stated = read_json(path, Stated)
    except ReadError as error:
        raise CheckpointError(f"{path} is not the configuration of a BLIP-2 model: {error.problem}") from error
    for part in (stated.vision_config, stated.qformer_config):
        if part.hidden_act != "gelu":
            raise CheckpointError(f"{path}: hidden_act is {part.hidden_act!r}; BLIP-2's is gelu")
    return stated


def huggingface_config(info: Sizes, text_config: Sizes | None, image_token: int | None) -> Sizes:
    """`config.json` of a folder of transformers; `text_config` is that of the language model."""
    vision, qformer = info["image_encoder"], info["qformer"]
    config: Sizes = {
        "model_type": "blip-2",
        "num_query_tokens": qformer["queries"],
        "image_text_hidden_size": info.get("embed_dim") or 256,
        "vision_config": {
            "model_type": "blip_2_vision_model",
            "image_size": vision["image_size"],
            "patch_size": vision["patch"],
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["depth"],
            "num_attention_heads": vision["heads"],
            "intermediate_size": round(vision["width"] * vision.get("mlp_ratio", 4)),
            "hidden_act": "gelu",
            "layer_norm_eps": vision.get("block_eps", 1e-6),
            "attention_dropout": 0.0,
            "qkv_bias": True,
        },
        "qformer_config": qformer_config(qformer),
    }
    if text_config is not None:
        config["text_config"] = text_config
        several = bool(text_config.get("is_encoder_decoder"))
        config |= {"use_decoder_only_language_model": not several, "is_encoder_decoder": several}
    if image_token is not None:
        config["image_token_index"] = image_token
    return config


def qformer_config(qformer: Sizes) -> Sizes:
    """The part of the Q-Former, which is also the whole configuration of one alone."""
    texts = {"vocab_size": "vocab_size", "max_position_embeddings": "max_positions"}
    return {
        "model_type": "blip_2_qformer",
        "hidden_size": qformer["width"],
        "num_hidden_layers": qformer["layers"],
        "num_attention_heads": qformer["heads"],
        "intermediate_size": qformer["hidden"],
        "hidden_act": "gelu",
        "hidden_dropout_prob": qformer.get("dropout", 0.1),
        "attention_probs_dropout_prob": qformer.get("dropout", 0.1),
        "layer_norm_eps": 1e-12,
        "cross_attention_frequency": qformer["cross_every"],
        "encoder_hidden_size": qformer["image_width"],
        "use_qformer_text_input": qformer["text"],
        **{theirs: qformer[ours] for theirs, ours in texts.items() if qformer["text"]},
    }
