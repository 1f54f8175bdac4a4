"""Weights from elsewhere and back: only names change, never values.

`read` understands our own folders, the released `.pth` files of BLIP and Hugging Face `Blip*` folders; `write` makes
any of the three. BERT weights, which only start a model, are for `read_bert`.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from blip.checkpoints import blip2_convert, blip2_export, places, processor
from blip.checkpoints.blip2_sizes import read_stated
from blip.checkpoints.format import (
    INFO,
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    check_numbers,
    disk_errors,
    load_weights,
    save_tensors,
    save_weights,
)
from blip.checkpoints.frozen import with_tower
from blip.checkpoints.info import check_info
from blip.checkpoints.names import (
    BERT,
    BERT_HEAD,
    HUGGINGFACE,
    POSITION_IDS,
    SALESFORCE,
    Tensors,
    inverse,
    listed,
    prefixed,
    rename,
    to_ours,
    with_copies,
)
from blip.checkpoints.part_adapters import ADAPTER
from blip.checkpoints.sizes import (
    check_sizes,
    fit_queue,
    guess_task,
    huggingface_config,
    info_of,
    read_huggingface_config,
    special_ids,
)
from blip.checkpoints.states import read_state
from blip.errors import InputError
from blip.files import whole_file, write_whole
from blip.models.factory import TASKS, spec_of
from blip.models.momentum import NO_ID
from blip.network.vit import TABLE

# entries of `model.json` that change what a model writes and that other formats lack
SETTINGS = ("prompt", "answers", "text_cleaning", "max_text_tokens", "max_answer_tokens")
NAMES = (WEIGHTS, INFO, "config.json", *processor.FILES)  # files of the folders that `write` makes
_BERT_UNUSED = re.compile(r"(pooler|cls\.seq_relationship|cls\.predictions\.decoder)\.|embeddings\.position_ids$")
_DUAL_ENCODER = {"visual_projection.weight", "text_projection.weight", "logit_scale"}  # of transformers' BlipModel
_QUEUE_SHAPES = {"queue.pointer": (1,), "queue.image_ids": (1, -1)}  # in the released files; ours are () and (Q,)


def read(
    path: str | Path, image_heads: int | None = None, text_heads: int | None = None, *, image_encoder: str = ""
) -> tuple[Tensors, dict]:
    """Reads one of our folders, a released `.pth` file or a Hugging Face folder: (tensors on the CPU, info).

    `path` may also be a name of `places.local`.

    `info` holds `task`, the sizes `image_encoder`, `text_encoder` and/or `text_decoder` (of a decoder that shares
    nothing), and `embed_dim`; of BLIP-2 `qformer` and `language_model`. Sizes follow from the tensors. The number of
    heads does not: a `.pth` file is taken to have heads of width 64 (EVA's 88), as all released ones have, unless
    `image_heads` or `text_heads` is given. `image_encoder` names that of a file of LAVIS which comes without one.

    Raises:
        CheckpointError: what is wrong with which file.
    """
    path = places.local(path)
    heads = {"image_encoder": image_heads, "text_encoder": text_heads, "text_decoder": text_heads}
    for option, count in (("image_heads", image_heads), ("text_heads", text_heads)):
        if count is not None and count < 1:
            raise InputError(f"{option} is {count}; it has to be 1 or more")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if (path / INFO).is_file():
        tensors, info = load_weights(path)
        for part, count in {**heads, "qformer": text_heads}.items():
            if count and part in info:
                info[part] = {**info[part], "heads": count}
        check_info(info, path / INFO)
        tensors = with_tower(tensors, info, path)
        check_sizes(info, tensors, path)
        return tensors, info
    if path.is_dir():
        return _read_huggingface(path, heads)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} holds weights without their sizes: give the folder that it lies in")
    state = read_state(path)
    if blip2_convert.is_lavis(state):
        return blip2_convert.read_lavis(state, path, heads, image_encoder=image_encoder)
    task = guess_task(state, path)
    tensors = to_ours(state, {**SALESFORCE, **spec_of(task).queue_names}, task, path=path)
    check_numbers(tensors, path)
    if "queue.images" in tensors:
        fit_queue(tensors, path)
    return tensors, info_of(tensors, task, heads, path=path)


def write(
    path: str | Path,
    tensors: Tensors,
    info: dict,
    *,
    to: str = "blip",
    tokenizer_file: str | Path | None = None,
    hf_class: str | None = None,
) -> list[str]:
    """Writes a checkpoint; returns the names of what the target format cannot hold and is lost: of tensors, and as
    `model.json: prompt` of settings.

    Args:
        path: a folder, or for `salesforce` a file.
        tensors, info: as `read` returns them.
        to: `blip`, `salesforce` or `huggingface`.
        tokenizer_file: goes into the folder. `tokenizer.json`, or for `huggingface` also `vocab.txt`.
        hf_class: for `huggingface` and a checkpoint of pre-training, which no single class holds: `retrieval` or
            `caption`; of BLIP-2 see `blip2_export.CLASSES`. One of VQA fits where image and text are equally wide.

    Raises:
        CheckpointError: the format does not hold this model; the message gives the reason.
    """
    path = Path(path)
    if to == "blip":
        if tokenizer_file and Path(tokenizer_file).suffix != ".json":
            raise CheckpointError(f"{tokenizer_file}: our folders hold a tokenizer.json; save it as one first")
        if "image_encoder.positions" in tensors:  # held, and not only named
            info = {name: entry for name, entry in info.items() if name != "frozen"}
        with disk_errors("the checkpoint", path):
            save_weights(path, tensors, info)
            if tokenizer_file:
                write_whole(path / TOKENIZER, Path(tokenizer_file).read_bytes())
        return []
    held = "low-rank adapters" if info.get("lora") and any(ADAPTER in name for name in tensors) else ""
    if held := held or ("embeddings of pictures" if f"image_encoder.{TABLE}" in tensors else ""):
        raise CheckpointError(f"nothing is written to {path}: the checkpoint has {held} beside its weights, which a "
                              f"file or folder of {to} cannot hold; `blip.load` reads them from ours")  # fmt: skip
    settings = [f"{INFO}: {name}" for name in SETTINGS if info.get(name) not in (None, "", [], 0, "none")]
    queries = "qformer" in info
    if to == "salesforce":
        write_file = blip2_convert.write_lavis if queries else _write_salesforce
        return write_file(path, tensors, info) + ([TOKENIZER] if tokenizer_file else []) + settings
    if to == "huggingface" and queries:
        options: dict[str, Any] = {"tokenizer_file": tokenizer_file, "hf_class": hf_class}
        return blip2_export.write_huggingface(path, tensors, info, **options) + settings
    if to == "huggingface":
        lost = _write_huggingface(path, tensors, info, tokenizer_file=tokenizer_file, hf_class=hf_class)
        return lost + settings
    raise InputError(f"to is {to!r}; it can be blip, salesforce or huggingface")


def split(tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """(model, twin, queue), each with the names of its own module; twin and queue may be empty."""
    parts: tuple[Tensors, Tensors, Tensors] = ({}, {}, {})
    for name, tensor in tensors.items():
        if name.startswith("twin."):
            parts[1][name.removeprefix("twin.")] = tensor
        elif name.startswith("queue."):
            parts[2][name.removeprefix("queue.")] = tensor
        else:
            parts[0][name] = tensor
    return parts


def read_bert(path: str | Path) -> Tensors:
    """BERT weights of Hugging Face, a folder or a file, as `text_encoder.*` and the head of `text_decoder.*`.

    What BERT lacks is missing here too: cross-attention, the decoder's own self-attention (start it from the
    encoder's), a head if the file has none, and the rows of the word embedding for tokens added to its vocabulary.
    BLIP has no token types: that of the first segment, which plain text has, is added to the positions, so that the
    states of a text are BERT's own.
    """
    path = places.local(path)
    table = {**prefixed(BERT, "", "text_encoder."), **prefixed(BERT_HEAD, "", "text_decoder.")}
    tensors, unknown = {}, []
    types = None
    for name, tensor in read_state(path).items():
        short = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        short = short.replace("LayerNorm.beta", "LayerNorm.bias")
        if short == "embeddings.token_type_embeddings.weight":
            types = tensor
        elif not _BERT_UNUSED.match(short):
            ours = rename(short, table)
            if ours is None:
                unknown.append(name)
            else:
                tensors[ours] = tensor
    positions = "text_encoder.embeddings.positions.weight"
    if unknown or positions not in tensors:
        raise CheckpointError(f"{path} is no BERT: " + (listed("not known", unknown) or "it has no position embedding"))
    check_numbers(tensors, path)
    if types is not None:
        check_numbers({"token types": types}, path)
        if types.dim() != 2 or types.shape[1:] != tensors[positions].shape[1:] or not len(types):
            raise CheckpointError(f"{path}: its token types are {tuple(types.shape)}, which do not fit its positions")
        tensors[positions] = tensors[positions] + types[0]
        check_numbers({"the sum of positions and token types": tensors[positions]}, path)
    return tensors


def _write_salesforce(path: Path, tensors: Tensors, info: dict) -> list[str]:
    task = info["task"]
    to_foreign = inverse({**SALESFORCE, **spec_of(task).queue_names})
    state, lost = {}, []
    for name, tensor in with_copies(tensors, task)[0].items():
        foreign = rename(name, to_foreign)
        if foreign is not None:
            state[foreign] = tensor.reshape(_QUEUE_SHAPES[name]) if name in _QUEUE_SHAPES else tensor
        elif not (name in ("queue.image_ids", "queue.caption_ids") and bool((tensor == NO_ID).all())):
            lost.append(name)
        if foreign is not None and foreign.endswith(".embeddings.position_embeddings.weight"):
            module = foreign.removesuffix(".embeddings.position_embeddings.weight")
            state[module + POSITION_IDS] = torch.arange(len(tensor))[None]
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: the released format is one file, such as {path / 'model.pth'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors("the checkpoint", path), whole_file(path) as file:
        torch.save({"model": state}, file)
    return lost


def _read_huggingface(folder: Path, heads: dict[str, int | None]) -> tuple[Tensors, dict]:
    config = folder / "config.json"
    if not config.is_file():
        inside = next((one for one in (folder / "best", folder / "checkpoints" / "latest") if one.exists()), folder)
        hint = f"; you may mean {inside}" if inside != folder else ""
        raise CheckpointError(
            f"{folder} is no checkpoint: it has neither {INFO} (ours) nor config.json (Hugging Face){hint}"
        )
    if (blip2 := read_stated(config)) is not None:
        return blip2_convert.read_huggingface(folder, blip2, heads)
    stated, dropout = read_huggingface_config(config)
    state = read_state(folder)
    if state.keys() >= _DUAL_ENCODER:
        raise CheckpointError(
            f"{folder} holds transformers' BlipModel, a dual encoder in the manner of CLIP, for which BLIP has no "
            "counterpart: it pools texts by a further layer, normalises images twice, and neither matches nor writes. "
            "Save the class of your purpose instead: BlipForImageTextRetrieval (features and matching), "
            "BlipForConditionalGeneration (captions) or BlipForQuestionAnswering (answers)"
        )
    task = guess_task(state, folder)
    tensors = to_ours(state, HUGGINGFACE, task, path=folder)
    check_numbers(tensors, folder)
    info = info_of(tensors, task, {part: heads[part] or stated[part] for part in stated}, path=folder)
    for part in ("text_encoder", "text_decoder"):
        if part in info and dropout:
            info[part]["dropout"] = dropout
    return tensors, info


def _write_huggingface(
    folder: Path, tensors: Tensors, info: dict, *, tokenizer_file: str | Path | None, hf_class: str | None
) -> list[str]:
    hf_class = hf_class or info["task"]
    classes = {task: spec.huggingface for task, spec in TASKS.items() if spec.huggingface}
    if hf_class not in classes:
        options = " or ".join(f"{option} ({name})" for option, (name, _) in classes.items())
        raise CheckpointError(f"no Hugging Face class holds a checkpoint of {hf_class}; hf_class can be {options}")
    class_name, modules = classes[hf_class]
    everything, held_as = with_copies(tensors, info["task"])
    held = {name: tensor for name, tensor in everything.items() if name.split(".")[0] in modules}
    absent = [module for module in modules if not any(name.startswith(module + ".") for name in held)]
    if absent:
        raise CheckpointError(f"{class_name} needs {', '.join(absent)}, which a checkpoint of {info['task']} lacks")
    if hf_class not in spec_of(info["task"]).exports_as:  # such as a decoder that attends to questions, not to images
        raise CheckpointError(f"{class_name} cannot use a checkpoint of {info['task']}; hf_class can be {info['task']}")
    widths = info["image_encoder"]["width"], (info.get("text_encoder") or info["text_decoder"])["width"]
    if TASKS[hf_class].decoder_reads_question and widths[0] != widths[1]:
        raise CheckpointError(
            f"{class_name} cannot hold this model: its answer decoder attends to states of the image's width, "
            f"{widths[0]}, and those of a question are {widths[1]} wide"
        )
    special = special_ids(tokenizer_file, info)
    config = {"architectures": [class_name], **huggingface_config(info, special)}
    to_foreign = inverse(HUGGINGFACE)
    # safetensors refuses tensors that share memory
    state = {str(rename(name, to_foreign)): tensor.detach().clone() for name, tensor in held.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors("the checkpoint", folder):
        save_tensors(state, folder / WEIGHTS)
        write_whole(folder / "config.json", json.dumps(config, indent=1) + "\n")
        answers = TASKS[hf_class].decoder_reads_question
        processor.write_processor(folder, info, tokenizer_file, special=special, answers=answers)
    kept = {held_as.get(name, name) for name in held}
    return [name for name in tensors if name not in kept]
