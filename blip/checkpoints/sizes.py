"""Sizes of a model, from its tensors and to a Hugging Face configuration."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from blip.checkpoints.blip2_sizes import qformer_sizes
from blip.checkpoints.info import CheckpointError, ImageSizes, QFormerSizes, TextSizes, check_info
from blip.checkpoints.names import Tensors, listed
from blip.errors import InputError
from blip.files import ReadError, read_json, read_text
from blip.models.factory import TASKS
from blip.models.momentum import NO_ID
from blip.network.vit import TABLE

UNSEEN = ("dropout", "images")  # entries that do not follow from the tensors; the number of images is the task's


def guess_task(state: Tensors, path: Path) -> str:
    """The task, from the modules that a foreign checkpoint holds; the formats agree on these names."""
    modules = {name.split(".")[0] for name in state}
    possible = {task: spec.foreign_modules for task, spec in TASKS.items() if spec.foreign_modules}
    fitting = [task for task, needed in possible.items() if needed <= modules]
    if fitting:  # the task that needs the most modules explains the most of the file
        return max(fitting, key=lambda task: len(possible[task]))
    raise CheckpointError(f"{path} holds no BLIP model: " + listed("its tensors", list(state)))


def info_of(tensors: Tensors, task: str, heads: dict[str, int | None], *, path: Path) -> dict:
    """Task and sizes, from the shapes of the tensors."""
    info: dict = {"task": task, **_sizes(tensors, path)}
    for part, sizes in info.items():
        if isinstance(sizes, dict):
            given, width = heads[part], sizes["width"]
            option = "image_heads" if part == "image_encoder" else "text_heads"
            if given and width % given:
                raise CheckpointError(f"{path}: {given} heads do not divide the width {width} of {part}; see {option}")
            if not given and width % 64:
                raise CheckpointError(f"{path}: width {width} of {part} does not determine the heads: give {option}")
            sizes["heads"] = given or width // 64
    check_info(info, path)
    return info


def check_sizes(info: dict[str, Any], tensors: Tensors, path: Path) -> None:
    """CheckpointError where the sizes in `model.json` are not those of the tensors: nothing is built from such sizes.

    A part that the tensors do not hold, such as a decoder that shares the text encoder's weights, is not checked.
    """
    for part, found in _sizes(tensors, path).items():
        stated = info.get(part)
        if part == "embed_dim":
            wrong = [] if stated in (found, None) else [f"embed_dim is {stated}, by the tensors' shapes {found}"]
        elif stated is None:
            wrong = [f"{part} is missing"]
        else:
            kind = {"image_encoder": ImageSizes, "qformer": QFormerSizes}.get(part, TextSizes)
            whole = kind(**stated).model_dump()
            if part == "image_encoder" and _hidden(whole) == _hidden(found):
                whole["mlp_ratio"] = found["mlp_ratio"]  # such as 4.3637 of 1408, which is 6144
            wrong = [f"{part}.{name} is {whole[name]}, by the tensors' shapes {value}"
                     for name, value in found.items() if name not in UNSEEN and whole[name] != value]  # fmt: skip
        if wrong:
            raise CheckpointError(f"{path} does not give the model's sizes: {'; '.join(wrong)}")


def _sizes(tensors: Tensors, path: Path) -> dict[str, Any]:
    """What shapes show of each part's sizes; "embed_dim" where there are features."""
    try:
        sizes: dict[str, Any] = {"image_encoder": vit_sizes(tensors)}
        for part in ("text_encoder", "text_decoder"):
            if f"{part}.embeddings.words.weight" in tensors:
                sizes[part] = _text_sizes(tensors, part)
        if "qformer.queries" in tensors:
            sizes["qformer"] = qformer_sizes(tensors)
        if "image_proj.weight" in tensors:
            sizes["embed_dim"] = tensors["image_proj.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{path} is incomplete: it has no {error.args[0]}") from error
    except (ValueError, IndexError, ZeroDivisionError, TypeError) as error:  # TypeError: the length of a single number
        raise CheckpointError(f"{path} holds a tensor of a shape that no BLIP model has: {error}") from error
    return sizes


