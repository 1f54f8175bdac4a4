"""Configurations of the published code: each key is translated or named with the reason, and the run works."""

import re
from pathlib import Path

import pytest

from blip.config import ConfigError, PretrainConfig, load_config
from blip.tasks.config import CaptionConfig, NlvrConfig, RetrievalConfig, VqaConfig

BASE = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"
# keys and values of the files of salesforce/BLIP
CAPTION = f"""
image_root: images/
ann_root: annotation
coco_gt_root: annotation/coco_gt
pretrained: '{BASE}model_base_caption_capfilt_large.pth'
vit: base
vit_grad_ckpt: False
vit_ckpt_layer: 0
batch_size: 32
init_lr: 1e-5
image_size: 384
max_length: 20
min_length: 5
num_beams: 3
prompt: 'a picture of '
weight_decay: 0.05
min_lr: 0
max_epoch: 5
"""
NOCAPS = f"""
image_root: nocaps/
ann_root: annotation
pretrained: '{BASE}model_base_caption_capfilt_large.pth'
vit: base
batch_size: 32
image_size: 384
max_length: 20
min_length: 5
num_beams: 3
prompt: 'a picture of '
"""
RETRIEVAL = f"""
image_root: images/
ann_root: annotation
dataset: flickr
pretrained: '{BASE}model_large_retrieval_flickr.pth'
vit: large
batch_size_train: 16
batch_size_test: 32
vit_grad_ckpt: True
vit_ckpt_layer: 10
init_lr: 5e-6
image_size: 384
queue_size: 57600
alpha: 0.4
k_test: 128
negative_all_rank: False
weight_decay: 0.05
min_lr: 0
max_epoch: 6
"""
VQA = f"""
vqa_root: vqa/
vg_root: genome/
train_files: [vqa_train, vqa_val, vg_qa]
ann_root: annotation
pretrained: '{BASE}model_base_vqa_capfilt_large.pth'
vit: base
batch_size_train: 16
batch_size_test: 32
vit_grad_ckpt: False
vit_ckpt_layer: 0
init_lr: 2e-5
image_size: 480
k_test: 128
inference: rank
weight_decay: 0.05
min_lr: 0
max_epoch: 10
"""
NLVR = f"""
image_root: nlvr/
ann_root: annotation
pretrained: '{BASE}model_base_nlvr.pth'
vit: base
batch_size_train: 16
batch_size_test: 64
vit_grad_ckpt: False
vit_ckpt_layer: 0
max_epoch: 15
image_size: 384
weight_decay: 0.05
init_lr: 3e-5
min_lr: 0
"""
PRETRAIN = """
train_file: [annotation/coco_karpathy_train.json, annotation/vg_caption.json]
laion_path: ''
vit: base
vit_grad_ckpt: False
vit_ckpt_layer: 0
image_size: 224
batch_size: 75
queue_size: 57600
alpha: 0.4
weight_decay: 0.05
init_lr: 3e-4
min_lr: 1e-6
warmup_lr: 1e-6
lr_decay_rate: 0.9
max_epoch: 20
warmup_steps: 3000
"""
HUB = {"tokenizer": "hub:bert-base-uncased"}
COCO = {split: [f"annotation/coco_karpathy_{name}.json"] for split, name in
        (("train_file", "train"), ("val_file", "val"), ("test_file", "test"))}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (CAPTION, CaptionConfig, {"init_from": f"{BASE}model_base_caption_capfilt_large.pth", "lr": 1e-5, "epochs": 5,
                                  "beams": 3, "max_new_tokens": 16, "min_new_tokens": 1, "warmup_steps": 0,
                                  "length_norm": "whole", "dataset": "coco", "activation_checkpointing": "none",
                                  **COCO, **HUB}),
        (NOCAPS, CaptionConfig, {"val_file": ["annotation/nocaps_val.json"], "dataset": "nocaps", "train_file": [],
                                 "repetition_penalty": 1.1}),
        (RETRIEVAL, RetrievalConfig, {"batch_size": 16, "dataset": "flickr", "train_file": ["annotation"],
                                      "test_file": ["annotation"], "activation_checkpointing": "torch",
                                      "negative_all_rank": False, "k_test": 128, "drop_path": 0.1, "lr": 5e-6,
                                      "equal_captions": "negatives", **HUB}),
        (VQA, VqaConfig, {"train_file": [f"annotation/{n}.json" for n in ("vqa_train", "vqa_val", "vg_qa")],
                          "test_file": ["annotation/vqa_test.json"], "answer_file": "annotation/answer_list.json",
                          "dataset": "vqa_v2", "image_root": "vqa/", "k_test": 128, "epochs": 10, **HUB}),
        (NLVR, NlvrConfig, {"train_file": ["annotation/nlvr_train.json"], "val_file": ["annotation/nlvr_dev.json"],
                            "dataset": "json", "epochs": 15, "lr": 3e-5, **HUB}),
        (PRETRAIN, PretrainConfig, {"schedule": "epoch_decay", "lr_decay": 0.9, "lr": 3e-4, "warmup_steps": 3000,
                                    "batch_size": 75, "epochs": 20, "min_lr": 1e-6, "tokenizer": "train"}),
    ],
    ids=["caption", "nocaps", "retrieval", "vqa", "nlvr", "pretrain"],
)  # fmt: skip
def test_published_files(
    text: str, kind: type, expected: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(text)
    config = load_config(path, kind)
    assert {key: getattr(config, key) for key in expected} == expected
    said = capsys.readouterr().err
    assert "published.yaml is a configuration of the published BLIP code" in said
    keys = {line.partition(":")[0] for line in text.strip().splitlines()}
    for key in keys - kind.model_fields.keys():  # each is named, with what it became or why it is left out
        assert f"{key} -> " in said or f"{key} is left out: " in said, key


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        ("max_length: many", CaptionConfig, "max_new_tokens: Input should be a valid integer"),
        ("max_length:", CaptionConfig, "max_new_tokens: Input should be a valid integer"),
        ("ann_root:", CaptionConfig, {"train_file": ["coco_karpathy_train.json"]}),
        ("prompt:", CaptionConfig, "prompt: Input should be a valid string"),
        ("train_files: vqa_train", VqaConfig, {"train_file": ["annotation/vqa_train.json"]}),
        ("train_files: 3", VqaConfig, "it takes a list: train_file: [3]"),
        ("train_files:", VqaConfig, "train_file: Input should be a valid list"),
        ("pretrained:", VqaConfig, "init_from: Input should be a valid string"),
    ],
)
def test_values_of_another_kind(line: str, kind: type, expected: dict | str, tmp_path: Path) -> None:
    """Each is taken as it is meant, or is an error that names the option."""
    path = tmp_path / "published.yaml"
    key = line.partition(":")[0]
    kept = [one for one in (CAPTION if kind is CaptionConfig else VQA).splitlines() if not one.startswith(f"{key}:")]
    path.write_text("\n".join([*kept, line]))
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            load_config(path, kind)
    else:
        config = load_config(path, kind)
        assert {name: getattr(config, name) for name in expected} == expected


