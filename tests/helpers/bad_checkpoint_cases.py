"""Broken checkpoints, each with the error that it has to give: `CASES` of (name, trigger(tmp_path), class, message)."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import blip
from blip.checkpoints import convert
from blip.checkpoints.format import CheckpointError, unique_state
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.tokenizer import Specials, Tokenizer
from helpers.tiny import STORED_EMBED, STORED_TEXT, STORED_VIT, specials_of, stored_info

CAPTIONS = ["a large lesion in the left lung", "normal chest x-ray"]
HEADS = {"image_heads": STORED_VIT.heads, "text_heads": STORED_TEXT.heads}


def tiny_retrieval() -> tuple[dict[str, Tensor], dict]:
    """Tensors and info of a small random retrieval model."""
    model = RetrievalModel(STORED_VIT, STORED_TEXT, Specials(0, 1, 2), embed_dim=STORED_EMBED)
    return unique_state(model), stored_info("retrieval")


def released(tmp_path: Path, **changes: Tensor | None) -> Path:
    """A `.pth` file of pre-training; `changes` by released name with `/` for the dots, None leaves a tensor out."""
    model = PretrainModel(STORED_VIT, STORED_TEXT, specials_of(STORED_TEXT), embed_dim=STORED_EMBED)
    path = tmp_path / "model.pth"
    convert.write(path, unique_state(model), stored_info("pretrain"), to="salesforce")
    state = torch.load(path, weights_only=True)["model"]
    for name, tensor in changes.items():
        name = name.replace("/", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    torch.save({"model": state, "epoch": 0}, path)
    return path


def folder(tmp_path: Path, **info_changes: object) -> Path:
    """One of our folders, with a tokenizer; `info_changes` go into `model.json`."""
    words = Tokenizer.train(CAPTIONS, STORED_TEXT.vocab_size)
    words.save(tmp_path / "words.json")
    text = replace(STORED_TEXT, vocab_size=words.size)
    tensors = unique_state(RetrievalModel(STORED_VIT, text, Specials(0, 1, 2), embed_dim=STORED_EMBED))
    info = {**stored_info("retrieval", text), **info_changes}
    convert.write(tmp_path / "ours", tensors, info, to="blip", tokenizer_file=tmp_path / "words.json")
    return tmp_path / "ours"


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def missing_path(tmp_path: Path) -> None:
    blip.load(tmp_path / "nothing")


def empty_folder(tmp_path: Path) -> None:
    blip.load(tmp_path)


def cut_pth(tmp_path: Path) -> None:
    convert.read(cut(released(tmp_path)), **HEADS)


def cut_safetensors(tmp_path: Path) -> None:
    path = folder(tmp_path)
    cut(path / "model.safetensors")
    blip.load(path)


def text_file(tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("these are my notes, no weights\n")
    convert.read(tmp_path / "notes.pth")


def pickled_code(tmp_path: Path) -> None:
    torch.save({"model": Tokenizer.train(CAPTIONS, 40)}, tmp_path / "model.pth")
    convert.read(tmp_path / "model.pth")


def no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    convert.read(tmp_path / "list.pth")


def another_model(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, tmp_path / "resnet.pth")
    convert.read(tmp_path / "resnet.pth")


def unknown_key(tmp_path: Path) -> None:
    convert.read(released(tmp_path, **{"text_encoder/pooler/dense/weight": torch.zeros(2, 2)}), **HEADS)


def copies_differ(tmp_path: Path) -> None:
    name = "text_decoder/bert/encoder/layer/1/output/dense/bias"
    convert.read(released(tmp_path, **{name: torch.ones(STORED_TEXT.width)}), **HEADS)


def head_differs(tmp_path: Path) -> None:
    name = "text_decoder/cls/predictions/decoder/weight"
    convert.read(released(tmp_path, **{name: torch.ones(STORED_TEXT.vocab_size, STORED_TEXT.width)}), **HEADS)


def missing_key(tmp_path: Path) -> None:
    path = released(tmp_path, **{"itm_head/bias": None, "visual_encoder/blocks/1/norm2/weight": None})
    blip.load(path, "cpu", **HEADS, tokenizer=vocabulary(tmp_path))


def missing_size(tmp_path: Path) -> None:
    convert.read(released(tmp_path, **{"visual_encoder/pos_embed": None}), **HEADS)


def wrong_shape(tmp_path: Path) -> None:
    path = released(tmp_path, **{"visual_encoder/blocks/1/mlp/fc1/bias": torch.zeros(5)})
    blip.load(path, "cpu", **HEADS, tokenizer=vocabulary(tmp_path))


def oblong_grid(tmp_path: Path) -> None:
    convert.read(released(tmp_path, **{"visual_encoder/pos_embed": torch.zeros(1, 15, STORED_VIT.width)}), **HEADS)


def unknown_heads(tmp_path: Path) -> None:
    convert.read(released(tmp_path))


def heads_do_not_divide(tmp_path: Path) -> None:
    convert.read(released(tmp_path), 5, 3)


def no_tokenizer(tmp_path: Path) -> None:
    blip.load(released(tmp_path), "cpu", **HEADS)


def wrong_tokenizer(tmp_path: Path) -> None:
    Tokenizer.train(CAPTIONS, 40).save(tmp_path / "small.json")
    blip.load(released(tmp_path), "cpu", **HEADS, tokenizer=tmp_path / "small.json")


def damaged_info(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "model.json").write_text('{"task": ')
    blip.load(path)


def newer_format(tmp_path: Path) -> None:
    path = folder(tmp_path)
    info = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**info, "format_version": 99}))
    blip.load(path)


def unknown_task(tmp_path: Path) -> None:
    blip.load(folder(tmp_path, task="segmentation"))


def no_sizes(tmp_path: Path) -> None:
    blip.load(folder(tmp_path, image_encoder={"width": 32, "colour": 3}))


def lone_safetensors(tmp_path: Path) -> None:
    blip.load(folder(tmp_path) / "model.safetensors")


def other_huggingface(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 48}')
    convert.read(tmp_path)


def huggingface_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip", "vision_config": {}, "text_config": {}}')
    convert.read(tmp_path)


def bert_is_none(tmp_path: Path) -> None:
    torch.save({"roberta.embeddings.word_embeddings.weight": torch.zeros(2, 2)}, tmp_path / "roberta.bin")
    convert.read_bert(tmp_path / "roberta.bin")


def vocabulary(tmp_path: Path) -> Path:
    """58 tokens, 60 with [DEC] and [ENC]."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(STORED_TEXT.vocab_size - 7))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return tmp_path / "vocab.txt"