def _hidden(vit: dict[str, Any]) -> int:
    return round(vit["width"] * vit["mlp_ratio"])


def vit_sizes(tensors: Tensors, prefix: str = "image_encoder.") -> dict[str, Any]:
    """What shapes show of the sizes and form of an image encoder; errors of indexing where they show none."""
    width, _, patch, _ = tensors[f"{prefix}patch_embed.weight"].shape
    _, tokens, _ = tensors[f"{prefix}positions"].shape
    side = grid_side(tokens)
    if tokens != 1 + side * side:
        raise InputError(f"{prefix}positions has {tokens - 1} patches, which is no square")
    hidden = len(tensors[f"{prefix}blocks.0.mlp.0.weight"])
    pre_norm = f"{prefix}first_norm.weight" in tensors
    table = tensors.get(f"{prefix}{TABLE}")
    return {
        **({} if table is None else {"max_pictures": len(table)}),
        "image_size": side * patch,
        "patch": patch,
        "width": width,
        "depth": _count(tensors, f"{prefix}blocks."),
        "mlp_ratio": hidden / width if hidden % width else hidden // width,
        "pre_norm": pre_norm,
        "patch_bias": not pre_norm or f"{prefix}patch_embed.bias" in tensors,  # absent from CLIP's towers alone
    }


def _text_sizes(tensors: Tensors, part: str) -> dict:
    vocab_size, width = tensors[f"{part}.embeddings.words.weight"].shape
    images = 2 if f"{part}.layers.0.cross_attention.first.k.weight" in tensors else 1
    cross = f"{part}.layers.0.cross_attention." + ("first." if images == 2 else "")
    return {
        "vocab_size": vocab_size,
        "width": width,
        "layers": _count(tensors, f"{part}.layers."),
        "hidden": tensors[f"{part}.layers.0.feed_forward.up.weight"].shape[0],
        "max_positions": tensors[f"{part}.embeddings.positions.weight"].shape[0],
        "image_width": tensors[f"{cross}k.weight"].shape[1],
        "dropout": 0.1,
        "images": images,
    }


