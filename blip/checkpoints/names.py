"""What the tensors are called: our names, those of the released `.pth` files and those of Hugging Face.

One table for each format, foreign name -> ours, read in both directions. Model tensors keep the names of our modules;
those of the momentum twin begin with `twin.`, those of the feature queue with `queue.`.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from blip.checkpoints.format import CheckpointError
from blip.models.factory import spec_of

Tensors = dict[str, Tensor]
Table = dict[str, str]  # foreign name -> ours; `*` is the number of a layer, `.weight` and `.bias` may follow

TIMM_VIT: Table = {
    "cls_token": "cls_token",
    "pos_embed": "positions",
    "patch_embed.proj": "patch_embed",
    "blocks.*.norm1": "blocks.*.norm1",
    "blocks.*.attn.qkv": "blocks.*.qkv",
    "blocks.*.attn.proj": "blocks.*.proj",
    "blocks.*.norm2": "blocks.*.norm2",
    "blocks.*.mlp.fc1": "blocks.*.mlp.0",
    "blocks.*.mlp.fc2": "blocks.*.mlp.2",
    "norm": "norm",
}
HUGGINGFACE_VIT: Table = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "positions",
    "embeddings.patch_embedding": "patch_embed",
    "encoder.layers.*.layer_norm1": "blocks.*.norm1",
    "encoder.layers.*.self_attn.qkv": "blocks.*.qkv",
    "encoder.layers.*.self_attn.projection": "blocks.*.proj",
    "encoder.layers.*.layer_norm2": "blocks.*.norm2",
    "encoder.layers.*.mlp.fc1": "blocks.*.mlp.0",
    "encoder.layers.*.mlp.fc2": "blocks.*.mlp.2",
    "post_layernorm": "norm",
}
BERT: Table = {
    "embeddings.word_embeddings": "embeddings.words",
    "embeddings.position_embeddings": "embeddings.positions",
    "embeddings.LayerNorm": "embeddings.norm",
    "encoder.layer.*.attention.self.query": "layers.*.self_attention.q",
    "encoder.layer.*.attention.self.key": "layers.*.self_attention.k",
    "encoder.layer.*.attention.self.value": "layers.*.self_attention.v",
    "encoder.layer.*.attention.output.dense": "layers.*.self_attention.out",
    "encoder.layer.*.attention.output.LayerNorm": "layers.*.self_attention.norm",
    "encoder.layer.*.crossattention.self.query": "layers.*.cross_attention.q",
    "encoder.layer.*.crossattention.self.key": "layers.*.cross_attention.k",
    "encoder.layer.*.crossattention.self.value": "layers.*.cross_attention.v",
    "encoder.layer.*.crossattention.output.dense": "layers.*.cross_attention.out",
    "encoder.layer.*.crossattention.output.LayerNorm": "layers.*.cross_attention.norm",
    "encoder.layer.*.intermediate.dense": "layers.*.feed_forward.up",
    "encoder.layer.*.output.dense": "layers.*.feed_forward.down",
    "encoder.layer.*.output.LayerNorm": "layers.*.feed_forward.norm",
}
# NLVR2's text encoder attends to two images, each with projections of its own
BERT_OF_TWO: Table = {
    **{
        f"encoder.layer.*.crossattention.self{i}.{theirs}": f"layers.*.cross_attention.{image}.{ours}"
        for i, image in enumerate(("first", "second"))
        for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v"))
    },
    "encoder.layer.*.crossattention.output.dense0": "layers.*.cross_attention.first.out",
    "encoder.layer.*.crossattention.output.dense1": "layers.*.cross_attention.second.out",
    "encoder.layer.*.crossattention.output.merge_layer": "layers.*.cross_attention.merge",
}
BERT_HEAD: Table = {
    "cls.predictions.transform.dense": "head.transform",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.decoder": "head.words",
    "cls.predictions.bias": "head.bias",
}


def prefixed(table: Table, foreign: str, ours: str) -> Table:
    return {foreign + name: ours + our_name for name, our_name in table.items()}


TEXT: Table = {
    **prefixed(BERT, "text_encoder.", "text_encoder."),
    **prefixed(BERT, "text_decoder.bert.", "text_decoder."),
    **prefixed(BERT_HEAD, "text_decoder.", "text_decoder."),
    "vision_proj": "image_proj",
    "text_proj": "text_proj",
    "itm_head": "itm_head",
}
HUGGINGFACE: Table = {**prefixed(HUGGINGFACE_VIT, "vision_model.", "image_encoder."), **TEXT}
SALESFORCE: Table = {
    **prefixed(TIMM_VIT, "visual_encoder.", "image_encoder."),
    **TEXT,
    **prefixed(BERT_OF_TWO, "text_encoder.", "text_encoder."),
    "cls_head.*": "cls_head.*",
    "temp": "temperature",
    **prefixed(TIMM_VIT, "visual_encoder_m.", "twin.image_encoder."),
    **prefixed(BERT, "text_encoder_m.", "twin.text_encoder."),
    "vision_proj_m": "twin.image_proj",
    "text_proj_m": "twin.text_proj",
    "image_queue": "queue.images",
    "text_queue": "queue.texts",
}
# Weights that the foreign formats hold twice, and we once: copy -> original. Copies have to be equal.
HEAD_COPIES: Table = {
    "text_decoder.head.words.weight": "text_decoder.embeddings.words.weight",
    "text_decoder.head.words.bias": "text_decoder.head.bias",
}
SHARED_COPIES: Table = {
    f"text_decoder.{name}": f"text_encoder.{name}" for name in BERT.values() if "self_attention" not in name
}
# a buffer that counts 0, 1, 2 ...: neither read nor missed
POSITION_IDS = ".embeddings.position_ids"

_LAYER = re.compile(r"\b(resblocks|blocks|layers?|cls_head)\.(\d+)\.")


def rename(name: str, table: Table) -> str | None:
    """The name by `table`, or None where the table has no entry for it."""
    layer = _LAYER.search(name)
    general = _LAYER.sub(r"\1.*.", name)
    stem, dot, parameter = general.rpartition(".")
    if general in table:
        new = table[general]
    elif stem in table and parameter in ("weight", "bias"):
        new = table[stem] + dot + parameter
    else:
        return None
    return new.replace("*", layer[2]) if layer else new


def inverse(table: Table) -> Table:
    """Ours -> foreign."""
    return {ours: foreign for foreign, ours in table.items()}


def copies(task: str) -> list[Table]:
    """Tables copy -> original of a task, in the order in which a reader removes copies.

    Where the decoder shares the text encoder's weights, foreign files hold these twice.
    """
    return [HEAD_COPIES, SHARED_COPIES] if spec_of(task).shares_text else [HEAD_COPIES]


def to_ours(state: Tensors, table: Table, task: str, *, path: Path) -> Tensors:
    """Renames, and drops the copies after comparing them."""
    tensors, unknown, differing = {}, [], []
    for name, tensor in state.items():
        ours = rename(name, table)
        if ours is not None:
            tensors[ours] = tensor
        elif not name.endswith(POSITION_IDS):
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{path} holds tensors that no BLIP model of its kind ({task}) has: " + listed("not known", unknown)
        )
    for copy_table in copies(task):
        for name in list(tensors):
            original = rename(name, copy_table)
            if original is None:
                continue
            if original not in tensors:
                raise CheckpointError(f"{path} holds {name}, but not {original}, whose copy it is: it is incomplete")
            if not torch.equal(tensors[name], tensors[original]):
                differing.append(f"{name} and {original}")
            del tensors[name]
    if differing:
        raise CheckpointError(f"{path}: shared weights differ from one another: " + listed("pairs", differing))
    return tensors


def with_copies(tensors: Tensors, task: str) -> tuple[Tensors, dict[str, str]]:
    """Adds the copies that foreign formats hold: (tensors, copy -> the name that we hold it by)."""
    tensors = dict(tensors)
    held_as: dict[str, str] = {}
    for copy_table in reversed(copies(task)):
        to_copy = inverse(copy_table)
        for name in list(tensors):
            copy = rename(name, to_copy)
            if copy is not None:
                tensors[copy] = tensors[name]
                held_as[copy] = held_as.get(name, name)
    return tensors, held_as


def listed(title: str, names: list[str]) -> str:
    return f"{title} ({len(names)}): {', '.join(sorted(names)[:12])}" if names else ""
