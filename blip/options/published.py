"""Configurations of the published code (salesforce/BLIP), translated key by key, with a message that names each.

A file counts as one of these where it has at least two keys that only the published code knows.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from blip.errors import note

# published key -> the key here; the value stays
RENAMED = {
    "pretrained": "init_from",
    "init_lr": "lr",
    "max_epoch": "epochs",
    "batch_size_train": "batch_size",
    "num_beams": "beams",
    "lr_decay_rate": "lr_decay",
    "vqa_root": "image_root",
}
# published key -> why there is none here
LEFT_OUT = {
    "batch_size_test": "evaluation takes batch_size too",
    "vit_ckpt_layer": "with activation_checkpointing every block is computed again, not the first ones alone",
    "warmup_lr": "the warm-up rises from 0",
    "coco_gt_root": "the true captions are those of val_file and test_file",
    "vg_root": "images lie under image_root alone: link the folder of Visual Genome into it, or leave vg_qa out",
    "laion_path": "add its annotation files to train_file",
    "video_root": "videos are not read",
    "num_frm_test": "videos are not read",
    "vit_adapter": "adapters are set by lora",
}
# class of the configuration -> the annotation files that the published code reads below ann_root
FILES: dict[str, dict[str, str]] = {
    "CaptionConfig": {
        "dataset": "coco",
        "train_file": "coco_karpathy_train.json",
        "val_file": "coco_karpathy_val.json",
        "test_file": "coco_karpathy_test.json",
    },
    "RetrievalConfig": {"train_file": "", "val_file": "", "test_file": ""},  # the folder: `dataset` names its files
    "VqaConfig": {"dataset": "vqa_v2", "test_file": "vqa_test.json", "answer_file": "answer_list.json"},
    "NlvrConfig": {
        "dataset": "json",
        "train_file": "nlvr_train.json",
        "val_file": "nlvr_dev.json",
        "test_file": "nlvr_test.json",
    },
}
# class -> what the published code does without a key for it
ALSO: dict[str, dict[str, Any]] = {
    "PretrainConfig": {"schedule": "epoch_decay"},
    "CaptionConfig": {"warmup_steps": 0, "length_norm": "whole"},
    "RetrievalConfig": {"warmup_steps": 0, "equal_captions": "negatives"},
    "VqaConfig": {"warmup_steps": 0},
    "NlvrConfig": {"warmup_steps": 0},
}


def hint(key: str) -> str:
    """The end of a message about an unknown key that the published code has; "" for others."""
    if key in RENAMED:
        return f"the published code's {key} is {RENAMED[key]} here"
    if key in LEFT_OUT:
        return f"the published code's {key} has no counterpart: {LEFT_OUT[key]}"
    return ""


def is_published(values: dict[str, Any], cls: type[BaseModel]) -> bool:
    """Whether a file's keys are those of the published code."""
    known = {*RENAMED, *LEFT_OUT, *CHANGED, "ann_root", "train_files"}
    return sum(key in known and key not in cls.model_fields for key in values) >= 2


def translated(values: dict[str, Any], cls: type[BaseModel], where: str) -> dict[str, Any]:
    """The same with the keys of `cls`; a line on standard error says what each published key became."""
    there, lines = dict(values), []
    ours: dict[str, Any] = {}
    for key, value in values.items():
        made, reason = _one(key, value, values, cls)
        ours |= made
        if not made:
            lines.append(f"{key} is left out: {reason}")
        elif key not in made or made[key] != value:
            lines.append(f"{key} -> {_shown(made)}" + (f" ({reason})" if reason else ""))
    also = {name: one for name, one in _also(ours, cls).items() if name not in there and name not in ours}
    if also:
        lines.append(f"as the published code has it: {_shown(also)}")
    _tell(f"{where} is a configuration of the published BLIP code, read as:\n  " + "\n  ".join(lines))
    return ours | also


@lru_cache(maxsize=64)  # a command reads its configuration several times
def _tell(text: str) -> None:
    note(text)


def _one(key: str, value: Any, values: dict[str, Any], cls: type[BaseModel]) -> tuple[dict[str, Any], str]:
    """(what a key becomes, why it does or why it becomes nothing)."""
    if key == "ann_root":
        return _files(str(value or ""), values, cls)
    if key == "train_files":  # vqa_train, vqa_val, vg_qa: names without folder and ending
        root, names = PurePath(str(values.get("ann_root") or "")), [value] if isinstance(value, str) else value
        if not isinstance(names, list):
            return {"train_file": value}, ""  # whose type is an error
        return {"train_file": [str(root / f"{name}.json") for name in names]}, ""
    if key in CHANGED:
        made, reason = CHANGED[key](value, values)
    elif key in RENAMED:
        made, reason = {RENAMED[key]: value}, ""
    elif key in LEFT_OUT:
        return {}, LEFT_OUT[key]
    else:
        return {key: value}, ""
    absent = [name for name in made if name not in cls.model_fields]
    return ({}, f"{cls.__name__} has no {', '.join(absent)}") if absent else (made, reason)


def _files(root: str, values: dict[str, Any], cls: type[BaseModel]) -> tuple[dict[str, Any], str]:
    if "max_epoch" not in values and "num_beams" in values:  # nocaps.yaml, for evaluation alone
        file = str(PurePath(root, "nocaps_val.json"))
        return {"dataset": "nocaps", "val_file": [file], "repetition_penalty": 1.1}, "the penalty is in the script"
    made: dict[str, Any] = {}
    for name, file in FILES.get(cls.__name__, {}).items():
        path = str(PurePath(root, file))
        if name not in cls.model_fields:
            continue
        made[name] = file if name == "dataset" else path if name == "answer_file" else [path]
    reason = "download them: nothing is fetched that a configuration does not name by hub: or https:"
    return (made, reason) if made else ({}, "its files are named by train_file")


def _lengths(value: Any, values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    first = len(str(values.get("prompt") or "").split()) + 1  # [DEC]
    if type(value) is not int:
        return {name: value}, ""  # whose type is an error
    return {name: max(value - first, 1)}, f"without the {first} tokens of the prompt"


def _checkpointing(value: Any, _: dict[str, Any]) -> tuple[dict[str, Any], str]:
    return {"activation_checkpointing": "torch" if value else "none"}, ""


# published key -> the keys and values here, and a reason
CHANGED: dict[str, Callable[[Any, dict[str, Any]], tuple[dict[str, Any], str]]] = {
    "max_length": lambda value, values: _lengths(value, values, "max_new_tokens"),
    "min_length": lambda value, values: _lengths(value, values, "min_new_tokens"),
    "vit_grad_ckpt": _checkpointing,
}


def _also(ours: dict[str, Any], cls: type[BaseModel]) -> dict[str, Any]:
    also = dict(ALSO.get(cls.__name__, {}))
    weights = str(ours.get("init_from") or "")
    if re.search(r"\.pth$", weights) and "tokenizer" in cls.model_fields:
        also["tokenizer"] = "hub:bert-base-uncased"  # a .pth file holds none, and the published code fetches this one
    if ours.get("vit") == "large" and "drop_path" in cls.model_fields:
        also["drop_path"] = 0.1
    return {name: one for name, one in also.items() if name in cls.model_fields}


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