def _count(tensors: Tensors, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def grid_side(tokens: int) -> int:
    """Patches on a side, where `tokens` may count CLS."""
    return int(tokens**0.5)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    num_attention_heads: int | None = Field(None, gt=0, le=1 << 16)
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = Field(0.0, ge=0, lt=1)


class _Config(BaseModel):
    """The entries of a `config.json` that do not follow from the tensors."""

    vision_config: _Part
    text_config: _Part


def read_huggingface_config(path: Path) -> tuple[dict[str, int], float]:
    """What does not follow from the tensors: the heads of each part, and the text's dropout.

    An absent entry means transformers' default: 12 heads for images, 8 for text. A dropout of 0 is a default, too, and
    not what BLIP was trained with: it is not to be used.
    """
    try:
        config = read_json(path, _Config)
    except ReadError as error:
        raise CheckpointError(f"{path} is not the configuration of a BLIP model: {error.problem}") from error
    for part in (config.vision_config, config.text_config):
        if part.hidden_act != "gelu":
            raise CheckpointError(f"{path}: hidden_act is {part.hidden_act!r}; BLIP's is gelu")
    text_heads = config.text_config.num_attention_heads or 8
    heads = {
        "image_encoder": config.vision_config.num_attention_heads or 12,
        "text_encoder": text_heads,
        "text_decoder": text_heads,
    }
    return heads, config.text_config.hidden_dropout_prob


def huggingface_config(info: dict, special: dict[str, int]) -> dict:
    """Every entry that matters is written: transformers' defaults are not BLIP's."""
    vision = info["image_encoder"]
    text = info.get("text_encoder") or info["text_decoder"]
    embed_dim = info.get("embed_dim", 256)
    return {
        "model_type": "blip",
        "projection_dim": embed_dim,
        "image_text_hidden_size": embed_dim,
        "label_smoothing": 0.1,
        "vision_config": {
            "model_type": "blip_vision_model",
            "image_size": vision["image_size"],
            "patch_size": vision["patch"],
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["depth"],
            "num_attention_heads": vision["heads"],
            "intermediate_size": _hidden(vision),
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "attention_dropout": 0.0,
        },
        "text_config": {
            "model_type": "blip_text_model",
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "encoder_hidden_size": text["image_width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "intermediate_size": text["hidden"],
            "max_position_embeddings": text["max_positions"],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "hidden_dropout_prob": text["dropout"],
            "attention_probs_dropout_prob": text["dropout"],
            "label_smoothing": 0.1,
            "is_decoder": True,
            "bos_token_id": special["[DEC]"],
            "pad_token_id": special["[PAD]"],
            "sep_token_id": special["[SEP]"],
            "eos_token_id": special["[SEP]"],
        },
    }


def fit_queue(tensors: Tensors, path: Path) -> None:
    """The queue's shapes as ours are; entries whose image or caption the file does not name get `NO_ID`.

    CheckpointError where its parts are of different sizes.
    """
    images, pointer = tensors["queue.images"], tensors.get("queue.pointer")
    size = images.shape[-1] if images.dim() == 2 else 0
    sizes = {name: tensors[name].numel() for name in ("queue.image_ids", "queue.caption_ids") if name in tensors}
    texts = tensors.get("queue.texts")
    if pointer is None or texts is None or texts.shape != images.shape or {size, *sizes.values()} != {size}:
        raise CheckpointError(f"{path}: the parts of its queue are missing or do not fit one another")
    if pointer.numel() != 1 or not 0 <= int(pointer) < size:
        raise CheckpointError(f"{path}: its queue has {size} entries, and its pointer is none of them")
    tensors["queue.pointer"] = pointer.reshape(())
    for name in ("queue.image_ids", "queue.caption_ids"):
        tensors[name] = tensors[name].reshape(size) if name in tensors else torch.full((size,), NO_ID)


class _Token(BaseModel):
    id: Annotated[int, Field(ge=0)]
    content: str


class _Words(BaseModel):
    vocab: dict[str, Annotated[int, Field(ge=0)]]


class _TokenizerIds(BaseModel):
    """The entries of a `tokenizer.json` that give the ids of tokens."""

    model: _Words
    added_tokens: list[_Token]


def special_ids(tokenizer_file: str | Path | None, info: dict) -> dict[str, int]:
    """Ids of the tokens that a Hugging Face configuration names."""
    size = (info.get("text_encoder") or info["text_decoder"])["vocab_size"]
    if tokenizer_file is None:
        if size != 30524:
            raise CheckpointError(f"a vocabulary of {size} tokens is not bert-base-uncased's: give tokenizer_file")
        return {"[PAD]": 0, "[SEP]": 102, "[DEC]": 30522}
    try:
        if Path(tokenizer_file).suffix == ".json":
            content = read_json(tokenizer_file, _TokenizerIds)
            ids = {**content.model.vocab, **{token.content: token.id for token in content.added_tokens}}
        else:
            ids = {token: number for number, token in enumerate(read_text(tokenizer_file).splitlines())}
        ids.setdefault("[DEC]", size - 2)  # BLIP appends [DEC] and [ENC] to the vocabulary
        return {token: ids[token] for token in ("[PAD]", "[SEP]", "[DEC]")}
    except (ReadError, KeyError) as error:
        reason = error.problem if isinstance(error, ReadError) else f"it has no {error}"
        raise CheckpointError(f"{tokenizer_file} is no tokenizer.json or vocab.txt of BERT's kind: {reason}") from error
