"""What the tensors of BLIP-2 are called: our names, those of LAVIS and those of transformers.

One table for each format, foreign name -> ours, read in both directions by `names.rename` and `names.inverse`. The
image encoder's attention has one bias for queries, keys and values here and in transformers, and in LAVIS two, without
the keys': `whole_bias` and `divided_bias` go between them. A bias of keys changes no attention pattern.
"""

import re

import torch
from torch import Tensor

from blip.checkpoints.names import BERT, BERT_HEAD, HUGGINGFACE_VIT, TIMM_VIT, Table, Tensors, inverse, prefixed, rename

# of CLIP's own files; a tower of BLIP-2 ends before the last block, and its final norm is BLIP-2's
CLIP_VIT: Table = {
    "class_embedding": "cls_token",
    "positional_embedding": "positions",
    "conv1": "patch_embed",
    "ln_pre": "first_norm",
    "transformer.resblocks.*.ln_1": "blocks.*.norm1",
    "transformer.resblocks.*.attn.in_proj_weight": "blocks.*.qkv.weight",
    "transformer.resblocks.*.attn.in_proj_bias": "blocks.*.qkv.bias",
    "transformer.resblocks.*.attn.out_proj": "blocks.*.proj",
    "transformer.resblocks.*.ln_2": "blocks.*.norm2",
    "transformer.resblocks.*.mlp.c_fc": "blocks.*.mlp.0",
    "transformer.resblocks.*.mlp.c_proj": "blocks.*.mlp.2",
}
# of transformers' CLIP, once queries, keys and values are in one matrix; the misspelt name is theirs
HUGGINGFACE_CLIP: Table = {
    **{
        foreign.replace("self_attn.projection", "self_attn.out_proj"): ours
        for foreign, ours in HUGGINGFACE_VIT.items()
        if ours not in ("norm", "positions")
    },
    "embeddings.position_embedding.weight": "positions",
    "pre_layrnorm": "first_norm",
}


def _of_queries(table: Table) -> Table:
    """The table with the feed-forward networks of the queries beside those of texts."""
    own = {
        "encoder.layer.*.intermediate_query.dense": "layers.*.query_feed_forward.up",
        "encoder.layer.*.output_query.dense": "layers.*.query_feed_forward.down",
        "encoder.layer.*.output_query.LayerNorm": "layers.*.query_feed_forward.norm",
    }
    return {**table, **own}


LAVIS: Table = {
    **prefixed({name: ours for name, ours in TIMM_VIT.items() if name != "norm"}, "visual_encoder.", "image_encoder."),
    "ln_vision": "image_encoder.norm",
    "query_tokens": "qformer.queries",
    **prefixed(_of_queries(BERT), "Qformer.bert.", "qformer."),
    **prefixed({name: ours for name, ours in BERT_HEAD.items() if ours != "head.words"}, "Qformer.", "qformer."),
    "vision_proj": "image_proj",
    "text_proj": "text_proj",
    "itm_head": "itm_head",
    "temp": "temperature",
}
# a tower of CLIP's in a file of LAVIS
LAVIS_CLIP: Table = prefixed(CLIP_VIT, "visual_encoder.", "image_encoder.")
# the projection into a language model has a name for each family of these
LAVIS_PROJECTIONS = {"causal": "opt_proj", "seq2seq": "t5_proj"}

_ATTENTION = re.compile(r"(attention|crossattention)\.self\.")
HUGGINGFACE_QFORMER: Table = {  # of the model alone
    _ATTENTION.sub(r"\1.attention.", name).replace("embeddings.LayerNorm", "layernorm"): ours
    for name, ours in _of_queries(BERT).items()
    if ours not in ("embeddings.words", "embeddings.positions")
}
HUGGINGFACE_BLIP2: Table = {
    **prefixed(HUGGINGFACE_VIT, "vision_model.", "image_encoder."),
    "query_tokens": "qformer.queries",
    **prefixed(HUGGINGFACE_QFORMER, "qformer.", "qformer."),
    "embeddings.word_embeddings": "qformer.embeddings.words",
    "embeddings.position_embeddings": "qformer.embeddings.positions",
    "vision_projection": "image_proj",
    "text_projection": "text_proj",
    "itm_head": "itm_head",
    "language_projection": "language_proj",
}
LANGUAGE_MODEL = "language_model."  # prefix of transformers' names and of ours
# what files hold of the frozen language model although it is left out, and a buffer that counts
LAVIS_LANGUAGE_MODEL = re.compile(r"(opt|t5)_model\.")
COUNTED = re.compile(r"(^|\.)embeddings\.position_ids$|\.vision_model\.embeddings\.position_ids$")
# copies that LAVIS's files hold: of the word embedding as the head's matrix, and of the head's bias
HEAD_COPIES: Table = {
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}


def lavis(kind: str | None) -> Table:
    """The table of LAVIS; `kind` of the language model, None for the first stage."""
    return LAVIS if kind is None else {**LAVIS, LAVIS_PROJECTIONS[kind]: "language_proj"}


def lavis_name_in_transformers(name: str, kind: str | None) -> str | None:
    """The name in transformers of what LAVIS calls `name`; None where its class has no place for it."""
    whole = re.sub(r"attn\.[qv]_bias$", "attn.qkv.bias", name)
    ours = rename(whole, lavis(kind))
    return None if ours is None else rename(ours, inverse(HUGGINGFACE_BLIP2))


def whole_bias(state: Tensors) -> Tensors:
    """`*.attn.q_bias` and `v_bias` as `*.attn.qkv.bias`, in which the keys' is zero; KeyError where one is absent."""
    result = {}
    for name, tensor in state.items():
        if name.endswith("attn.q_bias"):
            stem = name.removesuffix("q_bias")
            result[f"{stem}qkv.bias"] = torch.cat([tensor, torch.zeros_like(tensor), state[f"{stem}v_bias"]])
        elif not name.endswith("attn.v_bias"):
            result[name] = tensor
    return result


def divided_bias(state: Tensors) -> Tensors:
    """The inverse of `whole_bias`, without the keys' bias."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):
            stem = name.removesuffix("qkv.bias")
            result[f"{stem}q_bias"], _, result[f"{stem}v_bias"] = tensor.chunk(3)
        else:
            result[name] = tensor
    return result


def joined_heads(state: Tensors) -> Tensors:
    """Separate projections of queries, keys and values, as in transformers' CLIP, as one: `*.self_attn.qkv`."""
    result = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.*\.self_attn\.)q_proj\.(weight|bias)", name):
            each = [state[f"{match[1]}{one}_proj.{match[2]}"] for one in "qkv"]
            result[f"{match[1]}qkv.{match[2]}"] = torch.cat(each)
        elif not re.search(r"\.self_attn\.[kv]_proj\.(weight|bias)$", name):
            result[name] = tensor
    return result
