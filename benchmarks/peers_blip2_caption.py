"""BLIP-2 as transformers has it, with our weights: the peer of `blip2_caption.py`."""

from typing import Any

import torch
from torch import nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig, OPTForCausalLM

from blip.checkpoints.blip2_names import HUGGINGFACE_BLIP2
from blip.checkpoints.names import inverse, rename
from blip.models.blip2_language import Blip2LanguageModel
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig

IMAGE_TOKEN, PAD, START, LINE_END = 50265, 1, 2, 50118


def opt_configuration(size: str) -> OPTConfig:
    """OPT-125M's sizes, or `tiny` ones; weights start wider than for training, so that texts are no coin tosses."""
    sizes: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072}
    if size == "tiny":
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128}
    width = sizes["hidden_size"]
    return OPTConfig(vocab_size=50272, word_embed_proj_dim=width, init_std=0.04, dropout=0.0, **sizes)


def language_module(size: str) -> OPTForCausalLM:
    """A random OPT, frozen."""
    return OPTForCausalLM(opt_configuration(size)).eval().requires_grad_(False)


def captioner(ours: Blip2LanguageModel, vit: ViTConfig, qformer: QFormerConfig) -> Blip2ForConditionalGeneration:
    """`Blip2ForConditionalGeneration` with our weights; it shares the storage of every parameter with ours."""
    assert ours.language_model is not None
    text = ours.language_model.module.config
    config = Blip2Config(
        vision_config={
            "hidden_size": vit.width, "intermediate_size": round(vit.width * vit.mlp_ratio), "patch_size": vit.patch,
            "num_hidden_layers": vit.depth, "num_attention_heads": vit.heads, "image_size": vit.image_size,
            "hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True,
        },
        qformer_config={
            "hidden_size": qformer.width, "num_hidden_layers": qformer.layers, "num_attention_heads": qformer.heads,
            "intermediate_size": qformer.hidden, "encoder_hidden_size": vit.width, "vocab_size": qformer.vocab_size,
            "cross_attention_frequency": qformer.cross_every,
        },
        text_config=text.to_dict(), num_query_tokens=qformer.queries, image_token_index=IMAGE_TOKEN,
    )  # fmt: skip
    with torch.device("meta"):
        theirs = Blip2ForConditionalGeneration(config)
    names = inverse(HUGGINGFACE_BLIP2)
    state = {str(rename(name, names)): tensor for name, tensor in ours.trained_state().items()}
    language = ours.language_model.module.state_dict()
    state |= {f"language_model.{name}": tensor for name, tensor in language.items()}
    missing = theirs.load_state_dict(state, strict=False, assign=True)
    buffers = [name for name in missing.missing_keys if not name.endswith("position_ids")]
    assert not buffers and not missing.unexpected_keys, (buffers, missing.unexpected_keys)
    theirs.tie_weights()
    return _without_meta(theirs).eval()


def _without_meta(module: nn.Module) -> Any:
    """Buffers that no file holds are numbers of positions."""
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_meta:
                part.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
    return module