def test_options_still_override(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(CAPTION)
    config = load_config(path, CaptionConfig, ["lr=2e-5", "tokenizer=vocab.txt"], options={"init_from": "model.pth"})
    assert (config.lr, config.tokenizer, config.init_from) == (2e-5, "vocab.txt", "model.pth")


def test_a_key_that_no_task_has_is_still_an_error(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(CAPTION + "max_epochs: 3\n")
    with pytest.raises(ConfigError, match="unknown key 'max_epochs'"):
        load_config(path, CaptionConfig)


def test_one_published_key_in_a_configuration_of_ours_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    for line, message in (("init_lr: 1e-5", "the published code's init_lr is lr here"),
                          ("vit_ckpt_layer: 2", "has no counterpart: with activation_checkpointing")):  # fmt: skip
        path.write_text(f"epochs: 3\n{line}\n")
        with pytest.raises(ConfigError, match=message):
            load_config(path, CaptionConfig)


def test_the_message_comes_from_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(CAPTION)
    monkeypatch.setenv("RANK", "1")
    load_config(path, CaptionConfig)
    assert capsys.readouterr().err == ""


def test_the_message_comes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(CAPTION)
    for _ in range(2):
        load_config(path, CaptionConfig)
    assert capsys.readouterr().err.count("is a configuration of the published BLIP code") == 1
