"""Sizes of a model, from its tensors and to a Hugging Face configuration."""

import json
from pathlib import Path

from blip.checkpoints.format import CheckpointError
from blip.checkpoints.names import Tensors, listed
from blip.errors import InputError
from blip.models.factory import TASKS


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
    try:
        info: dict = {"task": task, "image_encoder": _vit_sizes(tensors)}
        for part in ("text_encoder", "text_decoder"):
            if f"{part}.embeddings.words.weight" in tensors:
                info[part] = _text_sizes(tensors, part)
        if "image_proj.weight" in tensors:
            info["embed_dim"] = tensors["image_proj.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{path} is incomplete: it has no {error.args[0]}") from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path} holds a tensor of a shape that no BLIP model has: {error}") from error
    for part, sizes in info.items():
        if isinstance(sizes, dict):
            given, width = heads[part], sizes["width"]
            option = "image_heads" if part == "image_encoder" else "text_heads"
            if given and width % given:
                raise CheckpointError(f"{path}: {given} heads do not divide the width {width} of {part}; see {option}")
            if not given and width % 64:
                raise CheckpointError(f"{path}: width {width} of {part} does not determine the heads: give {option}")
            sizes["heads"] = given or width // 64
    return info


def _vit_sizes(tensors: Tensors) -> dict:
    width, _, patch, _ = tensors["image_encoder.patch_embed.weight"].shape
    _, tokens, _ = tensors["image_encoder.positions"].shape
    side = grid_side(tokens)
    if tokens != 1 + side * side:
        raise InputError(f"image_encoder.positions has {tokens - 1} patches, which is no square")
    hidden = len(tensors["image_encoder.blocks.0.mlp.0.weight"])
    if hidden % width:
        raise InputError(f"image_encoder.blocks.0.mlp.0.weight has {hidden} rows, no multiple of {width}")
    depth = _count(tensors, "image_encoder.blocks.")
    return {"image_size": side * patch, "patch": patch, "width": width, "depth": depth, "mlp_ratio": hidden // width}


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


def read_huggingface_config(path: Path) -> tuple[dict[str, int], float]:
    """What does not follow from the tensors: the heads of each part, and the text's dropout.

    An absent entry means transformers' default: 12 heads for images, 8 for text. A dropout of 0 is a default, too, and
    not what BLIP was trained with: it is not to be used.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        vision, text = dict(config["vision_config"]), dict(config["text_config"])
        text_heads = int(text.get("num_attention_heads", 8))
        heads = {
            "image_encoder": int(vision.get("num_attention_heads", 12)),
            "text_encoder": text_heads,
            "text_decoder": text_heads,
        }
        dropout = float(text.get("hidden_dropout_prob", 0.0))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not the configuration of a BLIP model: {error!r}") from error
    for part in (vision, text):
        if part.get("hidden_act", "gelu") != "gelu":
            raise CheckpointError(f"{path}: hidden_act is {part['hidden_act']!r}; BLIP's is gelu")
    return heads, dropout


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
            "intermediate_size": vision["mlp_ratio"] * vision["width"],
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


def special_ids(tokenizer_file: str | Path | None, info: dict) -> dict[str, int]:
    """Ids of the tokens that a Hugging Face configuration names."""
    size = (info.get("text_encoder") or info["text_decoder"])["vocab_size"]
    if tokenizer_file is None:
        if size != 30524:
            raise CheckpointError(f"a vocabulary of {size} tokens is not bert-base-uncased's: give tokenizer_file")
        return {"[PAD]": 0, "[SEP]": 102, "[DEC]": 30522}
    try:
        text = Path(tokenizer_file).read_text(encoding="utf-8")
        if Path(tokenizer_file).suffix == ".json":
            content = json.loads(text)
            ids = {**content["model"]["vocab"], **{token["content"]: token["id"] for token in content["added_tokens"]}}
        else:
            ids = {token: number for number, token in enumerate(text.splitlines())}
        ids.setdefault("[DEC]", size - 2)  # BLIP appends [DEC] and [ENC] to the vocabulary
        return {token: ids[token] for token in ("[PAD]", "[SEP]", "[DEC]")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{tokenizer_file} is no tokenizer.json or vocab.txt of BERT's kind: {error!r}"
        ) from error