CASES: list[tuple[str, Callable[[Path], None], type[Exception], str]] = [
    ("missing path", missing_path, CheckpointError, r"nothing does not exist"),
    ("empty folder", empty_folder, CheckpointError, r"is no checkpoint: .*model\.json .*config\.json"),
    ("cut .pth", cut_pth, CheckpointError, r"model\.pth .*cut short"),
    ("cut safetensors", cut_safetensors, CheckpointError, r"model\.safetensors is damaged or cut short"),
    ("text file", text_file, CheckpointError, r"notes\.pth is no file of PyTorch weights"),
    ("pickled object", pickled_code, CheckpointError, r"model\.pth .*objects other than tensors"),
    ("no state dict", no_state_dict, CheckpointError, r"list\.pth holds no state dict"),
    ("another model", another_model, CheckpointError, r"resnet\.pth holds no BLIP model.*conv1\.weight"),
    ("unknown key", unknown_key, CheckpointError, r"not known \(1\): text_encoder\.pooler\.dense\.weight"),
    ("copies differ", copies_differ, CheckpointError, r"differ.*text_decoder\.layers\.1\.feed_forward\.down\.bias"),
    ("head differs", head_differs, CheckpointError, r"differ.*text_decoder\.head\.words\.weight"),
    ("missing keys", missing_key, CheckpointError, r"(?s)missing \(2\).*blocks\.1\.norm2\.weight.*itm_head\.bias"),
    ("missing size", missing_size, CheckpointError, r"incomplete.*image_encoder\.positions"),
    ("wrong shape", wrong_shape, CheckpointError, r"(?s)wrong shape.*mlp\.0\.bias is \(5,\), the model needs \(64,\)"),
    ("oblong grid", oblong_grid, CheckpointError, r"14 patches, which is no square"),
    ("unknown heads", unknown_heads, CheckpointError, r"width 32 of image_encoder.*give image_heads"),
    ("heads do not divide", heads_do_not_divide, CheckpointError, r"5 heads do not divide the width 32"),
    ("no tokenizer", no_tokenizer, CheckpointError, r"without a tokenizer.*vocab\.txt of bert-base-uncased"),
    ("wrong tokenizer", wrong_tokenizer, CheckpointError, r"has 60 tokens and the tokenizer 40"),
    ("damaged model.json", damaged_info, CheckpointError, r"model\.json is damaged"),
    ("newer format", newer_format, CheckpointError, r"newer blip \(format 99"),
    ("unknown task", unknown_task, CheckpointError, r"checkpoint of segmentation"),
    ("no sizes", no_sizes, CheckpointError, r"does not give the model's sizes.*colour"),
    ("lone safetensors", lone_safetensors, CheckpointError, r"give the folder"),
    ("other Hugging Face model", other_huggingface, CheckpointError, r"not the configuration of a BLIP model"),
    ("Hugging Face without weights", huggingface_without_weights, CheckpointError, r"neither model\.safetensors nor"),
    ("no BERT", bert_is_none, CheckpointError, r"roberta\.bin is no BERT"),
]
